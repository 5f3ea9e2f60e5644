"""What holds a refinement: weights, hydrogens, alpha and beta, models that the data say nothing of."""

import dataclasses

import mmtbx_sfdiff  # noqa: F401  (first: it owns the order in which native libraries are loaded)
import torch
from mmtbx_sfdiff import Atoms, FModel
from mmtbx_sfdiff.geometry import DisplacementRestraints, GeometryRestraints
from mmtbx_sfdiff.geometry.placing import with_hydrogens
from mmtbx_sfdiff.likelihood.targets import maximum_likelihood
from mmtbx_sfdiff.refinement import Settings, refine
from mmtbx_sfdiff.refinement.curvature import Curvature
from mmtbx_sfdiff.refinement.likelihood import cross_validated
from mmtbx_sfdiff.refinement.restraint import LibraryRestraint, adp_weight, bond_target, first_weight
from mmtbx_sfdiff.refinement.variables import Variables

import numpy as np
import pytest

from tests.support.monomers import library_or_skip, shipped_structure
from tests.support.scaling_data import manager


@pytest.fixture(scope="module")
def made_up():
    fmodel = FModel.from_cctbx(
        manager("P 21 21 21", n_atoms=40, d_min=2.0, seed=2), method="direct", mask={"method": "binary"}
    )
    fmodel.update_scales()
    return fmodel


def test_targets_follow_the_resolution():
    assert first_weight(1.0) == 0.25 > first_weight(2.0) == 0.2 > first_weight(4.0) == 0.1
    assert bond_target(1.0) == 0.008 > bond_target(2.5) > bond_target(4.0) == 0.0045
    assert adp_weight(1.0) == 0.15 < adp_weight(2.5) < adp_weight(4.0) == 0.6


class _Stretched(torch.nn.Module):
    """A geometry whose bonds deviate by what it is told."""

    def __init__(self, bond):
        super().__init__()
        self.bond = bond

    def rms(self, sites_cart):
        return {"bond": self.bond, "angle": 1.0}


@pytest.mark.parametrize(
    "bond, closed, factor",
    [(0.009, 1, 1.125 ** (1 / 0.7)), (0.007, 1, 0.875 ** (1 / 0.7)), (0.8, 1, 2.0), (0.8, 0, 1.4), (0.008, 0, 1.0)],
)
def test_the_weight_follows_the_bonds(bond, closed, factor, made_up):
    """By little after the first macro-cycle, in which bonds are on their way."""
    restraint = LibraryRestraint(_Stretched(bond), weight=None, target=0.008)
    restraint.resume([{}] * closed)
    before = restraint.weight
    record = restraint.close(made_up.atoms)
    assert restraint.weight == pytest.approx(before * factor) == record["next_weight"] and record["weight"] == before
    given = LibraryRestraint(_Stretched(bond), weight=0.5)
    given.close(made_up.atoms)
    assert given.weight == 0.5
    again = LibraryRestraint(_Stretched(bond))
    again.resume([record])
    assert again.weight == restraint.weight


def test_a_bond_that_cannot_be_met_does_not_drive_the_weight():
    """One of hundreds is 1 Å off: the root mean square of all is several times as large, that of the usual ones is what it was."""
    structure = shipped_structure()
    structure.remove_hydrogens()
    geometry = GeometryRestraints.from_gemmi(structure, library_or_skip())
    noise = torch.randn(geometry.n_atoms, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sites = torch.tensor(geometry.topology.atoms.sites_cart) + 0.005 * noise
    before = geometry.rms(sites)["bond"]
    assert geometry.usual_bond_rms(sites) == pytest.approx(before, rel=0.1)
    sites[geometry.bond_rows[0, 0]] += torch.tensor([1.0, 0.5, 0.0])
    assert geometry.rms(sites)["bond"] > 1.5 * before
    assert geometry.usual_bond_rms(sites) == pytest.approx(before, rel=0.1)
    restraint = LibraryRestraint(geometry, weight=None, target=before)
    restraint.resume([{}])
    first = restraint.weight
    restraint.close(_Bare(sites, torch.ones(len(sites))))
    assert restraint.weight == pytest.approx(first, rel=0.2)


def test_riding_hydrogens_do_not_lower_the_weight():
    """Bonds to hydrogens that have just been placed deviate by nothing: the weight is that without them."""
    library = library_or_skip()
    dry = shipped_structure()
    dry.remove_hydrogens()
    wet, _ = with_hydrogens(dry, library)
    found = []
    for structure in (dry, wet):
        geometry = GeometryRestraints.from_gemmi(structure, library)
        sites = torch.tensor(geometry.topology.atoms.sites_cart)
        restraint = LibraryRestraint(geometry, weight=None, target=0.01)
        restraint.resume([{}])
        restraint.close(_Bare(sites, torch.ones(len(sites))))
        found.append((geometry.rms(sites)["bond"], restraint.weight))
    assert found[1][0] < 0.85 * found[0][0]
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-6)


def test_hydrogens_have_their_parents_shift():
    """Also where another atom is nearer, as in a second conformer."""
    atoms = Atoms.from_cctbx(manager("P 1", n_atoms=6, hydrogens=2, d_min=3.0, seed=5).xray_structure)
    hydrogens = atoms.hydrogens.nonzero()[:, 0].tolist()
    parents = torch.arange(atoms.n_atoms)
    heavy = (~atoms.hydrogens).nonzero()[:, 0].tolist()
    parents[hydrogens] = torch.tensor(heavy[:2])
    variables = Variables(atoms, adp=False, parents=parents)
    assert variables.n == 3 * len(heavy)
    moved = variables(torch.randn(variables.n, dtype=torch.float64)).sites_cart - atoms.sites_cart
    torch.testing.assert_close(moved, moved[parents])


