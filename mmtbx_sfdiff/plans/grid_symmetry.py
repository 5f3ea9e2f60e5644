"""Space-group symmetry of a map on a grid that carries it.

On such a grid (:meth:`Crystal.grid`) every operator permutes the grid points, so a map of the asymmetric unit's own
atoms becomes the map of the crystal by combining permuted copies of it.  Doing that one subgroup at a time takes far
fewer copies than there are operators.
"""

from __future__ import annotations

import functools

import torch

import numpy as np


def symmetrize(map_data, crystal, combine):
    """Combine a map with its copies under all operators of the space group.

    Parameters
    ----------
    map_data : torch.Tensor
        (n1, n2, n3).
    crystal : Crystal
    combine : callable
        Idempotent, commutative and associative, of two maps: ``torch.logical_or``, ``torch.minimum``, ...

    Returns
    -------
    torch.Tensor
        (n1, n2, n3).

    Raises
    ------
    ValueError
        When the grid does not carry the symmetry.
    """
    for step in _coset_steps(crystal, tuple(map_data.shape)):
        total = map_data
        for operator in step:
            total = combine(total, _permuted(map_data, operator))
        map_data = total
    return map_data


def _permuted(map_data, operator):
    """The map at the image of each grid point, ``map[(R g + t) mod n]``."""
    rotation, translation = operator
    axes = [[b for b in range(3) if rotation[a][b]] for a in range(3)]
    shape = map_data.shape
    if all(len(b) == 1 for b in axes) and all(abs(rotation[a][b[0]]) == 1 for a, b in enumerate(axes)):
        # Point g of the result reads axis a of the map at +-g[b] + t.
        indexed = map_data
        for a in range(3):
            if rotation[a][axes[a][0]] < 0:
                indexed = indexed.flip(a)
                shift = translation[a] + 1
            else:
                shift = translation[a]
            if shift % shape[a]:
                indexed = indexed.roll(-shift if rotation[a][axes[a][0]] > 0 else shift, a)
        order = [0, 0, 0]
        for a in range(3):
            order[axes[a][0]] = a
        return indexed.permute(order)
    ranges = [torch.arange(n, device=map_data.device) for n in shape]
    index = []
    for a in range(3):
        value = torch.full((1, 1, 1), translation[a], device=map_data.device)
        for b in range(3):
            if rotation[a][b]:
                view = [1, 1, 1]
                view[b] = -1
                value = value + rotation[a][b] * ranges[b].reshape(view)
        index.append(value % shape[a])
    flat = (index[0] * shape[1] + index[1]) * shape[2] + index[2]
    return map_data.reshape(-1)[flat.expand(shape)]


def operators_on_grid(crystal, shape):
    """All operators of the crystal as integers on the points of a grid, (n, 3, 3) and (n, 3).

    Raises
    ------
    ValueError
        When the grid does not carry the symmetry.
    """
    return _on_grid(
        crystal.hall_symbol,
        tuple(shape),
        crystal.rotations.flatten(1).tolist(),
        crystal.translations.tolist(),
        crystal.centring.tolist(),
    )


def _coset_steps(crystal, shape):
    return _coset_steps_of(
        crystal.hall_symbol,
        shape,
        tuple(map(tuple, crystal.rotations.flatten(1).tolist())),
        tuple(map(tuple, crystal.translations.tolist())),
        tuple(map(tuple, crystal.centring.tolist())),
    )


@functools.lru_cache(maxsize=64)
def _coset_steps_of(hall_symbol, shape, rotations, translations, centring):
    """A chain of subgroups: for each, representatives of its cosets in the next one, other than the identity."""
    rotation, translation = _on_grid(hall_symbol, shape, rotations, translations, centring)
    table = _multiplication_table(rotation, translation, shape)
    n = len(table)
    steps = []
    group = np.array([0])
    while len(group) < n:
        # The smallest next subgroup costs the fewest copies.
        best = None
        for candidate in np.setdiff1d(np.arange(n), group):
            larger = _closure(np.append(group, candidate), table)
            if best is None or len(larger) < len(best):
                best = larger
            if len(best) == 2 * len(group):
                break
        # The new map is M(x) = max over the step's operators s, and the identity, of m(s x), with m invariant under
        # the group so far: together they must reach every right coset, group * s.
        covered, step = set(group.tolist()), []
        for candidate in best.tolist():
            if candidate not in covered:
                step.append((tuple(map(tuple, rotation[candidate].tolist())), tuple(translation[candidate].tolist())))
                covered.update(table[group, candidate].tolist())
        steps.append(step)
        group = best
    return steps


def _on_grid(hall_symbol, shape, rotations, translations, centring):
    """All operators as integers on grid points, the identity first: (n, 3, 3) and (n, 3)."""
    n = np.array(shape)
    rotation = np.array(rotations, dtype=float).reshape(-1, 3, 3) * n[:, None] / n[None, :]
    translation = (np.array(translations)[None, :, :] + np.array(centring)[:, None, :]) * n
    rotation = np.broadcast_to(rotation, (len(centring), *rotation.shape)).reshape(-1, 3, 3)
    translation = translation.reshape(-1, 3)
    integers = [values.round().astype(np.int64) for values in (rotation, translation)]
    if max(np.abs(rotation - integers[0]).max(), np.abs(translation - integers[1]).max()) > 1e-6:
        raise ValueError(
            f"A grid of {shape} points does not carry the symmetry {hall_symbol!r}: take the grid from Crystal.grid()."
        )
    return integers[0], integers[1] % n


def _multiplication_table(rotation, translation, shape):
    """(n, n) numbers of the products of operators, which act as ``R x + t`` modulo the grid."""
    product_r = np.einsum("pij,qjk->pqik", rotation, rotation)
    product_t = (np.einsum("pij,qj->pqi", rotation, translation) + translation[:, None]) % np.array(shape)
    keys = np.concatenate([rotation.reshape(-1, 9), translation], 1)
    numbers = {key.tobytes(): number for number, key in enumerate(keys)}
    products = np.ascontiguousarray(np.concatenate([product_r.reshape(-1, 9), product_t.reshape(-1, 3)], 1))
    return np.array([numbers[key.tobytes()] for key in products]).reshape(len(keys), len(keys))


def _closure(members, table):
    """The group generated by some operators, as sorted numbers."""
    members = np.unique(members)
    while True:
        larger = np.unique(table[np.ix_(members, members)])
        if len(larger) == len(members):
            return larger
        members = larger


class CrystalKey:
    """Arguments ``of`` a cached function, a crystal first: they compare by what they say."""

    def __init__(self, crystal, *rest):
        self.of = crystal, *rest
        self.text = (crystal.hall_symbol, tuple(crystal.unit_cell), str(crystal.device), *rest)

    def __hash__(self):
        return hash(self.text)

    def __eq__(self, other):
        return self.text == other.text
