"""The stages of ``mmtbx_sfdiff.latent``: each takes the program (parameters, log, folder) and returns its
record."""
from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import torch

from cctbx.array_family import flex
from libtbx.utils import Sorry

from ..cctbx_backend.fmodel import map_file, model_file
from ..files import data_symmetry, find_entry, find_predicted_model, load_entry, read_model
from ..fmodel import FModel
from ..latent import (BoltzmannGenerator, LinearFlow, MixedTransform, OpenMMEnergy, PreparedModel, RealNVP, SplineFlow,
                      TrainingSettings, add_position_restraints, create_system, frame_features, load_frames,
                      plddt_force_constants, prepare_model, run_md)
from ..latent import figures, report as reporting
from ..latent.baselines import run_baseline
from ..latent.experiment import Experiment
from ..latent.optimise import Settings
from ..latent.polish import polish
from ..latent.prepare import write_atomically
from ..latent.train import train as fit
from ..latent.problem import make_problem
from ..latent.refine import STARTS, refine_latent
from ..reflections import Reflections
from .latent_placing import place_on

_SAMPLES = 100
_READING = ("labels", "free_flag_labels", "read_free_flags", "test_flag_value", "scattering_table", "allow_other_entry")


def _already(program, stage):
    program.say(f"The stage {stage} is finished in {program.work.path}; set restart=True to do it again.")
    return program.work.record(stage)


# prep

def prep(program, report):
    """Model and data into the folder; what the force field sees of the model."""
    params, work = program.inputs, program.work
    report("model and data", None)
    model_path, data_path = _model_and_data(program, report)
    inputs = {"model": model_path, "data": data_path}
    if params.prep.superpose_on:
        inputs["superpose_on"] = params.prep.superpose_on
    settings = {"uniprot_id": params.prep.uniprot_id, "oligomer": list(params.prep.oligomer or ()),
                **{name: getattr(params, name) for name in _READING}}
    if not work.begin("prep", settings, inputs, params.random_seed, params.restart):
        return _already(program, "prep")
    folder = work.folder("prep")
    data_copy = folder / ("data" + "".join(Path(data_path).suffixes[-2:]))
    shutil.copyfile(data_path, data_copy)
    model_copy = folder / "model.cif"
    predicted = bool(params.prep.uniprot_id)
    symmetry = data_symmetry(data_path)
    model = read_model(model_path, crystal_symmetry=symmetry)
    hierarchy = model.manager.get_hierarchy()
    if params.prep.superpose_on:
        hierarchy = place_on(hierarchy, read_model(params.prep.superpose_on, crystal_symmetry=symmetry)
                             .manager.get_hierarchy(), program.logger)
    crystal = symmetry if params.prep.superpose_on or predicted else model.crystal_symmetry
    write_atomically(model_copy, hierarchy.as_mmcif_string(crystal_symmetry=crystal))
    entry = _entry(program, model_copy, data_copy, settings)
    report("hydrogens", None)
    prepared = prepare_model(entry.model.manager.get_hierarchy(), entry.model.crystal_symmetry,
                             settings["oligomer"], seed=params.random_seed)
    prepared.save(folder)
    for label, reason in (*prepared.dropped, *prepared.added):
        program.say(f"{label}: {reason}")
    facts = {"dropped": prepared.dropped, "added": prepared.added, "n_ff": prepared.n_ff, "model": model_copy.name,
             "n_kept": len(prepared.model_index), "data": data_copy.name, "predicted": predicted,
             "messages": list(entry.messages), "name": Path(model_path).name.split(".")[0]}
    program.say(f"{prepared.n_ff} atoms with hydrogens, {len(prepared.model_index)} of them of the model's "
                f"{entry.model.xray_structure.scatterers().size()}; {len(entry.data.f_obs.indices())} reflections to "
                f"{entry.data.f_obs.d_min():.2f} Å.")
    outputs = [model_copy, data_copy, folder / "prepared.json", folder / "prepared.npz"]
    return work.finish("prep", outputs, **facts)


