"""Boxes that a mask of the same atoms asks for again are kept, in bounds that new crystals do not pass."""

import gc

import mmtbx_sfdiff as sfdiff
from mmtbx_sfdiff.kernels.cpu import fine_grid
from mmtbx_sfdiff.kernels.cpu.asymmetric_unit import Unit


def test_new_crystals_leave_no_units_and_few_boxes(monkeypatch):
    kept = fine_grid._Boxes(most_boxes=5)
    monkeypatch.setattr(fine_grid, "_BOXES", kept)
    for n in range(24):
        crystal = sfdiff.Crystal((10 + 0.02 * n, 11, 12, 90, 90, 90), "P 21 21 21")
        atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "N"], [[1, 2, 3], [4, 5, 6]], b_iso=15.0)
        sfdiff.solvent_mask(atoms, crystal, grid_step=1.5)
    assert len(kept.kept) == 5 and kept.size == sum(box.nbytes for box in kept.kept.values())
    # A box that kept its unit, with arrays of the whole cell, kept half a megabyte for a crystal of some atoms.
    assert not any(isinstance(held, Unit) for box in kept.kept.values() for held in gc.get_referents(vars(box)))
