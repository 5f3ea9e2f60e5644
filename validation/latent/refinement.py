"""Latent refinement beside its baselines, from wrong starts, against real data.

For each entry and seed that ``python -m validation.latent.priors`` has made a start and a generator for:

    latent        several starts in the latent space, the best by the work set's target, then polished
    sites         sites without prior              } the same data, objective and schedule, as many steps as all starts
    sites_ff      sites with the force field       } of the latent refinement together, then polished in the same way
    average_ff    the same from the trajectory's average
    deposited_ff  control: the deposited model, stripped and polished in the same way
    latent_side_chains  control: latent, its side chains replaced by the deposited ones, then polished
    benchmark     the deposited model, stripped as the start was, as it is; and the full deposited model

One JSON line for each run is appended to RESULTS; runs that are there are not repeated, so the command can be
interrupted and given again.

    python -m validation.latent.refinement --folder /tmp/latent --results latent.jsonl [--entries 1aie] [--seeds 0 1 2]
    python -m validation.latent.refinement --results latent.jsonl --summary
    python -m validation.latent.refinement --size gpu --minutes 18 ...      a slice of a longer study

What limits the latent runs is tried with ``--kinds deposited_ff`` (polishing, B factors, mask), ``--starts
8``, ``--prior-weight``, and with a prior of dynamics begun at the truth:

    python -m validation.latent.refinement --truth-prior 24 ...      makes truth_prior.pt for each entry and seed
    python -m validation.latent.refinement --kinds latent --generator truth_prior.pt --label _truth ...

With ``--d-min 2.0 2.5 3.0`` it gives the convergence radius: start RMSD against final R-free at each
resolution.
"""

import mmtbx_sfdiff  # noqa: F401  (first: it owns the order in which native libraries are loaded)

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch

from mmtbx_sfdiff import Atoms, FModel, Reflections
from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.latent import (
    BoltzmannGenerator,
    LinearFlow,
    MixedTransform,
    OpenMMEnergy,
    PreparedModel,
    add_position_restraints,
    create_system,
    frame_features,
    load_frames,
    run_md,
)
from mmtbx_sfdiff.latent.baselines import run_baseline
from mmtbx_sfdiff.latent.experiment import Experiment
from mmtbx_sfdiff.latent.optimise import Settings
from mmtbx_sfdiff.latent.placement import superposition
from mmtbx_sfdiff.latent.polish import polish
from mmtbx_sfdiff.latent.problem import make_problem, stripped
from mmtbx_sfdiff.latent.refine import STARTS, refine_latent

KINDS = (
    "benchmark", "latent", "sites_ff", "average_ff", "sites", "deposited_ff", "latent_side_chains"
)
RESOLUTION = {"1aie": 2.0, "1dtx": 2.2, "6jqs": 2.1}
SIZES = {"ci": (2, 80, 40), "cpu": (2, 350, 300), "gpu": (8, 1000, 400)}  # starts, steps, steps of polishing
MASK = {"method": "probe_shrink"}
RESTRAINT = 0.5  # kJ/mol/Å², of CA atoms in the control's dynamics, as in those of the study
SKIP = 3.0  # ps of the dynamics that are not used


def subject(entry, seed, folder, d_min, device="cpu"):
    """(problem, sites of the deposited model in the problem's order, PreparedModel, seed's folder)"""
    files = find_entry(entry, download=False)
    loaded = load_entry(files.model, files.data, d_min=d_min)
    place = Path(folder) / entry / f"seed{seed}"
    prepared = PreparedModel.load(place / "prepared")
    # What the deposited model says of B factors is not used either.
    problem = make_problem(prepared, loaded, b_source="wilson", method="fft", mask=MASK, device=device)
    return problem, problem.fmodel.atoms.sites_cart.to(torch.float64), prepared, place


def benchmark(entry, d_min, selection):
    """R factors of the deposited model, in full and stripped, with scales determined anew."""
    files = find_entry(entry, download=False)
    loaded = load_entry(files.model, files.data, d_min=d_min)
    structure = loaded.model.xray_structure
    reflections = Reflections.from_cctbx(loaded.data.f_obs, loaded.data.r_free_flags)
    result = {}
    for name, atoms in (("full", Atoms.from_cctbx(structure)), ("stripped", stripped(structure, selection))):
        fmodel = FModel(atoms, reflections, mask=MASK)
        fmodel.update_scales()
        result[name] = fmodel.r_factors()
    return {
        "r_work": result["stripped"][0],
        "r_free": result["stripped"][1],
        "full": result["full"],
        "n_reflections": len(reflections),
        "n_free": int((~reflections.work).sum()),
        "n_atoms": len(selection),
    }