def _model_and_data(program, report):
    params = program.inputs
    if not params.prep.uniprot_id:
        if params.demo:
            raise Sorry("There is no demonstration of this program: give a model and a data file, or a PDB entry.")
        return program.find_files(None, report)
    data = params.data_file
    if not data:
        data = find_entry(params.entry_id, download=params.download, mirrors=params.mirrors, cache_dir=params.cache_dir,
                          log=program.logger).data
    return find_predicted_model(params.prep.uniprot_id, params.download, params.cache_dir, log=program.logger), data


def _entry(program, model, data, settings, d_min=None):
    return load_entry(model, data, scattering_table=settings["scattering_table"], labels=settings["labels"],
                      r_free_labels=settings["free_flag_labels"] if settings["read_free_flags"] else "none",
                      test_flag_value=settings["test_flag_value"], d_min=d_min, allow_other_entry=True)


def _prepared_entry(program, d_min=None):
    record, folder = program.work.need("prep"), program.work.folder("prep")
    facts = record["facts"]
    return _entry(program, folder / facts["model"], folder / facts["data"], record["settings"], d_min)


# md

def md(program, report):
    """Molecular dynamics from the prepared model."""
    params, work = program.inputs.md, program.work
    names = ("duration", "frame_interval", "temperature", "restraint", "restrain_by_plddt", "platform", "threads",
             "solvent_interval")
    settings = {name: getattr(params, name) for name in names}
    if not work.begin("md", settings, None, program.inputs.random_seed, program.inputs.restart, resumable=("duration",)):
        return _already(program, "md")
    prepared = PreparedModel.load(work.folder("prep"))
    system = create_system(prepared)
    if params.restraint:
        system = add_position_restraints(system, prepared.sites_cart, prepared.ca_index, _constants(program, prepared))
    last = [time.perf_counter()]

    def progress(done, total, energy):
        report(f"molecular dynamics, {energy:.0f} kJ/mol", done / total)
        if program.verbose and (time.perf_counter() - last[0] > 60 or done == total):
            last[0] = time.perf_counter()
            program.say(f"Frame {done} of {total}, {energy:.0f} kJ/mol")

    folder = run_md(prepared, system, work.folder("md"), params.duration, frame_interval=params.frame_interval,
                    solvent_interval=params.solvent_interval, temperature=params.temperature, seed=program.inputs.random_seed, platform=params.platform,
                    threads=params.threads, progress=progress)
    frames, energies = load_frames(folder)
    return work.finish("md", sorted(folder.glob("frames_*.npz")), n_frames=len(frames),
                       energy_median=float(energies.median()))


def _constants(program, prepared):
    params = program.inputs.md
    if not params.restrain_by_plddt:
        return params.restraint
    entry = _prepared_entry(program)
    b = entry.model.manager.get_hierarchy().atoms().extract_b()
    place = dict(zip(prepared.heavy_index.tolist(), prepared.model_index.tolist()))
    n = prepared.n_ff // prepared.n_copies
    return plddt_force_constants([b[place[ca % n]] for ca in prepared.ca_index.tolist()], params.restraint)


# train

def train(program, report):
    """A generator of structures like those of the dynamics."""
    params, work = program.inputs.train, program.work
    names = ("flow", "shrink", "skip") + (() if params.flow == "linear" else ("ml_steps", "kl_steps", "samples", "star_weight"))
    settings = {name: getattr(params, name) for name in names}
    if not work.begin("train", settings, None, program.inputs.random_seed, program.inputs.restart):
        return _already(program, "train")
    report("generator", None)
    prepared, frames = _one_copy(work, params.skip)
    folder = work.folder("train")
    transform = MixedTransform.from_prepared(prepared, create_system(prepared), frames=frames)
    features = frame_features(transform, frames)
    linear = LinearFlow.from_samples(features, params.shrink, transform.kinds)
    BoltzmannGenerator(transform, linear).save(folder / "linear.pt")
    outputs, history = [folder / "linear.pt", folder / "generator.pt"], []
    flow = linear
    if params.flow != "linear":
        flow = RealNVP(linear, seed=program.inputs.random_seed) if params.flow == "realnvp" else SplineFlow.from_samples(
            features, transform.kinds, params.shrink, seed=program.inputs.random_seed)
    generator = BoltzmannGenerator(transform, flow)
    if params.flow != "linear":
        history = _train_flow(program, generator, prepared, frames, folder, report)
        write_atomically(folder / "history.json", json.dumps(history, indent=1))
        outputs.append(folder / "history.json")
    generator.save(folder / "generator.pt")
    with torch.no_grad():
        z, _ = generator.encode(prepared.sites_cart[None])
    norm = float(z.norm()) / generator.n_latent**0.5
    program.say(f"{len(frames)} frames, {generator.n_latent} latent variables; the model's latent vector has a length of "
                f"{norm:.2f} sqrt(n).")
    return work.finish("train", outputs, n_frames=len(frames), n_latent=generator.n_latent, z_norm_start=norm)


