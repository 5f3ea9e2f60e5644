"""Torsions and the elastic network: geometry that stays, exact derivatives, the size asked for; and the search with it."""

import math

import torch
from mmtbx_sfdiff import Atoms, Crystal, FModel, Reflections
from mmtbx_sfdiff.latent.generator.elastic import ElasticNetwork
from mmtbx_sfdiff.latent.generator.protein_torsions import _bonds, protein_torsions
from mmtbx_sfdiff.latent.generator.torsions import TorsionTree
from mmtbx_sfdiff.latent.refinement.objective import sigma_a_curve
from mmtbx_sfdiff.latent.refinement.problem import Problem
from mmtbx_sfdiff.latent.refinement.search import SearchSettings, Start, search
from mmtbx_sfdiff.likelihood import e_values
from mmtbx_sfdiff.numerics.superposition import superposed

import gemmi
import numpy as np
import pytest

from tests.support.peptide import peptide


@pytest.fixture(scope="module")
def found():
    return protein_torsions(peptide())


@pytest.fixture(scope="module")
def prior():
    return ElasticNetwork.from_gemmi(peptide(), rms=0.8)


def some(n, scale, seed=0):
    return scale * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_phi_psi_and_side_chains_turn_and_nothing_else(found):
    names = {(found.labels[b][3], found.labels[c][3]) for b, c in found.tree.torsions[:, 1:3].tolist()}
    assert names <= {("N", "CA"), ("CA", "C"), ("CA", "CB")}
    # Of eight residues: the first has no phi, the last a psi that moves its oxygen alone; three serines.
    assert int(found.side_chain.sum()) == 3 and found.tree.n_torsions == 7 + 8 + 3
    assert not any(found.labels[c][:2] != found.labels[b][:2] for b, c in found.tree.torsions[:, 1:3].tolist())