def one(
    kind,
    entry,
    seed,
    folder,
    d_min,
    size,
    settings,
    generator_name="linear.pt",
    options=None,
    device="cpu",
    starts=None,
):
    """One line of the results, and the histories that belong to it."""
    start = time.perf_counter()
    problem, truth, prepared, place = subject(entry, seed, folder, d_min, device)
    if kind == "benchmark":
        return benchmark(entry, d_min, problem.selection), None
    n_starts, steps, polish_steps = SIZES[size]
    n_starts = starts or n_starts
    settings = dataclasses.replace(settings, steps=steps)
    system = create_system(prepared, constraints=None, hydrogen_mass=None)
    energy = OpenMMEnergy(system, platform="CPU" if device == "cpu" else "CUDA")
    runs, histories = [], {}
    begin = problem.sites_cart[problem.rows]
    if kind.startswith("latent"):
        generator = BoltzmannGenerator.load(place / generator_name, device)
        runs = refine_latent(problem, generator, settings, STARTS[:n_starts], seed=seed, **(options or {}))
        found = runs[0]
    elif kind == "deposited_ff":
        found = None
    else:
        frames = load_frames(place / "md", skip=SKIP)[0].to(device) if kind == "average_ff" else None
        budget = n_starts * (settings.steps + settings.rigid_steps)
        found = run_baseline(kind, problem, energy, frames, dataclasses.replace(settings, steps=budget))
    if found is None:
        deposited = PreparedModel.load(place / "deposited").sites_cart.to(device)
        final = polish(problem, deposited, problem.residue_b()().detach(), energy, settings, polish_steps)
        before = None
    else:
        sites = found.all_sites_cart
        if kind == "latent_side_chains":
            sites = with_side_chains(prepared, sites, PreparedModel.load(place / "deposited").sites_cart)
        final = polish(problem, sites, found.b, energy, settings, polish_steps)
        before = found.summary()
        histories = {"before": [found.history.steps, found.history.cycles]}
    histories["polish"] = [final.history.steps, final.history.cycles]
    reflections = problem.fmodel.reflections

    def distances(sites):
        return {
            name: problem.rmsd(sites, truth, main, superpose=True)
            for name, main in (("main", True), ("all", False))
        }

    first = Experiment(problem.fmodel).finished(begin, problem.b_start)
    return {
        "r_work": final.r_work,
        "r_free": final.r_free,
        "energy": final.facts.get("energy"),
        "target": final.target,
        "before_polish": before,
        "start_r": first.r_factors(),
        "rmsd_start": distances(begin),
        "rmsd_before": None if found is None else distances(found.sites_cart),
        "rmsd": distances(final.sites_cart),
        "runs": [run.summary() for run in runs],
        "rmsd_runs": [distances(run.sites_cart) for run in runs],
        "n_reflections": len(reflections),
        "n_free": int((~reflections.work).sum()),
        "settings": dataclasses.asdict(settings),
        "seconds": time.perf_counter() - start,
    }, histories


def with_side_chains(prepared, sites_cart, other):
    """Sites whose side chains are those of another model of the same atoms, moved with N, CA and C of their residues."""
    result = sites_cart.detach().clone()
    names = prepared.names
    for residue in range(len(prepared.residue_names)):
        atoms = (prepared.residue_index == residue).nonzero()[:, 0]
        frame = torch.tensor([i for i in atoms.tolist() if names[i] in ("N", "CA", "C")])
        if len(frame) < 3:
            continue
        kept = ("N", "H", "CA", "C", "O", "OXT", "H1", "H2", "H3")
        side = torch.tensor([i for i in atoms.tolist() if names[i] not in kept], dtype=torch.int64)
        rotation, centre, new_centre = superposition(other[frame], sites_cart[frame])
        result[side] = ((other[side] - centre) @ rotation.T + new_centre).to(result)
    return result


def truth_prior(place, duration):
    """Control: a generator of dynamics that began at the deposited model, made once and kept."""
    if (place / "truth_prior.pt").exists():
        return
    deposited = PreparedModel.load(place / "deposited")
    system = add_position_restraints(
        create_system(deposited), deposited.sites_cart, deposited.ca_index, RESTRAINT
    )
    run_md(
        deposited,
        system,
        place / "md_truth",
        duration,
        frame_interval=0.08,
        solvent_interval=2,
        chunk_frames=50,
    )
    frames = load_frames(place / "md_truth", skip=SKIP)[0].double()
    # In the frame and with the cuts of the start's generator, so that only the distribution differs.
    transform = MixedTransform.from_prepared(
        PreparedModel.load(place / "prepared"), create_system(deposited), frames=frames
    )
    flow = LinearFlow.from_samples(frame_features(transform, frames), 0.3, transform.kinds)
    BoltzmannGenerator(transform, flow).save(place / "truth_prior.pt")


