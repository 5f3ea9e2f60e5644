"""The hard probe-shrink mask with its surface between grid points, on the CPU.

With the distance field phi(y) = min_j |y - x_j| - R_j, which is positive where a probe's centre can be,

    psi(x) = max [phi(y) - |x - y|] over the y with phi(y) >= 0

is minus the distance of x from the accessible region, and x is solvent where psi(x) + r_shrink > 0.  All of the ball of
radius phi(y) about y is accessible, which tells where the surface is between the points y of a grid.  A mask value is a
smooth step of psi + r_shrink, as wide as 1.2 grid steps.

psi is decided by one place y and by the atom nearest to it, so its derivative is that of one distance.
"""

from __future__ import annotations

import dataclasses
import math

import torch

import numpy as np

from ..jit import jit_in_place
from ..jobs import MaskJob
from ..threads import over
from .fine_grid import Box, FineGrid

# Field, targets and sources.
_ARRAYS = 3
_NUMPY = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Field:
    """phi in a box, the flat places of its representatives, and the steps of the ball as flat numbers."""

    box: Box
    radii: np.ndarray
    values: np.ndarray
    part: slice
    targets: np.ndarray
    steps: np.ndarray


class HardMask:
    """psi at the representatives, and its gradient."""

    def __init__(self, job: MaskJob):
        self.job, self.grid, self.dtype = job, FineGrid(job), _NUMPY[job.dtype]
        self.unit = self.grid.unit
        order = np.argsort(self.grid.lengths, kind="stable")
        self.steps, self.lengths = self.grid.steps[order], self.grid.lengths[order].astype(self.dtype)

    def _slabs(self):
        return self.grid.slabs(self.dtype.itemsize * _ARRAYS)

    def _field(self, planes, sites, radii, top):
        box = self.grid.box(planes, sites, radii + top)
        radii = radii[box.atoms]
        m0, m1, m2 = (int(n) for n in box.shape)
        values = np.empty((m0, m1, m2), dtype=self.dtype)
        gram = box.gram.astype(self.dtype)

        def fill(first, after):
            values[first:after] = top
            _distances(
                values,
                box.windows,
                first,
                after,
                box.positions,
                radii.astype(self.dtype),
                top,
                gram,
                box.extent,
            )

        over(m0, fill)
        first, after = np.searchsorted(self.unit.places[:, 0], planes)
        part = slice(int(first), int(after))
        strides = np.array([m1 * m2, m2, 1])
        targets = (self.unit.places[part] * self.grid.fine - box.low) @ strides
        return _Field(box, radii, values, part, targets, self.steps @ strides)

    def psi(self, sites, radii, low, top):
        """psi at the representatives, where it may be above ``low``, and the fine place that decides it."""
        best, source = (
            np.empty(len(self.unit.places), dtype=self.dtype),
            np.empty(len(self.unit.places), dtype=np.int64),
        )
        sites, radii = sites.detach().numpy(), radii.detach().numpy()
        for planes in self._slabs():
            field = self._field(planes, sites, radii, top)
            b, s = best[field.part], source[field.part]
            over(
                len(b),
                lambda first, after: _dilate(
                    field.values.reshape(-1),
                    field.targets,
                    first,
                    after,
                    field.steps,
                    self.lengths,
                    np.array([top, low], dtype=self.dtype),
                    b,
                    s,
                ),
            )
        return torch.from_numpy(best), torch.from_numpy(source)

    def pull_back(self, gradient, source, sites, radii, top):
        """Gradients by sites and radii of the sum of gradient * psi."""
        sites, radii = sites.detach().numpy(), radii.detach().numpy()
        gradient, source = gradient.numpy().astype(np.float64), source.numpy()
        n = len(radii)
        by_sites, by_radii = np.zeros((n, 3)), np.zeros(n)
        for planes in self._slabs():
            field = self._field(planes, sites, radii, top)
            places = source[field.part]
            weights = np.bincount(places, gradient[field.part], field.values.size).reshape(field.values.shape)
            out = np.zeros((len(field.radii), 4))
            _nearest(
                weights,
                field.values,
                field.box.positions,
                field.radii,
                top,
                field.box.gram,
                field.box.extent,
                1e-5 if self.dtype == np.float32 else 1e-10,
                out,
            )
            found = field.box.to_atoms(out[:, :3], n, out[:, 3])
            by_sites += found[0]
            by_radii += found[1]
        return torch.from_numpy(by_sites), torch.from_numpy(by_radii)

    def to_cell(self, values, out=None):
        """Values at representatives at all points of the cell, (n1, n2, n3)."""
        return self.grid.to_cell(values, out)

    def from_cell(self, gradient):
        """Sums over each orbit, (n_orbits,)."""
        return self.grid.from_cell(gradient)


