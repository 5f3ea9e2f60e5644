"""Priors for the study of latent refinement: wrong starts, dynamics from each, and the generators trained on
it.

For every entry and seed, in FOLDER/<entry>/seed<k>: a start that is wrong by design (:mod:`.starts`),
molecular dynamics from it with weak restraints of CA atoms to *the start*, a linear flow of its frames, and
with --realnvp a RealNVP trained by likelihood and energy (figure 4a). The deposited coordinates are used to
make the start wrong by the given amount, then no more.

    python -m validation.studies.latent.priors --entries 1aie 1dtx 6jqs --seeds 0 1 2 --folder /tmp/latent

Every stage that is finished is kept; run the command again to go on. What is written:

    prepared/     the start as a PreparedModel; its model_index counts the atoms of the entry's model file
    start.pdb     its heavy atoms in the crystal, with the deposited B factors' mean start.json    seeds, RMSD
    to the deposited model md/           frames linear.pt     BoltzmannGenerator with a LinearFlow
    linear_wide.pt  the same, widened until the last frames are likely by the first ones; sample it at scale 1
    / widen realnvp.pt    BoltzmannGenerator with a RealNVP, and realnvp.json, its energies beside those of
    the dynamics
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from mmtbx_sfdiff.files import find_entry, read_model
from mmtbx_sfdiff.files.writing import write_atomically
from mmtbx_sfdiff.latent import (
    BoltzmannGenerator,
    LinearFlow,
    MixedTransform,
    OpenMMEnergy,
    PreparedModel,
    RealNVP,
    TrainingSettings,
    add_position_restraints,
    calibrate,
    chiral_centres,
    create_system,
    energy_on,
    frame_features,
    handedness,
    load_frames,
    prepare_model,
    run_md,
    train,
)
from mmtbx_sfdiff.latent.generator.train import split_in_time

from validation.studies.latent.starts import backbone_rmsd, wrong_start

TARGETS = (0.8, 1.0, 1.3, 0.7, 1.5, 0.9)  # Å, by seed
# duration and frame interval in ps: shorter for larger proteins, the same hour for all
DYNAMICS = {"1aie": (60.0, 0.08), "1dtx": (20.0, 0.024), "6jqs": (16.0, 0.024)}
RESTRAINT = 0.5  # kJ/mol/Å², of CA atoms to the start
SKIP = 3.0  # ps of equilibration


def make_start(entry, folder, seed):
    """The deposited model prepared, and the start; -> PreparedModel of the start"""
    done = folder / "start.json"
    if done.exists():
        return PreparedModel.load(folder / "prepared")
    model = read_model(find_entry(entry, download=False).model)
    hierarchy = model.manager.get_hierarchy()
    prepared = folder / "deposited"  # afterwards for the report's RMSD only
    deposited = PreparedModel.load(prepared) if prepared.exists() else prepare_model(hierarchy)
    deposited.save(prepared)
    sites, record = wrong_start(deposited, TARGETS[seed % len(TARGETS)], seed)
    start = deposited.replace(sites_cart=sites)
    start.save(folder / "prepared")
    wrong = hierarchy.deep_copy()
    atoms = wrong.atoms()
    for ff, i in zip(start.heavy_index.tolist(), start.model_index.tolist()):
        atoms[i].xyz = tuple(sites[ff].tolist())
        atoms[i].b = 20.0
        atoms[i].occ = 1.0
        atoms[i].uij_erase()
    wrong = wrong.select(_flags(len(atoms), start.model_index.tolist()))
    for group in wrong.atom_groups():
        group.altloc = ""
    write_atomically(folder / "start.pdb", wrong.as_pdb_string(crystal_symmetry=model.crystal_symmetry))
    write_atomically(done, json.dumps(dict(record, entry=entry, n_ff=start.n_ff, dropped=len(start.dropped)), indent=1))
    return start


def _flags(n, chosen):
    from cctbx.array_family import flex

    flags = flex.bool(n, False)
    for i in chosen:
        flags[i] = True
    return flags


def dynamics(entry, start, folder, seed, duration=None):
    """Frames of restrained dynamics from the start; those that were brought without their states are complete."""
    if list((folder / "md").glob("frames_*.npz")) and not list((folder / "md").glob("state_*.xml")):
        return
    system = add_position_restraints(create_system(start), start.sites_cart, start.ca_index, RESTRAINT)
    default, interval = DYNAMICS.get(entry, (40.0, 0.08))
    duration = duration or default
    begin = time.perf_counter()

    def progress(done, total, energy):
        if done % 50 == 0:
            print(
                f"  {entry} seed {seed}: frame {done} of {total}, {energy:.0f} kJ/mol, "
                f"{time.perf_counter() - begin:.0f} s",
                flush=True,
            )

    run_md(
        start,
        system,
        folder / "md",
        duration,
        frame_interval=interval,
        solvent_interval=2,
        seed=seed,
        chunk_frames=50,
        progress=progress,
    )


def linear_priors(entry, start, folder, shrink=0.3, others=True):
    """Generators with shrunk full covariances; others: localised, and with the width that fits the last frames."""
    system = create_system(start)
    frames, _ = load_frames(folder / "md", skip=SKIP)
    transform = MixedTransform.from_prepared(start, system, frames=frames.double())
    x, kinds = frame_features(transform, frames), transform.kinds

    def save(name, **settings):
        generator = BoltzmannGenerator(transform, LinearFlow.from_samples(x, kinds=kinds, **settings))
        generator.save(folder / f"{name}.pt")
        return generator

    if not (folder / "linear.pt").exists():
        report(entry, start, folder, save("linear", shrink=shrink), "linear")
    if others and not (folder / "linear_local.pt").exists():
        local = save("linear_local", shrink=shrink, localise=transform.localise)
        report(entry, start, folder, local, "linear_local")
        chosen, widen = calibrate(x, kinds, localise=transform.localise)
        save("linear_wide", shrink=chosen, widen=widen, localise=transform.localise)
        write_atomically(folder / "linear_wide.json", json.dumps({"shrink": chosen, "widen": widen}))


def realnvp_prior(entry, start, folder, steps, shrink=0.3, device="cpu", samples=8, seconds=None):
    """A generator trained by likelihood and energy, and what its samples' energies are beside the linear flow's.

    Without ``steps`` there are as many as ``seconds`` allow.
    """
    if (folder / "realnvp.json").exists():
        return
    system = create_system(start)
    frames, _ = load_frames(folder / "md", skip=SKIP)
    transform = MixedTransform.from_prepared(start, system, frames=frames.double())
    settings = TrainingSettings(
        steps=steps or 5,
        batch_size=64,
        learning_rate=5e-4,
        w_ml=0.2,
        w_kl=1.0,
        n_samples=samples,
        e_high=(1e5, 300.0),
        evaluate_every=20,
    )
    x, _ = split_in_time(frame_features(transform, frames), settings.validation)  # so that validation is one
    linear = LinearFlow.from_samples(x, shrink, transform.kinds, localise=transform.localise)
    energy = energy_on(system, device, torch.float32)

    def untrained():
        return BoltzmannGenerator(copy.deepcopy(transform), RealNVP(copy.deepcopy(linear))).float().to(device)

    if steps is None:
        for _ in range(2):  # the first time is longer
            begin = time.perf_counter()
            train(untrained(), frames.to(device), settings, energy=energy)
            a_step = (time.perf_counter() - begin) / settings.steps
        settings = replace(settings, steps=max(20, int(0.8 * seconds / a_step)))
    generator = untrained()
    begin = time.perf_counter()

    def progress(row):
        if row["step"] % 100 == 0:
            print(f"  {entry}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)

    history = train(
        generator,
        frames.to(device),
        settings,
        energy=energy,
        checkpoint=folder / "realnvp.checkpoint",
        progress=progress,
    )
    seconds = time.perf_counter() - begin
    copy.deepcopy(generator).cpu().save(folder / "realnvp.pt")
    energy = energy_on(system, device, chunk=16)
    energies = {"md": energy(frames[:: max(1, len(frames) // 200)].double().to(device))}
    centres, lost = chiral_centres(start), {}
    hand = handedness(start.sites_cart, centres).to(device)
    with torch.no_grad():
        for name, flow, scale in (
            ("realnvp", generator.flow, 1.0),
            ("linear", linear, 1.0),
            ("linear_half", linear, 0.5),
            ("diagonal", LinearFlow.from_samples(x, 1.0), 1.0),
        ):
            sampler = BoltzmannGenerator(transform, flow).double().to(device)
            made = sampler.sample(1000, scale, torch.Generator().manual_seed(1))
            energies[name] = energy(made[:200])
            lost[name] = int((handedness(made, centres) != hand).any(-1).sum())
    energies = {name: value.double().cpu() for name, value in energies.items()}
    median = energies["md"].median()
    record = {
        "entry": entry,
        "n_atoms": start.n_ff,
        "device": str(device),
        "samples": samples,
        "chiral_centres": len(centres),
        "of_1000_samples_with_a_centre_inverted": lost,
        "steps": settings.steps,
        "seconds": seconds,
        "history": history,
        "median_above_md_per_atom": {name: ((e.median() - median) / start.n_ff).item() for name, e in energies.items()},
        "energies": {name: e.tolist() for name, e in energies.items()},
    }
    write_atomically(folder / "realnvp.json", json.dumps(record))
    print(entry, record["median_above_md_per_atom"], "inverted", lost, flush=True)


def report(entry, start, folder, generator, name, n=50):
    """How good the prior is: distances and energies."""
    deposited = PreparedModel.load(folder / "deposited").sites_cart
    frames, _ = load_frames(folder / "md", skip=SKIP)
    energy = OpenMMEnergy(create_system(start))
    with torch.no_grad():
        z_truth, z_start = generator.encode(deposited)[0], generator.encode(start.sites_cart)[0]
        mean = generator.decode(torch.zeros_like(z_truth))[0]
        sampled = generator.sample(n, generator=torch.Generator().manual_seed(0))
        centres = chiral_centres(start)
        kept = handedness(generator.sample(1000, generator=torch.Generator().manual_seed(1)), centres) == handedness(
            start.sites_cart, centres
        )
        e_md, e_sample = energy(frames[:: max(1, len(frames) // n)]), energy(sampled)
    quantiles = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    record = {
        "entry": entry,
        "prior": name,
        "n_frames": len(frames),
        "n_latent": generator.n_latent,
        "rmsd_start": backbone_rmsd(start, start.sites_cart, deposited),
        "rmsd_mean": backbone_rmsd(start, mean, deposited),
        "rmsd_last_frame": backbone_rmsd(start, frames[-1].double(), deposited),
        "z_truth": (z_truth.norm() / generator.n_latent**0.5).item(),
        "z_start": (z_start.norm() / generator.n_latent**0.5).item(),
        "chiral_centres": len(centres),
        "of_1000_samples_with_a_centre_inverted": int((~kept).any(-1).sum()),
        "energy_md": torch.quantile(e_md.double(), quantiles).tolist(),
        "energy_samples": torch.quantile(e_sample, quantiles).tolist(),
    }
    write_atomically(folder / f"{name}.json", json.dumps(record, indent=1))
    print(json.dumps(record), flush=True)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entries", nargs="+", default=list(DYNAMICS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("latent_study"))
    parser.add_argument("--duration", type=float, help="ps, instead of each entry's own")
    parser.add_argument("--shrink", type=float, default=0.3)
    parser.add_argument(
        "--realnvp",
        type=int,
        metavar="STEPS",
        default=0,
        help="also train a RealNVP by likelihood and energy; 400 are enough",
    )
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    for seed in options.seeds:
        for entry in options.entries:
            folder = options.folder / entry / f"seed{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            print(f"{entry}, seed {seed}", flush=True)
            start = make_start(entry, folder, seed)
            dynamics(entry, start, folder, seed, options.duration)
            linear_priors(entry, start, folder, options.shrink)
            if options.realnvp:
                realnvp_prior(entry, start, folder, options.realnvp, options.shrink)
    return 0


if __name__ == "__main__":
    sys.exit(main())
