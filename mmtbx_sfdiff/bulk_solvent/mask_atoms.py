"""Which atoms take part in a solvent mask, with which radii.

mmtbx leaves out hydrogen and deuterium and atoms of zero occupancy, and gives each remaining atom the van der Waals
radius of its element; a partly occupied atom counts in full.

Reference: ``mmtbx.masks.manager._load_xrs``, ``cctbx.masks.vdw_radii_from_xray_structure``.
"""

from __future__ import annotations

import torch


def mask_atoms(atoms, radii=None, include_hydrogens=False, include_zero_occupancy=False):
    """Sites, radii and selection of the atoms of a mask.

    Parameters
    ----------
    atoms : Atoms
    radii : torch.Tensor, optional
        (..., n_atoms) van der Waals radii in Å of all the atoms; by default cctbx's, by element.
    include_hydrogens, include_zero_occupancy : bool

    Returns
    -------
    rows : torch.Tensor
        (n,) int64, the atoms that may take part.
    radii : torch.Tensor
        (..., n) float64 of those; gradients flow to what was given.
    taking_part : torch.Tensor
        (..., n) bool, which of them each model of a batch uses.

    Raises
    ------
    ValueError
        Radii of the wrong shape, or negative; an element without a radius.
    """
    kept = torch.ones(atoms.n_atoms, dtype=torch.bool, device=atoms.device)
    if not include_hydrogens:
        kept &= ~atoms.hydrogens
    taking_part = kept
    if not include_zero_occupancy:
        taking_part = kept & (atoms.occupancies.detach() > 0)
        kept = taking_part.reshape(-1, atoms.n_atoms).any(0)
    rows = kept.nonzero()[:, 0]
    if radii is None:
        radii = atoms.vdw_radii(rows)
    else:
        if not isinstance(radii, torch.Tensor) or radii.shape[-1:] != (atoms.n_atoms,):
            raise ValueError(f"radii must be a tensor of the shape (..., {atoms.n_atoms}), one radius an atom.")
        radii = radii.to(torch.float64).index_select(-1, rows)
        if bool((radii.detach() < 0).any()):
            raise ValueError("radii must not be negative.")
    return rows, radii, taking_part[..., rows]
