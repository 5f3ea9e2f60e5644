"""Times and memory on a GPU beside cctbx on one core, in one run of a few minutes, without cctbx.

    python -m validation.studies.gpu_study FOLDER [--device cuda] [--batch 64] [--repeat 20] [--seconds 330] [--output gpu_study]

FOLDER holds what :mod:`.gpu_inputs` made elsewhere, the times of cctbx included.  For every entry, the smallest first, as long as
the seconds last:

- *F*, and with gradients in sites and u_iso, at an accuracy of 1e-3 in single precision, with the relative L2 of both from
  direct summation in double precision;
- the mask with F_mask, and with the gradient in sites; the largest difference of F_mask from the CPU's;
- a whole step: F, mask, scales applied, target (least squares, maximum likelihood), gradients; and by ``FModel.compile()``;
- one model of a batch, of F with gradients and of the mask with its gradient;
- launches of a step as the profiler sees them, peak memory, and whether a second call gives the same bits.

Writes <output>.json after each entry, and <output>.rst, the table for ``docs/gpu.rst``, at the end.  ``--device cpu`` under
``TRITON_INTERPRET=1`` is a dry run: take a small entry and ``--atoms 20 --d-min 6``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import statistics
import sys
import time
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.kernels import checks, deferred, engines

import numpy as np

ACCURACY = 1e-3
MEMORY = 8 * 2**30


class Clock:
    """Medians of calls, ms, after two that make plans and compile."""

    def __init__(self, device, repeat):
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.repeat = repeat

    def __call__(self, call, warm=2):
        times = []
        for turn in range(self.repeat + warm):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            if turn >= warm:
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)


def load(path, device, n_atoms=None, d_min=None):
    """(atoms in single and in double precision, reflections in single precision, times of cctbx)."""
    found = np.load(path)
    crystal = sfdiff.Crystal(tuple(found["unit_cell"].tolist()), str(found["space_group"]))
    part = slice(0, n_atoms)
    double = sfdiff.Atoms.from_arrays(
        crystal,
        [str(x) for x in found["types"][part]],
        found["sites_cart"][part],
        b_iso=found["b_iso"][part],
        occupancies=found["occupancies"][part],
        u_cart=found["u_cart"][part],
    )
    indices = torch.from_numpy(found["miller_indices"].astype(np.int64))
    rows = torch.arange(len(indices))
    if d_min is not None:
        rows = (crystal.d_star_sq(indices) <= d_min**-2).nonzero()[:, 0]
    data = sfdiff.Reflections.from_arrays(
        crystal, indices[rows], found["f_obs"][rows.numpy()], found["sigmas"][rows.numpy()], found["free"][rows.numpy()]
    )
    theirs = {name: 1e3 * float(found[name]) for name in ("cctbx_f", "cctbx_f_gradients", "cctbx_mask")}
    double = double.to(device=device)
    return (
        double.to(dtype=torch.float32),
        double,
        data.to(dtype=torch.float32, device=device),
        theirs,
        str(found["cpu"]),
    )


def relative(a, b):
    return float(torch.linalg.vector_norm(a.to(b.dtype) - b) / torch.linalg.vector_norm(b))


def leaves(atoms, batch=(), seed=0):
    """The atoms, moved a little in each model of a batch, and their sites and u_iso as leaves."""
    noise = torch.randn((*batch, *atoms.sites_cart.shape), generator=torch.Generator().manual_seed(seed))
    x = (atoms.sites_cart + 0.1 * bool(batch) * noise.to(atoms.sites_cart)).requires_grad_()
    u = (atoms.u_iso + torch.zeros((*batch, 1)).to(atoms.u_iso)).requires_grad_()
    return atoms.replace(sites_cart=x, u_iso=u), [x, u]


def measure(path, device, options):
    """One row of the table."""
    atoms, double, data, row, cpu = load(path, device, options.atoms, options.d_min)
    clock = Clock(device, options.repeat)
    plan = sfdiff.plan(atoms.crystal, data.miller_indices)
    n = len(plan)
    row = {"entry": path.stem, "atoms": atoms.n_atoms, "reflections": n, "cpu": cpu, **row}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def f(some):
        return sfdiff.structure_factors(some, plan, method="fft", accuracy=ACCURACY, memory=MEMORY)

    def mask(some):
        return sfdiff.solvent_structure_factors(some, plan, memory=MEMORY)

    def with_gradients(function, some, wanted):
        value = function(some)
        return value, torch.autograd.grad(value, wanted, seed.expand(value.shape))

    seed = torch.randn(n, dtype=torch.complex64, generator=torch.Generator().manual_seed(1)).to(device)
    moving, wanted = leaves(atoms)
    row["f"] = clock(lambda: f(atoms))
    row["f_gradients"] = clock(lambda: with_gradients(f, moving, wanted))
    row["mask"] = clock(lambda: mask(atoms))
    row["mask_gradient"] = clock(lambda: with_gradients(mask, moving, wanted[:1]))
    # What it is worth.
    found = [with_gradients(f, moving, wanted) for _ in range(2)]
    exact_moving, exact_wanted = leaves(double)
    exact = sfdiff.structure_factors(exact_moving, plan, method="direct", memory=MEMORY)
    exact_gradients = torch.autograd.grad(exact, exact_wanted, seed.to(exact.dtype))
    row["f_error"] = relative(found[0][0].detach(), exact.detach())
    row["gradient_errors"] = [relative(a, b) for a, b in zip(found[0][1], exact_gradients)]
    row["same_bits"] = all(torch.equal(a, b) for a, b in zip((found[0][0], *found[0][1]), (found[1][0], *found[1][1])))
    with engines.everywhere("cpu"), deferred_off(device):
        here = atoms.to(device="cpu")
        expected = sfdiff.solvent_structure_factors(here, sfdiff.plan(here.crystal, data.miller_indices.cpu()))
    row["mask_error"] = relative(mask(atoms).cpu(), expected)
    # A whole step.
    fmodel = sfdiff.FModel(moving, data, method="fft", accuracy=ACCURACY)
    with engines.everywhere("cpu") if device.type == "cpu" else contextlib.nullcontext():
        fmodel.update_scales()
        fmodel.alpha_beta()

    def step(name):
        return torch.autograd.grad(fmodel.target(name, sites_cart=wanted[0]), wanted)

    for name in ("least_squares", "maximum_likelihood"):
        row[f"step_{name}"] = clock(lambda name=name: step(name))
    if device.type == "cuda":
        row |= profiled(lambda: step("least_squares"))
        fmodel.compile()
        for name in ("least_squares", "maximum_likelihood"):
            row[f"captured_{name}"] = clock(lambda name=name: step(name))
    if options.batch:
        many, wanted = leaves(atoms, (options.batch,))
        row["batch_f_gradients"] = clock(lambda: with_gradients(f, many, wanted)) / options.batch
        row["batch_mask_gradient"] = clock(lambda: with_gradients(mask, many, wanted[:1])) / options.batch
    checks.raise_pending(device)
    if device.type == "cuda":
        row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return row


def deferred_off(device):
    """Where the CPU is treated as a GPU, not for what is computed beside."""
    return deferred.everywhere(busy=False) if device.type == "cpu" else contextlib.nullcontext()


def profiled(call):
    """Launches of a call, and its time on the device, ms, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {"launches": len(kernels), "device_ms": sum(event.device_time for event in kernels) / 1e3}


