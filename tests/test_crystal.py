"""Crystal against cctbx: operators, metric, grids, Miller indices, round trips in every setting."""

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.cctbx_backend.conversion import crystal_of
from mmtbx_sfdiff.crystal import as_flex_miller_index, as_miller_tensor

import numpy as np
import pytest
from cctbx import crystal, maptbx, miller, sgtbx, uctbx

from tests.support.structures import NON_STANDARD_SETTINGS, random_xray_structure


@pytest.mark.parametrize(
    "symbols",
    [
        pytest.param([str(sgtbx.space_group_info(n)) for n in range(1, 231)], id="all 230"),
        pytest.param([s.universal_hermann_mauguin() for s in sgtbx.space_group_symbol_iterator()], id="all tabulated"),
        pytest.param(NON_STANDARD_SETTINGS, id="others"),
    ],
)
def test_round_trip(symbols):
    for symbol in symbols:
        info = sgtbx.space_group_info(symbol)
        symmetry = crystal.symmetry(info.any_compatible_unit_cell(volume=9000), space_group_info=info)
        there = sfdiff.Crystal.from_cctbx(symmetry)
        back = there.to_cctbx()
        assert back.space_group() == symmetry.space_group(), symbol
        assert back.unit_cell().parameters() == symmetry.unit_cell().parameters()
        assert there.order_z == symmetry.space_group().order_z()
        assert there.is_same_as(sfdiff.Crystal.from_cctbx(back))


def test_groups_that_cctbx_cannot_name():
    """Primitive settings with an odd origin: for some of them cctbx fails to find a symbol."""
    nameless = 0
    for number in (146, 155, 161, 167, 197, 206, 220, 230):
        info = sgtbx.space_group_info(number)
        z2p = info.group().z2p_op()
        shifted = sgtbx.change_of_basis_op(z2p.c() + sgtbx.tr_vec((2, -1, 3), 12).new_denominator(z2p.c().t().den()))
        symmetry = crystal.symmetry(info.any_compatible_unit_cell(volume=9000), space_group_info=info).change_basis(
            shifted
        )
        here = sfdiff.Crystal.from_cctbx(symmetry)
        assert here.to_cctbx().space_group() == symmetry.space_group()
        assert here.is_same_as(crystal_of(symmetry)) and crystal_of(symmetry) is crystal_of(symmetry)
        nameless += ";" in here.hall_symbol
    assert nameless


@pytest.mark.parametrize("symbol", ["P 1", "C 1 2 1", "R 3 :R", "P 61 2 2", "F d -3 m :2"])
def test_indices_against_cctbx(symbol):
    info = sgtbx.space_group_info(symbol)
    symmetry = crystal.symmetry(info.any_compatible_unit_cell(volume=9000), space_group_info=info)
    miller_set = miller.build_set(symmetry, anomalous_flag=False, d_min=3)
    here = sfdiff.Crystal.from_cctbx(symmetry)
    indices = as_miller_tensor(miller_set)
    assert torch.equal(here.build_miller_indices(3), indices)
    assert list(as_flex_miller_index(indices)) == list(miller_set.indices())
    np.testing.assert_allclose(here.d_spacings(indices), miller_set.d_spacings().data().as_numpy_array(), rtol=1e-13)
    np.testing.assert_allclose(here.volume, symmetry.unit_cell().volume(), rtol=1e-12)
    # h R and h.t of every operator, as the group itself lists them.
    equivalent, shifts = here.equivalent_indices(indices)
    group = symmetry.space_group()
    for n in range(0, len(indices), 7):
        expected = {}
        for op in (
            group.smx() if not group.is_centric() else [group(0, i, s) for i in range(2) for s in range(group.n_smx())]
        ):
            h = np.array(miller_set.indices()[n])
            key = tuple((h @ np.array(op.r().as_double()).reshape(3, 3)).round().astype(int))
            expected.setdefault(key, []).append(float(h @ np.array(op.t().as_double())))
        found = {}
        for key, shift in zip(equivalent[:, n].tolist(), shifts[:, n].tolist()):
            found.setdefault(tuple(key), []).append(shift)
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            turns = np.exp(2j * np.pi * np.array(values)).sum() - np.exp(2j * np.pi * np.array(found[key])).sum()
            assert abs(turns) < 1e-12


