"""Why a model and its data disagree: what is tried where R-work is absurd, and the sentence that names the best.

Tried are, on a part of the reflections (:mod:`.screening`):

* other indices of the data: the rotations of the lattice that are not the crystal's, with the cell's angles up to 5 degrees and its
  lengths in proportion off (mmtbx's twin laws, and pseudo-symmetric ones), other orders of the axes, and without the
  reindexing that the cells suggested;
* space groups of the same class, the enantiomorph among them;
* cells: the data file's own, that of the model's SCALE records, the same with its axes in another order or scaled by up to 3 %;
* another place of the model in the cell (an origin), in its own group and in those others;
* amplitudes that are intensities;
* a twin (:mod:`.twinning`).

What lowers R there is read from the files again in that way and scaled: the R of the sentence is that of the command it names.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from cctbx import sgtbx, uctbx
from cctbx.sgtbx import cosets, lattice_symmetry

from ..atoms import Atoms
from ..reflections import Reflections
from ..symmetry.frame import scale_of_block, scale_of_pdb
from ..symmetry.reindexing import matrix_of, reindexed, text_of
from .content import read_content
from .errors import Sorry
from .reflection_file import read_cif_document
from .screening import Complex, Group, Reals, Screen
from .twinning import twin_messages, twins

#: Above the first R-work an explanation is looked for, and named if R falls by this share of itself; above the second it is looked
#: for, too, and named if R falls to the third share of itself: a flexible scaling hides much.
ABSURD, LEAST = 0.45, 0.2
HIGH, CLEARLY = 0.25, 0.6
_SURE = 0.5  # share of itself to which R falls where nothing further is tried
_PROMISING = 0.1  # share of itself by which R falls on the part of the reflections
_CONFIRMED = 3  # explanations that are looked at with all reflections
_OBLIQUE = 5.0  # degrees by which a lattice may miss a symmetry
_SCALES = (0.97, 0.98, 0.99, 1.01, 1.02, 1.03)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """One thing that may be wrong.

    Attributes
    ----------
    what : str
        As a condition: "the data are reindexed by k,h,-l".
    remedy : dict
        Arguments of :func:`~mmtbx_sfdiff.files.load_entry`; empty where none makes up for it.
    r : float
        On the part of the reflections that was looked at, or of all of them once it is confirmed.
    advice : str
        Where there is no remedy.
    """

    what: str
    remedy: dict[str, Any]
    r: float
    advice: str = ""

    @property
    def words(self) -> str:
        """The remedy as parameters of the programs."""
        texts = []
        for name, value in self.remedy.items():
            text = value if isinstance(value, str) else " ".join(f"{x:.8g}" for x in value)
            texts.append(f"{name}={text}" if " " not in text else f'{name}="{text}"')
        return " ".join(texts)


def disagreement_messages(fmodel: Any) -> list[str]:
    """What to tell the user of an FModel with scales: one sentence about a twin, or about what R is absurd for, or nothing.

    Where the ``source`` of the FModel is no entry there are no files to read again, and twins are all that is looked for.

    Parameters
    ----------
    fmodel : FModel
    """
    if fmodel.twin_law is not None:
        return twin_messages(fmodel)
    r = float(fmodel.scales.r_work)
    one_model = fmodel.source is not None and fmodel.ensemble is None and fmodel.f_partial is None
    if not (r > HIGH and one_model):
        return twin_messages(fmodel)
    best = confirmed(fmodel, explanations(fmodel))
    twin = min((t for t in twins(fmodel) if t.suspected), key=lambda t: t.r_twinned, default=None)
    if best is not None and (twin is None or best.r <= twin.r_twinned):
        how = f"give {best.words}, or mend the files" if best.remedy else best.advice
        return [f"R-work is {r:.3f}, but {best.r:.3f} if {best.what}: {how}."]
    if twin is not None:
        return [str(twin)]
    if r <= ABSURD:
        return []
    return [
        f"R-work is {r:.3f}, and no other indexing, space group of the same class, cell or place of the model in it, nor a twin, "
        f"lowers it by {LEAST:.0%}: the data may be of another crystal, or the model is far from it."
    ]


def explanations(fmodel: Any) -> list[Explanation]:
    """All that lowers R on a part of the reflections, the best first."""
    screen = Screen(fmodel)
    parts = screen.molecule(screen.h)
    r = screen.r(screen.amplitudes(parts, screen.h, screen.own))
    found = list(_indexings(screen, fmodel.source))
    groups = screen.groups()
    found += [_in_group(screen, parts, group) for group in groups]
    found += _cells(screen, fmodel.source)
    found.append(
        Explanation(
            "the amplitudes are intensities, whose square roots are taken",
            {},
            screen.r(screen.amplitudes(parts, screen.h, screen.own), np.sqrt(screen.observed)),
            "write them into the data file as intensities (MTZ type J, _refln.intensity_meas, =hklf4 behind a SHELX file's name)",
        )
    )
    for some in ([screen.own], groups):
        if min(found, key=lambda one: one.r).r <= _SURE * r:
            break
        found += _places(screen, parts, some)
    return sorted((one for one in found if one.r <= (1 - _PROMISING) * r), key=lambda one: one.r)


def confirmed(fmodel: Any, found: Sequence[Explanation]) -> Explanation | None:
    """The best of these with all reflections and scales, or None."""
    r = float(fmodel.scales.r_work)
    limit = ((1 - LEAST) if r > ABSURD else CLEARLY) * r
    results = []
    for one in found[:_CONFIRMED]:
        if not one.remedy:  # square roots of any numbers are nearer to each other: R falls without a reason
            results += [one] if one.r <= CLEARLY * r else []
            continue
        one = dataclasses.replace(one, remedy=_added(fmodel.source.options, one.remedy))
        try:
            entry = fmodel.source.again(**one.remedy)
            here = {"dtype": fmodel.atoms.dtype, "device": fmodel.atoms.device}
            again = fmodel.with_(
                atoms=Atoms.from_cctbx(entry.model.xray_structure, **here),
                reflections=Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags, **here),
                source=entry,
                refine=(),
            )
            again.update_scales()
        except (Sorry, ValueError, IndexError, RuntimeError):
            continue  # it was a guess
        results.append(dataclasses.replace(one, r=float(again.scales.r_work)))
    results = [one for one in results if one.r <= limit]
    return min(results, key=lambda one: one.r, default=None)


def _added(given: dict[str, Any], remedy: dict[str, Any]) -> dict[str, Any]:
    """The remedy on top of what the user asked for already."""
    remedy = dict(remedy)
    if "reindex" in remedy and given.get("reindex"):
        remedy["reindex"] = text_of(matrix_of(remedy["reindex"]) @ matrix_of(given["reindex"]))
    if "model_shift" in remedy and given.get("model_shift"):
        remedy["model_shift"] = tuple((np.add(remedy["model_shift"], given["model_shift"]) % 1.0).tolist())
    return remedy


# indices


def _indexings(screen: Screen, entry: Any) -> Iterator[Explanation]:
    setting = None if entry is None else entry.data.setting
    operators: dict[str, str] = {}
    if setting is not None:
        back = text_of(np.asarray(np.linalg.inv(matrix_of(setting)), dtype=np.float64))
        operators[back] = f"the reindexing by {setting}, which the cells suggest, is undone with {back}"
    for law, missed in _lattice_operators(screen):
        operators.setdefault(law, f"the data are reindexed by {law}, which the lattice allows{missed}")
    for law in ("k,l,h", "l,h,k", "k,h,-l", "h,l,-k", "-l,k,h"):
        operators.setdefault(law, f"the data are reindexed by {law}, as if their axes were in another order")
    tried: list[Reals] = []
    for law, what in operators.items():
        matrix = matrix_of(law)
        if any(_same_coset(matrix, other, screen) for other in (np.eye(3), *tried)):
            continue
        tried.append(matrix)
        indices, whole = reindexed(screen.h, law)
        if whole.mean() < 0.9:
            continue
        parts = screen.molecule(indices)
        calculated = screen.amplitudes(parts, indices, screen.own)
        yield Explanation(what, {"reindex": law}, screen.r(np.where(whole, calculated, 0.0)))


def _same_coset(one: Reals, other: Reals, screen: Screen) -> bool:
    """Whether two operators differ by one of the crystal's own, or by an inversion."""
    between = np.linalg.inv(other) @ one
    return any(np.allclose(between, sign * r.T, atol=1e-6) for r in screen.rotations for sign in (1, -1))