COLUMNS = (
    ("Entry", "entry"),
    ("Atoms", "atoms"),
    ("Reflections", "reflections"),
    ("*F*", "f"),
    ("and gradients", "f_gradients"),
    ("cctbx", "cctbx_f_gradients"),
    ("one of the batch", "batch_f_gradients"),
    ("error of *F*", "f_error"),
    ("Mask", "mask"),
    ("and gradient", "mask_gradient"),
    ("mmtbx", "cctbx_mask"),
    ("one of the batch", "batch_mask_gradient"),
    ("Step", "step_least_squares"),
    ("captured", "captured_least_squares"),
    ("ML step", "step_maximum_likelihood"),
    ("captured", "captured_maximum_likelihood"),
    ("Peak, MiB", "peak_mib"),
)


def table(record):
    """A list-table for the documentation."""
    lines = [
        f"{record['device']}, {record['date']}, torch {record['torch']}; ms, medians of {record['repeat']}; a batch of "
        f"{record['batch']}; cctbx: {record['rows'][0]['cpu'] if record['rows'] else ''}.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
    ]
    for row in [{key: name for name, key in COLUMNS}, *record["rows"]]:
        for number, (_, key) in enumerate(COLUMNS):
            value = row.get(key, "")
            value = f"{value:.3g}" if isinstance(value, float) else value
            lines.append(f"   {'* -' if number == 0 else '  -'} {value}".rstrip())
    return "\n".join(lines) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=330)
    parser.add_argument("--atoms", type=int, help="of each entry, only the first: for a dry run")
    parser.add_argument("--d-min", type=float)
    parser.add_argument("--output", type=Path, default=Path("gpu_study"))
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here: run it on a machine with one, or dry with --device cpu")
    start = time.monotonic()
    record = {
        "device": torch.cuda.get_device_name(0) if device.type == "cuda" else "dry run on the CPU",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "batch": options.batch,
        "repeat": options.repeat,
        "rows": [],
    }
    paths = sorted(options.folder.glob("*.npz"), key=lambda path: path.stat().st_size)
    with contextlib.ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(engines.everywhere("triton"))
            stack.enter_context(deferred.everywhere(busy=False))
        for path in paths:
            if time.monotonic() - start > options.seconds:
                print("out of time before", path.stem, flush=True)
                break
            record["rows"].append(row := measure(path, device, options))
            print(json.dumps({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}), flush=True)
            options.output.with_suffix(".json").write_text(json.dumps(record, indent=1))
    options.output.with_suffix(".rst").write_text(table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
