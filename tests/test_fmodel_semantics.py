"""What torch promises of an FModel: second derivatives, compilation, aliases."""

import importlib.util

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff import targets

import pytest

from tests.support.example_names import example_names
from tests.support.long_life import random_atoms, training
from tests.support.torch_versions import of_whole_graphs

TARGETS = ("least_squares", "maximum_likelihood")


@pytest.fixture(scope="module")
def fmodel():
    found, *_ = training(n_atoms=16, d_min=3.5, method="direct")
    found.mask_options = {"grid_step": 1.0, "precision": "double"}
    found.update_scales()
    found.alpha_beta()
    return found


def restraint(sites):
    """A sum of squares of the distances of neighbours in the list from 5 Å."""
    return 40.0 * ((sites.diff(dim=-2).norm(dim=-1) - 5.0) ** 2).sum(-1)


def gradient(function, x):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


@pytest.mark.parametrize("name", TARGETS)
def test_hessians_of_a_target_and_a_restraint_have_both_parts(fmodel, name):
    f_mask = fmodel.f_mask().detach()
    sites = fmodel.sites_cart.detach().clone()

    def data(x):
        return fmodel.target(name, x, f_mask=f_mask)

    def total(x):
        return data(x) + restraint(x)

    step, columns = 1e-4, {data: [], total: []}
    for function, found in columns.items():
        for i in range(sites.numel()):
            moved = [sites.clone() for _ in range(2)]
            moved[0].view(-1)[i] += step
            moved[1].view(-1)[i] -= step
            found.append((gradient(function, moved[0]) - gradient(function, moved[1])).reshape(-1) / (2 * step))
    of_data, expected = (torch.stack(found) for found in columns.values())
    # The data's part is no small one.
    assert float(of_data.norm()) > 0.01 * float(expected.norm())
    for hessian in (torch.autograd.functional.hessian(total, sites), torch.func.hessian(total)(sites)):
        hessian = hessian.reshape(expected.shape)
        assert float((hessian - expected).norm()) <= 1e-6 * float(expected.norm())
        assert float((hessian - hessian.T).norm()) <= 1e-10 * float(hessian.norm())
    v = torch.randn(sites.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for product in (
        torch.autograd.functional.hvp(total, sites, v)[1],
        torch.autograd.functional.vhp(total, sites, v)[1],
        torch.func.jvp(torch.func.grad(total), (sites,), (v,))[1],
    ):
        aim = expected @ v.reshape(-1)
        assert float((product.reshape(-1) - aim).norm()) <= 1e-6 * float(aim.norm())


@pytest.mark.parametrize("name", TARGETS)
def test_a_live_mask_refuses_the_hessian_in_a_sentence(fmodel, name):
    def total(x):
        return fmodel.target(name, x) + restraint(x)

    sites = fmodel.sites_cart.detach().clone()
    for attempt in (
        lambda: torch.autograd.functional.hessian(total, sites),
        lambda: torch.autograd.functional.hvp(total, sites, torch.ones_like(sites)),
        lambda: torch.autograd.functional.vhp(total, sites, torch.ones_like(sites)),
        lambda: torch.func.hessian(total)(sites),
        lambda: torch.func.jacrev(torch.func.jacrev(total))(sites),
        lambda: torch.func.jvp(torch.func.grad(total), (sites,), (torch.ones_like(sites),)),
        lambda: torch.func.jacfwd(total)(sites),
        lambda: gradient(lambda x: torch.autograd.grad(total(x), x, create_graph=True)[0].sum(), sites),
    ):
        with pytest.raises(NotImplementedError, match="of the solvent mask.*not available: detach"):
            attempt()


def test_newton_steps_reach_the_minimum(fmodel):
    """Second derivatives that are right make Newton's method converge quadratically."""
    f_mask, start = fmodel.f_mask().detach(), fmodel.sites_cart.detach().clone()

    def total(x):
        return fmodel.target("least_squares", x, f_mask=f_mask) + 1e5 * ((x - start - 0.001) ** 2).sum()

    x, sizes = start.clone(), []
    for _ in range(5):
        g = gradient(total, x)
        sizes.append(float(g.norm()))
        hessian = torch.autograd.functional.hessian(total, x).reshape(x.numel(), -1)
        x = x - torch.linalg.solve(hessian, g.reshape(-1)).reshape(x.shape)
    assert sizes[-1] < 1e-7 * sizes[0]


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_per_model_hessian_vector_products_in_vmap(fmodel, method):
    model = fmodel.with_(method=method)
    model.scales, model._alpha_beta = fmodel.scales, fmodel._alpha_beta
    f_mask = fmodel.f_mask().detach()
    sites = fmodel.sites_cart.detach()
    batch = torch.stack([sites, sites + 0.05])

    def product(x):
        return torch.func.jvp(
            torch.func.grad(lambda y: model.target("least_squares", y, f_mask=f_mask)), (x,), (torch.ones_like(x),)
        )[1]

    together = torch.func.vmap(product)(batch)
    for found, x in zip(together, batch):
        torch.testing.assert_close(found, product(x), rtol=1e-3 if method == "fft" else 1e-9, atol=1e-2)


ATOMS = random_atoms(sfdiff.Crystal((18.0, 21.0, 24.0, 90.0, 90.0, 90.0), "P 21 21 21"), 12, 0)
PLAN = sfdiff.plan(ATOMS.crystal, ATOMS.crystal.build_miller_indices(4.5))


def captured(kind):
    """A function of nothing that uses tensors from outside, and the leaves behind them."""
    leaf = ATOMS.sites_cart.clone().requires_grad_()
    base = torch.cat([ATOMS.sites_cart.reshape(-1), ATOMS.u_iso]).clone().requires_grad_()
    n = ATOMS.sites_cart.numel()
    views = {"sites_cart": base[:n].view(-1, 3), "u_iso": base[n:]}
    if kind == "the same tensor in two models":
        models, leaves = [ATOMS.replace(sites_cart=leaf), ATOMS.replace(sites_cart=leaf)], [leaf]
    elif kind == "a tensor and a view of it":
        models, leaves = [ATOMS.replace(sites_cart=leaf), ATOMS.replace(sites_cart=leaf.view(-1).view(-1, 3))], [leaf]
    elif kind == "two views of one tensor":
        models, leaves = [ATOMS.replace(**views)], [base]
    else:
        models, leaves = [ATOMS.replace(sites_cart=leaf.expand(3, *leaf.shape))], [leaf]

    def of_f():
        return sum(sfdiff.structure_factors(m, PLAN, method="direct").abs().square().sum() for m in models)

    def of_mask():
        return sum(sfdiff.solvent_structure_factors(m, PLAN, grid_step=1.2).abs().square().sum() for m in models)

    return of_f, of_mask, leaves


@of_whole_graphs
@pytest.mark.parametrize(
    "kind",
    ["the same tensor in two models", "a tensor and a view of it", "two views of one tensor", "an expanded tensor"],
)
def test_captured_tensors_have_their_gradients_when_compiled(kind):
    for which in range(2):
        *functions, leaves = captured(kind)
        function = functions[which]
        expected = torch.autograd.grad(function(), leaves)
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for found, right in zip(torch.autograd.grad(compiled(), leaves), expected):
            assert float(right.norm()) > 0
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


@of_whole_graphs
@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_compiled_in_one_graph(fmodel, name):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: fmodel.target(name, x), fullgraph=True, backend="aot_eager")
    sites = fmodel.sites_cart.detach().clone()
    torch.testing.assert_close(compiled(sites), fmodel.target(name, sites).detach(), rtol=1e-12, atol=0)
    expected = gradient(lambda x: fmodel.target(name, x), sites)
    torch.testing.assert_close(gradient(compiled, sites), expected, rtol=1e-9, atol=1e-9)
    # By the module's own parameters, too.
    torch._dynamo.reset()
    of_parameters = torch.compile(lambda: fmodel.target(name), fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(of_parameters(), list(fmodel.parameters()))
    for a, b in zip(found, torch.autograd.grad(fmodel.target(name), list(fmodel.parameters()))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", ["k1", "unit"])
def test_all_amplitudes_zero_give_numbers_in_every_order(fmodel, scale):
    data = fmodel.reflections

    def total(re):
        f = torch.complex(re, torch.zeros_like(re))
        return targets.normalized_least_squares(data, f, scale=scale, f_obs_scale=1.0) + targets.r_factors(data, f)[0]

    zero = torch.zeros(len(data), dtype=torch.float64)
    value = total(zero)
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(gradient(total, zero)).all())
    product = torch.autograd.functional.hvp(total, zero, torch.ones_like(zero))[1]
    assert bool(torch.isfinite(product).all())


def test_the_scale_by_least_squares_is_differentiated_twice(fmodel):
    """An overall factor of F changes nothing: its second derivative is 0."""
    f = fmodel.f_model().detach()

    def of_factor(k):
        return targets.normalized_least_squares(fmodel.reflections, k * f, scale="k1")

    k = torch.tensor(1.3, dtype=torch.float64)
    assert abs(float(torch.autograd.functional.hessian(of_factor, k))) < 1e-12


@pytest.mark.parametrize("name", ["least_squares", "maximum_likelihood", "llg"])
def test_reflections_without_a_model_have_no_part_in_any_derivative(fmodel, name):
    """Some F are 0, some so small that their size underflows, in the middle of others."""
    data, f = fmodel.reflections, fmodel.f_model().detach().clone()
    f[3], f[10] = 0, 1e-320
    sigma_a = torch.full((len(data),), 0.8, dtype=torch.float64)

    def total(parts):
        model = torch.view_as_complex(parts)
        if name == "llg":
            return sfdiff.llg(data, model, sigma_a=sigma_a)
        return fmodel.target(name, f_model=model)

    parts = torch.view_as_real(f)
    assert bool(torch.isfinite(gradient(total, parts)).all())
    v = torch.ones_like(parts)
    product = torch.autograd.functional.hvp(total, parts, v)[1]
    assert bool(torch.isfinite(product).all()) and float(product.norm()) > 0


def test_a_model_is_not_written_without_cctbx_and_a_sentence_says_so(monkeypatch, tmp_path):
    fmodel = example_names()["fmodel"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="write_model needs cctbx, which is not installed"):
        fmodel.write_model(tmp_path / "x.pdb")


def test_sites_of_other_atoms_are_refused_also_before_there_are_scales():
    trained, *_ = training(n_atoms=16, d_min=3.5, method="direct")
    fmodel = sfdiff.FModel(trained.atoms, trained.reflections)
    with pytest.raises(ValueError, match=r"must have the shape \(\.\.\., 16, 3\), not \(0, 3\)"):
        fmodel.f_model(fmodel.atoms.sites_cart[:0])
    with pytest.raises(RuntimeError, match="update_scales"):
        fmodel.f_model(fmodel.atoms.sites_cart)


@pytest.mark.parametrize("options", [{}, {"follow_scales": True}])
def test_what_inference_mode_determined_can_be_trained_with(fmodel, options):
    gradients = []
    for mode in (False, True):
        model = sfdiff.FModel(fmodel.atoms, fmodel.reflections, method="direct", refine=("sites_cart",), **options)
        with torch.inference_mode(mode):
            model.update_scales()
            for name in TARGETS:
                model.target(name)
        sum(model.target(name) for name in TARGETS).backward()
        gradients.append(model.sites_cart.grad)
    assert torch.equal(*gradients)


def test_likelihood_in_a_transform_asks_for_alpha_and_beta(fmodel):
    other, *_ = training(n_atoms=16, d_min=3.5, method="direct")
    other.update_scales()
    for wrap in (torch.func.grad, lambda f: torch.compile(f, backend="eager", fullgraph=True)):
        with pytest.raises(RuntimeError, match=r"call alpha_beta\(\) before"):
            wrap(lambda x: other.target("maximum_likelihood", x))(other.sites_cart.detach().clone())
    other.alpha_beta()
    assert torch.func.grad(lambda x: other.target("maximum_likelihood", x))(other.sites_cart.detach()).isfinite().all()


def test_structure_factors_of_other_reflections_are_refused_and_not_spread(fmodel):
    for name in TARGETS:
        with pytest.raises(ValueError, match="one value for each of the"):
            fmodel.target(name, f_model=fmodel.f_model()[:1])


def test_a_state_is_refused_by_the_same_reflections_in_another_order(fmodel):
    data = fmodel.reflections
    turned = data.select(torch.arange(len(data)).flip(0))
    other = sfdiff.FModel(fmodel.atoms, turned, refine=("sites_cart", "u_iso"))
    with pytest.raises(ValueError, match="in another order: give the data"):
        other.load_state_dict(fmodel.state_dict(), strict=False)
