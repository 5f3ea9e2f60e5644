"""Structure factors of a map known at one grid point of each orbit, on the CPU.

    F(h) = V/N sum_g map(g) exp(2 pi i h.x_g) = sum_G exp(2 pi i h.t) A(h R),   A(h) = V/N sum_r w_r map(r) exp(2 pi i h.x_r)

with the representatives r and w_r the share of the operators that lead to different points of the orbit.  These lie in a
part of the cell, and the reflections wanted of a mask in a small part of its spectrum, so that sums along one axis after
the other, as matrix products, take less time than the fast Fourier transform of the whole cell.
"""

from __future__ import annotations

from typing import Any

import torch

import numpy as np

from ..jit import jit
from ..jobs import Columns
from ..products import product, reduced
from ..threads import over
from .asymmetric_unit import Unit
from .spectrum import read_reflections

_DTYPES: dict[torch.dtype, tuple[np.dtype[Any], np.dtype[Any]]] = {
    torch.float32: (np.dtype(np.float32), np.dtype(np.complex64)),
    torch.float64: (np.dtype(np.float64), np.dtype(np.complex128)),
}


# Points that are multiplied at once, and into how many blocks at most: whatever the number of threads, and so the sums the
# same.  Many small products take longer than a few large ones.
_POINTS = 2**15
_BLOCKS = 8


