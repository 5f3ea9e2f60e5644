"""What a map does not show is built anew: a peptide whose end, middle or side chain is elsewhere."""

import math

import torch
from mmtbx_sfdiff import Atoms, Crystal, FModel, Reflections
from mmtbx_sfdiff.geometry.terms import angle, torsion
from mmtbx_sfdiff.latent.generator.protein_torsions import protein_torsions
from mmtbx_sfdiff.latent.refinement.chain_growth import grow, place
from mmtbx_sfdiff.latent.refinement.finish import library_restraint
from mmtbx_sfdiff.latent.refinement.main_chain import Chains, Stretch, stretches, weak_places
from mmtbx_sfdiff.latent.refinement.omit_map import model_density, omit_density, without
from mmtbx_sfdiff.latent.refinement.rebuild import Proposal, RebuildSettings, built, rebuild, unseen_end, work_gain
from mmtbx_sfdiff.latent.refinement.side_chain_maps import beside, side_chains_by_map
from mmtbx_sfdiff.latent.refinement.turning import structure_rotors, turn_side_chains
from mmtbx_sfdiff.numerics.superposition import superposed
from mmtbx_sfdiff.real_space import fourier_map, map_values

import gemmi
import pytest

from tests.support.monomers import library_or_skip
from tests.support.peptide import peptide

SEQUENCE = ("ALA", "SER", "ALA", "ALA", "SER", "GLY", "ALA", "SER", "ALA", "ALA", "SER", "ALA", "ALA", "SER")
N = len(SEQUENCE)


@pytest.fixture(scope="module")
def subject():
    """A structure, and an FModel of it with data that are its own."""
    structure = peptide(SEQUENCE, cell=(22.0, 17.0, 29.0, 90.0, 104.0, 90.0))
    crystal, atoms = Crystal.from_gemmi(structure), Atoms.from_gemmi(structure)
    indices = crystal.build_miller_indices(2.0)
    blank = Reflections.from_arrays(crystal, indices, torch.ones(len(indices), dtype=torch.float64))
    truth = FModel(atoms, blank, method="fft", mask={"method": "probe_shrink"})
    calculated = (truth.f_calc() + 0.35 * truth.f_mask()).detach().abs()
    random = torch.Generator().manual_seed(2)
    free = torch.rand(len(indices), generator=random) < 0.06
    noise = 1 + 0.03 * torch.randn(len(indices), generator=random, dtype=torch.float64)
    data = Reflections.from_arrays(crystal, indices, calculated * noise, sigmas=0.03 * calculated + 0.1, free=free)
    fmodel = FModel(atoms, data, method="fft", mask={"method": "probe_shrink"})
    fmodel.update_scales()
    return structure, fmodel


@pytest.fixture(scope="module")
def torsions(subject):
    return protein_torsions(subject[0])


def with_turned(torsions, changes):
    """Sites with torsions about bonds, (residue, atom) to change in degrees, superposed on what does not move."""
    tree, labels = torsions.tree, torsions.labels
    values = torch.zeros(tree.n_torsions, dtype=torch.float64)
    for row, (b, c) in enumerate(tree.torsions[:, 1:3].tolist()):
        values[row] = math.radians(changes.get((int(labels[b][1]), labels[b][3], labels[c][3]), 0.0))
    sites = tree(values)
    still = ~tree.moved[values != 0].any(0) & torsions.main_chain
    return superposed(sites, tree.reference, still)


def with_sites(fmodel, sites):
    moved = fmodel.with_(atoms=fmodel.atoms.replace(sites_cart=sites))
    moved.update_scales()
    return moved


def error(sites, other, rows):
    return float((sites - other)[rows].square().sum(-1).mean().sqrt())


def test_an_atom_is_placed_by_length_angle_and_torsion():
    a, b, c = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1.5, 0, 0]], dtype=torch.float64)
    for turn in (-2.0, 0.3, 3.0):
        d = place(a, b, c, 1.4, 2.0, torch.tensor(turn, dtype=torch.float64))
        assert float((d - c).norm()) == pytest.approx(1.4)
        assert math.radians(float(angle(torch.stack([b, c, d])))) == pytest.approx(2.0)
        assert math.radians(float(torsion(torch.stack([a, b, c, d])))) == pytest.approx(turn)


def test_residues_are_in_runs_that_peptide_bonds_join(torsions):
    sites = torsions.tree.reference
    whole = Chains(torsions.labels, sites)
    assert [len(run) for run in whole.runs] == [N] and [r.name for r in whole.residues] == list(SEQUENCE)
    assert sum(r.cb is None for r in whole.residues) == 1 and len(whole.rows(whole.residues)) == len(sites)
    apart = sites.clone()
    apart[whole.rows(whole.runs[0][9:])] += 5.0
    assert [len(run) for run in Chains(torsions.labels, apart).runs] == [9, 5]


