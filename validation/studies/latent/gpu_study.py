"""Flows trained by energy, and refinement in their latent space, on a GPU; with the CPU's cores at work meanwhile.

In FOLDER are starts and dynamics of ``python -m validation.studies.latent.priors``. For each entry in turn:

1. TorchAmber beside OpenMM: energies of frames, and steps a second of energy with gradient by the batch;
2. a RealNVP by likelihood and energy, in the time that there is for it, and its samples' energies beside those of the
   dynamics (figure 4a);
3. latent refinement with that flow and with the linear one, and sites + force field, all on the GPU.

    python -m validation.studies.latent.gpu_study FOLDER --minutes 5 [--device cuda] [--entries 1aie 1dtx] [--seed 0]

Give the same command again to go on where it was; exit code 3: time was up. With ``--workers 14`` the runs of
``validation.studies.latent.cpu_study`` are made by so many processes on the CPU at the same time; they never touch the GPU.
Results: FOLDER/gpu.jsonl (runs), FOLDER/<entry>/seed<k>/realnvp.{pt,json} and gpu_speed.json; FOLDER/latent.jsonl (runs
on the CPU).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from mmtbx_sfdiff.files.writing import write_atomically
from mmtbx_sfdiff.latent import OpenMMEnergy, PreparedModel, create_system, energy_on, load_frames

from validation.studies.latent.cpu_study import prior
from validation.studies.latent.priors import SKIP, realnvp_prior
from validation.studies.latent.refinement import RESOLUTION, Protocol, one
from validation.studies.latent.runs import key, read, run_tasks

BATCHES = (1, 16, 64)
LAST_RUNS = 1.5  # minutes before the end in which the CPU begins no run, so that those that run can finish


def speed(folder, entry, seed, device):
    """How TorchAmber compares with OpenMM, and how fast it is."""
    place = folder / entry / f"seed{seed}"
    start = PreparedModel.load(place / "prepared")
    system = create_system(start)
    frames, _ = load_frames(place / "md", skip=SKIP)
    some = frames[:: max(1, len(frames) // 8)][:8].double()
    reference = OpenMMEnergy(system, platform="Reference")(some)
    found = energy_on(system, device)(some.to(device)).cpu()
    record = {
        "entry": entry,
        "n_atoms": start.n_ff,
        "device": name_of(device),
        "worst_difference": (found - reference).abs().max().item(),
        "steps_per_second": {},
    }
    for batch in BATCHES if torch.device(device).type != "cpu" else BATCHES[:1]:
        energy = energy_on(system, device, torch.float32)
        sites = frames[torch.arange(batch) % len(frames)].float().to(device).requires_grad_(True)
        steps = []
        for _ in range(6):
            synchronise(device)
            begin = time.perf_counter()
            torch.autograd.grad(energy(sites).sum(), sites)
            synchronise(device)
            steps.append(time.perf_counter() - begin)
        record["steps_per_second"][batch] = 1 / sorted(steps)[len(steps) // 2]
    return record


def name_of(device):
    """The GPU's name, or the device's."""
    kind = torch.device(device)
    return torch.cuda.get_device_name(kind) if kind.type == "cuda" else str(kind)


def synchronise(device):
    """Wait for a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0, help="when to begin nothing new")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--entries", nargs="+", default=["1aie", "1dtx"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="cpu", help="of the refinements, as in validation.studies.latent.refinement")
    parser.add_argument("--training", type=float, default=60.0, help="seconds for each flow")
    parser.add_argument("--samples", type=int, default=64, help="energies in each training step")
    parser.add_argument("--workers", type=int, default=0, help="processes for the study on the CPU, at the same time")
    parser.add_argument("--study-entries", nargs="+", default=["1dtx", "1aie", "6jqs"])
    parser.add_argument("--study-seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args(args)
    end = time.monotonic() + 60 * options.minutes
    beside = None
    if options.workers:
        log = open(options.folder / "cpu_study.log", "a")  # noqa: SIM115  (open as long as the process)
        beside = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "validation.studies.latent.cpu_study",
                str(options.folder),
                "--workers",
                str(options.workers),
                "--minutes",
                str(max(0.5, options.minutes - LAST_RUNS)),
                "--entries",
                *options.study_entries,
                "--seeds",
                *map(str, options.study_seeds),
                "--only-made",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        code = study(options, end)
    finally:
        if beside is not None:
            try:
                beside.wait(max(1.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                beside.terminate()
                beside.wait()
    return code


def study(options, end):
    """The part on the GPU."""
    folder, device, code = options.folder, options.device, 0
    torch.set_num_threads(1)
    for entry in options.entries:
        place = folder / entry / f"seed{options.seed}"
        prior(folder, entry, options.seed)
        path = place / "gpu_speed.json"
        if not path.exists():
            record = speed(folder, entry, options.seed, device)
            write_atomically(path, json.dumps(record))
            print(json.dumps(record), flush=True)
        if time.monotonic() > end:
            return 3
        start = PreparedModel.load(place / "prepared")
        realnvp_prior(
            entry,
            start,
            place,
            None,
            device=device,
            samples=options.samples,
            seconds=min(options.training, max(10.0, end - time.monotonic())),
        )
        done = {key(line) for line in read(folder / "gpu.jsonl")}
        for kind, generator, label in (
            ("latent", "realnvp.pt", "_realnvp"),
            ("latent", "linear.pt", ""),
            ("sites_ff", "linear.pt", ""),
        ):
            task = entry, options.seed, kind, RESOLUTION[entry], label
            if task in done:
                continue
            protocol = Protocol(folder, size=options.size, generator=generator, device=device, label=label)
            minutes = (end - time.monotonic()) / 60
            code = max(code, run_tasks(one, [task], protocol, folder / "gpu.jsonl", minutes=minutes))
            if code == 3:
                return code
    return code


if __name__ == "__main__":
    sys.exit(main())
