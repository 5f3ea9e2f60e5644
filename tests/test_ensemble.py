"""FModel over conformers: F, scales, gradients, memory."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch

import pytest

from tests.support.scaling_data import manager
from validation.studies.ensembles import gradient_table

COMBINED = pytest.mark.skipif(
    "ensemble" not in inspect.signature(sfdiff.solvent_mask).parameters, reason="masks of ensembles are not there yet"
)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


@pytest.fixture(scope="module")
def one():
    return sfdiff.FModel.from_cctbx(manager("P 21 21 21", n_atoms=24, d_min=2.5), method="direct")


def conformers(fmodel, n=3, spread=0.2):
    sites = fmodel.atoms.sites_cart
    noise = torch.randn(n, *sites.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return fmodel.atoms.replace(sites_cart=sites + spread * noise)


@pytest.fixture(scope="module", params=["per_conformer", pytest.param("combined", marks=COMBINED)])
def ensemble(one, request):
    result = sfdiff.FModel(
        conformers(one),
        one.reflections,
        method="direct",
        mask={"precision": "double"},
        refine=("sites_cart", "u_iso", "weights"),
        ensemble=WEIGHTS,
        solvent=request.param,
    )
    result.update_scales()
    return result


def test_f_is_the_weighted_sum(one, ensemble):
    atoms = conformers(one)
    parts = [one.with_(atoms=atoms.model(k)) for k in range(3)]
    torch.testing.assert_close(ensemble.f_calc(), sum(w * part.f_calc() for w, part in zip(WEIGHTS, parts)))
    if ensemble.solvent == "per_conformer":
        parts = [part.with_(mask={"precision": "double"}) for part in parts]
        torch.testing.assert_close(ensemble.f_mask(), sum(w * part.f_mask() for w, part in zip(WEIGHTS, parts)))


def test_gradients_of_r_with_a_live_mask_agree_with_finite_differences(ensemble):
    ensemble.zero_grad()
    ensemble.r_work().backward()
    generator = torch.Generator().manual_seed(1)
    assert [name for name, _ in ensemble.named_parameters()] == ["sites_cart", "u_iso", "weights"]
    for name, parameter in ensemble.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        # Along the gradient as well, so that the number is not small by chance.
        direction = direction + parameter.grad / parameter.grad.norm()
        step = (1e-3 if name == "sites_cart" else 1e-5) * direction
        with torch.no_grad():
            parameter += step
            above = ensemble.r_work()
            parameter -= 2 * step
            below = ensemble.r_work()
            parameter += step
        expected = float((parameter.grad * step).sum() * 2)
        assert float(above - below) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("solvent", ["combined", "per_conformer"])
def test_what_a_finite_step_adds_to_the_gradient_of_r_are_its_kinks(solvent):
    """To 2 % over 0.003 Å (rms of a coordinate); over 0.01 Å still, where signs of |F_model| - F_obs are kept."""
    rows = gradient_table(solvent, "single", n_directions=4, n_atoms=60, steps=(1e-4, 1e-3, 3e-3, 1e-2))
    fine, small, middle, large = rows
    assert fine["r_worst"] < 0.005 and small["r_worst"] < 0.01 and middle["r_worst"] < 0.02
    assert large["signs_kept_worst"] < 0.02 and large["signs_changed"] > 0
    assert 0.05 < fine["r_work"] < 0.5


def test_memory_of_sixteen_conformers_is_bounded():
    """A step with one mask of all and its gradient, in a process of its own; the bound of the full study is 600 MB."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read where Linux keeps it")
    command = [sys.executable, "-m", "validation.studies.ensembles", "--one", "combined", "--atoms", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["conformers"] == 16 and max(found["first_step_mb"], found["second_step_mb"]) < 450


@pytest.mark.parametrize("solvent", ["per_conformer", pytest.param("combined", marks=COMBINED)])
def test_identical_conformers_are_one_model(one, solvent):
    same = one.atoms.replace(sites_cart=one.atoms.sites_cart.expand(4, -1, -1))
    alone = one.with_()
    alone.update_scales()
    many = one.with_(atoms=same, ensemble=torch.full((4,), 0.25), solvent=solvent)
    many.update_scales()
    assert many.r_factors() == pytest.approx(alone.r_factors(), abs=1e-6)


def test_batches_of_ensembles(ensemble):
    sites = ensemble.atoms.sites_cart.detach()
    batch = torch.stack([sites, sites + 0.05])
    values = ensemble.target("least_squares", sites_cart=batch)
    assert values.shape == (2,)
    torch.testing.assert_close(values[1], ensemble.target("least_squares", sites_cart=sites + 0.05))


def test_scales_are_refreshed_every_so_many_calls(one):
    model = one.with_(atoms=conformers(one), ensemble=WEIGHTS, solvent="per_conformer", refresh_scales=3)
    first = model.update_scales()
    moved = model.atoms.sites_cart + 0.1
    found = []
    for _ in range(4):
        model.f_model(moved)
        found.append(model.scales)
    assert found[0] is found[1] is first and found[2] is not first and found[3] is found[2]
    assert not torch.equal(found[2].k_masks[0], first.k_masks[0])
    with pytest.raises(ValueError, match="one at a time"):
        for _ in range(3):
            model.f_model(torch.stack([moved, moved]))
    with pytest.raises(ValueError, match="at least 1"):
        one.with_(refresh_scales=0)


def test_scales_that_follow_change_the_gradient_not_the_value(one):
    model = one.with_(atoms=conformers(one), ensemble=WEIGHTS, solvent="per_conformer")
    follows = model.with_(follow_scales=True)
    model.update_scales()
    follows.update_scales()
    gradients = []
    for m in (model, follows):
        sites = m.atoms.sites_cart.clone().requires_grad_()
        value = m.target("least_squares", sites)
        gradients.append((float(value.detach()), torch.autograd.grad(value, sites)[0]))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-9)
    assert not torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-3)


