"""Space-group operators in the order in which cctbx keeps them.

A Hall symbol is a list of generators, which gemmi reads.  cctbx multiplies them out in a fixed order; sums over operators
agree to the last bit only where ours is the same.  Translations are integers in units of 1/24 of the cell edges.

Reference: ``cctbx.sgtbx.space_group``; S. R. Hall (1981) Acta Cryst. A37, 517.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import gemmi
import numpy as np

DENOMINATOR = 24
_IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)
_ZERO = (0, 0, 0)

Rotation = tuple[int, ...]
Translation = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Operators:
    """The operators of a space group: every rotation part once, and lattice translations apart.

    Attributes
    ----------
    rotations : tuple of tuple of int
        (n_primitive) matrices by rows, the identity first; where the group has an inversion, the second half is the
        first with its sign changed.
    translations : tuple of tuple of int
        (n_primitive) in units of 1/24; those of the second half may be negative, as in cctbx.
    centring : tuple of tuple of int
        Lattice translations in units of 1/24, zero first.
    inversion : tuple of int or None
        Translation of the inversion that maps the first half to the second.
    """

    rotations: tuple[Rotation, ...]
    translations: tuple[Translation, ...]
    centring: tuple[Translation, ...]
    inversion: Translation | None

    @property
    def key(self) -> frozenset[tuple[int, ...]]:
        """All operators, each with its translation in the cell: equal for two descriptions of one group."""
        return frozenset(
            (*rotation, *((a + b) % DENOMINATOR for a, b in zip(translation, centre)))
            for rotation, translation in zip(self.rotations, self.translations)
            for centre in self.centring
        )

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rotations (n, 3, 3) int64, translations (n, 3) and centring (n_ltr, 3) as fractions, float64."""
        return (
            np.array(self.rotations, dtype=np.int64).reshape(-1, 3, 3),
            np.array(self.translations, dtype=np.float64).reshape(-1, 3) / DENOMINATOR,
            np.array(self.centring, dtype=np.float64).reshape(-1, 3) / DENOMINATOR,
        )


@functools.lru_cache(maxsize=256)
def operators_from_hall(hall_symbol: str) -> Operators:
    """Operators of a Hall symbol, with or without a change of basis.

    Raises
    ------
    ValueError
        Where it is none.

    Examples
    --------
    >>> from mmtbx_sfdiff.symmetry.operators import operators_from_hall
    >>> len(operators_from_hall("P 2ac 2ab").rotations)
    4
    """
    symbol = hall_symbol.strip().replace("_", " ")
    head, bracket, change = symbol.partition("(")
    try:
        generators = gemmi.generators_from_hall(head.strip())
        basis = _change_of_basis(change) if bracket else None
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{hall_symbol!r} is not a Hall symbol of a space group ({error}).") from None
    group = _Group()
    operators = list(generators.sym_ops)[1:]
    if head.startswith("-"):
        group.expand_inversion(tuple(operators.pop().tran))
    for centre in generators.cen_ops:
        group.expand_centring(tuple(centre))
    for operator in operators:
        group.expand(*_integers(operator))
    return (group if basis is None else group.change_basis(basis)).finish()


def operators_from_list(operators: list[gemmi.Op]) -> Operators:
    """Operators of a group given by symmetry operators, in their order."""
    group = _Group()
    for operator in operators:
        group.expand(*_integers(operator))
    return group.finish()


