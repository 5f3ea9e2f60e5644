"""Force field and energies: against OpenMM's own Reference platform, and the gradient against finite differences."""

import torch
from mmtbx_sfdiff.latent import (
    OpenMMEnergy,
    TorchAmber,
    add_position_restraints,
    create_system,
    log_clip,
    minimise,
    plddt_force_constants,
)
from mmtbx_sfdiff.latent.generator.units import md_value

import numpy as np
import openmm
import pytest
from openmm import app

from tests.support.latent_systems import dipeptide, dipeptide_system, protein, protein_system, random_sites

SYSTEMS = {"dipeptide": (dipeptide, dipeptide_system), "protein": (protein, protein_system)}


def openmm_reference(system, sites):
    """Energy (kJ/mol) and forces (kJ/mol/Å) by OpenMM alone."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions([openmm.Vec3(*site) for site in (0.1 * sites).tolist()])
    state = context.getState(getEnergy=True, getForces=True)
    forces = state.getForces(asNumpy=True).value_in_unit(openmm.unit.kilojoule_per_mole / openmm.unit.angstrom)
    return state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoule_per_mole), torch.from_numpy(forces)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("kind", ["bridge", "torch"])
def test_energies_and_forces_are_openmms(name, kind):
    prepared, system = (make() for make in SYSTEMS[name])
    if kind == "torch":
        system = add_position_restraints(create_system(prepared), prepared.sites_cart, prepared.ca_index, 0.7)
        energy = TorchAmber(system)
    else:
        energy = OpenMMEnergy(system, platform="Reference")
    sites = random_sites(prepared, 2, 0.03).requires_grad_()
    found = energy(sites)
    (gradient,) = torch.autograd.grad(found.sum(), sites)
    for n in range(2):
        expected, forces = openmm_reference(system, sites[n].detach())
        assert abs(found[n].item() - expected) < 1e-4
        assert (gradient[n] + forces).abs().max() < 1e-4


def test_cpu_platform_is_near_the_reference():
    sites = protein().sites_cart
    exact, rough = (OpenMMEnergy(protein_system(), platform)(sites).item() for platform in ("Reference", "CPU"))
    assert abs(exact - rough) < 0.1 and exact != rough


def test_native_solvent_is_that_of_openmms_own_file():
    prepared = dipeptide()
    slow = app.ForceField("amber14/protein.ff14SB.xml", "implicit/obc2.xml").createSystem(
        prepared.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds
    )
    sites = random_sites(prepared, 1, 0.02)[0]
    expected, forces = openmm_reference(slow, sites)
    found, own = openmm_reference(dipeptide_system(), sites)
    assert abs(found - expected) < 5e-3 and (own - forces).abs().max() < 2e-3  # constants of seven digits
    dry, _ = openmm_reference(create_system(prepared, implicit_solvent=False), sites)
    assert abs(dry - found) > 10


def test_torch_terms_batches_and_chunks():
    energy = TorchAmber(dipeptide_system())
    sites = random_sites(dipeptide(), 6, 0.05).reshape(2, 3, -1, 3)
    total = energy(sites)
    assert total.shape == (2, 3)
    torch.testing.assert_close(sum(energy.terms(sites).values()), total)
    assert set(energy.terms(sites)) == {"nonbonded", "bond", "angle", "torsion", "solvent"}
    torch.testing.assert_close(TorchAmber(dipeptide_system(), chunk=2)(sites), total, rtol=0, atol=1e-10)
    single = TorchAmber(dipeptide_system(), dtype=torch.float32)(sites.float())
    assert (single - total).abs().max() < 0.05


def test_gradient_is_that_of_finite_differences():
    x = random_sites(dipeptide(), 1, 0.02)[0].requires_grad_()
    for energy in (OpenMMEnergy(dipeptide_system(), "Reference"), TorchAmber(dipeptide_system())):
        (gradient,) = torch.autograd.grad(energy(x), x)
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
        with torch.no_grad():
            difference = (energy(x + 1e-5 * direction) - energy(x - 1e-5 * direction)) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-4)


def test_several_contexts_give_the_same():
    sites = random_sites(dipeptide(), 7, 0.05)
    one, three = (OpenMMEnergy(dipeptide_system(), "Reference", n_contexts=n)(sites) for n in (1, 3))
    assert torch.equal(one, three)


def test_what_is_no_number_has_infinite_energy_and_no_gradient():
    energy = OpenMMEnergy(dipeptide_system())
    sites = dipeptide().sites_cart.repeat(3, 1, 1)
    sites[0, 0, 0] = float("nan")
    sites[1, 1] = sites[1, 0]  # on top of each other
    sites.requires_grad_()
    found = energy(sites)
    assert torch.isinf(found[0]) and not torch.isnan(found).any() and torch.isfinite(found[2])
    (gradient,) = torch.autograd.grad(found[torch.isfinite(found)].sum(), sites)
    assert (gradient[0] == 0).all() and torch.isfinite(gradient[2]).all() and gradient[2].abs().max() > 0


def test_log_clip():
    energy = torch.tensor([-5.0, 9.0, 10.0, 11.0, 1e6, float("inf")], dtype=torch.float64, requires_grad=True)
    clipped = log_clip(energy, 10.0, 1e4)
    expected = [-5, 9, 10, 10 + np.log(2), 10 + np.log1p(1e4 - 10), 10 + np.log1p(1e4 - 10)]
    np.testing.assert_allclose(clipped.detach(), expected)
    (slope,) = torch.autograd.grad(clipped.sum(), energy)
    np.testing.assert_allclose(slope[:4], [1, 1, 1, 0.5])
    assert slope[4] == slope[5] == 0
    with pytest.raises(ValueError, match="must not be below"):
        log_clip(energy, 10.0, 9.0)


def test_restraints():
    prepared = dipeptide()
    system = create_system(prepared)
    free = openmm_reference(system, prepared.sites_cart)[0]
    add_position_restraints(system, prepared.sites_cart, [6, 8], [2.0, 0.0])
    sites = prepared.sites_cart.clone()
    assert abs(openmm_reference(system, sites)[0] - free) < 1e-9
    shifted = sites + torch.tensor([3.0, 0.0, 0.0])
    assert abs(openmm_reference(system, shifted)[0] - free - 0.5 * 2.0 * 9.0) < 1e-6
    for k in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="force constants"):
            add_position_restraints(system, sites, [6], k)
    with pytest.raises(ValueError, match="not in the system"):
        add_position_restraints(system, sites, [99], 1.0)
    with pytest.raises(ValueError, match="shape"):
        add_position_restraints(system, sites[1:], [6], 1.0)


def test_plddt():
    np.testing.assert_allclose(plddt_force_constants([30, 50, 75, 100], 2.0), [0, 0, 0.5, 2])
    with pytest.raises(ValueError, match="between 0 and 100"):
        plddt_force_constants([120.0])


def test_minimise_and_masses():
    heavy = create_system(dipeptide(), hydrogen_mass=4.0)
    masses = [md_value(heavy.getParticleMass(i)) for i in range(dipeptide().n_ff)]
    assert {m for m, e in zip(masses, dipeptide().elements) if e == "H"} == {4.0}
    assert sum(masses) == pytest.approx(144.17, abs=0.05)
    sites, energy = minimise(dipeptide_system(), random_sites(dipeptide(), 1, 0.05)[0], platform="Reference")
    assert energy < openmm_reference(dipeptide_system(), dipeptide().sites_cart)[0] + 1
    assert openmm_reference(dipeptide_system(), sites)[0] == pytest.approx(energy)


def test_wrong_input():
    for energy in (OpenMMEnergy(dipeptide_system()), TorchAmber(dipeptide_system())):
        with pytest.raises(ValueError, match="22 atoms"):
            energy(torch.zeros(2, 21, 3))
    with pytest.raises(ValueError, match="no platform 'GPU'"):
        OpenMMEnergy(dipeptide_system(), platform="GPU")
    with pytest.raises(ValueError, match="constraints"):
        create_system(dipeptide(), constraints="all")
    with pytest.raises(ValueError, match="n_contexts"):
        OpenMMEnergy(dipeptide_system(), n_contexts=0)
    odd = create_system(dipeptide())
    odd.addForce(openmm.CustomBondForce("r"))
    with pytest.raises(ValueError, match="does not know: CustomBondForce"):
        TorchAmber(odd)


@pytest.mark.gpu
def test_torch_energy_on_a_gpu():
    sites = random_sites(protein(), 4, 0.03)
    energy = TorchAmber(protein_system())
    expected = energy(sites)
    torch.testing.assert_close(energy.cuda()(sites.cuda()).cpu(), expected, rtol=0, atol=1e-6)