def test_fixed_parts_add_to_f(one):
    generator = torch.Generator().manual_seed(2)
    part = torch.randn(len(one.reflections), generator=generator, dtype=torch.complex128)
    model = one.with_(f_partial=part)
    torch.testing.assert_close(model.f_calc(), one.f_calc() + part)
    assert model.float().f_partial.dtype == torch.complex64 and model.f_calc().dtype == torch.complex64
    one.double()
    with pytest.raises(ValueError, match="f_partial must be complex"):
        one.with_(f_partial=part[1:])


def test_moving_and_resuming(one, tmp_path):
    def make():
        return one.with_(atoms=conformers(one), ensemble=WEIGHTS, solvent="per_conformer", refine=("weights",))

    model = make()
    model.update_scales()
    with torch.no_grad():
        model.weights *= torch.tensor([1.2, 0.9, 0.7], dtype=torch.float64)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    again = make()
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert again.r_factors() == model.r_factors()
    fixed = one.with_(atoms=conformers(one), ensemble=WEIGHTS, solvent="per_conformer")
    assert fixed.float().ensemble.dtype == torch.float32 and fixed.f_calc().dtype == torch.complex64


def test_errors(one):
    atoms = conformers(one)
    for weights, solvent, said in (
        (WEIGHTS[:2], "combined", "one weight for each conformer"),
        (-WEIGHTS, "combined", "must be a number from 0 to 1e[+]06"),
        (WEIGHTS * 1e30, "per_conformer", "must be a number from 0 to 1e[+]06"),
        (WEIGHTS, "vacuum", "solvent must be one of"),
    ):
        with pytest.raises(ValueError, match=said):
            sfdiff.FModel(atoms, one.reflections, ensemble=weights, solvent=solvent)
    with pytest.raises(ValueError, match="one weight for each conformer"):
        sfdiff.FModel(one.atoms, one.reflections, ensemble=WEIGHTS)
    with pytest.raises(ValueError, match="is for ensembles"):
        sfdiff.FModel(one.atoms, one.reflections, refine="weights")
    model = sfdiff.FModel(atoms, one.reflections, ensemble=WEIGHTS)
    with pytest.raises(ValueError, match="mask of an ensemble"):
        model.optimize_mask()


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("target", ["least_squares", "maximum_likelihood"])
def test_scales_that_follow_are_solved_again_and_differentiated_through(one, ensemble, target):
    atoms = conformers(one) if ensemble else one.atoms
    options = {"ensemble": WEIGHTS, "solvent": "combined"} if ensemble else {}
    model = one.with_(atoms=atoms, follow_scales=True, mask={"precision": "double"}, **options)
    model.update_scales()
    model.alpha_beta()
    fixed = one.with_(atoms=atoms, mask={"precision": "double"}, **options)
    fixed.scales, fixed._alpha_beta = model.scales, model._alpha_beta
    generator = torch.Generator().manual_seed(5)
    # Away from where the scales were determined: there the value is another one, too.
    sites = model.atoms.sites_cart + 0.1 * torch.randn(atoms.sites_cart.shape, generator=generator, dtype=torch.float64)
    start = model.atoms.sites_cart
    assert float(model.target(target, start)) == pytest.approx(float(fixed.target(target, start)), rel=1e-9)
    assert float(model.target(target, sites)) != pytest.approx(float(fixed.target(target, sites)), rel=1e-4)
    leaf = sites.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.target(target, leaf), leaf)
    direction = gradient / gradient.norm() + torch.nn.functional.normalize(
        torch.randn(sites.shape, generator=generator, dtype=torch.float64), dim=(-2, -1)
    )
    step = 1e-4 * direction
    with torch.no_grad():
        difference = float(model.target(target, sites + step) - model.target(target, sites - step))
    assert difference == pytest.approx(2 * float((gradient * step).sum()), rel=1e-4)


def test_scales_that_follow_in_a_batch_and_after_loading(one):
    model = one.with_(follow_scales=True)
    model.update_scales()
    sites = model.atoms.sites_cart
    batch = torch.stack([sites, sites + 0.1])
    together = model.target("least_squares", batch)
    torch.testing.assert_close(together, torch.stack([model.target("least_squares", x) for x in batch]))
    again = one.with_(follow_scales=True)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.target("least_squares", sites + 0.1), model.target("least_squares", sites + 0.1))
    assert again.float().target("least_squares", batch.float()).dtype == torch.float32
    one.double()


def test_scales_that_follow_twice(one):
    """Second derivatives through the solution of the scales, the mask kept."""
    model = one.with_(follow_scales=True)
    model.update_scales()
    f_mask = model.f_mask().detach()
    sites = model.atoms.sites_cart + 0.05

    def of(x):
        return model.target("least_squares", x, f_mask=f_mask)

    v = torch.randn(sites.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, product = torch.autograd.functional.hvp(of, sites, v)
    step, found = 1e-4, []
    for sign in (1, -1):
        leaf = (sites + sign * step * v).requires_grad_()
        found.append(torch.autograd.grad(of(leaf), leaf)[0])
    expected = (found[0] - found[1]) / (2 * step)
    assert float((product - expected).norm()) <= 1e-5 * float(expected.norm())
