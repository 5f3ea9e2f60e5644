"""Waters: added at peaks of the mFo-DFc map, removed where there is no density for them.

A peak is taken for a water where it is a maximum of the difference map of at least 3.5 times that map's standard deviation, the 2mFo-DFc map is
above its own, the nearest nitrogen or oxygen is 2.3 to 3.5 Å away (symmetry copies included) and nothing is nearer than that. A water goes when
the 2mFo-DFc map at its place is below its standard deviation, its B is above 80 Å^2 and three times the mean, or it has come nearer than 1.8 Å to
another atom. Maps are of the work reflections alone: the free set has no say.

The criteria are those of ``mmtbx.solvent.ordered_solvent``, in the main.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

import gemmi
import numpy as np
import scipy.ndimage

from ..real_space.fourier import fourier_map

NAMES = ("HOH", "DOD", "WAT", "H2O")
_STEP = 4.0  # points of the map for the resolution
_CHAIN = "S"


@dataclasses.dataclass(frozen=True)
class WaterRules:
    """What a water is taken for.

    Attributes
    ----------
    peak : float
        Least height of the mFo-DFc map, in its standard deviations.
    density : float
        Of the 2mFo-DFc map, for a water to be added or kept.
    nearest, farthest : float
        Å, to the nearest nitrogen or oxygen.
    clash : float
        Å: a water nearer to anything goes.
    b_max, b_ratio : float
        Å^2, and of the mean B of other atoms: a water above both goes.
    d_min : float
        Å: data to less than this place no waters.
    """

    peak: float = 3.5
    density: float = 1.0
    nearest: float = 2.3
    farthest: float = 3.5
    clash: float = 1.8
    b_max: float = 80.0
    b_ratio: float = 3.0
    d_min: float = 3.0


def update_waters(
    structure: gemmi.Structure, fmodel: Any, rules: WaterRules = WaterRules()
) -> tuple[gemmi.Structure, int, int]:
    """The structure with waters removed and added.

    Parameters
    ----------
    structure : gemmi.Structure
        One model, of the crystal of the data; it is not changed.
    fmodel : FModel
        The same model, with scales.
    rules : WaterRules

    Returns
    -------
    structure : gemmi.Structure
    added, removed : int

    Raises
    ------
    ValueError
        A structure of several models; data that reach less far than ``rules.d_min``.
    """
    if len(structure) != 1:
        raise ValueError(f"Waters are placed in one model, and the structure has {len(structure)}: waters=False.")
    d_min = fmodel.reflections.d_min
    if d_min > rules.d_min:
        raise ValueError(f"Data to {d_min:.1f} Å show no single waters ({rules.d_min:g} Å or better do): waters=False.")
    difference, density = maps(fmodel)
    result = structure.clone()
    removed = _remove(result, density, rules)
    added = _add(result, difference, density, rules)
    result.assign_serial_numbers()
    return result, added, removed


def maps(fmodel: Any) -> tuple[np.ndarray, np.ndarray]:
    """mFo-DFc and 2mFo-DFc of the work reflections on the cell, in their standard deviations."""
    found = fmodel.map_coefficients()
    data = fmodel.scales.selected(fmodel.reflections)
    work = data.work
    crystal, indices = data.crystal, data.miller_indices[work]
    grid = _grid(crystal, fmodel.reflections.d_min)
    result = []
    for name in ("mFo-DFc", "2mFo-DFc"):
        rho = fourier_map(crystal, indices, found[name][work], grid).cpu().to(torch.float64).numpy()
        result.append(rho / max(float(rho.std()), 1e-300))
    return result[0], result[1]


def _grid(crystal: Any, d_min: float) -> tuple[int, int, int]:
    """Points that every operation of the space group maps onto points."""
    group = gemmi.SpaceGroup(crystal.space_group_symbol) if not isinstance(crystal, gemmi.SpaceGroup) else crystal
    grid = gemmi.FloatGrid()
    grid.spacegroup = group
    grid.set_unit_cell(gemmi.UnitCell(*crystal.unit_cell))
    grid.set_size_from_spacing(d_min / _STEP, gemmi.GridSizeRounding.Up)
    return grid.nu, grid.nv, grid.nw


def peaks(rho: np.ndarray, cell: gemmi.UnitCell, least: float) -> list[tuple[float, gemmi.Fractional]]:
    """Maxima of a map on the cell, the highest first: (height, place), refined by parabolas through three points."""
    top = scipy.ndimage.maximum_filter(rho, size=3, mode="wrap")
    places = np.argwhere((rho == top) & (rho >= least))
    heights = rho[tuple(places.T)]
    found = []
    shape = np.array(rho.shape)
    for k in np.argsort(-heights, kind="stable").tolist():
        at = places[k]
        offset = np.zeros(3)
        for axis in range(3):
            step = np.eye(3, dtype=int)[axis]
            low, high = rho[tuple((at - step) % shape)], rho[tuple((at + step) % shape)]
            bend = low - 2 * heights[k] + high
            offset[axis] = 0.5 * (low - high) / bend if bend < 0 else 0.0
        found.append((float(heights[k]), gemmi.Fractional(*((at + offset.clip(-0.5, 0.5)) / shape))))
    return found


def _value(rho: np.ndarray, place: gemmi.Fractional) -> float:
    shape = np.array(rho.shape)
    at = np.array(place.tolist()) % 1.0 * shape
    value: float = scipy.ndimage.map_coordinates(rho, at[:, None], order=1, mode="grid-wrap")[0]
    return float(value)


def _remove(structure: gemmi.Structure, density: np.ndarray, rules: WaterRules) -> int:
    model, cell = structure[0], structure.cell
    search = gemmi.NeighborSearch(model, cell, 5.0).populate(include_h=False)
    others = [a.atom.b_iso for a in model.all() if a.residue.name not in NAMES and not a.atom.is_hydrogen()]
    limit = max(rules.b_max, rules.b_ratio * float(np.mean(others))) if others else rules.b_max
    going = []
    for chain in model:
        for number, residue in enumerate(chain):
            heavy = [a for a in residue if not a.is_hydrogen()]
            if residue.name not in NAMES or len(heavy) != 1 or heavy[0].altloc.strip("\0 "):
                continue
            atom = heavy[0]
            near = [
                m for m in search.find_neighbors(atom, 0.01, rules.clash) if not _same(m.to_cra(model), chain, residue)
            ]
            low = _value(density, cell.fractionalize(atom.pos)) < rules.density
            if low or atom.b_iso > limit or near:
                going.append((chain.name, number))
    for name, number in reversed(going):  # not before all are judged: the search holds their places
        del next(c for c in model if c.name == name)[number]
    structure.remove_empty_chains()
    return len(going)


def _same(found: gemmi.CRA, chain: gemmi.Chain, residue: gemmi.Residue) -> bool:
    return found.chain.name == chain.name and found.residue.seqid == residue.seqid


def _add(structure: gemmi.Structure, difference: np.ndarray, density: np.ndarray, rules: WaterRules) -> int:
    model, cell = structure[0], structure.cell
    structure.setup_cell_images()
    waters = [a.atom.b_iso for a in model.all() if a.residue.name in NAMES]
    everything = [a.atom.b_iso for a in model.all() if not a.atom.is_hydrogen()]
    b_iso = float(np.median(waters or everything or [30.0]))
    search = gemmi.NeighborSearch(model, cell, 6.0).populate(include_h=False)
    added: list[gemmi.Position] = []
    images: list[gemmi.Fractional] = []
    group = structure.find_spacegroup()
    operations = list(group.operations()) if group is not None else [gemmi.Op("x,y,z")]
    for _, place in peaks(difference, cell, rules.peak):
        if _value(density, place) < rules.density:
            continue
        found = _partner(search, model, cell, place, rules)
        if found is None or any(
            cell.find_nearest_pbc_image(cell.orthogonalize(place), cell.orthogonalize(other), 0).dist() < rules.nearest
            for other in images
        ):
            continue
        added.append(found)
        copies = [gemmi.Fractional(*op.apply_to_xyz(place.tolist())) for op in operations]
        if any(
            0.01
            < cell.find_nearest_pbc_image(cell.orthogonalize(place), cell.orthogonalize(c), 0).dist()
            < rules.nearest
            for c in copies[1:]
        ):
            added.pop()  # on, or beside, a symmetry element
            continue
        images += copies
    if added:
        _append(model, added, b_iso)
    return len(added)


def _partner(
    search: gemmi.NeighborSearch, model: gemmi.Model, cell: gemmi.UnitCell, place: gemmi.Fractional, rules: WaterRules
) -> gemmi.Position | None:
    """Where the water of a peak is, beside the nitrogen or oxygen that it is bonded to; None where there is none, or a clash."""
    position = cell.orthogonalize(place)
    best: tuple[float, Any, gemmi.CRA] | None = None
    for mark in search.find_atoms(position, "\0", radius=rules.farthest):
        cra = mark.to_cra(model)
        there = search.dist(position, mark.pos)
        polar = cra.atom.element.name in ("N", "O", "F")
        if there < (rules.nearest if polar else 2.8):
            return None
        if polar and (best is None or there < best[0]):
            best = there, mark, cra
    if best is None or not math.isfinite(best[0]):
        return None
    # The copy of the peak that is next to the partner itself, rather than to one of its images.
    partner = best[2].atom.pos
    image = cell.find_nearest_image(partner, position)
    fractional = cell.fractionalize(position)
    moved = gemmi.Fractional(*fractional.tolist())
    if image.sym_idx:
        op = cell.images[image.sym_idx - 1]
        moved = op.apply(moved)
    shift = np.array(image.pbc_shift, dtype=float)
    return cell.orthogonalize(gemmi.Fractional(*(np.array(moved.tolist()) + shift)))


def _append(model: gemmi.Model, positions: list[gemmi.Position], b_iso: float) -> None:
    names = {chain.name for chain in model}
    chain = next((c for c in model if all(r.name in NAMES for r in c)), None)
    if chain is None:
        free = [_CHAIN, *"WXYZABCDEFGHIJKLMNOPQRTUV", *(f"W{i}" for i in range(1, 100))]
        model.add_chain(gemmi.Chain(next(name for name in free if name not in names)))
        chain = model[len(model) - 1]
    number = max((residue.seqid.num or 0 for residue in chain), default=0)
    for position in positions:
        number += 1
        residue = gemmi.Residue()
        residue.name, residue.seqid, residue.het_flag = "HOH", gemmi.SeqId(number, " "), "H"
        residue.entity_type = gemmi.EntityType.Water
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos, atom.occ, atom.b_iso = "O", gemmi.Element("O"), position, 1.0, b_iso
        residue.add_atom(atom)
        chain.add_residue(residue)