def test_a_scaled_tensor_keeps_its_shape():
    structure = manager("P 1", n_atoms=6, d_min=3.0, seed=5).xray_structure
    structure.convert_to_anisotropic()
    atoms = Atoms.from_cctbx(structure)
    variables = Variables(atoms, sites=False, scaled=True)
    assert variables.n == atoms.n_atoms
    other = variables(0.3 * torch.randn(variables.n, dtype=torch.float64))
    ratio = other.u_star / atoms.u_star
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert float((ratio - 1).abs().max()) > 0.01


def test_no_scattering_and_no_likelihood_leave_finite_scales(made_up):
    """alpha 0 everywhere, or most atoms unoccupied: a median curvature of 0."""
    atoms = made_up.atoms
    d_star_sq = atoms.crystal.d_star_sq(made_up.reflections.miller_indices)
    occupancies = atoms.occupancies.clone()
    occupancies[5:] = 0
    for chosen, weight in ((atoms, 0.0), (atoms.replace(occupancies=occupancies), 1.0)):
        variables = Variables(chosen)
        unit = variables.precondition(Curvature(atoms.crystal, d_star_sq, torch.full_like(d_star_sq, weight)))
        assert unit > 0 and bool(variables.scale.isfinite().all())
        assert float(variables.scale.max()) < 1e3


def test_a_refinement_of_mostly_unoccupied_atoms_ends(made_up):
    occupancies = made_up.atoms.occupancies.clone()
    occupancies[8:] = 0
    model = FModel(
        made_up.atoms.replace(occupancies=occupancies), made_up.reflections, method="direct", mask={"method": "binary"}
    )
    refined, history = refine(model, Settings(cycles=2, steps=4))
    assert bool(refined.atoms.sites_cart.isfinite().all()) and 1 <= len(history.cycles) <= 2


def test_a_refinement_against_constant_amplitudes_ends(made_up):
    flat = dataclasses.replace(made_up.reflections, f_obs=torch.full_like(made_up.reflections.f_obs, 10.0))
    refined, history = refine(
        FModel(made_up.atoms, flat, method="direct", mask={"method": "binary"}), Settings(cycles=2, steps=4)
    )
    assert bool(refined.atoms.sites_cart.isfinite().all()) and history.cycles


def test_alpha_and_beta_are_the_best_for_the_free_set_among_multiples(made_up):
    f_model, used = made_up.f_model().detach(), made_up.in_use()
    found = cross_validated(made_up.reflections, f_model, used)
    swapped = dataclasses.replace(made_up.reflections, r_free_flags=~made_up.reflections.r_free_flags)
    here = float(maximum_likelihood(swapped, f_model, found, **used))
    for factor in (0.8, 1.25):
        other = dataclasses.replace(found, beta=found.beta * factor)
        assert float(maximum_likelihood(swapped, f_model, other, **used)) > here - 2e-3
    assert bool((found.alpha[used["selection"]] > 0).all()) and bool((found.beta[used["selection"]] > 0).all())


@pytest.mark.parametrize("free", ["none", "three", "all but five"])
def test_alpha_and_beta_without_a_free_set_worth_the_name(free, made_up):
    n = len(made_up.reflections)
    flags = torch.zeros(n, dtype=torch.bool)
    flags[:3] = True
    flags = {"none": None, "three": flags, "all but five": torch.arange(n) >= 5}[free]
    reflections = dataclasses.replace(made_up.reflections, r_free_flags=flags)
    found = cross_validated(reflections, made_up.f_model().detach(), made_up.in_use())
    assert bool(found.alpha.isfinite().all()) and bool(found.beta.isfinite().all()) and float(found.alpha.max()) > 0


def test_the_gradient_of_the_restraint_is_that_of_both_terms():
    structure = shipped_structure()
    geometry = GeometryRestraints.from_gemmi(structure, library_or_skip())
    displacements = DisplacementRestraints.from_geometry(geometry)
    restraint = LibraryRestraint(geometry, displacements, weight=0.2, adp_weight=0.7)
    sites = torch.tensor(geometry.topology.atoms.sites_cart, requires_grad=True)
    u = (0.2 + 0.01 * torch.arange(geometry.n_atoms, dtype=torch.float64) / geometry.n_atoms).requires_grad_()
    atoms = _Bare(sites, u)
    value = restraint.energy(atoms)
    expected = 0.1 * geometry(sites) + 0.35 * displacements(u)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for a, b in zip(torch.autograd.grad(value, (sites, u)), torch.autograd.grad(expected, (sites, u))):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert float(restraint.energy(atoms, adp=False).detach()) == pytest.approx(
        0.1 * float(geometry(sites).detach()), rel=1e-12
    )
    of_sites, of_ln_u = restraint.curvature(atoms)
    assert of_sites.shape == (geometry.n_atoms, 3) and of_ln_u.shape == (geometry.n_atoms,)


class _Bare:
    """Atoms as far as a restraint reads them."""

    def __init__(self, sites_cart, u_iso):
        self.sites_cart, self.u_iso, self.n_atoms, self.device = sites_cart, u_iso, len(u_iso), u_iso.device
        self.use_u_aniso = torch.zeros(len(u_iso), dtype=torch.bool)
