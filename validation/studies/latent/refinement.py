"""Latent refinement beside its baselines, from wrong starts, against real data.

For each entry and seed that ``python -m validation.studies.latent.priors`` has made a start and a generator for:

    latent        several starts in the latent space, the best by the work set's target, then polished
    sites         sites without prior              } the same data, objective and schedule, as many steps as all starts
    sites_ff      sites with the force field       } of the latent refinement together, then polished in the same way
    average_ff    the same from the trajectory's average
    deposited_ff  control: the deposited model, stripped and polished in the same way
    deposited_b   control: its B factors only
    latent_side_chains  control: latent, its side chains replaced by the deposited ones, then polished
    benchmark     the deposited model, stripped as the start was, as it is; and the full deposited model

One JSON line for each run is appended to RESULTS; runs that are there are not repeated, so the command can be
interrupted and given again.

    python -m validation.studies.latent.refinement --folder /tmp/latent --results latent.jsonl [--entries 1aie] [--seeds 0 1 2]
    python -m validation.studies.latent.refinement --results latent.jsonl --summary
    python -m validation.studies.latent.refinement --size gpu --minutes 18 ...      a slice of a longer study

The force field's weight is chosen for each run by cross-validation inside the work set, the polishing of all turns
side chains; ``--weight 1`` and ``--fixed-side-chains`` do without. ``--workers 16`` makes so many runs at a time.

What limits the latent runs is tried with ``--kinds deposited_ff deposited_b`` (polishing, B factors, mask),
``--starts 8``, ``--prior-weight``, and with a prior of dynamics begun at the truth:

    python -m validation.studies.latent.refinement --truth-prior 24 ...      makes truth_prior.pt for each entry and seed
    python -m validation.studies.latent.refinement --kinds latent --generator truth_prior.pt --label _truth ...

With ``--d-min 2.0 2.5 3.0`` it gives the convergence radius: start RMSD against final R-free at each
resolution.
"""

import argparse
import dataclasses
import hashlib
import math
import sys
import time
from pathlib import Path

import mmtbx_sfdiff
import torch
from mmtbx_sfdiff import Atoms, FModel, Reflections
from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.latent import (
    BoltzmannGenerator,
    LinearFlow,
    MixedTransform,
    PreparedModel,
    add_position_restraints,
    create_system,
    energy_on,
    frame_features,
    load_frames,
    run_md,
)
from mmtbx_sfdiff.latent.refinement.baselines import run_baseline
from mmtbx_sfdiff.latent.refinement.experiment import Experiment
from mmtbx_sfdiff.latent.refinement.optimise import Settings
from mmtbx_sfdiff.latent.refinement.polish import polish, polish_b
from mmtbx_sfdiff.latent.refinement.problem import make_problem, stripped
from mmtbx_sfdiff.latent.refinement.refine import STARTS, refine_latent
from mmtbx_sfdiff.latent.refinement.side_chains import rotors
from mmtbx_sfdiff.numerics.superposition import best_rotation

from validation.studies.latent.runs import key, read, run_tasks, summary

KINDS = ("benchmark", "latent", "sites_ff", "average_ff", "sites", "deposited_ff", "deposited_b", "latent_side_chains")
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


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What all runs of a study have in common: the arguments of the command line that decide about a result."""

    folder: Path
    size: str = "cpu"
    objective: str = "floored_gaussian"
    generator: str = "linear.pt"
    prior_weight: float = 1.0
    weight: float | None = None
    side_chains: bool = True
    starts: int | None = None
    device: str = "cpu"
    label: str = ""


def one(kind, entry, seed, d_min, protocol):
    """One line of the results, and the histories that belong to it."""
    start = time.perf_counter()
    device = protocol.device
    problem, truth, prepared, place = subject(entry, seed, protocol.folder, d_min, device)
    if kind == "benchmark":
        return benchmark(entry, d_min, problem.selection), None
    n_starts, steps, polish_steps = SIZES[protocol.size]
    n_starts = protocol.starts or n_starts
    settings = Settings(objective=protocol.objective, rigid_steps=30, steps=steps)
    energy = energy_on(create_system(prepared, constraints=None, hydrogen_mass=None), device)
    runs, histories, found = [], {}, None
    begin = problem.sites_cart[problem.rows]
    if kind.startswith("deposited"):
        sites = PreparedModel.load(place / "deposited").sites_cart.to(device)
        b = problem.residue_b()().detach()
    else:
        if kind.startswith("latent"):
            generator = BoltzmannGenerator.load(place / protocol.generator, device).double()
            runs = refine_latent(
                problem, generator, settings, STARTS[:n_starts], seed=seed, prior_weight=protocol.prior_weight
            )
            found = runs[0]
        else:
            frames = load_frames(place / "md", skip=SKIP)[0].to(device) if kind == "average_ff" else None
            budget = dataclasses.replace(settings, steps=n_starts * (steps + settings.rigid_steps))
            found = run_baseline(kind, problem, energy, frames, budget, protocol.weight)
        sites, b = found.all_sites_cart, found.b
        if kind == "latent_side_chains":
            sites = with_side_chains(prepared, sites, PreparedModel.load(place / "deposited").sites_cart.to(device))
        histories = {"before": [found.history.steps, found.history.cycles]}
    if kind == "deposited_b":
        final = polish_b(problem, sites, b, settings, polish_steps)
    else:
        turning = rotors(prepared, device) if protocol.side_chains and kind != "latent_side_chains" else None
        final = polish(problem, sites, b, energy, settings, polish_steps, protocol.weight, rotors=turning)
    histories["polish"] = [final.history.steps, final.history.cycles]
    reflections = problem.fmodel.reflections
    deposited = PreparedModel.load(place / "deposited").sites_cart

    def distances(sites):
        return {
            name: problem.rmsd(sites, truth, main, superpose=True) for name, main in (("main", True), ("all", False))
        }

    def rotamers(all_sites):
        return misplaced(prepared, all_sites.detach().cpu(), deposited)

    first = Experiment(problem.fmodel).finished(begin, problem.b_start)
    return {
        "r_work": final.r_work,
        "r_free": final.r_free,
        "target": final.target,
        "facts": final.facts,
        "side_chains": {
            "start": rotamers(problem.sites_cart),
            "before": rotamers(sites),
            "end": rotamers(final.all_sites_cart),
            "turned": len(final.facts.get("side_chains", ())),
        },
        "before_polish": None if found is None else found.summary(),
        "start_r": first.r_factors(),
        "rmsd_start": distances(begin),
        "rmsd_before": None if found is None else distances(found.sites_cart),
        "rmsd": distances(final.sites_cart),
        "runs": [run.summary() for run in runs],
        "rmsd_runs": [distances(run.sites_cart) for run in runs],
        "n_reflections": len(reflections),
        "n_free": int((~reflections.work).sum()),
        "settings": dataclasses.asdict(settings) | {"starts": n_starts, "polish_steps": polish_steps},
        "version": version(),
        "seconds": time.perf_counter() - start,
    }, histories


def misplaced(prepared, sites, reference):
    """How many side chains have a torsion more than 40 degrees from a reference, of how many that can turn."""
    found = rotors(prepared)
    wrong = sum(rotor.turn(rotor.angles(sites) - rotor.angles(reference)) > math.radians(40) for rotor in found)
    return wrong, len(found)


def version():
    """Of the code that made a run: the package's, with the checksum of what refines."""
    folder = Path(mmtbx_sfdiff.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("latent/**/*.py"), *folder.glob("refinement/*.py"), *folder.glob("*.py")]):
        digest.update(path.read_bytes())
    return f"{mmtbx_sfdiff.__version__} {digest.hexdigest()[:8]}"


