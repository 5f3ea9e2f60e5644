"""The stage that refines: latent starts, polishing, baselines; the model, maps and table."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...files import read_model
from ...files.managers import map_file, model_file
from ...files.writing import write_atomically
from ...fmodel import FModel
from ...geometry import find_library
from ...reflections import Reflections
from .. import report as reporting
from ..generator.boltzmann_generator import BoltzmannGenerator
from ..generator.force_field import create_system
from ..generator.prepare import prepare_model
from ..generator.prepared_model import PreparedModel
from ..generator.torch_amber import energy_on
from ..refinement.baselines import run_baseline
from ..refinement.experiment import Experiment
from ..refinement.finish import library_restraint
from ..refinement.optimise import Settings
from ..refinement.polish import polish
from ..refinement.problem import Problem, make_problem, stripped
from ..refinement.refine import STARTS, Run, refine_latent
from ..refinement.side_chains import rotors
from ..workdir import OF_GENERATORS, prior_of
from .context import Context
from .sampling import one_copy, prepared_entry
from .searching import REBUILD_D_MIN, found_by_search, polished_by_library, rebuilt_by_density, structure_of


def refine(context: Context) -> dict[str, Any] | None:
    """The latent vector against the data, polishing, baselines; the model, maps and table."""
    report = context.progress
    params, work = context.inputs.refine, context.work
    elastic = prior_of(work, params.prior) == "elastic"
    names = (
        "d_min",
        *(("prior_rms", "rebuild") if elastic else ()),
        *OF_GENERATORS,
        "turn_side_chains",
    )
    settings = {name: getattr(params, name) for name in names} | {"baselines": list(params.baselines)}
    if elastic:
        find_library(params.library)  # to say now that there is none
        settings |= {"prior": "elastic", "library": None if params.library is None else str(params.library)}
    weight = params.force_field_weight
    settings |= {name: getattr(context.inputs, name) for name in ("method", "mask", "grid_step")}
    settings["force_field_weight"] = weight
    facts = work.need("prep")["facts"]
    settings["b_source"] = params.b_source if params.b_source != "auto" else "plddt" if facts["predicted"] else "wilson"
    inputs = {"benchmark": params.benchmark} if params.benchmark else {}
    if not work.begin(
        "refine",
        settings,
        inputs,
        context.inputs.random_seed,
        context.inputs.restart,
        resumable=("starts",),
        after="prep" if elastic else "train",
    ):
        return context.already("refine")
    entry = prepared_entry(context, params.d_min)
    prepared, frames = (
        (PreparedModel.load(work.folder("prep")).first_copy(), None)
        if elastic
        else one_copy(work, work.need("train")["settings"]["skip"])
    )
    problem = make_problem(
        prepared,
        entry,
        settings["b_source"],
        device=context.inputs.device,
        method=settings["method"],
        mask={"method": settings["mask"], "grid_step": settings["grid_step"]},
    )
    folder = work.folder("refine")
    if elastic:
        structure = structure_of(_stripped_entry(entry, problem), problem)
        # Before the search, for what the library may lack.
        d_min, device = float(problem.fmodel.reflections.d_min), context.inputs.device
        restraint = library_restraint(structure, d_min, params.library, device=device)
        seed = context.inputs.random_seed
        best = _kept(
            context,
            folder / "search.npz",
            lambda: found_by_search(problem, structure, params.prior_rms, seed, report),
        )
        runs = [best]
        if params.rebuild and d_min > REBUILD_D_MIN:
            context.say(f"Nothing is built anew: data to {d_min:.2f} Å do not show it, {REBUILD_D_MIN} Å or better do.")
        elif params.rebuild:
            runs.insert(
                0,
                _kept(
                    context,
                    folder / "rebuilt.npz",
                    lambda: rebuilt_by_density(problem, structure, best, restraint, seed, report),
                ),
            )
            for built in runs[0].facts["built"]:
                n = built.get("side_chains")
                what = built.get("residues") or f"{n} side chain{'s' if n > 1 else ''}"
                context.say(f"Built anew: {what} ({built['gain']:+.0f} nats)")
        final = _kept(
            context,
            folder / "polished.npz",
            lambda: polished_by_library(problem, structure, runs[0], restraint, params.turn_side_chains, report),
        )
        return _write_refined(context, problem, entry, runs, final, [], report)
    how = Settings(
        objective=params.objective,
        steps=params.steps,
        rigid_steps=params.rigid_steps,
        first_d_min=params.first_d_min,
        learning_rate=params.learning_rate,
    )
    energy = energy_on(create_system(prepared, constraints=None, hydrogen_mass=None), context.inputs.device)
    turning = rotors(prepared, context.inputs.device) if params.turn_side_chains else None

    def polished(run: Run) -> Run:
        return polish(
            problem, run.all_sites_cart, run.b, energy, how, params.polish_steps, weight, report=report, rotors=turning
        )

    runs = _starts(context, problem, how, folder, report)
    best = runs[0]
    final = (
        _kept(
            context,
            folder / "polished.npz",
            lambda: polished(best),
        )
        if params.polish_steps
        else best
    )
    others, budget = [], params.starts * (params.steps + params.rigid_steps)
    for name in params.baselines:

        def compute(name: str = name) -> Run:
            found = run_baseline(
                name,
                problem,
                energy,
                frames,
                dataclasses.replace(how, steps=budget),
                weight,
                report,
            )
            if not params.polish_steps:
                return found
            end = polished(found)
            end.history.steps[:0] = found.history.steps
            end.history.cycles[:0] = found.history.cycles
            end.label = name
            return end

        others.append(_kept(context, folder / f"baseline_{name}.npz", compute))
    return _write_refined(context, problem, entry, runs, final, others, report)


def _kept(context: Context, path: Path, compute: Callable[[], Run]) -> Run:
    """A run read from its file, or computed and written there."""
    run = reporting.load_run(path, context.inputs.device)
    if run is None:
        run = compute()
        reporting.save_run(path, run)
        context.say(f"{run.label}: target {run.target:.0f}, {_r(run.r_work, run.r_free)}, {run.seconds:.0f} s")
    return run


def _starts(context: Context, problem: Problem, how: Any, folder: Path, report: Callable[..., None]) -> list[Run]:
    params = context.inputs.refine
    generator = BoltzmannGenerator.load(context.work.folder("train") / "generator.pt", context.inputs.device)

    def begun(n: int) -> Run:
        seed = context.inputs.random_seed * 100 + n
        return refine_latent(problem, generator, how, STARTS[n : n + 1], seed, params.prior_weight, report)[0]

    runs = [
        _kept(
            context,
            folder / f"start_{number}.npz",
            functools.partial(begun, number),
        )
        for number in range(params.starts)
    ]
    for number, run in enumerate(runs, 1):
        run.label = run.label.replace("start 1:", f"start {number}:")
    runs.sort(key=lambda run: run.target)
    context.say(f"Taken by the target of the work set: {runs[0].label}")
    return runs


def _write_refined(
    context: Context,
    problem: Problem,
    entry: Any,
    runs: Sequence[Any],
    final: Any,
    others: Any,
    report: Callable[..., None],
) -> dict[str, Any]:
    work, params = context.work, context.inputs.refine
    folder = work.folder("refine")
    report("writing", None)
    experiment = Experiment(problem.fmodel)
    kept = _stripped_entry(entry, problem)
    start = experiment.finished(problem.sites_cart[problem.rows], problem.b_start)
    finished = experiment.finished(final.sites_cart, final.b).to(dtype=torch.float64, device="cpu")
    finished.source = kept
    finished.update_scales()
    r_work, r_free = finished.r_factors()
    flags = entry.data.r_free_flags is not None
    rows = [("start", *start.r_factors(), "")]
    rows += [
        (
            run.label,
            run.r_work,
            run.r_free,
            f"target {run.target:.0f}" + (", taken" if run is runs[0] else ""),
        )
        for run in sorted(runs, key=lambda run: run.label)
    ]
    rows += [("refined", r_work, r_free, "" if final is runs[0] else "polished")]
    rows += [(f"baseline {run.label}", run.r_work, run.r_free, "") for run in others]
    if params.benchmark:
        rows += _benchmark(params.benchmark, entry, problem)
    rows = [(name, a, b if flags else None, note) for name, a, b, note in rows]
    context.say(reporting.table(rows))
    content = {
        "name": work.need("prep")["facts"]["name"],
        "rows": rows,
        "runs": [run.summary() for run in runs],
        "final": {"r_work": r_work, "r_free": r_free if flags else None, "facts": final.facts},
        "baselines": [run.summary() for run in others],
        "n_reflections": len(finished.reflections),
    }
    everything = [*runs, *([final] if final is not runs[0] else []), *others]
    files = {
        "refined.cif": model_file(finished.source, finished.atoms, ".cif"),
        "refined.mtz": map_file(finished.to_cctbx(), flags),
        "history.csv": reporting.history_csv(everything),
        "table.json": json.dumps(content, indent=1),
    }
    for name, text in files.items():
        write_atomically(folder / name, text)
    context.say("Written: " + ", ".join(str(folder / name) for name in files))
    return work.finish("refine", [folder / name for name in files], final=content["final"])


def _stripped_entry(entry: Any, problem: Problem) -> Any:
    """The entry with the atoms that were refined."""
    from cctbx.array_family import flex

    flags = flex.bool(entry.model.xray_structure.scatterers().size(), False)
    flags.set_selected(flex.size_t(problem.selection.tolist()), True)
    manager = entry.model.manager.select(flags)
    for group in manager.get_hierarchy().atom_groups():
        group.altloc = ""
    model = dataclasses.replace(entry.model, manager=manager, xray_structure=manager.get_xray_structure())
    return dataclasses.replace(entry, model=model)


def _benchmark(path: str | Path, entry: Any, problem: Problem) -> list[Any]:
    """Rows of a reference model: as it is, and without what the force field does not have."""
    model = read_model(
        path,
        crystal_symmetry=entry.data.f_obs.crystal_symmetry(),
        scattering_table=entry.model.scattering_table,
        d_min=entry.data.f_obs.d_min(),
    )
    kept = prepare_model(model.manager.get_hierarchy()).model_index.sort().values
    everything = torch.arange(model.xray_structure.scatterers().size())
    rows = []
    for name, selection, isotropic in (
        ("reference, in full", everything, False),
        ("reference, stripped", kept, True),
    ):
        atoms = stripped(model.xray_structure, selection, isotropic=isotropic)
        fmodel = FModel(
            atoms,
            Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags),
            mask=problem.fmodel.mask_options,
        )
        fmodel.update_scales()
        rows.append((name, *fmodel.r_factors(), f"{atoms.n_atoms} atoms"))
    return rows


def _r(r_work: Any, r_free: Any) -> str:
    return f"R-work {r_work:.4f}" + ("" if r_free is None else f", R-free {r_free:.4f}")
