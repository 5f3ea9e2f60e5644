"""Waters: found where they were taken away, removed where there is nothing."""

import mmtbx_sfdiff  # noqa: F401  (first: it owns the order in which native libraries are loaded)
import torch
from mmtbx_sfdiff import Atoms, Crystal, FModel, Reflections, structure_factors
from mmtbx_sfdiff.refinement.waters import WaterRules, peaks, update_waters

import gemmi
import numpy as np
import pytest

# Without noise in the data even ripples stand out of their map.
RULES = WaterRules(peak=8.0)
WATERS = ((8.0, 5.0, 5.0), (5.0, 10.2, 8.0), (12.4, 12.0, 9.0))


def structure_of(waters):
    """Oxygens and nitrogens of a made-up ligand, and waters at 2.8 Å from one of them."""
    structure = gemmi.Structure()
    structure.cell = gemmi.UnitCell(24, 27, 30, 90, 90, 90)
    structure.spacegroup_hm = "P 21 21 21"
    model, chain = gemmi.Model("1"), gemmi.Chain("A")
    for number, (x, y, z) in enumerate(WATERS, 1):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "LIG", gemmi.SeqId(number, " ")
        for name, element, shift in (("O", "O", 2.8), ("C1", "C", 4.2), ("C2", "C", 5.7), ("N", "N", 7.1)):
            atom = gemmi.Atom()
            atom.name, atom.element, atom.b_iso = name, gemmi.Element(element), 15.0
            atom.pos = gemmi.Position(x, y, z + shift)
            residue.add_atom(atom)
        chain.add_residue(residue)
    model.add_chain(chain)
    water_chain = gemmi.Chain("W")
    for number, place in enumerate(waters, 1):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "HOH", gemmi.SeqId(number, " ")
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos, atom.b_iso = "O", gemmi.Element("O"), gemmi.Position(*place), 20.0
        residue.add_atom(atom)
        water_chain.add_residue(residue)
    if len(waters):
        model.add_chain(water_chain)
    structure.add_model(model)
    return structure


def fmodel_of(structure, data=None):
    crystal = Crystal.from_gemmi(structure)
    atoms = Atoms.from_gemmi(structure)
    if data is None:
        indices = crystal.build_miller_indices(1.8)
        f = structure_factors(atoms, crystal, indices, method="direct").abs()
        data = Reflections.from_arrays(crystal, indices, f, sigmas=0.02 * f + 0.05, free=torch.arange(len(f)) % 10 == 0)
    fmodel = FModel(atoms, data, method="direct", mask={"method": "binary"})
    fmodel.update_scales(remove_outliers=False)
    return fmodel


@pytest.fixture(scope="module")
def data():
    return fmodel_of(structure_of(WATERS)).reflections


def places(structure):
    return [cra.atom.pos.tolist() for cra in structure[0].all() if cra.residue.name == "HOH"]


def test_waters_that_were_taken_away_are_found(data):
    dry = structure_of(())
    made, added, removed = update_waters(dry, fmodel_of(dry, data), RULES)
    found = np.array(places(made))
    assert (added, removed) == (3, 0) and not places(dry)
    # Beside the model itself, not beside a symmetry copy.
    for place in WATERS:
        assert np.linalg.norm(found - place, axis=1).min() < 0.15
    assert len({str(cra) for cra in made[0].all()}) == made[0].count_atom_sites()


def test_a_water_without_density_goes_and_others_stay(data):
    wrong = structure_of([*WATERS, (18.0, 20.0, 24.0)])
    made, added, removed = update_waters(wrong, fmodel_of(wrong, data), RULES)
    assert (added, removed) == (0, 1)
    np.testing.assert_allclose(sorted(places(made)), sorted(WATERS), atol=1e-6)


def test_a_water_on_another_atom_goes(data):
    wrong = structure_of([*WATERS, (8.0, 5.0, 8.6)])  # 0.8 Å from O of the first residue
    _, _, removed = update_waters(wrong, fmodel_of(wrong, data))
    assert removed == 1


def test_a_water_of_a_large_displacement_goes(data):
    loose = structure_of(WATERS)
    loose[0]["W"][0][0].b_iso = 99.0
    _, _, removed = update_waters(loose, fmodel_of(loose, data), WaterRules(density=-9.0))
    assert removed == 1