def read(path):
    """Lines of a results file; an incomplete last one is left out."""
    lines = []
    if Path(path).exists():
        for text in Path(path).read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return lines


def key(line):
    return line["entry"], line["seed"], line["kind"], line["d_min"], line.get("label", "")


def summary(lines):
    """Text: every run, then medians."""
    out = [
        "entry seed kind          d_min  start R        before polish   final R         main-chain rmsd        s"
    ]

    def pair(r):
        return f"{r[0]:.3f}/{r[1]:.3f}" if r else "-          "

    for line in sorted(lines, key=key):
        before = line.get("before_polish")
        moved = (
            ""
            if "rmsd" not in line
            else f"{line['rmsd_start']['main']:.2f} -> "
            + (f"{line['rmsd_before']['main']:.2f} -> " if line["rmsd_before"] else "")
            + f"{line['rmsd']['main']:.2f}"
        )
        out.append(
            f"{line['entry']:6s}{line['seed']:3d}  {line['kind'] + line.get('label', ''):14s}{line['d_min']:5.2f}  "
            f"{pair(line.get('start_r'))}  {pair(before and (before['r_work'], before['r_free']))}    "
            f"{pair((line['r_work'], line['r_free']))}  {moved:22s}{line.get('seconds', 0):6.0f}"
        )
    groups = {}
    for line in lines:
        groups.setdefault((line["entry"], line["kind"] + line.get("label", ""), line["d_min"]), []).append(
            line["r_free"]
        )
    out.append("\nmedian R-free")
    out += [
        f"{e:6s}{k:14s}{d:5.2f}  {statistics.median(v):.3f}  of {len(v)}"
        for (e, k, d), v in sorted(groups.items())
    ]
    return "\n".join(out)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("latent_study"), help="of validation.latent.priors"
    )
    parser.add_argument("--results", type=Path, default=Path("latent.jsonl"))
    parser.add_argument("--entries", nargs="+", default=list(RESOLUTION))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--d-min", nargs="+", type=float, help="Å; by default each entry's own")
    parser.add_argument("--size", choices=tuple(SIZES), default="cpu")
    parser.add_argument("--objective", default="floored_gaussian")
    parser.add_argument("--generator", default="linear.pt")
    parser.add_argument("--prior-weight", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--starts", type=int, help="instead of the size's")
    parser.add_argument("--label", default="", help="added to the names of these runs")
    parser.add_argument(
        "--truth-prior", type=float, metavar="PS", help="only make the control's generators, of so many ps"
    )
    parser.add_argument("--minutes", type=float, help="stop beginning runs after so long")
    parser.add_argument("--summary", action="store_true", help="only print what is there")
    options = parser.parse_args(args)
    if options.summary:
        print(summary(read(options.results)))
        return 0
    if options.truth_prior:
        for entry in options.entries:
            for seed in options.seeds:
                truth_prior(options.folder / entry / f"seed{seed}", options.truth_prior)
        return 0
    begin = time.monotonic()
    done = {key(line) for line in read(options.results)}
    settings = Settings(objective=options.objective, rigid_steps=30)
    for entry in options.entries:
        for d_min in options.d_min or [RESOLUTION.get(entry, 2.0)]:
            for seed in options.seeds:
                for kind in options.kinds:
                    if (entry, seed, kind, d_min, options.label) in done:
                        continue
                    if options.minutes and time.monotonic() - begin > 60 * options.minutes:
                        print("time is up: give the same command again")
                        return 3
                    if not (options.folder / entry / f"seed{seed}" / options.generator).exists():
                        print(f"{entry} seed {seed}: no {options.generator} yet", flush=True)
                        break
                    line, histories = one(
                        kind,
                        entry,
                        seed,
                        options.folder,
                        d_min,
                        options.size,
                        settings,
                        options.generator,
                        {"prior_weight": options.prior_weight},
                        options.device,
                        options.starts,
                    )
                    line = {
                        "entry": entry,
                        "seed": seed,
                        "kind": kind,
                        "d_min": d_min,
                        "label": options.label,
                        **line,
                    }
                    name = f"history_{kind}{options.label}_{d_min:g}.json"
                    if histories:
                        (options.folder / entry / f"seed{seed}" / name).write_text(json.dumps(histories))
                    with open(options.results, "a") as file:
                        file.write(json.dumps(line) + "\n")
                        file.flush()
                        os.fsync(file.fileno())
                    print(summary([line]).splitlines()[1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