def test_sites_are_those_of_one_rotation_after_another(found):
    tree, changes = found.tree, some(found.tree.n_torsions, 0.5)
    # From the outside in: axes that are not yet moved are those of the reference.
    sites = tree.reference.clone()
    for row in tree.moved.sum(1).argsort().tolist():
        _, b, c, _ = tree.torsions[row].tolist()
        axis = tree.reference[c] - tree.reference[b]
        axis = axis / axis.norm()
        turn = torch.linalg.matrix_exp(changes[row] * torch.linalg.cross(axis.expand(3, 3), torch.eye(3).double()))
        rows = tree.moved[row]
        sites[rows] = (sites[rows] - tree.reference[b]) @ turn + tree.reference[b]
    expected = superposed(sites, tree.reference, tree.fitted.nonzero()[:, 0])
    torch.testing.assert_close(tree(changes), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(tree.changes(tree(changes)), changes, rtol=0, atol=1e-10)


def test_bonds_and_angles_stay_however_far_it_moves(found):
    tree = found.tree
    moved = tree(some(tree.n_torsions, 1.0))

    def distances(x):
        return (x[:, None] - x[None]).norm(dim=-1)

    near = distances(tree.reference)
    bonded = (near < 1.7) & (near > 0)
    angles = ((bonded.double() @ bonded.double()) > 0) & (near > 0)
    change = (distances(moved) - near).abs()
    assert float(change[bonded].max()) < 1e-10 and float(change[angles].max()) < 1e-10
    assert float((moved - tree.reference).norm(dim=-1).max()) > 2


def test_derivatives_are_those_of_differences(found):
    tree = found.tree
    weights = some(tree.reference.numel(), 1.0, 3).reshape(tree.reference.shape)
    assert torch.autograd.gradcheck(
        lambda changes: (tree(changes) * weights).sum(-1), some(tree.n_torsions, 0.4).requires_grad_()
    )
    step = 1e-5 * torch.eye(tree.n_torsions, dtype=torch.float64)
    torch.testing.assert_close(((tree(step) - tree(-step)) / 2e-5).movedim(0, -1), tree.jacobian(), rtol=0, atol=1e-7)


def test_what_forms_no_tree_is_refused(found):
    tree = found.tree
    moved = torch.zeros(2, len(tree.reference), dtype=torch.bool)
    moved[0, 5:9] = moved[1, 7:12] = True
    with pytest.raises(ValueError, match="form no tree"):
        TorsionTree(tree.reference, tree.torsions[:2], moved, tree.chain_index, tree.fitted)


def test_rings_and_disulfides_do_not_turn_each_other():
    sites = np.array([[0.0, 0, 0], [1.8, 0, 0], [3.7, 0, 0], [5.5, 0, 0]])
    residues = [("A", 1), ("A", 1), ("A", 5), ("A", 5)]
    assert _bonds(sites, ["CB", "SG", "SG", "CB"], residues) == [[1], [0], [3], [2]]
    # A ring through the nitrogen, as proline's.
    ring = peptide(("ALA", "ALA", "ALA"))
    beta, nitrogen = ring[0]["A"][1].find_atom("CB", "*"), ring[0]["A"][1].find_atom("N", "*")
    beta.pos = nitrogen.pos
    beta.pos.x += 1.4
    turning = protein_torsions(ring)
    assert ("2", "N") not in {
        (turning.labels[b][1], turning.labels[b][3]) for b in turning.tree.torsions[:, 1].tolist()
    }


def test_what_is_broken_off_moves_with_its_residue():
    structure = peptide()
    serine, last = structure[0]["A"][1], structure[0]["A"][7]
    serine.remove_atom("CB", "\0", gemmi.Element("C"))  # OG hangs on nothing
    oxygen = last.find_atom("O", "*")
    oxygen.pos.x += 1.5
    prior = ElasticNetwork.from_gemmi(structure, rms=1.0)
    assert len(set(prior.tree.chain_index.tolist())) == 1
    moved = prior.sample(20, generator=torch.Generator().manual_seed(1))
    for name, number, other in (("OG", "2", "CA"), ("O", "8", "C")):
        i, j = (
            prior.labels.index(("A", number, prior.labels[-1][2] if number == "8" else "SER", n)) for n in (name, other)
        )
        assert float((moved[:, i] - moved[:, j]).norm(dim=-1).std()) < 1e-9


def test_the_model_is_the_origin_and_vectors_come_back(prior):
    z, log_det = prior.encode(prior.tree.reference)
    assert float(z.abs().max()) < 1e-9
    torch.testing.assert_close(prior.decode(z)[0], prior.tree.reference, rtol=0, atol=1e-9)
    some_z = some(4 * prior.n_latent, 0.5).reshape(4, -1)
    sites, back = prior.decode(some_z)
    torch.testing.assert_close(prior.encode(sites + 7.0)[0], some_z, rtol=0, atol=1e-8)
    # The volume of torsions for each volume of latent vectors.
    jacobian = torch.autograd.functional.jacobian(lambda z: prior.tree.changes(prior.decode(z)[0]), 0.1 * some_z[0])
    assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(float(back[0]), abs=1e-6)
    assert float(log_det) == pytest.approx(-float(back[0]))


def test_samples_are_as_wrong_as_asked_and_near_atoms_keep_together():
    for rms in (0.3, 1.0):
        prior = ElasticNetwork.from_gemmi(peptide(), rms=rms)
        moved = prior.sample(400, generator=torch.Generator().manual_seed(1)) - prior.tree.reference
        found = float(moved[:, prior.tree.fitted].square().sum(-1).mean(-1).sqrt().median())
        assert found == pytest.approx(rms, rel=0.25)
    for words, rms in (("positive", 0.0), ("cannot move", 50.0)):
        with pytest.raises(ValueError, match=words):
            ElasticNetwork.from_gemmi(peptide(), rms=rms)


# The data


@pytest.fixture(scope="module")
def crystal():
    """Simulated data of the peptide, and its structure."""
    structure = peptide()
    place = Crystal.from_gemmi(structure)
    atoms = Atoms.from_gemmi(structure)
    reach = [range(-12, 13), range(11), range(14)]
    indices = torch.cartesian_prod(*(torch.tensor(list(r)) for r in reach))
    indices = indices[(indices[:, 2] > 0) | (indices[:, 0] > 0) & (indices[:, 2] == 0)]
    d = place.d_star_sq(indices).rsqrt()
    indices = indices[(d > 2.0) & (d < 12.0)]
    indices = indices[~((indices[:, 0] == 0) & (indices[:, 2] == 0) & (indices[:, 1] % 2 == 1))]
    data = Reflections.from_arrays(place, indices, torch.ones(len(indices)).double())
    calculated = FModel(atoms, data, method="direct").f_calc().detach().abs()
    free = torch.rand(len(indices), generator=torch.Generator().manual_seed(2)) < 0.08
    noise = 1 + 0.03 * some(len(indices), 1.0, 5)
    data = Reflections.from_arrays(place, indices, calculated * noise, sigmas=0.03 * calculated + 0.1, free=free)
    return structure, atoms, data


def problem_of(structure, atoms, data):
    residues = [cra.residue.seqid.num for cra in structure[0].all()]
    n = atoms.n_atoms
    return Problem(
        sites_cart=atoms.sites_cart.detach(),
        rows=torch.arange(n),
        chain_index=torch.zeros(n, dtype=torch.int64),
        residue_index=torch.tensor(residues),
        main_chain=torch.tensor([cra.atom.name in ("N", "CA", "C", "O") for cra in structure[0].all()]),
        b_start=torch.full((n,), 12.0, dtype=torch.float64),
        fmodel=FModel(atoms, data, method="direct"),
        selection=torch.arange(n),
    )


def test_sigma_a_falls_off_as_the_error_of_the_sites(crystal):
    _, atoms, data = crystal
    fmodel = FModel(atoms, data, method="direct")
    calculated = fmodel.f_calc().detach()
    quarter = data.crystal.d_star_sq(data.miller_indices) / 4
    curve = {}
    for shift in (0.4, 0.7):
        wrong = fmodel.f_calc(
            atoms.sites_cart + shift / math.sqrt(3) * some(3 * atoms.n_atoms, 1.0, 8).reshape(-1, 3)
        ).detach()
        curve[shift] = sigma_a_curve(data, wrong, e_values(data))
        b = -(curve[shift].log()[-1] - curve[shift].log()[0]) / (quarter[-1] - quarter[0])
        # 8 pi^2 / 3 <u^2>, from a handful of atoms
        assert 0.4 < float(b) / (8 * math.pi**2 / 3 * shift**2) < 2.0
    assert bool((curve[0.7] <= curve[0.4]).all()) and float(sigma_a_curve(data, calculated, e_values(data)).min()) > 0.9


def test_a_bent_model_is_found_by_the_search_and_the_free_set_has_no_say(crystal):
    structure, atoms, data = crystal
    wide = ElasticNetwork.from_gemmi(structure, rms=1.0)
    bent = wide.sample(1, 1.0, torch.Generator().manual_seed(4))[0]
    begin = structure.clone()
    for cra, place in zip(begin[0].all(), bent.tolist()):
        for axis, value in zip("xyz", place):
            setattr(cra.atom.pos, axis, value)
    start = atoms.replace(sites_cart=bent)
    problem = problem_of(begin, start, data)
    settings = SearchSettings(
        starts=(Start(rate=0.08), Start(2.0, rate=0.08, first_d_min=4.0, rigid=False)), rigid_steps=5, steps=60
    )
    prior = ElasticNetwork.from_gemmi(begin, rms=0.8)
    truth = atoms.sites_cart.detach()
    before = problem.rmsd(bent, truth, superpose=True)
    run = search(problem, prior, settings)[0]
    assert before > 0.6 and problem.rmsd(run.sites_cart, truth, superpose=True) < 0.3 * before
    assert set(run.facts["screened"]) == {"0", "1"} and run.facts["test_gain"] > 0
    assert settings.n_steps == 5 + 2 * 60
    # Other free amplitudes, the same model to the bit.
    spoiled = data.f_obs.clone()
    spoiled[data.r_free_flags] *= 3.0
    other = Reflections.from_arrays(
        data.crystal, data.miller_indices, spoiled, sigmas=data.sigmas, free=data.r_free_flags
    )
    again = search(problem_of(begin, start, other), prior, settings)[0]
    assert torch.equal(again.sites_cart, run.sites_cart)
    with pytest.raises(ValueError, match="at least one start"):
        search(problem, prior, SearchSettings(starts=()))
