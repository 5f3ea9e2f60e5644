"""Reflections off a transform and onto it, as Triton kernels: symmetry, phases and the blur in one pass each.

What :func:`~mmtbx_sfdiff.kernels.reference.density.read` and ``write`` do in torch operations.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .findings import GOOD, report, verdicts


@triton.jit
def read_reflections(
    spectrum,
    rows,
    conjugate,
    phase,
    factor,
    out,
    sums,
    status,
    limits,
    row,
    kinds,
    parameters,
    n,
    n_operators,
    n_places,
    n_models,
    n_atoms,
    blocks,
    atom_blocks,
    DISPERSION: tl.constexpr,
    REPORT: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """F of a block of reflections of a model; with DISPERSION i times it is added.  NaN where something was wrong."""
    model = tl.program_id(0) // blocks
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    first = spectrum + 2 * model.to(tl.int64) * n_places
    real = tl.zeros((BLOCK,), dtype=spectrum.dtype.element_ty)
    imaginary = tl.zeros((BLOCK,), dtype=spectrum.dtype.element_ty)
    for g in range(n_operators):
        at = g * n + i
        place = tl.load(rows + at, mask=inside, other=0)
        a = tl.load(first + 2 * place, mask=inside, other=0.0)
        b = tl.load(first + 2 * place + 1, mask=inside, other=0.0)
        b = tl.where(tl.load(conjugate + at, mask=inside, other=0) != 0, -b, b)
        c = tl.load(phase + 2 * at, mask=inside, other=0.0)
        d = tl.load(phase + 2 * at + 1, mask=inside, other=0.0)
        real += a * c - b * d
        imaginary += a * d + b * c
    q = tl.load(factor + i, mask=inside, other=0.0)
    real, imaginary = real * q, imaginary * q
    target = out + 2 * (model.to(tl.int64) * n + i)
    if DISPERSION:
        real, imaginary = -imaginary, real
        real += tl.load(target, mask=inside, other=0.0).to(real.dtype)
        imaginary += tl.load(target + 1, mask=inside, other=0.0).to(real.dtype)
    kind = out.dtype.element_ty
    one = model + tl.arange(0, 1)
    lost = tl.min(verdicts(one, n_models, sums, status, limits, atom_blocks, BLOCKS), 0) < GOOD
    tl.store(target, tl.where(lost, float("nan"), real).to(kind), mask=inside)
    tl.store(target + 1, tl.where(lost, float("nan"), imaginary).to(kind), mask=inside)
    if REPORT:
        if tl.program_id(0) == 0:
            report(row, n_models, n_atoms, sums, status, limits, atom_blocks, kinds, BLOCKS, parameters)


@triton.jit
def read_map(
    spectrum,
    rows,
    conjugate,
    factor,
    out,
    row,
    kind,
    n,
    n_places,
    n_models,
    blocks,
    BLOCK: tl.constexpr,
):
    """F of a block of reflections of a map; a map that is not finite is written down."""
    model = tl.program_id(0) // blocks
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    first = spectrum + 2 * model.to(tl.int64) * n_places
    place = tl.load(rows + i, mask=inside, other=0)
    q = tl.load(factor + i, mask=inside, other=0.0)
    real = tl.load(first + 2 * place, mask=inside, other=0.0) * q
    imaginary = tl.load(first + 2 * place + 1, mask=inside, other=0.0) * q
    imaginary = tl.where(tl.load(conjugate + i, mask=inside, other=0) != 0, -imaginary, imaginary)
    target = out + 2 * (model.to(tl.int64) * n + i)
    tl.store(target, real, mask=inside)
    tl.store(target + 1, imaginary, mask=inside)
    if tl.program_id(0) == 0:
        found = tl.full((), 2147483647, dtype=tl.int32)
        for start in range(0, n_models, 16):
            models = start + tl.arange(0, 16)
            total = tl.load(spectrum + 2 * models.to(tl.int64) * n_places, mask=models < n_models, other=0.0)
            bad = ~(tl.abs(total) < float("inf"))
            found = tl.minimum(found, tl.min(tl.where(bad, models, 2147483647), 0))
        if (found < 2147483647) & (tl.load(row) == 0):
            tl.store(row, tl.load(kind))
            tl.store(row + 1, found.to(tl.float64))
            tl.store(row + 2, 0.0)
            tl.store(row + 3, n_models)


@triton.jit
def write_reflections(
    seed,
    seed_step,
    rows_targets,
    mirror,
    starts,
    sources,
    conjugate,
    phase,
    factor,
    spectrum,
    n,
    n_unique,
    n_places,
    blocks,
    readers,
    DISPERSION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dT/d(spectrum) at a block of unique indices, and at their mates, from dT/dF; with DISPERSION of i times it."""
    model = tl.program_id(0) // blocks
    u = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = u < n_unique
    kind = spectrum.dtype.element_ty
    start = tl.load(starts + u, mask=inside, other=0)
    count = tl.load(starts + u + 1, mask=inside, other=0) - start
    given = seed + 2 * model.to(tl.int64) * seed_step
    real, imaginary = tl.zeros((BLOCK,), dtype=kind), tl.zeros((BLOCK,), dtype=kind)
    for k in range(readers):
        more = inside & (k < count)
        at = tl.load(sources + start + k, mask=more, other=0)
        i = at % n
        q = tl.load(factor + i, mask=more, other=0.0)
        a = tl.load(given + 2 * i, mask=more, other=0.0).to(kind) * q
        b = tl.load(given + 2 * i + 1, mask=more, other=0.0).to(kind) * q
        if DISPERSION:
            a, b = b, -a
        c = tl.load(phase + 2 * at, mask=more, other=0.0)
        d = tl.load(phase + 2 * at + 1, mask=more, other=0.0)
        turned = tl.load(conjugate + at, mask=more, other=0) != 0
        # Where the conjugate is read: conj(g) phase, else g conj(phase).
        real += a * c + b * d
        imaginary += tl.where(turned, a * d - b * c, b * c - a * d)
    target, mate = tl.load(rows_targets + u, mask=inside, other=0), tl.load(mirror + u, mask=inside, other=-1)
    itself = mate == target
    first = spectrum + 2 * model.to(tl.int64) * n_places
    tl.store(first + 2 * target, tl.where(itself, real, real / 2), mask=inside)
    tl.store(first + 2 * target + 1, tl.where(itself, 0.0, imaginary / 2), mask=inside)
    other = inside & (mate >= 0) & ~itself
    tl.store(first + 2 * mate, real / 2, mask=other)
    tl.store(first + 2 * mate + 1, -imaginary / 2, mask=other)