def _train_flow(program, generator, prepared, frames, folder, report):
    """Likelihood, then likelihood with the energy; the rows of both."""
    params, seed = program.inputs.train, program.inputs.random_seed
    energy = OpenMMEnergy(create_system(prepared))
    parts = [(params.ml_steps, {}), (params.kl_steps, {"w_ml": 0.2, "w_kl": 1.0, "n_samples": params.samples,
                                                       "w_star": params.star_weight, "learning_rate": 5e-4})]
    rows = []
    for number, (steps, weights) in enumerate(parts):
        if not steps:
            continue

        def progress(row, steps=steps):
            report(f"training, {row['nll_validation']:.2f} nats a variable held out", row["step"] / steps)
            if program.verbose:
                program.say(f"Step {row['step']} of {steps}: held-out likelihood {row['nll_validation']:.3f} nats a variable"
                            + (f", samples {row['median_energy']:.0f} kJ/mol above the frames" if "median_energy" in row else ""))

        rows += fit(generator, frames, TrainingSettings(steps=steps, seed=seed, **weights), energy, prepared.sites_cart,
                    folder / f"checkpoint_{number}.pt", progress)
    return rows


def _one_copy(work, skip):
    """(the model without symmetry mates, frames of it (n, n_ff, 3) float64)."""
    prepared = PreparedModel.load(work.folder("prep")).first_copy()
    frames, _ = load_frames(work.folder("md"), skip=skip)
    return prepared, frames[:, :prepared.n_ff].double()


# refine

def refine(program, report):
    """The latent vector against the data, polishing, baselines; the model, maps and table."""
    params, work = program.inputs.refine, program.work
    names = ("d_min", "objective", "starts", "steps", "rigid_steps", "first_d_min", "learning_rate", "prior_weight",
             "polish_steps", "force_field_weight")
    settings = {name: getattr(params, name) for name in names} | {"baselines": list(params.baselines)}
    settings |= {name: getattr(program.inputs, name) for name in ("method", "mask", "grid_step")}
    facts = work.need("prep")["facts"]
    settings["b_source"] = params.b_source if params.b_source != "auto" else "plddt" if facts["predicted"] else "wilson"
    inputs = {"benchmark": params.benchmark} if params.benchmark else {}
    if not work.begin("refine", settings, inputs, program.inputs.random_seed, program.inputs.restart, resumable=("starts",)):
        return _already(program, "refine")
    entry = _prepared_entry(program, params.d_min)
    prepared, frames = _one_copy(work, work.need("train")["settings"]["skip"])
    problem = make_problem(prepared, entry, settings["b_source"], device=program.inputs.device, method=settings["method"],
                           mask={"method": settings["mask"], "grid_step": settings["grid_step"]})
    how = Settings(objective=params.objective, steps=params.steps, rigid_steps=params.rigid_steps,
                   first_d_min=params.first_d_min, learning_rate=params.learning_rate)
    energy = OpenMMEnergy(create_system(prepared, constraints=None, hydrogen_mass=None))
    folder = work.folder("refine")
    runs = _starts(program, problem, how, folder, report)
    best = runs[0]
    final = _kept(program, folder / "polished.npz", lambda: polish(
        problem, best.all_sites_cart, best.b, energy, how, params.polish_steps, params.force_field_weight, report=report)
        ) if params.polish_steps else best
    others, budget = [], params.starts * (params.steps + params.rigid_steps)
    for name in params.baselines:
        def compute(name=name):
            found = run_baseline(name, problem, energy, frames, dataclasses.replace(how, steps=budget),
                                 params.force_field_weight, report)
            if not params.polish_steps:
                return found
            end = polish(problem, found.all_sites_cart, found.b, energy, how, params.polish_steps, params.force_field_weight,
                         report=report)
            end.history.steps[:0] = found.history.steps
            end.history.cycles[:0] = found.history.cycles
            end.label = name
            return end
        others.append(_kept(program, folder / f"baseline_{name}.npz", compute))
    return _write_refined(program, problem, entry, runs, final, others, report)


