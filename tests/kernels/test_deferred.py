"""Checks that nobody waits for, as on a GPU: made on the CPU by the same functions."""

import threading

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.kernels import checks, deferred

import pytest

from tests.support.long_life import random_atoms, training

CRYSTAL = sfdiff.Crystal((18.0, 21.0, 24.0, 90.0, 90.0, 90.0), "P 21 21 21")
ATOMS = random_atoms(CRYSTAL, 30, 0)
PLAN = sfdiff.plan(CRYSTAL, CRYSTAL.build_miller_indices(3.0))
NAMES = ("sites_cart", "u_iso", "occupancies", "fp", "fdp")


def batch(name="sites_cart", number=float("nan"), model=1, atom=7):
    """Three models, of which one has a bad number."""
    value = getattr(ATOMS, name)
    values = torch.stack([value, value + 0.01, value + 0.02])
    values[model, atom].reshape(-1)[-1] = number
    return ATOMS.replace(**{name: values})


@pytest.mark.parametrize("method", ["direct", "fft", "auto"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30])
def test_the_call_goes_on_and_the_error_comes_when_somebody_waits(method, name, number):
    others = [sfdiff.structure_factors(batch(name).model(i), PLAN, method="direct") for i in (0, 2)]
    with deferred.everywhere():
        f = sfdiff.structure_factors(batch(name, number), PLAN, method=method)
        assert bool(f[1].isnan().all())
        for found, expected in zip((f[0], f[2]), others):
            assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())
        with pytest.raises(checks.BadAtom, match=rf"{name} of atom 7 in model 1 of the batch is .*must be finite"):
            checks.raise_pending()
        # Once is enough.
        checks.raise_pending()


def test_gradients_of_the_other_models_are_right():
    bad, leaves = batch(), []
    for values in (bad.sites_cart, batch(number=5.0).sites_cart):
        sites = values.clone().requires_grad_()
        with deferred.everywhere():
            f = sfdiff.structure_factors(bad.replace(sites_cart=sites), PLAN, method="direct")
            (gradient,) = torch.autograd.grad(f.abs().square().sum(), sites)
        leaves.append(gradient)
    found, expected = leaves
    assert bool(found[1].isnan().all())
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=0, atol=0)


def test_good_numbers_leave_every_bit_and_nothing_pending():
    for dtype in (torch.float32, torch.float64):
        atoms = ATOMS.to(dtype=dtype)
        for method in ("direct", "fft"):
            expected = sfdiff.structure_factors(atoms, PLAN, method=method)
            with deferred.everywhere():
                assert torch.equal(sfdiff.structure_factors(atoms, PLAN, method=method), expected)
                checks.raise_pending()


def test_the_next_call_says_it_when_it_has_arrived():
    with deferred.everywhere(busy=False), pytest.raises(checks.BadAtom, match="atom 7 .*model 1"):
        checks.note_numbers({"sites_cart": batch().sites_cart})
        checks.note_numbers({"sites_cart": ATOMS.sites_cart[None]})


def test_the_first_finding_is_kept():
    with deferred.everywhere():
        checks.note_numbers({"u_iso": batch("u_iso", 1e9, model=2, atom=3).u_iso})
        checks.note_numbers({"sites_cart": batch().sites_cart})
        with pytest.raises(checks.BadAtom, match="u_iso of atom 3 in model 2 of the batch is 1e[+]09"):
            checks.raise_pending()


def test_results_that_are_not_finite_for_another_reason_are_noticed():
    # Not positive definite, by far: the exponentials of its terms overflow.
    u_iso = ATOMS.u_iso.clone()
    u_iso[4] = -9e5
    with deferred.everywhere():
        f = sfdiff.structure_factors(ATOMS.replace(u_iso=u_iso), PLAN, method="direct")
        assert not bool(f.isfinite().all())
        with pytest.raises(ValueError, match="structure factors are not finite"):
            checks.raise_pending()


def test_a_seed_that_is_none_is_no_fault_of_the_atoms():
    with deferred.everywhere():
        deferred.not_finite("gradients", torch.full((2, 3), torch.nan), torch.full((2, 4), torch.nan))
        checks.raise_pending()


def test_nothing_reads_a_value(monkeypatch):
    """On tensors without values whatever looks at one fails."""
    monkeypatch.setattr(
        deferred._Rows, "add", lambda self, row: self.row.copy_(torch.where(self.row[0] != 0, self.row, row))
    )
    parameters = {
        name: getattr(ATOMS, name)[None].expand(2, *getattr(ATOMS, name).shape).to("meta")
        for name in (*NAMES, "u_star")
    }
    with deferred.everywhere():
        bad = checks.note_numbers(parameters)
        assert bad.shape == (2,) and bad.device.type == "meta"
        assert [x.shape for x in checks.harmless(parameters)] == [x.shape for x in parameters.values()]
        deferred.not_finite("structure factors", torch.empty((2, 5), dtype=torch.complex64, device="meta"))


def test_compiled_and_in_vmap():
    def f(sites):
        return sfdiff.structure_factors(ATOMS.replace(sites_cart=sites), PLAN, method="direct").abs().sum(-1)

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    sites = batch().sites_cart
    for function in (compiled, torch.func.vmap(f)):
        with deferred.everywhere():
            assert function(sites).isnan().tolist() == [False, True, False]
            with pytest.raises(checks.BadAtom, match="atom 7 in model 1"):
                checks.raise_pending()


@pytest.mark.parametrize("how", ["check", "update_scales", "r_factors"])
def test_fmodel_says_it_with_the_label(how):
    fmodel, *_ = training(n_atoms=30, d_min=3.0, method="direct")
    with torch.no_grad():
        fmodel.sites_cart[5, 1] = torch.nan
    label = fmodel.atoms.labels[5]
    with deferred.everywhere():
        assert bool(fmodel.f_calc().isnan().all())
        call = getattr(fmodel, how)
        with pytest.raises(checks.BadAtom, match=rf"sites_cart of atom 5 \({label}\)"):
            call()
    fmodel.check()


def test_threads_write_into_one_row():
    with deferred.everywhere():
        threads = [threading.Thread(target=checks.note_numbers, args=({"fp": batch("fp").fp},)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(checks.BadAtom, match="fp of atom 7"):
            checks.raise_pending()
        checks.raise_pending()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_no_models_and_no_atoms_have_nothing_wrong(shape):
    atoms = ATOMS.select(torch.arange(shape[1]))
    sites = atoms.sites_cart.expand(shape[0], -1, -1).clone().requires_grad_()
    with deferred.everywhere():
        f = sfdiff.structure_factors(atoms.replace(sites_cart=sites), PLAN, method="fft")
        assert f.shape == (shape[0], len(PLAN)) and not bool(f.detach().abs().any())
        assert torch.autograd.grad(f.abs().sum(), sites)[0].shape == sites.shape
        checks.raise_pending()
