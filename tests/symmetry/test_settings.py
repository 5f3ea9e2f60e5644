"""Cells, operators, Miller sets, grids and special positions are cctbx's, to the bit, in all tabulated settings."""

import random

from mmtbx_sfdiff.symmetry import gridding, miller_sets
from mmtbx_sfdiff.symmetry.operators import operators_from_hall, operators_from_list
from mmtbx_sfdiff.symmetry.settings import setting
from mmtbx_sfdiff.symmetry.sites import average_u_star, exact_site, special_sites
from mmtbx_sfdiff.symmetry.unit_cell import unit_cell

import gemmi
import numpy as np
import pytest

pytest.importorskip("cctbx")

from cctbx import maptbx, miller, sgtbx, uctbx
from cctbx.array_family import flex

HALLS = list(dict.fromkeys(entry.hall for entry in gemmi.spacegroup_table()))
CHANGED = [
    "C 2y (x+y,-x+y,z)",
    "F 4 2 3 (-x+y+z,x-y+z,x+y-z)",
    "-P 2ybc (1 2 3)",
    "P 31 2 (0 0 4)",
    "I 4 2 3 (y+z,x+z,x+y)",
]
# A basis for which cctbx finds another change to the reference setting than the one that the symbol says.
AMBIGUOUS = "C 2c 2 (x+y,x-y,-z+1/6)"


def test_cells_have_the_same_matrices():
    generator = random.Random(0)
    compared = 0
    for _ in range(2000):
        angles = [generator.choice([90, 120, generator.uniform(50, 130)]) for _ in range(3)]
        parameters = [generator.uniform(2, 400) for _ in range(3)] + angles
        try:
            expected = uctbx.unit_cell(parameters)
        except ValueError:
            with pytest.raises(ValueError, match="No unit cell has the angles"):
                unit_cell(parameters)
            continue
        found = unit_cell(parameters)
        assert found.orthogonalization == tuple(expected.orthogonalization_matrix())
        assert found.fractionalization == tuple(expected.fractionalization_matrix())
        g = expected.reciprocal_metrical_matrix()
        assert found.reciprocal_metric == (g[0], g[3], g[4], g[3], g[1], g[5], g[4], g[5], g[2])
        assert found.volume == expected.volume()
        compared += 1
    assert compared > 1000


@pytest.mark.parametrize(
    "parameters", [(1, 2, 3), (10, 10, 0, 90, 90, 90), (10, 10, 10, 90, 90, 180), (1, 1, float("nan"), 90, 90, 90)]
)
def test_what_is_no_cell_is_said(parameters):
    with pytest.raises(ValueError, match="nit cell"):
        unit_cell(parameters)


def test_operators_come_in_the_order_of_cctbx():
    canonical = [sgtbx.space_group_type(sgtbx.space_group(hall)).hall_symbol() for hall in HALLS]
    for hall in [*HALLS, *canonical, *CHANGED, AMBIGUOUS]:
        group, found = sgtbx.space_group(hall), operators_from_hall(hall)
        expected = [group(0, i, k) for i in range(group.f_inv()) for k in range(group.n_smx())]
        rotations, translations, centring = found.arrays()
        assert rotations.reshape(-1, 9).tolist() == [list(op.r().num()) for op in expected], hall
        assert translations.tolist() == [list(op.t().as_double()) for op in expected], hall
        assert centring.tolist() == [list(group(i, 0, 0).t().as_double()) for i in range(group.n_ltr())], hall


def test_settings_are_named_as_in_cctbx():
    for hall in HALLS:
        info = sgtbx.space_group_info(group=sgtbx.space_group(hall))
        found = setting(f"Hall: {hall}")
        assert (found.hall_symbol, found.symbol) == (info.type().hall_symbol(), str(info))
        assert setting(f"Hall: {found.hall_symbol}").operators.key == found.operators.key
        assert found.to_reference == info.type().cb_op().c().as_xyz()
        unit = info.direct_space_asu()
        assert found.box == tuple(tuple(float(v) for v in corner()) for corner in (unit.box_min, unit.box_max))


