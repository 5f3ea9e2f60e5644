"""Quick R factors of variants of a crystal: other indices, space groups, cells, places of the model.

What they share is F of the molecule alone, G, at the indices h R of each rotation R of the group; a space group of the same
class and a shift x of the model are phases between those:

    F(h) = sum_R G(h R) exp[2 pi i (h.t_R + (h R).x)]

R is taken on a random part of the work reflections between 8 and 2.5 Å, where the solvent says little, with one scale in each
of ten shells.  Shifts are the highest peaks of the translation function

    T(x) = sum_h (I_obs - <I_obs>) |F(h; x)|^2

Reference: R. A. Crowther & D. M. Blow (1967), Acta Cryst. 23, 544.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

import gemmi
import numpy as np
import numpy.typing as npt
from cctbx import sgtbx

from ..atoms import Atoms
from ..crystal import Crystal
from ..structure_factors import structure_factors

Reals = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]
Indices = npt.NDArray[np.int64]

_COARSE, _FINE = 8.0, 2.5  # Å
_ENOUGH, _MOST = 200, 2000  # reflections
_SHELLS = 10
_ACCURACY = 1e-3
_LARGEST_MAP = 3_000_000  # points
_PEAKS = 5
_SAME_PEAK = 0.03  # of the cell


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """A space group with the rotations of the crystal's own.

    Attributes
    ----------
    symbol : str
    translations : numpy.ndarray
        (m, 3) in the order of those rotations.
    """

    symbol: str
    translations: Reals


class Screen:
    """The molecule of an FModel, and the reflections on which variants are tried.

    Parameters
    ----------
    fmodel : FModel
        Of one model.
    """

    def __init__(self, fmodel: Any) -> None:
        reflections = fmodel.reflections
        self.atoms: Atoms = fmodel.atoms.to(device="cpu", dtype=torch.float64)
        self.crystal: Crystal = reflections.crystal.to("cpu")
        self.rotations = self.crystal.rotations.numpy()
        self.own = Group(self.crystal.space_group_symbol, self.crystal.translations.numpy())
        work = reflections.work.cpu().numpy()
        d = reflections.d_spacings.cpu().numpy()
        inside = work & (d <= _COARSE) & (d >= _FINE)
        rows = np.flatnonzero(inside if inside.sum() >= _ENOUGH else work)
        indices = reflections.miller_indices.cpu().numpy()
        observed = reflections.f_obs.cpu().numpy().astype(np.float64)
        part = np.sort(np.random.default_rng(0).permutation(rows)[:_MOST])
        self.h, self.observed = indices[part], observed[part]
        self.shells = _equal_parts(d[part])
        low = rows[np.argsort(-d[rows], kind="stable")][:_MOST]  # for maps, which low resolution keeps small
        self.low, self._low_observed, self._low_shells = indices[low], observed[low], _equal_parts(d[low])

    def molecule(self, indices: Indices, cell: Sequence[float] | None = None, fractional: bool = False) -> Complex:
        """G (m, n) of the molecule at h R, in the cell given: its coordinates in Å, or in fractions, stay what they are."""
        alone = Crystal(self.crystal.unit_cell if cell is None else tuple(cell), "P 1")
        atoms = self.atoms
        sites = atoms.sites_frac if fractional or cell is None else atoms.sites_cart @ alone.fractionalization.T
        u_iso = atoms.u_equivalent
        everyone = torch.ones_like(atoms.use_u_iso)
        moved = dataclasses.replace(
            atoms,
            crystal=alone,
            u_iso=u_iso,
            use_u_iso=everyone,
            use_u_aniso=~everyone,
            occupancies=atoms.occupancies * atoms.site_weights,
            site_weights=torch.ones_like(atoms.site_weights),
            _structure=None,
        ).replace(sites_frac=sites)
        turned = torch.from_numpy(np.concatenate([indices @ rotation for rotation in self.rotations]))
        with torch.no_grad():
            f = structure_factors(moved, alone, turned, accuracy=_ACCURACY)
        return np.asarray(f.numpy().reshape(len(self.rotations), -1), dtype=np.complex128)

    def amplitudes(
        self, parts: Complex, h: Indices, group: Group, shift: Reals | Sequence[float] | None = None
    ) -> Reals:
        """|F| (n,) in a group, of the molecule moved by fractions of the cell."""
        phases = h @ group.translations.T  # (n, m)
        if shift is not None:
            phases = phases + np.stack([(h @ rotation) @ np.asarray(shift) for rotation in self.rotations], axis=1)
        return np.asarray(np.abs((parts * np.exp(2j * np.pi * phases).T).sum(axis=0)))

    def r(self, calculated: Reals, observed: Reals | None = None) -> float:
        """R with a scale in each shell."""
        observed = self.observed if observed is None else observed
        numerator = np.bincount(self.shells, observed * calculated, _SHELLS)
        denominator = np.bincount(self.shells, calculated**2, _SHELLS)
        scale = numerator / np.maximum(denominator, np.finfo(np.float64).tiny)
        return float(np.abs(observed - scale[self.shells] * calculated).sum() / observed.sum())

    def groups(self) -> list[Group]:
        """The space groups with these rotations and this centring, but for the own."""
        mine = {tuple(r.ravel().tolist()): place for place, r in enumerate(self.rotations)}
        centring = _as_set(self.crystal.centring.numpy())
        found: dict[tuple[tuple[int, ...], ...], Group] = {}
        for entry in gemmi.spacegroup_table():
            ops = entry.operations()
            if len(ops.sym_ops) != len(mine) or len(ops.cen_ops) != len(self.crystal.centring):
                continue
            rotations = [tuple((np.array(op.rot) // op.DEN).ravel().tolist()) for op in ops.sym_ops]
            if set(rotations) != set(mine) or _as_set(np.array(ops.cen_ops) / gemmi.Op.DEN) != centring:
                continue
            translations = np.zeros((len(mine), 3))
            for rotation, op in zip(rotations, ops.sym_ops):
                translations[mine[rotation]] = np.array(op.tran) / op.DEN
            key = tuple(tuple(np.rint(24 * (t % 1)).astype(int).tolist()) for t in translations)
            found.setdefault(key, Group(_symbol(entry), translations))
        own = tuple(tuple((np.rint(24 * (t % 1)).astype(int) % 24).tolist()) for t in self.own.translations)
        return [group for key, group in found.items() if key != own]

    def shifts(self, parts: Complex, group: Group) -> list[Reals]:
        """The highest peaks of the translation function, (3,) fractions of the cell; ``parts`` are those of :attr:`low`."""
        a = parts * np.exp(2j * np.pi * (self.low @ group.translations.T)).T
        mean_calculated = np.bincount(self._low_shells, (np.abs(a) ** 2).sum(axis=0), _SHELLS)
        n = np.maximum(np.bincount(self._low_shells, minlength=_SHELLS), 1)
        intensity = self._low_observed**2
        mean_observed = np.bincount(self._low_shells, intensity, _SHELLS) / n
        weight = intensity / np.maximum(mean_observed, 1e-300)[self._low_shells] - 1
        weight = weight / np.maximum(mean_calculated / n, 1e-300)[self._low_shells]
        turned = [self.low @ rotation for rotation in self.rotations]
        largest = np.max([np.abs(2 * h).max(axis=0) for h in turned], axis=0)
        if np.prod(2.5 * largest + 2.0) > _LARGEST_MAP:
            keep = _inside_map(turned)
            a, weight, turned = a[:, keep], weight[keep], [h[keep] for h in turned]
            largest = np.max([np.abs(2 * h).max(axis=0) for h in turned], axis=0)
        shape = [_factorable(int(2.5 * m) + 2) for m in largest]
        coefficients = np.zeros(shape, dtype=np.complex128)
        for j in range(len(turned)):
            for k in range(j):
                where = tuple((turned[j] - turned[k]).T % np.array(shape)[:, None])
                np.add.at(coefficients, where, weight * a[j] * a[k].conj())
        values = np.fft.ifftn(coefficients).real
        return _peaks(values)

    def refined(self, parts: Complex, group: Group, shift: Reals) -> tuple[float, Reals]:
        """(R, shift) at the nearest minimum of R, by ever smaller steps along the axes."""
        step = 0.02
        best = self.r(self.amplitudes(parts, self.h, group, shift))
        while step > 5e-4:
            better = False
            for axis in range(3):
                for sign in (1, -1):
                    trial = shift.copy()
                    trial[axis] += sign * step
                    r = self.r(self.amplitudes(parts, self.h, group, trial))
                    if r < best - 1e-5:
                        best, shift, better = r, trial, True
            step = step if better else step / 2
        return self._rounded(parts, group, best, shift)

    def _rounded(self, parts: Complex, group: Group, best: float, shift: Reals) -> tuple[float, Reals]:
        """Simple fractions of the cell where they are as good, axis by axis."""
        shift = np.round(shift % 1.0, 4)
        for axis in range(3):
            for denominator in (1, 2, 4, 12, 8):
                trial = shift.copy()
                trial[axis] = (np.round(shift[axis] * denominator) / denominator) % 1.0
                r = self.r(self.amplitudes(parts, self.h, group, trial))
                if r <= best * 1.01:
                    shift = trial
                    break
        return self.r(self.amplitudes(parts, self.h, group, shift)), shift


def _symbol(entry: Any) -> str:
    """As cctbx reads it, with the change of basis of an unusual setting."""
    return str(sgtbx.space_group_info(group=sgtbx.space_group(entry.hall)))


def _factorable(n: int) -> int:
    """The next even number whose prime factors are 2, 3 and 5."""
    n += n % 2
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


def _equal_parts(d: Reals) -> Indices:
    """(n,) shell of each reflection."""
    shells = np.zeros(len(d), dtype=np.int64)
    shells[np.argsort(-d, kind="stable")] = np.arange(len(d)) * _SHELLS // max(len(d), 1)
    return shells


def _as_set(translations: Reals) -> set[tuple[int, ...]]:
    return {tuple((np.rint(24 * t).astype(int) % 24).tolist()) for t in np.asarray(translations)}


def _inside_map(turned: list[Indices]) -> npt.NDArray[np.bool_]:
    """Reflections, those with the smallest indices first, whose map is not too large."""
    size = np.max([np.abs(h) for h in turned], axis=0)
    for count in range(len(size), 0, -max(len(size) // 50, 1)):
        keep = np.zeros(len(size), dtype=bool)
        keep[:count] = True  # they are sorted by resolution
        if np.prod(5.0 * size[keep].max(axis=0) + 2.0) <= _LARGEST_MAP:
            return keep
    return keep


def _peaks(values: Reals) -> list[Reals]:
    order = np.argsort(-values, axis=None)[: 200 * _PEAKS]
    places = np.stack(np.unravel_index(order, values.shape), axis=1) / np.array(values.shape)
    found: list[Reals] = []
    for place in places:
        away = [np.abs((place - other + 0.5) % 1 - 0.5).max() for other in found]
        if not found or min(away) > _SAME_PEAK:
            found.append(place)
        if len(found) == _PEAKS:
            break
    return found
