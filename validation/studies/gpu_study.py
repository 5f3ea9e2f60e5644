"""Times and memory on a GPU beside cctbx on one core, in one run of a few minutes, without cctbx.

    python -m validation.studies.gpu_study FOLDER [--wheels FOLDER] [--batch 64] [--repeat 20] [--seconds 330] [--output gpu_study]
    python -m validation.studies.gpu_study --dry-run

FOLDER holds what :mod:`.gpu_inputs` made elsewhere, and in ``wheels/`` what the machine lacks, which is installed from there; all of it,
and its size, is said first.  What cctbx takes is read from ``docs/figures/gpu_cctbx.csv`` (:mod:`.gpu_cctbx`).  For every entry, the
smallest first:

- *F*, and with gradients in sites and u_iso, at an accuracy of 1e-3 in single precision, with the relative L2 of both from
  direct summation in double precision;
- the mask with F_mask, and with the gradient in sites; the relative L2 of F_mask from the CPU's;
- a whole step: F, mask, scales applied, target (least squares, maximum likelihood), gradients; and by ``FModel.compile()``;
- one model of a batch, of F with gradients and of the mask with its gradient;
- launches of a step as the profiler sees them, peak memory, and whether a second call gives the same bits.

Then the tests marked ``gpu``, and last the peers (:mod:`.gpu_peers`; ``--wheels`` is their folder), a row at a time.  ``--seconds`` is for
all of it: an entry that would not be done in what is left, by the time that the one
before it took and their sizes, is left out, and so is what is left of one that takes longer; both are said.  After every number
<output>.json is written, and <output>.rst, the table for ``docs/gpu.rst``, after every entry.

``--dry-run`` goes the same way on a CPU, in Triton's interpreter, with two made-up crystals of an atom or two, in less than a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__" and "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # which Triton looks at when it is imported

import torch

import numpy as np

from . import gpu_peers
from .gpu_common import (
    MEMORY,
    Clock,
    OutOfTime,
    exact_numbers,
    in_asymmetric_unit,
    leaves,
    load,
    relative,
    seed_of,
    write_reference,
)

ACCURACY = 1e-3
CCTBX = Path(__file__).resolve().parents[2] / "docs/figures/gpu_cctbx.csv"
# Bytes that the machine takes.
MOST = 64 * 2**20
# Of the seconds, what is kept for the tests, and for peers.
_FOR_TESTS, _FOR_PEERS = 0.15, 0.25


def cctbx_times(entry):
    """What the table has of an entry: ms on one core, and of which machine."""
    rows = csv.DictReader(CCTBX.open(newline="")) if CCTBX.exists() else ()
    return next(
        (
            {
                **{f"cctbx_{x}": float(row[x]) for x in ("f", "f_gradients", "mask", "step")},
                "cpu": f"{row['machine']}, {row['date']}",
            }
            for row in rows
            if row["entry"] == entry
        ),
        {},
    )


def measure(path, device, options, clock, row, save):
    """Fill a row of the table, saved after each number."""
    import mmtbx_sfdiff as sfdiff
    from mmtbx_sfdiff.kernels import checks, engines

    def put(**numbers):
        row.update(numbers)
        save()

    atoms, double, data, f_mask = load(path, device)
    plan = sfdiff.plan(atoms.crystal, data.miller_indices)
    n = len(plan)
    put(atoms=atoms.n_atoms, reflections=n, **cctbx_times(path.stem))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    mask_options = {"grid_step": 1.5} if options.dry_run else {}

    def f(some):
        return sfdiff.structure_factors(some, plan, method="fft", accuracy=ACCURACY, memory=MEMORY)

    def mask(some):
        return sfdiff.solvent_structure_factors(some, plan, memory=MEMORY, **mask_options)

    def with_gradients(function, some, wanted):
        value = function(some)
        return value, torch.autograd.grad(value, wanted, seed.expand(value.shape))

    seed = seed_of(n, device)
    moving, wanted = leaves(atoms)
    put(f=clock(lambda: f(atoms)))
    put(f_gradients=clock(lambda: with_gradients(f, moving, wanted)))
    # What it is worth.
    found = [with_gradients(f, moving, wanted) for _ in range(2)]
    exact, exact_gradients = exact_numbers(double, plan, seed)
    write_reference(path, plan, device, options.references / path.name)
    put(
        f_error=relative(found[0][0].detach(), exact),
        gradient_errors=[relative(a, b) for a, b in zip(found[0][1], exact_gradients)],
        same_bits=all(torch.equal(a, b) for a, b in zip((found[0][0], *found[0][1]), (found[1][0], *found[1][1]))),
    )
    put(mask=clock(lambda: mask(atoms)))
    put(mask_gradient=clock(lambda: with_gradients(mask, moving, wanted[:1])))
    put(mask_error=relative(mask(atoms).cpu(), f_mask))
    # A whole step.
    fmodel = sfdiff.FModel(moving, data, method="fft", accuracy=ACCURACY, mask=mask_options)
    with engines.everywhere("cpu") if device.type == "cpu" else contextlib.nullcontext():
        fmodel.update_scales()
        fmodel.alpha_beta()

    def step(name):
        return torch.autograd.grad(fmodel.target(name, sites_cart=wanted[0]), wanted)

    for name in ("least_squares", "maximum_likelihood"):
        put(**{f"step_{name}": clock(lambda name=name: step(name))})
    if device.type == "cuda":
        put(**profiled(lambda: step("maximum_likelihood")))
        fmodel.compile()
        for name in ("least_squares", "maximum_likelihood"):
            put(**{f"captured_{name}": clock(lambda name=name: step(name))})
    if options.batch:
        many, wanted = leaves(atoms, (options.batch,))
        put(batch_f_gradients=clock(lambda: with_gradients(f, many, wanted)) / options.batch)
        put(batch_mask_gradient=clock(lambda: with_gradients(mask, many, wanted[:1])) / options.batch)
    checks.raise_pending(device)
    if device.type == "cuda":
        put(peak_mib=torch.cuda.max_memory_allocated() / 2**20)


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
    ("mmtbx", "cctbx_step"),
    ("ML step", "step_maximum_likelihood"),
    ("captured", "captured_maximum_likelihood"),
    ("Peak, MiB", "peak_mib"),
)


def table(record):
    """A list-table for the documentation."""
    lines = [
        f"{record['device']}, {record['date']}, torch {record['torch']}; ms, medians of {record['repeat']}; a batch of "
        f"{record['batch']}; cctbx: {'; '.join(sorted({row['cpu'] for row in record['rows'] if 'cpu' in row})) or 'not known'}.",
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
    return "\n".join([*lines, "", gpu_peers.lines(record["peers"])])


def install(folder):
    """Put the wheels of a folder where they can be imported."""
    wheels = sorted(folder.glob("wheels/*.whl"))
    if not wheels:
        return
    target = tempfile.mkdtemp(prefix="gpu_study_")
    missing = gpu_peers.install(wheels, target)
    if missing is not None:
        raise SystemExit(f"The wheels could not be installed: {missing[-1000:]}")
    sys.path.append(target)
    os.environ["PYTHONPATH"] = os.pathsep.join(x for x in (os.environ.get("PYTHONPATH"), target) if x)


def run_tests(seconds):
    """The tests marked gpu: what they said last, or why they did not run."""
    if importlib.util.find_spec("pytest") is None:
        return "pytest is not installed"
    if seconds < 5:
        return "no time was left"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "-p", "no:cacheprovider", "tests/kernels"]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not done in {seconds:.0f} s"
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]


def made_up(folder):
    """Two crystals of one atom and of two, as :mod:`.gpu_inputs` writes entries."""
    import mmtbx_sfdiff as sfdiff

    symbol, cell = "P 1", (6, 7, 8, 85, 95, 100)
    for name, types in (("first", ["N"]), ("second", ["C", "O"])):
        crystal, generator = sfdiff.Crystal(cell, symbol), torch.Generator().manual_seed(0)
        n_atoms = len(types)
        sites = torch.rand(n_atoms, 3, generator=generator).double() * 6
        indices = torch.from_numpy(in_asymmetric_unit(crystal.build_miller_indices(3.0).numpy(), symbol))
        n = len(indices)
        atoms = sfdiff.Atoms.from_arrays(crystal, types, sites, b_iso=20.0)
        f_mask = sfdiff.solvent_structure_factors(atoms, crystal, indices, grid_step=1.5)
        np.savez(
            folder / f"{name}.npz",
            unit_cell=np.array(cell, dtype=float),
            space_group=symbol,
            types=np.array(types),
            sites_cart=sites.numpy(),
            b_iso=np.full(n_atoms, 20.0),
            u_cart=np.full((n_atoms, 6), np.nan),
            occupancies=np.ones(n_atoms),
            miller_indices=indices.numpy(),
            f_obs=10 + torch.rand(n, generator=generator).double().numpy(),
            sigmas=np.ones(n),
            free=np.arange(n) % 5 == 0,
            f_mask=f_mask.numpy(),
        )


@contextlib.contextmanager
def as_a_gpu():
    """Tensors of the CPU go the way of those of a GPU, in pieces that suit the interpreter: it is slow by the operation."""
    from unittest import mock

    from mmtbx_sfdiff.kernels import deferred, engines
    from mmtbx_sfdiff.kernels.cuda import density, maps, soft_mask

    with (
        mock.patch.multiple(density, _TILE=(16, 16, 16), _LANES=4096, _REFLECTIONS=4096),
        mock.patch.multiple(soft_mask, _TILE=(16, 16, 32), _BLOCK=8192),
        mock.patch.object(maps, "_BLOCK", 8192),
        engines.everywhere("triton"),
        deferred.everywhere(busy=False),
    ):
        yield


def sizes(folder, wheels):
    """Say what is carried; entries with their sizes, the smallest first."""
    files = {path for where in (folder, wheels) if where is not None for path in where.rglob("*") if path.is_file()}
    total = sum(path.stat().st_size for path in files)
    for path in sorted(files):
        print(f"{path.name}  {path.stat().st_size / 2**20:.2f} MiB")
    print(f"inputs: {total / 2**20:.2f} MiB of {MOST / 2**20:.0f}", flush=True)
    if total > MOST:
        raise SystemExit(f"The inputs in {folder} are larger than the machine takes: leave out entries or wheels.")
    return sorted((path.stat().st_size, path) for path in folder.glob("*.npz"))


def study(folder, device, options, start):
    """Measure the entries of a folder, as long as there is time."""
    end = start + options.seconds
    tests_until = end - _FOR_PEERS * options.seconds
    until = tests_until - _FOR_TESTS * options.seconds
    record = {
        "device": torch.cuda.get_device_name(0) if device.type == "cuda" else "dry run on the CPU",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "batch": options.batch,
        "repeat": options.repeat,
        "rows": [],
        "peers": [],
        "left_out": [],
    }

    def save():
        record["seconds"] = round(time.monotonic() - start, 1)
        options.output.with_suffix(".json").write_text(json.dumps(record, indent=1))
        options.output.with_suffix(".rst").write_text(table(record))

    def left_out(what):
        print("out of time:", what, flush=True)
        record["left_out"].append(what)
        save()

    took = size_before = None
    for size, path in sizes(folder, options.wheels):
        began = time.monotonic()
        if began > until or (took is not None and began + took * size / size_before > until):
            left_out(path.stem)
            continue
        record["rows"].append(row := {"entry": path.stem})
        clock = Clock(device, options.repeat, until, options.warm)
        try:
            measure(path, device, options, clock, row, save)
        except OutOfTime:
            left_out(f"{path.stem}, after {', '.join(list(row)[-1:])}")
        except Exception as error:  # of one entry: the others may be measured all the same
            row["error"] = f"{type(error).__name__}: {error}"
        took, size_before = time.monotonic() - began, size
        print(json.dumps({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        save()
    record["tests"] = "not in a dry run" if options.dry_run else run_tests(tests_until - time.monotonic())
    print("tests:", record["tests"], flush=True)
    save()

    def put(rows):
        record["peers"] = rows
        save()

    measured = [(folder / f"{row['entry']}.npz", options.references / f"{row['entry']}.npz") for row in record["rows"]]
    entries = [(path.resolve(), reference if reference.exists() else None) for path, reference in measured]
    for row in gpu_peers.measure(entries, device, options, end, put) if entries else ():
        print(json.dumps(row), flush=True)
    return int(any("error" in row for row in record["rows"]) or not record["rows"])


def main(arguments=None):
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeat", type=int)
    parser.add_argument("--seconds", type=float, help="for everything (330; of a dry run 60)")
    parser.add_argument("--output", type=Path, default=Path("gpu_study"))
    gpu_peers.arguments_of(parser)
    options = parser.parse_args(arguments)
    options.warm = 0 if options.dry_run else 2
    defaults = (
        {"batch": 2, "repeat": 1, "seconds": 60} if options.dry_run else {"batch": 64, "repeat": 20, "seconds": 330}
    )
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("a dry run is in Triton's interpreter: set TRITON_INTERPRET=1")
    if not options.dry_run and (options.folder is None or not options.folder.is_dir()):
        parser.error("give the folder that validation.studies.gpu_inputs made")
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA device is here: run it on a machine with one, or with --dry-run")
    with tempfile.TemporaryDirectory() as temporary:
        inputs, options.references = (Path(temporary) / name for name in ("inputs", "references"))
        inputs.mkdir()
        options.references.mkdir()
        if options.dry_run:
            made_up(inputs)
            with as_a_gpu():
                return study(inputs, torch.device("cpu"), options, start)
        install(options.folder)
        return study(options.folder, torch.device("cuda"), options, start)


if __name__ == "__main__":
    sys.exit(main())