def _kept(program, path, compute):
    """A run read from its file, or computed and written there."""
    run = reporting.load_run(path, program.inputs.device)
    if run is None:
        run = compute()
        reporting.save_run(path, run)
        program.say(f"{run.label}: target {run.target:.0f}, {_r(run.r_work, run.r_free)}, {run.seconds:.0f} s")
    return run


def _starts(program, problem, how, folder, report):
    params = program.inputs.refine
    generator = BoltzmannGenerator.load(program.work.folder("train") / "generator.pt", program.inputs.device)
    runs = [_kept(program, folder / f"start_{number}.npz", lambda n=number: refine_latent(
        problem, generator, how, STARTS[n:n + 1], program.inputs.random_seed * 100 + n, params.prior_weight, report)[0])
        for number in range(params.starts)]
    for number, run in enumerate(runs, 1):
        run.label = run.label.replace("start 1:", f"start {number}:")
    runs.sort(key=lambda run: run.target)
    program.say(f"Taken by the target of the work set: {runs[0].label}")
    return runs


def _write_refined(program, problem, entry, runs, final, others, report):
    work, params = program.work, program.inputs.refine
    folder = work.folder("refine")
    report("writing", None)
    experiment = Experiment(problem.fmodel)
    stripped = _stripped_entry(entry, problem)
    start = experiment.finished(problem.sites_cart[problem.rows], problem.b_start)
    finished = experiment.finished(final.sites_cart, final.b).to(dtype=torch.float64, device="cpu")
    finished._source = stripped
    finished.update_scales()
    r_work, r_free = finished.r_factors()
    flags = entry.data.r_free_flags is not None
    rows = [("start", *start.r_factors(), "")]
    rows += [(run.label, run.r_work, run.r_free, f"target {run.target:.0f}" + (", taken" if run is runs[0] else ""))
             for run in sorted(runs, key=lambda run: run.label)]
    rows += [("refined", r_work, r_free, "polished" if params.polish_steps else "")]
    rows += [(f"baseline {run.label}", run.r_work, run.r_free, "") for run in others]
    if params.benchmark:
        rows += _benchmark(params.benchmark, entry, problem)
    rows = [(name, a, b if flags else None, note) for name, a, b, note in rows]
    program.say(reporting.table(rows))
    content = {"name": work.need("prep")["facts"]["name"], "rows": rows, "runs": [run.summary() for run in runs],
               "final": {"r_work": r_work, "r_free": r_free if flags else None, "facts": final.facts},
               "baselines": [run.summary() for run in others], "n_reflections": len(finished.reflections)}
    everything = [*runs, *([final] if final is not runs[0] else []), *others]
    files = {"refined.cif": model_file(finished, ".cif"), "refined.mtz": map_file(finished),
             "history.csv": reporting.history_csv(everything), "table.json": json.dumps(content, indent=1)}
    for name, text in files.items():
        write_atomically(folder / name, text)
    program.say("Written: " + ", ".join(str(folder / name) for name in files))
    return work.finish("refine", [folder / name for name in files], final=content["final"])


