"""Structure factors of maps on the whole cell on a GPU: a transform and one launch; and the transpose, two and a transform."""

from __future__ import annotations

import math
import weakref

import torch

import triton

from .. import deferred
from ..atom_jobs import MapReflections
from .constants import constant, keep
from .reflections import read_map, write_reflections

_BLOCK = 256
_TABLES: weakref.WeakKeyDictionary[MapReflections, dict[torch.dtype, _Tables]] = weakref.WeakKeyDictionary()


class _Tables:
    """What the kernels read of :class:`MapReflections`, as they read it."""

    def __init__(self, where: MapReflections, dtype: torch.dtype) -> None:
        def whole(x: torch.Tensor) -> torch.Tensor:
            return x.to(torch.int32).contiguous()

        self.rows, self.conjugate = whole(where.rows), where.conjugate.to(torch.int8).contiguous()
        self.factor = where.factor.to(dtype).contiguous()
        self.phase = torch.view_as_real(torch.ones(len(where.rows), dtype=dtype.to_complex(), device=where.rows.device))
        self.targets, self.mirror = whole(where.targets), whole(where.mirror)
        self.starts, self.sources = whole(where.starts), whole(where.sources)
        self.readers = int(where.starts.diff().max()) if len(where.starts) > 1 else 0


def _tables(where: MapReflections, dtype: torch.dtype) -> _Tables:
    found = _TABLES.setdefault(where, {})
    if dtype not in found:
        found[dtype] = _Tables(where, dtype)
    return keep(found[dtype])


def _shape(where: MapReflections) -> tuple[int, int, int]:
    return (*where.dims[:2], where.dims[2] // 2 + 1)


def map_factors(maps: torch.Tensor, where: MapReflections) -> torch.Tensor:
    """F (n_models, n) of maps (n_models, n1, n2, n3)."""
    tables, device = _tables(where, maps.dtype), maps.device
    n, n_models = len(where.rows), len(maps)
    out = torch.empty((n_models, n), dtype=maps.dtype.to_complex(), device=device)
    if not n:
        return out
    spectrum = torch.view_as_real(torch.fft.rfftn(maps, dim=(-3, -2, -1)))
    blocks = triton.cdiv(n, _BLOCK)
    read_map[(n_models * blocks,)](
        spectrum, tables.rows, tables.conjugate, tables.factor, torch.view_as_real(out), deferred.row(device),
        constant(device, deferred.kinds({}, "mask")[1]), n, math.prod(_shape(where)), n_models, blocks, BLOCK=_BLOCK,
    )  # fmt: skip
    return out  # what was written down is sent to the host by the next call that sends


def map_factors_transposed(f: torch.Tensor, where: MapReflections) -> torch.Tensor:
    """dT/d(map) (n_models, n1, n2, n3) from dT/dF (n_models, n)."""
    dtype, n, n_models = f.real.dtype, len(where.rows), len(f)
    tables = _tables(where, dtype)
    spectrum = torch.zeros((n_models, *_shape(where)), dtype=f.dtype, device=f.device)
    seed = torch.view_as_real(f.resolve_conj())
    if seed.stride()[1:] != (2, 1):
        seed = seed.contiguous()
    n_targets = len(tables.targets)
    blocks = triton.cdiv(n_targets, _BLOCK)
    if blocks:
        write_reflections[(n_models * blocks,)](
            seed, seed.stride(0) // 2 if n_models > 1 else n, tables.targets, tables.mirror, tables.starts,
            tables.sources, tables.conjugate, tables.phase, tables.factor, torch.view_as_real(spectrum),
            n, n_targets, math.prod(_shape(where)), blocks, tables.readers, DISPERSION=False, BLOCK=_BLOCK,
        )  # fmt: skip
    return torch.fft.irfftn(spectrum, s=where.dims, dim=(-3, -2, -1), norm="forward")