@jit_in_place
def _span(gram, radius_sq, d0, d1, origin, first, after):
    """Terms of the squared distance along a row, and the part [k, l) of [first, after) inside a sphere."""
    quadratic = gram[0] * d0 * d0 + gram[1] * d1 * d1 + gram[3] * d0 * d1
    linear = gram[4] * d0 + gram[5] * d1
    shift = linear / gram[2]
    left = (radius_sq - (quadratic - linear * shift)) / gram[2]
    if left <= 0:
        return quadratic, linear, 0, 0
    half = np.sqrt(left)
    return (
        quadratic,
        linear,
        max(first, int(np.ceil(origin - shift - half))),
        min(after, int(np.floor(origin - shift + half)) + 1),
    )


@jit_in_place
def _distances(field, windows, first_plane, after_plane, positions, radii, top, gram, extent):
    m1 = field.shape[1]
    real = gram.dtype.type
    for image in range(len(positions)):
        radius = radii[image]
        reach = radius + real(top)
        p0, p1, p2 = positions[image, 0], positions[image, 1], positions[image, 2]
        for i in range(
            max(first_plane, int(np.ceil(p0 - reach * extent[0]))),
            min(after_plane, int(np.floor(p0 + reach * extent[0])) + 1),
        ):
            d0 = real(i - p0)
            for j in range(
                max(0, int(np.ceil(p1 - reach * extent[1]))), min(m1, int(np.floor(p1 + reach * extent[1])) + 1)
            ):
                quadratic, linear, first, after = _span(
                    gram, reach * reach, d0, real(j - p1), p2, windows[0, i, j], windows[1, i, j]
                )
                twice = linear + linear
                row = field[i, j]
                for k in range(first, after):
                    d2 = real(k - p2)
                    value = np.sqrt(max(quadratic + (twice + gram[2] * d2) * d2, real(0))) - radius
                    row[k] = min(row[k], value)


@jit_in_place
def _dilate(field, targets, first, after, steps, lengths, numbers, best, source):
    top, low = numbers[0], numbers[1]
    for target in range(first, after):
        place = targets[target]
        found = place
        value = field[place]
        if low < value < 0:
            # Nothing accessible so near that it matters, until it is found.
            value = low
            for n in range(1, len(steps)):
                if top - lengths[n] <= value:
                    break
                phi = field[place + steps[n]]
                if phi >= 0 and phi - lengths[n] > value:
                    value, found = phi - lengths[n], place + steps[n]
        best[target] = value
        source[target] = found


@jit_in_place
def _nearest(weights, field, positions, radii, top, gram, extent, tolerance, out):
    """Hand the weight at each point on to the atom that is nearest there."""
    m0, m1, m2 = field.shape
    for image in range(len(positions)):
        radius = radii[image]
        reach = radius + top
        p0, p1, p2 = positions[image, 0], positions[image, 1], positions[image, 2]
        for i in range(
            max(0, int(np.ceil(p0 - reach * extent[0]))), min(m0, int(np.floor(p0 + reach * extent[0])) + 1)
        ):
            d0 = i - p0
            for j in range(
                max(0, int(np.ceil(p1 - reach * extent[1]))), min(m1, int(np.floor(p1 + reach * extent[1])) + 1)
            ):
                d1 = j - p1
                quadratic, linear, first, after = _span(gram, reach * reach, d0, d1, p2, 0, m2)
                for k in range(first, after):
                    weight = weights[i, j, k]
                    if weight == 0:
                        continue
                    d2 = k - p2
                    distance = math.sqrt(quadratic + (2 * linear + gram[2] * d2) * d2)
                    if distance - radius > field[i, j, k] + tolerance:
                        continue
                    weights[i, j, k] = 0
                    out[image, 3] -= weight
                    scale = weight / max(distance, 1e-12)
                    out[image, 0] -= scale * (gram[0] * d0 + 0.5 * gram[3] * d1 + gram[4] * d2)
                    out[image, 1] -= scale * (0.5 * gram[3] * d0 + gram[1] * d1 + gram[5] * d2)
                    out[image, 2] -= scale * (gram[4] * d0 + gram[5] * d1 + gram[2] * d2)