def _stripped_entry(entry, problem):
    """The entry with the atoms that were refined."""
    flags = flex.bool(entry.model.xray_structure.scatterers().size(), False)
    flags.set_selected(flex.size_t(problem.selection.tolist()), True)
    manager = entry.model.manager.select(flags)
    for group in manager.get_hierarchy().atom_groups():
        group.altloc = ""
    model = dataclasses.replace(entry.model, manager=manager, xray_structure=manager.get_xray_structure())
    return dataclasses.replace(entry, model=model)


def _benchmark(path, entry, problem):
    """Rows of a reference model: as it is, and without what the force field does not have."""
    from ..latent.problem import stripped
    model = read_model(path, crystal_symmetry=entry.data.f_obs.crystal_symmetry(),
                       scattering_table=entry.model.scattering_table, d_min=entry.data.f_obs.d_min())
    kept = prepare_model(model.manager.get_hierarchy()).model_index.sort().values
    everything = torch.arange(model.xray_structure.scatterers().size())
    rows = []
    for name, selection, isotropic in (("reference, in full", everything, False), ("reference, stripped", kept, True)):
        atoms = stripped(model.xray_structure, selection, isotropic=isotropic)
        fmodel = FModel(atoms, Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags),
                        mask=problem.fmodel.mask_options)
        fmodel.update_scales()
        rows.append((name, *fmodel.r_factors(), f"{atoms.n_atoms} atoms"))
    return rows


def _r(r_work, r_free):
    return f"R-work {r_work:.4f}" + ("" if r_free is None else f", R-free {r_free:.4f}")


# report

def report(program, progress):
    """Figures 4a and 4b, and the table once more."""
    work = program.work
    settings = {"figures": bool(program.params.output.figures)}
    if not work.begin("report", settings, None, program.inputs.random_seed, program.inputs.restart):
        return _already(program, "report")
    folder, refined = work.folder("report"), work.folder("refine")
    content = json.loads((refined / "table.json").read_text())
    program.say(reporting.table([tuple(row) for row in content["rows"]]))
    write_atomically(folder / "report.txt", reporting.table([tuple(row) for row in content["rows"]]) + "\n")
    outputs = [folder / "report.txt"]
    if settings["figures"]:
        progress("energies of samples", None)
        outputs += [_energies(program, folder), _course(folder, refined, content)]
    program.say("Written: " + ", ".join(map(str, outputs)))
    return work.finish("report", outputs)


def _energies(program, folder):
    work = program.work
    prepared, frames = _one_copy(work, work.need("train")["settings"]["skip"])
    energy = OpenMMEnergy(create_system(prepared))
    random = torch.Generator().manual_seed(program.inputs.random_seed)
    flow = work.need("train")["settings"]["flow"]
    with torch.no_grad():
        chosen = frames[torch.linspace(0, len(frames) - 1, min(_SAMPLES, len(frames))).long()]
        values = {"dynamics": energy(chosen)}
        for name in dict.fromkeys(("linear", flow)):
            file = "linear.pt" if name == "linear" else "generator.pt"
            generator = BoltzmannGenerator.load(work.folder("train") / file)
            values[name] = energy(generator.sample(_SAMPLES, 1.0, random))
        values[f"{flow}, z x 0.5"] = energy(generator.sample(_SAMPLES, 0.5, random))
    picture = figures.energies({k: v.numpy() for k, v in values.items()}, prepared.n_ff, "Energies of structures")
    path = folder / "energies.png"
    write_atomically(path, figures.png(picture))
    return path


def _course(folder, refined, content):
    best = content["runs"][0]["label"]
    found = {}
    for path in sorted(refined.glob("*.npz")):
        run = reporting.load_run(path)
        if path.name.startswith("start") and run.target == content["runs"][0]["target"]:
            found = {f"latent ({best})": list(run.history.steps), **found}
        elif path.name.startswith("baseline"):
            found[run.label] = run.history.steps
    polished = reporting.load_run(refined / "polished.npz")
    if polished is not None and found:
        first = next(iter(found))
        found[first] = found[first] + polished.history.steps
    lines = {row[0]: (row[1], row[2]) for row in content["rows"] if row[0].startswith("reference")}
    path = folder / "course.png"
    write_atomically(path, figures.png(figures.course(found, lines, content["name"])))
    return path
