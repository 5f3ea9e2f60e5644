"""The mask that made the data is found again; nothing gets worse."""

import random

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.reflections import Reflections
from mmtbx_sfdiff.scaling.mask_lengths import optimize_mask

import pytest
from cctbx import sgtbx
from cctbx.array_family import flex
from cctbx.development import random_structure


@pytest.fixture(scope="module")
def made():
    """(atoms, a function from lengths and radii to reflections and F_calc)."""
    random.seed(0)
    flex.set_random_seed(0)
    structure = random_structure.xray_structure(
        space_group_info=sgtbx.space_group_info("P 21 21 21"),
        elements=["C", "N", "O"] * 30,
        volume_per_atom=45,
        min_distance=1.3,
        random_u_iso=True,
    )
    atoms = sfdiff.Atoms.from_cctbx(structure)
    crystal = atoms.crystal
    indices = crystal.build_miller_indices(d_min=2.2)
    f_calc = sfdiff.structure_factors(atoms, crystal, indices)
    k_mask = 0.4 * (-40 * crystal.d_star_sq(indices) / 4).exp()

    def reflections(radii=None, **lengths):
        mask = sfdiff.solvent_mask(atoms, crystal, radii=radii, **lengths)
        f_model = f_calc + k_mask * sfdiff.mask_structure_factors(mask, crystal, indices)
        free = torch.arange(len(indices)) % 20 == 0
        return Reflections(crystal, indices, f_model.abs(), None, free, False)

    return atoms, f_calc, reflections


def distance(atoms, options, others):
    """Relative L2 of F_mask to 3 Å, but for a factor: k_mask takes that up."""
    indices = atoms.crystal.build_miller_indices(d_min=3.0)
    a, b = (
        sfdiff.mask_structure_factors(sfdiff.solvent_mask(atoms, atoms.crystal, **lengths), atoms.crystal, indices)
        for lengths in (options, others)
    )
    factor = torch.vdot(a, b).real / torch.vdot(a, a).real
    return float((factor * a - b).norm() / b.norm())


@pytest.mark.parametrize("per_element", [False, True])
def test_mask_is_found_again(made, per_element):
    atoms, f_calc, reflections = made
    truth = {"r_probe": 0.9, "r_shrink": 1.1, "softness": 0.9}
    data = reflections(**truth)
    reported = []
    found = optimize_mask(
        atoms,
        data,
        f_calc,
        per_element=per_element,
        weight=1e-5,
        steps=3,
        remove_outliers=False,
        report=lambda step, r: reported.append(r),
    )
    assert found.r_work < 0.4 * found.start[0]
    assert found.r_free < 0.6 * found.start[1]
    assert distance(atoms, found.options, truth) < 0.4 * distance(atoms, {}, truth)
    assert found.n_masks == 1 + 3 + 3 * per_element + 3
    assert len(reported) == 4 and min(reported) < 0.5 * reported[0]


def test_radius_of_an_element(made):
    atoms, f_calc, reflections = made
    oxygen = torch.tensor([e == "O" for e in atoms.elements])
    data = reflections(radii=atoms.vdw_radii() + 0.25 * oxygen)
    found = optimize_mask(atoms, data, f_calc, weight=1e-6, remove_outliers=False)
    assert found.r_work < 0.5 * found.start[0]
    shifts = found.element_shifts
    assert shifts["O"] - (shifts["C"] + shifts["N"]) / 2 == pytest.approx(0.25, abs=0.1)
    assert torch.allclose(
        found.options["radii"] - atoms.vdw_radii(),
        torch.tensor([shifts[e] for e in atoms.elements], dtype=torch.float64),
    )


def test_never_worse_than_the_start(made):
    atoms, f_calc, reflections = made
    found = optimize_mask(atoms, reflections(), f_calc, remove_outliers=False)
    assert found.r_work <= found.start[0]
