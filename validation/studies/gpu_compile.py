"""Every Triton kernel compiled for a card that is not there: does a card's compiler take it, and what does it need?

    python -m validation.studies.gpu_compile [--arch 90] [--table FILE]

The calls of :func:`calls` go the way they go on a GPU, up to the launch: in its place Triton compiles the kernel for the
arguments that came, by the assembler of its own wheel (``ptxas``), which needs no card.  Nothing is computed, so results are whatever
was in memory, and nothing of them is looked at.  Written down are, of each kernel, registers and bytes of spilled registers a
thread, shared memory and the number of variants.  Exits with 1 where a kernel is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.kernels import deferred, engines

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


@dataclasses.dataclass
class Kernel:
    """What was found of one kernel: of each variant (registers, bytes spilled, bytes shared, s), and refusals."""

    name: str
    variants: dict[str, tuple[int, int, int, float]] = dataclasses.field(default_factory=dict)
    refusals: list[str] = dataclasses.field(default_factory=list)

    def row(self) -> tuple[str, int, int, int, int]:
        """(name, variants, most registers, most spilled, most shared)."""
        registers, spilled, shared = (max((v[i] for v in self.variants.values()), default=0) for i in range(3))
        return self.name, len(self.variants), registers, spilled, shared


class _Card:
    """What Triton asks a driver for before it compiles."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) a thread of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump does not say what a kernel needs: {said.stdout[-500:]}")
    return int(found[1]), int(found[2])


@contextlib.contextmanager
def compiling(arch: int = 90) -> Iterator[dict[str, Kernel]]:
    """In this block kernels are compiled where they would be launched; what is found, by name."""
    found: dict[str, Kernel] = {}
    # Where the driver stands that is in use depends on Triton's version; asking for it would look for a card.
    run, driver = JITFunction.run, triton.runtime.driver
    place = "_active" if hasattr(driver, "_active") else "active"
    active = getattr(driver, place)
    driver.set_active(_Card(arch))

    def compiled(self: JITFunction, *args: object, grid: object, warmup: bool, **keywords: object) -> object:
        name = self.fn.__name__
        kernel = found.setdefault(name, Kernel(name))
        start = time.perf_counter()
        try:
            made = run(self, *args, grid=grid, warmup=True, **keywords)
            if made.hash not in kernel.variants:
                registers, stack = resources(made.asm["cubin"])
                kernel.variants[made.hash] = (registers, stack, made.metadata.shared, time.perf_counter() - start)
        except Exception as error:  # of any kind: it is what we came for
            kernel.refusals.append(f"{type(error).__name__}: {error}")
        return None

    JITFunction.run = compiled
    try:
        with deferred.everywhere(), engines.everywhere("triton"), _usable():
            yield found
    finally:
        JITFunction.run = run
        setattr(driver, place, active)


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """Tensors of the CPU go to Triton without its interpreter."""
    usable = engines.usable
    engines.usable = lambda device: ("triton", *usable(device))
    try:
        yield
    finally:
        engines.usable = usable


CRYSTALS = (
    ((20, 21, 22, 80, 95, 100), "P 1", 3),
    ((20, 30, 40, 90, 90, 90), "P 21 21 21", 300),
    ((24, 24, 37, 90, 90, 120), "P 31 2 1", 150),
)


def calls() -> None:
    """What a user calls: F, the mask, a step, gradients, of one model and of three, single and double, with an f''."""
    for cell, symbol, n_atoms in CRYSTALS:
        for dtype in (torch.float32, torch.float64):
            for models in ((), (3,)):
                _calls(sfdiff.Crystal(cell, symbol), n_atoms, dtype, models)


def _calls(crystal: sfdiff.Crystal, n_atoms: int, dtype: torch.dtype, models: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    sites = torch.rand(n_atoms, 3, generator=generator) * 20
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "N", "O"] * (n_atoms // 3), sites, b_iso=20.0, dtype=dtype)
    indices = crystal.build_miller_indices(3.0)
    plan, n = sfdiff.plan(crystal, indices), len(indices)
    names = ("sites_cart", "u_iso", "u_star", "occupancies", "fp", "fdp")
    tail = {"sites_cart": (1, 1), "u_star": (1, 1)}
    leaves = {
        name: (getattr(atoms, name) + torch.zeros(*models, *tail.get(name, (1,)), dtype=dtype)).requires_grad_()
        for name in names
    }
    for dispersion in (False, True):
        if dispersion:
            leaves["fdp"] = (leaves["fdp"].detach() + 1).requires_grad_()
        some = atoms.replace(**leaves)
        # The grid of an accuracy that single precision does not have is in double.
        f = sfdiff.structure_factors(some, plan, method="fft", accuracy=1e-3 if dtype == torch.float32 else 1e-7)
        torch.autograd.grad(f.real.sum(), [leaves[name] for name in (names if dispersion else names[:2])])
    for options in ({}, {"full_occupancy": 0.5, "include_zero_occupancy": True}):
        f = sfdiff.solvent_structure_factors(some, plan, **options)
        wanted = [leaves["sites_cart"], leaves["occupancies"]] if options else [leaves["sites_cart"]]
        torch.autograd.grad(f.real.sum(), wanted, allow_unused=True)
    ones, engine = torch.ones(n, dtype=dtype), engines.of_atoms(engines.engine("cpu", "triton"))
    assert engine is not None
    factors = ones.expand(*models, n)
    for likelihood in (False, True):
        for f in (factors, factors.to(dtype.to_complex())):
            engine.amplitude_target(f, torch.ones(n, 6, dtype=torch.float64), likelihood, dtype)


def table(found: dict[str, Kernel], arch: int) -> str:
    """A list-table for the documentation."""
    lines = [
        f"Compiled for sm_{arch} by Triton {triton.__version__}, without a card:",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
    ]
    rows = [kernel.row() for _, kernel in sorted(found.items())]
    for row in [("Kernel", "Variants", "Registers", "Stack, bytes a thread", "Shared memory, bytes"), *rows]:
        lines.extend(f"   {'  -' if i else '* -'} {value}" for i, value in enumerate(row))
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, default=90, help="compute capability times ten (90: H100, H200)")
    parser.add_argument("--table", type=Path, help="write the table for docs/gpu.rst there")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    with compiling(options.arch) as found:
        calls()
    print(table(found, options.arch))
    if options.table:
        options.table.write_text(table(found, options.arch))
    refused = {name: kernel.refusals for name, kernel in found.items() if kernel.refusals}
    for name, why in refused.items():
        print(f"REFUSED {name}: {len(why)} times, first: {why[0]}")
    total = sum(len(kernel.variants) for kernel in found.values())
    print(f"{len(found)} kernels, {total} variants, {len(refused)} refused, {time.perf_counter() - start:.0f} s")
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