def _lattice_operators(screen: Screen) -> list[tuple[str, str]]:
    """Operators on the indices that the metric allows beside the group's own, and by how much it misses them, in words."""
    symmetry = screen.crystal.to_cctbx()
    to_minimum = symmetry.change_of_basis_op_to_minimum_cell()
    minimum = symmetry.change_basis(to_minimum)
    lattice = lattice_symmetry.group(minimum.unit_cell(), max_delta=_OBLIQUE)
    own = minimum.space_group().build_derived_point_group().build_derived_acentric_group()
    result = []
    for partition in cosets.left_decomposition(g=lattice, h=own).partitions[1:]:
        proper = next((operator for operator in partition if operator.r().determinant() > 0), None)
        if proper is not None:
            law = str(to_minimum.inverse().apply(proper).r().as_hkl())
            result.append((law, _missed(screen, law)))
    return result


def _missed(screen: Screen, law: str) -> str:
    """By how much the cell changes with an operator: nothing where it is within rounding."""
    axes = matrix_of(law) @ screen.crystal.orthogonalization.numpy().T  # which change as the indices do
    cell, own = _parameters(axes), screen.crystal.unit_cell
    lengths = max(abs(a / b - 1) for a, b in zip(cell[:3], own[:3]))
    angles = max(abs(a - b) for a, b in zip(cell[3:], own[3:]))
    return "" if lengths < 1e-3 and angles < 0.1 else f" within {lengths:.1%} and {angles:.1f}°"


