"""Structure factors of anything: numbers, or one sentence; never a crash, a hang, or a NaN."""

import math
import random

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.kernels.checks import BadAtom
from mmtbx_sfdiff.kernels.cpu import density

import pytest

from tests.support.robustness import run
from tests.support.structures import random_xray_structure

METHODS = ("direct", "fft", "auto")


def test_random_calls():
    seeds = [random.Random(20).randrange(2**31) + i for i in range(250)]
    outcomes = run("tests.support.robust_structure_factors:call", seeds, seconds=30)
    assert not [str(o) for o in outcomes if o.fault]
    kinds = [o.kind for o in outcomes]
    assert kinds.count("value") > 60 and kinds.count("refused") > 60


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["sites_cart", "u_iso", "occupancies", "fp", "fdp"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30])
def test_the_bad_atom_is_named(method, name, number):
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21 21 21", n=20))
    value = getattr(atoms, name).clone()
    value[6] = number
    plan = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(2.5))
    with pytest.raises(ValueError, match=rf"{name} of atom 6 \({atoms.labels[6].strip()}\) is .*it must be finite"):
        sfdiff.structure_factors(atoms.replace(**{name: value}), plan, method=method)
    batch = torch.stack([getattr(atoms, name), value])
    with pytest.raises(ValueError, match=rf"{name} of atom 6 .* in model 1 of the batch"):
        sfdiff.structure_factors(atoms.replace(**{name: batch}), plan, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_empty_in_empty_or_zero_out(method):
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21 21 21", n=20))
    indices = atoms.crystal.build_miller_indices(3.0)
    n = len(indices)
    none = atoms.replace(sites_cart=atoms.sites_cart.new_zeros(0, atoms.n_atoms, 3))
    assert sfdiff.structure_factors(none, atoms.crystal, indices, method=method).shape == (0, n)
    assert sfdiff.structure_factors(atoms, atoms.crystal, indices[:0], method=method).shape == (0,)
    nothing = atoms.select(torch.zeros(atoms.n_atoms, dtype=torch.bool))
    sites = nothing.sites_cart.clone().requires_grad_()
    f = sfdiff.structure_factors(nothing.replace(sites_cart=sites), atoms.crystal, indices, method=method)
    assert f.shape == (n,) and float(f.detach().abs().max()) == 0
    assert torch.autograd.grad(f.abs().sum(), sites)[0].shape == (0, 3)
    origin = torch.zeros((1, 3), dtype=torch.int64)
    both = [sfdiff.structure_factors(atoms, atoms.crystal, origin, method=m) for m in (method, "direct")]
    assert abs(both[0] - both[1]) <= 1e-4 * abs(both[1])


def test_expanded_and_strided_parameters_are_those_they_show():
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21 21 21", n=20))
    plan = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(2.5))
    for method in METHODS:
        expected = sfdiff.structure_factors(atoms, plan, method=method)
        strided = atoms.sites_cart.T.contiguous().T
        every_other = torch.stack([atoms.u_iso, atoms.u_iso], 1)[:, 0]
        found = sfdiff.structure_factors(atoms.replace(sites_cart=strided, u_iso=every_other), plan, method=method)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        repeated = sfdiff.structure_factors(
            atoms.replace(sites_cart=atoms.sites_cart.expand(3, -1, -1)), plan, method=method
        )
        torch.testing.assert_close(repeated, expected.expand(3, -1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("value", [-0.05, -0.2, -0.4, -0.6, -1.0, -3.0, 30.0, 1e4])
def test_odd_displacement_parameters_are_within_the_accuracy_or_refused(value):
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21 21 21", n=20))
    plan = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(2.0))
    for parameter in ("u_iso", "u_star"):
        odd = atoms
        if parameter == "u_iso":
            odd = atoms.replace(u_iso=torch.where(torch.arange(atoms.n_atoms) == 30, value, atoms.u_iso))
        else:
            # One axis of one atom.
            odd = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21 21 21", n=20, anisotropic=True))
            u_star = odd.u_star.clone()
            u_star[30, 1] = value / odd.crystal.unit_cell[1] ** 2
            odd = odd.replace(u_star=u_star)
        for accuracy in (1e-2, 1e-4, 1e-6):
            exact = sfdiff.structure_factors(odd, plan, method="direct")
            automatic = sfdiff.structure_factors(odd, plan, method="auto", accuracy=accuracy)
            assert float((automatic - exact).norm() / exact.norm()) <= accuracy
            try:
                found = sfdiff.structure_factors(odd, plan, method="fft", accuracy=accuracy)
            except ValueError as error:
                assert "method='direct'" in str(error) and "atom 30" in str(error)
                continue
            assert float((found - exact).norm() / exact.norm()) <= accuracy


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["fft", "auto"])
def test_a_density_that_is_not_finite_somewhere_spoils_every_reflection(monkeypatch, value, method):
    """So it is enough to look at one, which the FFT does."""
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 31 2 1", n=300))
    plan = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(1.5))
    on_slab, values, results = density._splat_share, density.values, []

    def spoilt(*job):
        slab, *others = on_slab(*job)
        slab[slab.shape[0] // 2, 3, 1] = value
        return slab, *others

    def kept(job):
        results.append(values(job))
        return results[-1]

    monkeypatch.setattr(density, "_splat_share", spoilt)
    monkeypatch.setattr(density, "values", kept)
    with pytest.raises(BadAtom, match="numbers overflow"):
        sfdiff.structure_factors(atoms, plan, method=method)
    assert not torch.isfinite(results[0]).any()