def with_side_chains(prepared, sites_cart, other):
    """Sites with the side chains of another model of the same atoms, moved with N, CA and C of their residues."""
    result = sites_cart.detach().clone()
    names = prepared.names
    for residue in range(len(prepared.residue_names)):
        atoms = (prepared.residue_index == residue).nonzero()[:, 0]
        frame = torch.tensor([i for i in atoms.tolist() if names[i] in ("N", "CA", "C")])
        if len(frame) < 3:
            continue
        kept = ("N", "H", "CA", "C", "O", "OXT", "H1", "H2", "H3")
        side = torch.tensor([i for i in atoms.tolist() if names[i] not in kept], dtype=torch.int64)
        rotation, centre, new_centre = best_rotation(other[frame], sites_cart[frame])
        result[side] = ((other[side] - centre) @ rotation.T + new_centre).to(result)
    return result


def truth_prior(place, duration):
    """Control: a generator of dynamics that began at the deposited model, made once and kept."""
    if (place / "truth_prior.pt").exists():
        return
    deposited = PreparedModel.load(place / "deposited")
    system = add_position_restraints(create_system(deposited), deposited.sites_cart, deposited.ca_index, RESTRAINT)
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


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("latent_study"), help="of validation.studies.latent.priors")
    parser.add_argument("--results", type=Path, default=Path("latent.jsonl"))
    parser.add_argument("--entries", nargs="+", default=list(RESOLUTION))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--d-min", nargs="+", type=float, help="Å; by default each entry's own")
    parser.add_argument("--size", choices=tuple(SIZES), default="cpu")
    parser.add_argument("--objective", default="floored_gaussian", help="before polishing")
    parser.add_argument("--generator", default="linear.pt")
    parser.add_argument("--prior-weight", type=float, default=1.0)
    parser.add_argument("--weight", type=float, help="of the force field; by default chosen for each run")
    parser.add_argument("--fixed-side-chains", action="store_true", help="polishing turns none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--starts", type=int, help="instead of the size's")
    parser.add_argument("--label", default="", help="added to the names of these runs")
    parser.add_argument(
        "--truth-prior", type=float, metavar="PS", help="only make the control's generators, of so many ps"
    )
    parser.add_argument("--minutes", type=float, help="stop beginning runs after so long")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, each in a process of its own")
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
    names = ("folder", "size", "objective", "generator", "prior_weight", "weight", "starts", "device", "label")
    protocol = Protocol(side_chains=not options.fixed_side_chains, **{name: getattr(options, name) for name in names})
    done = {key(line) for line in read(options.results)}
    wanted = []
    for seed in options.seeds:
        for kind in options.kinds:
            for entry in options.entries:
                for d_min in options.d_min or [RESOLUTION.get(entry, 2.0)]:
                    task = entry, seed, kind, d_min, protocol.label
                    if task in done:
                        continue
                    if not (options.folder / entry / f"seed{seed}" / options.generator).exists():
                        print(f"{entry} seed {seed}: no {options.generator} yet", flush=True)
                        continue
                    wanted.append(task)
    return run_tasks(one, wanted, protocol, options.results, options.workers, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