def _parameters(axes: Reals) -> tuple[float, ...]:
    """Cell of the axes, which are rows."""
    lengths = np.linalg.norm(axes, axis=1)
    cosines = [axes[i] @ axes[j] / (lengths[i] * lengths[j]) for i, j in ((1, 2), (0, 2), (0, 1))]
    return (*lengths.tolist(), *np.degrees(np.arccos(cosines)).tolist())


# space groups


def _in_group(screen: Screen, parts: Complex, group: Group) -> Explanation:
    r = screen.r(screen.amplitudes(parts, screen.h, group))
    return Explanation(f"the space group is {_name(screen, group)}", {"space_group": group.symbol}, r)


def _name(screen: Screen, group: Group) -> str:
    own = screen.crystal.to_cctbx().space_group().type()
    other = sgtbx.space_group_info(group.symbol).type()
    mirrored = own.is_enantiomorphic() and own.group().change_basis(own.change_of_hand_op()) == other.group()
    return f"{group.symbol}, the enantiomorph of {screen.own.symbol}" if mirrored else group.symbol


# cells


def _cells(screen: Screen, entry: Any) -> list[Explanation]:
    own = screen.crystal.unit_cell
    group = screen.crystal.to_cctbx().space_group()
    cells: dict[tuple[float, ...], str] = {}

    def add(cell: Sequence[float] | None, where: str) -> None:
        if cell is None:
            return
        key = tuple(round(float(x), 3) for x in cell)
        same = all(abs(x - y) <= 5e-4 * y for x, y in zip(key, own))
        if same or any(all(abs(x - y) <= 1e-3 * y for x, y in zip(key, other)) for other in cells):
            return
        try:
            possible = group.is_compatible_unit_cell(uctbx.unit_cell(key))
        except (RuntimeError, ValueError):
            return
        if possible:
            cells[key] = where

    if entry is not None:
        add(entry.data.stated and entry.data.stated.cell, "that of the data file")
        add(_cell_of_scale(entry.model.path), "that of the model's SCALE records")
    for order in itertools.permutations(range(3)):
        add([own[i] for i in order] + [own[3 + i] for i in order], "its axes in another order")
    for axis in (3, 4, 5):
        add([*own[:axis], 180 - own[axis], *own[axis + 1 :]], "an angle's complement to 180°")
    for scale in _SCALES:
        add([scale * x for x in own[:3]] + list(own[3:]), f"{scale:g} times as large")
    found = []
    for cell, where in cells.items():
        r = screen.r(screen.amplitudes(screen.molecule(screen.h, cell), screen.h, screen.own))
        found.append(
            Explanation(f"the unit cell is {' '.join(f'{x:g}' for x in cell)} ({where})", {"unit_cell": cell}, r)
        )
    return found


def _cell_of_scale(path: Any) -> tuple[float, ...] | None:
    """The cell that the SCALE records of a model file imply."""
    try:
        content = read_content(path, "model")
        if content.kind == "cif":
            blocks = [b for b in read_cif_document(content.text, path) if b.find_values("_atom_site.id")]
            scale = scale_of_block(blocks[0]) if blocks else None
        else:
            scale = scale_of_pdb(content.text)
        if scale is None:
            return None
        return _parameters(np.linalg.inv(scale[0]).T)
    except (Sorry, ValueError, np.linalg.LinAlgError):
        return None


# places of the model


def _places(screen: Screen, parts: Complex, groups: Sequence[Group]) -> list[Explanation]:
    low = screen.molecule(screen.low)
    found = []
    for group in groups:
        tried = [screen.refined(parts, group, shift) for shift in screen.shifts(low, group)]
        if not tried:
            continue
        r, shift = min(tried, key=lambda one: one[0])
        where = f"the model is moved by {_fractions(shift)} of the cell"
        remedy: dict[str, Any] = {"model_shift": tuple(shift.tolist())}
        if group is not screen.own:
            where = f"the space group is {_name(screen, group)} and {where}"
            remedy["space_group"] = group.symbol
        found.append(Explanation(where, remedy, r))
    return found


def _fractions(shift: Reals) -> str:
    return "(" + ", ".join(f"{x:.4g}" for x in shift) + ")"