def test_stretches_are_weak_places_what_lies_between_them_and_ends():
    flags = [False] * 40
    assert stretches([flags]) == []
    for k in (10, 11, 24):
        flags[k] = True
    found = set(stretches([flags]))
    assert {Stretch(0, 9, 12), Stretch(0, 23, 25), Stretch(0, 9, 25), Stretch(0, 0, 12), Stretch(0, 23, 39)} <= found
    assert max(map(len, found)) <= 20
    # Near an end a stretch reaches it, too; no more than half of all is taken out.
    near = set(stretches([[False, False, True] + [False] * 9]))
    assert {Stretch(0, 0, 3), Stretch(0, 1, 3)} <= near and max(map(len, near)) <= 6
    assert stretches([[True] * 6]) == []


def test_a_map_without_a_part_shows_it_and_has_no_solvent_there(subject, torsions):
    _, fmodel = subject
    chains = Chains(torsions.labels, torsions.tree.reference)
    inside = chains.runs[0][5:9]
    out = chains.mask(chains.rows(inside))
    part = without(fmodel, out)
    assert part.atoms.n_atoms > fmodel.atoms.n_atoms and fmodel.atoms.n_atoms == len(out)
    torch.testing.assert_close(part.f_calc(), fmodel.with_(atoms=fmodel.atoms.select(~out)).f_calc(), rtol=0, atol=1e-6)
    density = omit_density(fmodel, out)
    here, there = density(chains.sites[out]).mean(), density(chains.sites[~out]).mean()
    assert float(here) > 2.0 and float(there) < 0.5 * float(here)
    # Where the part was there is no solvent; the mask of the rest alone has some there.
    hidden = fmodel.with_(atoms=fmodel.atoms.select(~out))
    data = fmodel.reflections
    less = fourier_map(data.crystal, data.miller_indices, part.f_mask() - hidden.f_mask(), (48, 36, 60))
    assert float(map_values(less, data.crystal, chains.sites[out]).mean()) < -0.3
    assert not any(weak_places(chains, model_density(fmodel))[0][1:-1])


@pytest.mark.parametrize("forward", [True, False])
def test_a_stretch_grows_into_its_density_and_meets_the_other_end(subject, torsions, forward):
    _, fmodel = subject
    truth = torsions.tree.reference
    chains = Chains(torsions.labels, truth)
    run = chains.runs[0]
    inside = run[5:9]
    density = omit_density(fmodel, chains.mask(chains.rows(inside)))
    # What is there at first is wrong.
    wrong = truth.clone()
    wrong[chains.rows(inside)] += torch.tensor([2.0, -2.0, 1.5], dtype=torch.float64)
    anchor, order, meets = (run[4], inside, run[9]) if forward else (run[9], inside[::-1], run[4])
    grown = grow(wrong, truth, anchor, order, forward, density, meets)
    assert error(grown.sites_cart, truth[grown.rows], slice(None)) < 0.35 and grown.gap < 0.4
    assert grown.score > grown.before + 20 and not grown.is_end
    assert set(grown.rows.tolist()) >= {row for r in inside for row in (r.n, r.ca, r.c)}


def test_what_a_map_does_not_show_of_an_end_keeps_the_starts_torsions(subject, torsions):
    _, fmodel = subject
    truth = torsions.tree.reference
    chains = Chains(torsions.labels, truth)
    run = chains.runs[0]
    inside = run[10:]
    density = omit_density(fmodel, chains.mask(chains.rows(inside)))
    grown = grow(truth, truth, run[9], inside, True, density)
    assert grown.is_end
    blind = Proposal(Stretch(0, 10, N - 1), tuple(inside), grown, lambda sites: torch.zeros(sites.shape[:-1]).double())
    assert [r.ca for r in unseen_end(blind)] == [r.ca for r in inside[::-1]]
    seen = Proposal(
        Stretch(0, 10, N - 1), tuple(inside), grown, lambda sites: torch.full(sites.shape[:-1], 3.0).double()
    )
    assert unseen_end(seen) == []
    # The fit turns torsions alone: bonds stay, and the rest of the model where it was.
    elsewhere = with_turned(torsions, {(10, "CA", "C"): 70.0})
    found = built(torsions.tree, chains, blind, elsewhere)
    assert error(found, truth, chains.rows(run[:8])) < 1e-6
    bond = (found[run[11].n] - found[run[11].ca]).norm()
    assert float(bond) == pytest.approx(float((truth[run[11].n] - truth[run[11].ca]).norm()), abs=1e-6)