def test_free_reflections_place_no_water(data):
    """Other free amplitudes leave maps as they are, with the scales, alpha and beta of before."""
    from mmtbx_sfdiff.refinement import waters

    dry = structure_of(())
    results = []
    for factor in (1.0, 3.0):
        fmodel = fmodel_of(dry, data)
        coefficients = fmodel.map_coefficients()
        free = fmodel.scales.selected(fmodel.reflections).r_free_flags
        changed = {name: torch.where(free, factor * f, f) for name, f in coefficients.items()}
        fmodel.map_coefficients = lambda changed=changed: changed
        results.append(waters.maps(fmodel))
    for before, after in zip(*results):
        assert np.array_equal(before, after)


def test_peaks_are_where_the_maxima_are():
    n = 24
    x, y, z = np.meshgrid(*[np.arange(n)] * 3, indexing="ij")
    rho = np.zeros((n, n, n))
    for center, height in (((3.3, 5.0, 22.8), 5.0), ((12.0, 18.4, 7.0), 8.0)):
        d = [(a - c + n / 2) % n - n / 2 for a, c in zip((x, y, z), center)]
        rho += height * np.exp(-0.2 * sum(v**2 for v in d))
    found = peaks(rho, gemmi.UnitCell(n, n, n, 90, 90, 90), 3.0)
    assert len(found) == 2 and found[0][0] > found[1][0]
    np.testing.assert_allclose(np.array(found[0][1].tolist()) * n, (12.0, 18.4, 7.0), atol=0.1)
    np.testing.assert_allclose(np.array(found[1][1].tolist()) * n % n, (3.3, 5.0, 22.8), atol=0.1)


@pytest.mark.parametrize("case, words", [("models", "one model"), ("resolution", "show no single waters")])
def test_what_no_waters_are_placed_in(case, words, data):
    structure = structure_of(())
    fmodel = fmodel_of(structure, data)
    rules = WaterRules()
    if case == "models":
        structure.add_model(structure[0])
    else:
        rules = WaterRules(d_min=1.5)
    with pytest.raises(ValueError, match=words):
        update_waters(structure, fmodel, rules)


def test_the_peaks_are_those_of_cctbx_finder(data):
    """The same maxima, places and heights as ``maptbx.peak_search``, which ``mmtbx.find_peaks`` and ordered_solvent look with."""
    maptbx = pytest.importorskip("cctbx.maptbx")
    from mmtbx_sfdiff.refinement.waters import maps

    from cctbx.array_family import flex

    dry = structure_of(())
    fmodel = fmodel_of(dry, data)
    rho, _ = maps(fmodel)
    symmetry = fmodel.atoms.to_cctbx().crystal_symmetry()
    gridding = maptbx.crystal_gridding(
        unit_cell=symmetry.unit_cell(),
        space_group_info=symmetry.space_group_info(),
        symmetry_flags=maptbx.use_space_group_symmetry,
        pre_determined_n_real=rho.shape,
    )
    apart = 1.5  # Å: lower maxima nearer than that to a higher one are of its cluster, for cctbx
    parameters = maptbx.peak_search_parameters(
        peak_search_level=1,
        peak_cutoff=4.0,
        interpolate=True,
        min_distance_sym_equiv=1.0,
        general_positions_only=False,
        min_cross_distance=apart,
    )
    found = maptbx.crystal_gridding_tags(gridding=gridding).peak_search(
        parameters=parameters, map=flex.double(np.ascontiguousarray(rho))
    )
    clusters = found.all(max_clusters=1000)
    theirs = [(height, np.array(site)) for height, site in zip(clusters.heights(), clusters.sites(), strict=True)]
    ours = [(height, np.array(site.tolist())) for height, site in peaks(rho, dry.cell, 4.0)]
    operations = [
        (np.array(op.r().as_double()).reshape(3, 3), np.array(op.t().as_double()))
        for op in symmetry.space_group().all_ops()
    ]
    orthogonal = np.array(dry.cell.orth.mat.tolist())

    def distance(a, b):
        shifts = [(r @ a + t - b) for r, t in operations]
        return min(float(np.linalg.norm(orthogonal @ (s - np.round(s)))) for s in shifts)

    assert len(theirs) >= 5
    for height, site in theirs:
        same = min(ours, key=lambda one: distance(one[1], site))
        assert distance(same[1], site) < 0.1 and same[0] == pytest.approx(height, rel=0.05)
    for height, site in ours:
        assert any(distance(other, site) < apart for _, other in theirs), height
