"""Rotamers tried against the data: 1yjp with a side chain that was turned away."""

import math

import torch
from mmtbx_sfdiff.files import load_entry
from mmtbx_sfdiff.latent import create_system, energy_on, prepare_model
from mmtbx_sfdiff.latent.refinement.experiment import Experiment
from mmtbx_sfdiff.latent.refinement.models import relax
from mmtbx_sfdiff.latent.refinement.polish import polish
from mmtbx_sfdiff.latent.refinement.problem import make_problem
from mmtbx_sfdiff.latent.refinement.side_chains import SideChainSearch, rotors

import pytest

pytest.importorskip("openmm")
pytest.importorskip("pdbfixer")


@pytest.fixture(scope="module")
def files_1yjp(pdb_dir):
    return [str(pdb_dir / "1yjp" / name) for name in ("1yjp.pdb.gz", "1yjp-sf.cif.gz")]


@pytest.fixture(scope="module")
def peptide(files_1yjp):
    entry = load_entry(*files_1yjp)
    prepared = prepare_model(entry.model.manager.get_hierarchy())
    system = create_system(prepared, constraints=None, hydrogen_mass=None)
    return prepared, make_problem(prepared, entry, b_source="wilson"), energy_on(system)


def test_rotors_turn_what_is_beyond_the_bond(peptide):
    prepared, problem, _ = peptide
    found = {rotor.residue: rotor for rotor in rotors(prepared)}
    assert [prepared.residue_names[r] for r in found] == ["ASN", "ASN", "GLN", "GLN", "ASN", "TYR"]
    tyrosine = found[6]
    asked = torch.tensor([[1.0, 0.5], [-2.0, 3.0]], dtype=torch.float64)
    sites = tyrosine.sites(problem.sites_cart, asked)
    bonds = torch.tensor([(a.index, b.index) for a, b in prepared.topology.bonds()])

    def lengths(x):
        return (x[..., bonds[:, 0], :] - x[..., bonds[:, 1], :]).norm(dim=-1)

    torch.testing.assert_close(lengths(sites), lengths(problem.sites_cart).expand(2, -1))
    for row, torsions in zip(sites, asked):
        torch.testing.assert_close(tyrosine.angles(row), torsions)
        still = [i for i in range(prepared.n_ff) if i not in tyrosine.turned[0].tolist()]
        assert torch.equal(row[still], problem.sites_cart[still])
    # A ring turned by half is the same ring.
    assert tyrosine.turn(torch.tensor([0.0, math.pi])) == pytest.approx(0, abs=1e-6)
    assert found[0 + 1].turn(torch.tensor([0.0, math.pi])) == pytest.approx(math.pi)


@pytest.mark.slow
def test_a_turned_side_chain_is_found_again_and_stays(peptide):
    prepared, problem, energy = peptide
    tyrosine = rotors(prepared)[-1]
    truth = tyrosine.angles(problem.sites_cart)
    wrong = tyrosine.sites(problem.sites_cart, (truth + torch.tensor([2.1, 0.6]))[None])[0]
    wrong = relax(wrong, energy, 30)
    experiment = Experiment(problem.fmodel)
    b = problem.residue_b()().detach()
    search = SideChainSearch(problem, experiment, rotors(prepared), energy)
    sites, b, moves = search.run(wrong, b, passes=2)
    assert 6 in [move["residue"] for move in moves] and all(move["gain"] > 0 for move in moves)
    assert tyrosine.turn(tyrosine.angles(sites) - truth) < math.radians(30)
    assert 6 not in [move["residue"] for move in search.run(sites, b)[2]]


def test_polishing_turns_side_chains_and_says_so(peptide):
    prepared, problem, energy = peptide
    tyrosine = rotors(prepared)[-1]
    truth = tyrosine.angles(problem.sites_cart)
    wrong = tyrosine.sites(problem.sites_cart, (truth + torch.tensor([2.1, 0.6]))[None])[0]
    b = problem.residue_b()().detach()
    runs = [polish(problem, wrong, b, energy, steps=20, weight=1.0, rotors=turning) for turning in (None, [tyrosine])]
    assert "side_chains" not in runs[0].facts and runs[1].facts["side_chains"][0]["name"] == "TYR"
    assert runs[1].r_work < runs[0].r_work and runs[1].target < runs[0].target
    assert len(runs[1].history.steps) == 20