def _over_blocks(n, size, function):
    """function(first, after) on blocks of one size, or larger, that cover 0..n, in a few threads."""
    size = max(size, -(-n // _BLOCKS))

    def some(first, after):
        for block in range(first, after):
            function(block * size, min(n, (block + 1) * size))

    if n <= size:
        function(0, n)
    else:
        over(-(-n // size), some, per_thread=4)


class UnitTransform:
    """The transform of one :class:`~.asymmetric_unit.Unit` for one set of reflections.

    Parameters
    ----------
    unit : Unit
    plan : Columns
    volume : float
        Of the cell, Å^3.
    dtype : torch.dtype
        Of the map and of the sums.
    """

    def __init__(self, unit: Unit, plan: Columns, volume: float, dtype: torch.dtype):
        self.unit = unit
        self.dtype, self.complex = _DTYPES[dtype]
        unique = plan.indices.numpy()
        # A real map: l >= 0 is enough.
        flip = unique[:, 2] < 0
        half = np.where(flip[:, None], -unique, unique)
        h, k, l = (int(n) for n in np.abs(half).max(0, initial=0))
        self.limits = h, k, l
        places = ((half[:, 0] + h) * (2 * k + 1) + half[:, 1] + k) * (l + 1) + half[:, 2]
        gather = plan.gather.numpy()
        self.rows = places[gather].astype(np.int32)
        self.conjugate = (plan.conjugate.numpy() < 0) ^ flip[gather]
        self.phase = plan.phase.numpy().astype(self.complex)
        n_real, corner = unit.n_real, unit.corner
        self.factor = np.full(gather.shape[1], volume / float(n_real.prod()), dtype=self.dtype)
        # Every orbit is covered so often by all operators as it has too few points.
        n_operators = len(unit.rotations)
        self.shares = (np.bincount(unit.orbit, minlength=len(unit.places)) / n_operators).astype(self.dtype)
        # Who reads a place: the transpose.
        order = np.argsort(gather, axis=None, kind="stable")
        self.readers = order.astype(np.int32)
        self.starts = np.searchsorted(gather.reshape(-1)[order], np.arange(len(unique) + 1))
        self.places = places
        waves = [
            np.exp(
                2j
                * np.pi
                * np.outer(np.arange(-m if a < 2 else 0, m + 1), corner[a] + np.arange(unit.shape[a]))
                / n_real[a]
            )
            for a, m in enumerate(self.limits)
        ]
        self.wave_a, self.wave_b = (torch.from_numpy(w.astype(self.complex)) for w in waves[:2])
        # (points, frequencies and parts): cosines and sines side by side, as the parts of complex numbers are.
        self.wave_c = torch.view_as_real(torch.from_numpy(waves[2].astype(self.complex).T.copy())).flatten(1)

    def forward(self, values):
        """F of all the reflections, (n,) numpy, of a map (n_orbits,)."""
        unit, (h, k, l), wide = self.unit, self.limits, reduced(torch.device("cpu"))
        b0, b1, b2 = (int(n) for n in unit.shape)
        starts = np.searchsorted(unit.places[:, 0], np.arange(b0 + 1))
        planes = torch.empty((b0, 2 * k + 1, l + 1), dtype=self.wave_a.dtype)
        result = np.empty(self.rows.shape[1], dtype=self.complex)

        def within(first, after):
            dense = np.zeros((after - first, b1, b2), dtype=self.dtype)
            _lay_out(values, self.shares, unit.places, starts[first], starts[after], first, dense)
            rows = product(torch.from_numpy(dense).flatten(0, 1), self.wave_c, wide=wide)
            rows = torch.view_as_complex(rows.view(after - first, b1, l + 1, 2))
            product(self.wave_b, rows, planes[first:after], wide)

        _over_blocks(b0, max(1, _POINTS // (b1 * b2)), within)
        columns, spectrum = planes.view(b0, -1), torch.empty((2 * h + 1, planes[0].numel()), dtype=planes.dtype)

        def across(first, after):
            spectrum[:, first:after] = product(self.wave_a, columns[:, first:after], wide=wide)

        _over_blocks(columns.shape[1], max(64, _POINTS // b0), across)
        flat = spectrum.view(-1).numpy()
        over(
            len(result),
            lambda first, after: read_reflections(
                flat, self.rows, self.conjugate, self.phase, self.factor, first, after, result
            ),
        )
        return result

    def backward(self, gradient):
        """dT/d(map), (n_orbits,) numpy, from dT/dF, (n,)."""
        unit, (h, k, l), wide = self.unit, self.limits, reduced(torch.device("cpu"))
        b0, b1, b2 = (int(n) for n in unit.shape)
        gradient = np.ascontiguousarray(gradient, dtype=self.complex)
        spectrum = np.zeros((2 * h + 1) * (2 * k + 1) * (l + 1), dtype=self.complex)
        over(
            len(self.places),
            lambda first, after: _hand_back(
                gradient,
                self.factor,
                self.phase.reshape(-1),
                self.conjugate.reshape(-1),
                self.starts,
                self.readers,
                self.places,
                first,
                after,
                spectrum,
            ),
        )
        spectrum = torch.from_numpy(spectrum).view(2 * h + 1, -1)
        planes = torch.empty((b0, 2 * k + 1, l + 1), dtype=spectrum.dtype)
        columns = planes.view(b0, -1)

        def across(first, after):
            columns[:, first:after] = product(self.wave_a.mH, spectrum[:, first:after], wide=wide)

        _over_blocks(columns.shape[1], max(64, _POINTS // b0), across)
        starts = np.searchsorted(unit.places[:, 0], np.arange(b0 + 1))
        result = np.empty(len(unit.places), dtype=self.dtype)

        def within(first, after):
            rows = product(self.wave_b.mH, planes[first:after], wide=wide)
            dense = product(torch.view_as_real(rows).flatten(2).flatten(0, 1), self.wave_c.T, wide=wide)
            _read_out(
                dense.view(after - first, b1, b2).numpy(),
                self.shares,
                unit.places,
                starts[first],
                starts[after],
                first,
                result,
            )

        _over_blocks(b0, max(1, _POINTS // (b1 * b2)), within)
        return result


@jit
def _lay_out(values, shares, places, first, after, plane, out):
    for n in range(first, after):
        out[places[n, 0] - plane, places[n, 1], places[n, 2]] = values[n] * shares[n]


@jit
def _read_out(dense, shares, places, first, after, plane, out):
    for n in range(first, after):
        out[n] = dense[places[n, 0] - plane, places[n, 1], places[n, 2]] * shares[n]


@jit
def _hand_back(gradient, factor, phase, conjugate, starts, readers, places, first, after, out):
    """The transpose of :func:`read_reflections`, for some of the unique indices."""
    n = len(gradient)
    for unique in range(first, after):
        total = out.dtype.type(0)
        for i in range(starts[unique], starts[unique + 1]):
            reader = readers[i]
            value = gradient[reader % n] * factor[reader % n]
            if conjugate[reader]:
                total += value.conjugate() * phase[reader]
            else:
                total += value * phase[reader].conjugate()
        out[places[unique]] = total
