"""JAX's functions, and the NumPy pair, against the same calls in PyTorch."""

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.interop.arrays import protein_pair, solvent_pair
from mmtbx_sfdiff.likelihood import targets

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy
sfjax = pytest.importorskip("mmtbx_sfdiff.interop.jax")

NAMES = ("sites_cart", "u_iso")


@pytest.fixture(scope="module", autouse=True)
def _double_precision():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def crystal():
    return sfdiff.Crystal((18.0, 21.0, 24.0, 90.0, 100.0, 90.0), "P 1 21 1")


@pytest.fixture(scope="module")
def atoms(crystal):
    sites = 15 * torch.rand(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return sfdiff.Atoms.from_arrays(crystal, ["C", "N", "O", "S"] * 5, sites, b_iso=[15.0, 20.0, 25.0, 30.0] * 5)


@pytest.fixture(scope="module")
def indices(crystal):
    return crystal.build_miller_indices(3.0)


def arrays(atoms):
    return {name: jnp.asarray(getattr(atoms, name).numpy()) for name in NAMES}


def torch_gradients(atoms, indices, function, weights):
    leaves = [getattr(atoms, name).clone().requires_grad_() for name in NAMES]
    f = function(atoms.replace(**dict(zip(NAMES, leaves))), atoms.crystal, indices)
    found = torch.autograd.grad((f.abs() * torch.from_numpy(np.array(weights))).sum(), leaves, allow_unused=True)
    return f.detach(), [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (sfdiff.structure_factors, sfjax.structure_factors),
        (sfdiff.solvent_structure_factors, sfjax.solvent_structure_factors),
    ],
)
def test_values_and_gradients_are_those_of_pytorch(ours, theirs, atoms, crystal, indices):
    weights = np.random.default_rng(0).random(len(indices))

    def loss(parameters):
        return (jnp.abs(theirs(atoms, crystal, indices, **parameters)) * weights).sum()

    f, expected = torch_gradients(atoms, indices, ours, weights)
    assert np.array_equal(np.asarray(theirs(atoms, crystal, indices, **arrays(atoms))), f.numpy())
    for gradient in (jax.grad(loss), jax.jit(jax.grad(loss))):
        found = gradient(arrays(atoms))
        for name, value in zip(NAMES, expected):
            np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-9, atol=1e-9 * float(value.abs().max()))


def test_mapped_is_one_by_one(atoms, crystal, indices):
    noise = 0.1 * np.random.default_rng(1).normal(size=(3, 20, 3))
    sites = jnp.asarray(atoms.sites_cart.numpy() + noise)

    def loss(x):
        return jnp.abs(sfjax.structure_factors(atoms, crystal, indices, method="direct", sites_cart=x)).sum()

    together = jax.vmap(jax.grad(loss))(sites)
    for x, found in zip(sites, together):
        np.testing.assert_allclose(found, jax.grad(loss)(x), rtol=1e-9, atol=1e-9)


def test_single_precision(atoms, crystal, indices):
    f = sfjax.structure_factors(atoms, crystal, indices, sites_cart=jnp.asarray(atoms.sites_cart.numpy(), jnp.float32))
    assert f.dtype == jnp.complex64
    exact = sfdiff.structure_factors(atoms, crystal, indices, method="direct").numpy()
    assert np.linalg.norm(np.asarray(f) - exact) < 2e-4 * np.linalg.norm(exact)


def test_r_factors_are_those_of_pytorch(atoms, crystal, indices):
    f = sfdiff.structure_factors(atoms, crystal, indices)
    f_obs = f.abs() * (1 + 0.1 * torch.randn(len(f), generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    free = torch.arange(len(f)) % 10 == 0
    data = sfdiff.Reflections.from_arrays(crystal, indices, f_obs.abs(), free=free)
    expected = targets.r_factors(data, f)
    found = sfjax.r_factors(data, jnp.asarray(f.numpy()))
    np.testing.assert_allclose(found, [float(x) for x in expected], rtol=1e-12)
    gradient = jax.grad(lambda z: sfjax.r_factors(data, z * (1 + 0j))[0])(jnp.asarray(f.numpy().real))
    assert bool(jnp.isfinite(gradient).all())


def test_the_pair_on_arrays_serves_both(atoms, crystal, indices):
    weights = np.ones(len(indices))
    for make, function in ((protein_pair, sfdiff.structure_factors), (solvent_pair, sfdiff.solvent_structure_factors)):
        value, vjp = make(atoms, crystal, indices, NAMES)
        given = [getattr(atoms, name).numpy() for name in NAMES]
        f, expected = torch_gradients(atoms, indices, function, weights)
        assert np.array_equal(value(*given), f.numpy())
        derivative = np.where(f.numpy() == 0, 0, f.numpy() / np.maximum(np.abs(f.numpy()), 1e-300))
        for a, b in zip(vjp(derivative, *given), expected):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_what_cannot_be_is_said(atoms, crystal, indices):
    with pytest.raises(TypeError, match="some of sites_cart"):
        sfjax.structure_factors(atoms, crystal, indices)
    with pytest.raises(TypeError, match="not fp"):
        sfjax.structure_factors(atoms, crystal, indices, fp=jnp.zeros(20))
    with pytest.raises(ValueError, match="must have the shape"):
        sfjax.structure_factors(atoms, crystal, indices, sites_cart=jnp.zeros((3, 3)))
    with pytest.raises(TypeError, match="float32 or float64"):
        sfjax.structure_factors(atoms, crystal, indices, u_iso=jnp.zeros(20, jnp.int32))
    with pytest.raises(ValueError, match="parameters are some of"):
        protein_pair(atoms, crystal, indices, ("fp",))