def test_centring_factor_marks_forbidden_indices():
    here = sfdiff.Crystal.from_cctbx(crystal.symmetry((20, 20, 30, 90, 90, 90), "I 4"))
    assert here.centring_factor(torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])).tolist() == [2, 0, 2]


@pytest.mark.parametrize("symbol", ["P 1", "P 21 21 21", "P 65 2 2", "F 2 3", "R 3 :H"])
def test_grid_is_the_mask_grid_of_mmtbx(symbol):
    info = sgtbx.space_group_info(symbol)
    symmetry = crystal.symmetry(info.any_compatible_unit_cell(volume=30000), space_group_info=info)
    expected = maptbx.crystal_gridding(
        unit_cell=symmetry.unit_cell(), space_group_info=info, step=0.6, symmetry_flags=maptbx.use_space_group_symmetry
    ).n_real()
    assert sfdiff.Crystal.from_cctbx(symmetry).grid(0.6) == tuple(expected)


def test_anything_with_a_crystal_symmetry_will_do():
    structure = random_xray_structure("P 21")
    expected = sfdiff.Crystal.from_cctbx(structure.crystal_symmetry())
    miller_set = miller.build_set(structure, anomalous_flag=False, d_min=3)
    for obj in (structure, miller_set, miller_set.array()):
        assert sfdiff.Crystal.from_cctbx(obj).is_same_as(expected)


def test_incomplete_symmetry_is_refused():
    with pytest.raises(ValueError, match="incomplete"):
        sfdiff.Crystal.from_cctbx(crystal.symmetry(space_group_symbol="P 1"))
    with pytest.raises(ValueError, match="incomplete"):
        sfdiff.Crystal.from_cctbx(crystal.symmetry(unit_cell=(10, 10, 10, 90, 90, 90)))


def test_other_cells_and_groups_are_not_the_same():
    here = sfdiff.Crystal.from_cctbx(crystal.symmetry((20, 20, 30, 90, 90, 90), "P 4"))
    assert not here.is_same_as(sfdiff.Crystal.from_cctbx(crystal.symmetry((20, 20, 30.1, 90, 90, 90), "P 4")))
    assert not here.is_same_as(sfdiff.Crystal.from_cctbx(crystal.symmetry((20, 20, 30, 90, 90, 90), "P 41")))


def test_a_cell_without_the_symmetry_of_the_group_is_refused_as_by_cctbx():
    numbers = np.random.default_rng(7)
    answers = []
    for symbol in ("P 1", "C 1 2 1", "P 21 21 21", "P 41", "R 3 :H", "R 3 :R", "P 61", "F 2 3"):
        info = sgtbx.space_group_info(symbol)
        cell = np.array(info.any_compatible_unit_cell(volume=9000).parameters())
        for size in (0.003, 0.01, 0.05):
            parameters = cell * (1 + size * numbers.uniform(-1, 1, 6))
            answers.append(info.group().is_compatible_unit_cell(uctbx.unit_cell(tuple(parameters))))
            if answers[-1]:
                sfdiff.Crystal(parameters, symbol)
            else:
                with pytest.raises(ValueError, match="has not the symmetry of"):
                    sfdiff.Crystal(parameters, symbol)
    assert 8 < sum(answers) < 20


def test_indices_without_values_are_refused():
    crystal = sfdiff.Crystal((20, 25, 30, 90, 90, 90), "P 21 21 21")
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C"], [[1.0, 2.0, 3.0]], b_iso=10.0)
    with pytest.raises(TypeError, match="on meta, and have no values"):
        sfdiff.structure_factors(atoms, crystal, crystal.build_miller_indices(3.0).to("meta"))