def _integers(operator: gemmi.Op) -> tuple[Rotation, Translation]:
    rotation = np.array(operator.rot).ravel()
    if (rotation % DENOMINATOR).any():
        raise ValueError(f"The rotation part of {operator.triplet()} is not integral.")
    return tuple((rotation // DENOMINATOR).tolist()), tuple(operator.tran)


def _change_of_basis(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The matrix and the translation in brackets at the end of a Hall symbol, as fractions of 1."""
    inside = text.rstrip().removesuffix(")").strip()
    numbers = re.fullmatch(r"(-?\d+)[ ,]+(-?\d+)[ ,]+(-?\d+)", inside)
    if numbers:
        return np.eye(3), np.array([int(n) for n in numbers.groups()]) / 12
    operator = gemmi.Op(inside)
    return np.array(operator.rot) / DENOMINATOR, np.array(operator.tran) / DENOMINATOR


def _product(a: Rotation, b: Rotation) -> Rotation:
    return tuple(
        a[3 * i] * b[k] + a[3 * i + 1] * b[3 + k] + a[3 * i + 2] * b[6 + k] for i in range(3) for k in range(3)
    )


def _turned(a: Rotation, t: Translation) -> Translation:
    return tuple(a[3 * i] * t[0] + a[3 * i + 1] * t[1] + a[3 * i + 2] * t[2] for i in range(3))


def _sum(a: Translation, b: Translation, sign: int = 1) -> Translation:
    return tuple(x + sign * y for x, y in zip(a, b))


def _inside(t: Translation) -> Translation:
    return tuple(x % DENOMINATOR for x in t)


class _Group:
    """A group that grows by generators: the products of each new one with those before, in cctbx's order."""

    def __init__(self) -> None:
        self.rotations: list[Rotation] = [_IDENTITY]
        self.translations: list[Translation] = [_ZERO]
        self.centring: list[Translation] = [_ZERO]
        self.inversion: Translation | None = None
        self._closed_centring = self._turned_rotations = 1

    def finish(self) -> Operators:
        rotations, translations = list(self.rotations), list(self.translations)
        if self.inversion is not None:
            rotations += [tuple(-x for x in r) for r in self.rotations]
            translations += [_sum(self.inversion, t, -1) for t in self.translations]
        return Operators(tuple(rotations), tuple(translations), tuple(self.centring), self.inversion)

    def change_basis(self, basis: tuple[np.ndarray, np.ndarray]) -> _Group:
        """The same group where coordinates are ``C x + c``."""
        matrix, shift = basis
        inverse = np.linalg.inv(matrix)

        def turned(rotation: Rotation, translation: Translation) -> tuple[Rotation, Translation]:
            r, t = np.array(rotation).reshape(3, 3), np.array(translation) / DENOMINATOR
            new = matrix @ r @ inverse
            moved = (matrix @ t + shift - new @ shift) * DENOMINATOR
            whole = [np.rint(values).astype(int) for values in (new, moved)]
            if max(np.abs(new - whole[0]).max(), np.abs(moved - whole[1]).max()) > 1e-6:
                raise ValueError("A change of basis to a cell with non-integral operators is not supported.")
            return tuple(whole[0].ravel().tolist()), tuple(whole[1].tolist())

        result = _Group()
        # The edges of the old cell may be shorter than those of the new one.
        edges = [tuple(DENOMINATOR * int(i == k) for i in range(3)) for k in range(3)]
        for centre in (*edges, *self.centring[1:]):
            result.expand_centring(tuple(np.rint(matrix @ np.array(centre)).astype(int).tolist()))
        if self.inversion is not None:
            result.expand_inversion(turned(tuple(-x for x in _IDENTITY), self.inversion)[1])
        for rotation, translation in zip(self.rotations[1:], self.translations[1:]):
            result.expand(*turned(rotation, translation))
        result.expand_centring(_ZERO)
        return result

    def add_centring(self, translation: Translation) -> None:
        translation = _inside(translation)
        if translation not in self.centring:
            self.centring.append(translation)

    def add_inversion(self, translation: Translation) -> None:
        if self.inversion is not None:
            self.add_centring(_sum(self.inversion, translation, -1))
            return
        self.inversion = _inside(translation)
        for r, t in zip(self.rotations[1:], self.translations[1:]):
            self._agree_with_inversion(r, t)

    def _agree_with_inversion(self, r: Rotation, t: Translation) -> None:
        assert self.inversion is not None
        self.add_centring(_sum(_sum(_turned(r, self.inversion), t, 1), _sum(t, self.inversion, -1)))

    def add(self, rotation: Rotation, translation: Translation) -> None:
        opposite = tuple(-x for x in rotation)
        for r, t in zip(self.rotations, self.translations):
            if r == rotation:
                self.add_centring(_sum(t, translation, -1))
                return
            if r == opposite:
                self.add_inversion(_sum(t, translation))
                return
        if len(self.rotations) >= 24 or round(np.linalg.det(np.array(rotation).reshape(3, 3))) not in (1, -1):
            raise ValueError("These operators do not form a space group.")
        self.rotations.append(rotation)
        self.translations.append(_inside(translation))
        if self.inversion is not None:
            self._agree_with_inversion(rotation, self.translations[-1])

    def expand_centring(self, translation: Translation) -> None:
        for rotation in self.rotations[self._turned_rotations :]:
            for centre in self.centring[1 : self._closed_centring]:
                self.add_centring(_turned(rotation, centre))
        self._turned_rotations = len(self.rotations)
        trial, i, j = translation, self._closed_centring, 1
        while True:
            self.add_centring(trial)
            for rotation in self.rotations[1:]:
                for place in range(self._closed_centring, len(self.centring)):
                    self.add_centring(_turned(rotation, self.centring[place]))
            self._closed_centring = len(self.centring)
            if j > i:
                i, j = i + 1, 1
            if i == len(self.centring):
                return
            trial, j = _sum(self.centring[j], self.centring[i]), j + 1

    def expand_inversion(self, translation: Translation) -> None:
        self.add_inversion(translation)
        self.expand_centring(_ZERO)

    def expand(self, rotation: Rotation, translation: Translation) -> None:
        i, j = len(self.rotations), 1
        while True:
            self.add(rotation, translation)
            if j > i:
                i, j = i + 1, 1
            if i == len(self.rotations):
                break
            rotation = _product(self.rotations[j], self.rotations[i])
            translation = _sum(_turned(self.rotations[j], self.translations[i]), self.translations[j])
            j += 1
        self.expand_centring(_ZERO)