def test_a_group_is_known_by_its_operators_whatever_their_order():
    generator = random.Random(1)
    for symbol in ("P 21 21 21", "I 41/a m d:2", "R 3:H", "C 1 2 1", "F m -3 m", "P 1 1 21"):
        entry = gemmi.SpaceGroup(symbol)
        operators = list(entry.operations())
        generator.shuffle(operators)
        assert operators_from_list(operators).key == operators_from_hall(entry.hall).key
        assert setting(entry.operations()).number == entry.number
        assert setting(entry.operations()).operators.key == setting(entry).operators.key


@pytest.mark.parametrize("hall", [*HALLS, *CHANGED])
def test_miller_sets_and_grids_are_those_of_cctbx(hall):
    info = sgtbx.space_group_info(group=sgtbx.space_group(hall))
    generator = random.Random(hall)
    symmetry = info.any_compatible_crystal_symmetry(volume=generator.uniform(300, 2500))
    cell, known = unit_cell(symmetry.unit_cell().parameters()), setting(f"Hall: {hall}")
    for anomalous in (False, True):
        expected = miller.build_set(symmetry, anomalous_flag=anomalous, d_min=1.7).indices()
        found = miller_sets.build(cell, known, 1.7, anomalous)
        assert found.tolist() == [list(h) for h in expected] and len(found)
    for step in (0.33, 0.6):
        expected = maptbx.crystal_gridding(
            unit_cell=symmetry.unit_cell(),
            space_group_info=info,
            symmetry_flags=maptbx.use_space_group_symmetry,
            step=step,
        ).n_real()
        assert gridding.grid(cell.parameters, known.operators, step) == tuple(expected)


def test_where_the_change_of_basis_is_ambiguous_the_set_is_complete_all_the_same():
    group = sgtbx.space_group(AMBIGUOUS)
    symmetry = sgtbx.space_group_info(group=group).any_compatible_crystal_symmetry(volume=1000)
    cell = unit_cell(symmetry.unit_cell().parameters())
    found = miller_sets.build(cell, setting(f"Hall: {AMBIGUOUS}"), 1.7)
    expected = miller.build_set(symmetry, anomalous_flag=False, d_min=1.7)
    ours = miller.set(symmetry, flex.miller_index(found.tolist()), anomalous_flag=False)
    assert ours.size() == expected.size() and ours.map_to_asu().common_set(expected).size() == expected.size()


def random_sites(generator, n):
    """Fractional sites of which many are on, or near, special positions."""
    sites = []
    for _ in range(n):
        x = [generator.choice([0, 0.5, 0.25, 0.125, 0.75, 1 / 3, 2 / 3, generator.random()]) for _ in range(3)]
        if generator.random() < 0.3:
            x[1] = x[0]
        if generator.random() < 0.3:
            x[2] = x[0]
        if generator.random() < 0.2:
            x[1] = 2 * x[0]
        sites.append([v + generator.choice([0, generator.uniform(-0.01, 0.01)]) for v in x])
    return np.array(sites)


@pytest.mark.parametrize("hall", HALLS[::3])
def test_special_positions_are_those_of_cctbx(hall):
    group, known = sgtbx.space_group(hall), setting(f"Hall: {hall}")
    generator = random.Random(hall)
    cell = sgtbx.space_group_info(group=group).any_compatible_unit_cell(volume=3000)
    sites = random_sites(generator, 8)
    special = {site.index: site for site in special_sites(unit_cell(cell.parameters()), known.operators, sites)}
    for i, site in enumerate(sites):
        expected = sgtbx.site_symmetry(
            unit_cell=cell,
            space_group=group,
            original_site=tuple(site),
            min_distance_sym_equiv=0.5,
            assert_min_distance_sym_equiv=False,
        )
        order = group.order_z() // expected.multiplicity()
        assert (special[i].order if i in special else 1) == order
        if order > 1:
            assert tuple(exact_site(special[i], site)) == tuple(expected.exact_site())
            u_star = [generator.random() for _ in range(6)]
            mean = average_u_star(special[i], np.array(u_star))
            assert np.abs(mean - np.array(expected.average_u_star(u_star))).max() < 1e-15


@pytest.mark.parametrize("symbol", ["P 21 21 22", "Hall: Q 2", "", 0, 231])
def test_what_is_no_space_group_is_said(symbol):
    with pytest.raises(ValueError, match="is not a space group"):
        setting(symbol)


def test_only_symbols_numbers_and_objects_of_gemmi_name_a_group():
    with pytest.raises(TypeError, match="not float"):
        setting(19.0)