@pytest.fixture(scope="module")
def elsewhere(subject, torsions):
    """A structure whose last residues are elsewhere, its FModel, and which atoms these are."""
    library_or_skip()
    wrong = with_turned(torsions, {(10, "CA", "C"): 80.0, (11, "N", "CA"): 40.0})
    rows = torch.tensor([int(label[1]) > 10 for label in torsions.labels])
    assert error(wrong, torsions.tree.reference, rows) > 2.0
    structure = subject[0].clone()
    for cra, site in zip(structure[0].all(), wrong.tolist()):
        cra.atom.pos = gemmi.Position(*site)
    return structure, with_sites(subject[1], wrong), rows


def test_an_end_that_is_elsewhere_is_built_anew(torsions, elsewhere):
    structure, start, rows = elsewhere
    before = start.atoms.sites_cart.clone()
    settings = RebuildSettings(evaluations=150)
    found, history = rebuild(start, structure, library_restraint(structure, 2.0), settings)
    assert error(found.atoms.sites_cart.detach(), torsions.tree.reference, rows) < 0.6
    taken = [cycle for cycle in history.cycles if "gain" in cycle]
    assert any(cycle.get("residues", "").startswith("A ") for cycle in taken) and all(c["gain"] > 0 for c in taken)
    assert len(history.steps) <= settings.evaluations and history.cycles[-1]["cycle"] == len(history.cycles)
    assert found.r_factors()[0] < start.r_factors()[0] - 0.1
    assert torch.equal(start.atoms.sites_cart, before) and start.atoms.dtype == torch.float64


@pytest.mark.slow
def test_the_free_set_has_no_say_in_what_is_built(elsewhere):
    """Other free amplitudes, the same model to the bit."""
    structure, start, _ = elsewhere
    data = start.reflections
    spoiled = torch.where(data.r_free_flags, 3.0 * data.f_obs, data.f_obs)
    other = Reflections.from_arrays(
        data.crystal, data.miller_indices, spoiled, sigmas=data.sigmas, free=data.r_free_flags
    )
    first, second = (
        rebuild(model, structure, library_restraint(structure, 2.0), RebuildSettings(evaluations=150))[0]
        for model in (start, start.with_(reflections=other))
    )
    assert torch.equal(first.atoms.sites_cart, second.atoms.sites_cart)


def test_a_model_that_is_right_is_left_alone(subject, torsions):
    library_or_skip()
    structure, fmodel = subject
    found, history = rebuild(fmodel, structure, library_restraint(structure, 2.0), RebuildSettings(evaluations=90))
    assert error(found.atoms.sites_cart.detach(), torsions.tree.reference, slice(None)) < 0.2
    assert not [cycle for cycle in history.cycles if "residues" in cycle]
    assert work_gain(found) > 0


def test_side_chains_are_moved_to_where_the_map_shows_them(subject, torsions):
    structure, fmodel = subject
    truth = torsions.tree.reference
    rotors = structure_rotors(structure)
    chains = Chains(torsions.labels, truth)
    by_ca = {r.ca: rotor for r, rotor in zip([r for r in chains.residues if r.name == "SER"], rotors)}
    sites = truth
    for rotor in rotors[1:3]:
        sites = rotor.sites(sites, (rotor.angles(sites) + 2.1)[None])[0]
    wrong = with_sites(fmodel, sites)
    found, moved = side_chains_by_map(wrong, Chains(torsions.labels, sites), by_ca)
    assert {torsions.labels[r.ca][1] for r in moved} == {"5", "8"}
    assert error(found, truth, torch.cat([rotor.turned[0] for rotor in rotors])) < 0.5
    same, none = side_chains_by_map(fmodel, chains, by_ca)
    assert none == [] and torch.equal(same, truth)
    serines = [r for r in chains.residues if r.ca in by_ca]
    assert beside(chains, serines[:1], by_ca, 0.1) == serines[:1]
    assert beside(chains, serines[:1], by_ca, 100.0) == serines


def test_turning_does_not_change_the_precision_of_what_it_is_given(subject):
    library_or_skip()
    structure, fmodel = subject
    found, _ = turn_side_chains(fmodel, structure, library_restraint(structure, 2.0))
    assert fmodel.atoms.dtype == found.atoms.dtype == found.reflections.f_obs.dtype == torch.float64


def test_atoms_of_no_protein_are_refused(subject):
    library_or_skip()
    structure, fmodel = subject
    fewer = structure.clone()
    del fewer[0][0][-1]
    with pytest.raises(ValueError, match="belong to no protein"):
        rebuild(fmodel, fewer, library_restraint(structure, 2.0))
