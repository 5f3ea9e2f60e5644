"""What torch promises of an operation: derivatives of every order, transforms, compilers, modes, processes."""

import multiprocessing
import pickle

import mmtbx_sfdiff as sfdiff
import torch

import pytest
from cctbx import miller

from tests.structure_factors.test_fft import make_atoms
from tests.support.structures import random_xray_structure, relative_l2

PARAMETERS = ("sites_cart", "u_iso", "u_star", "occupancies", "fp", "fdp")
METHODS = ("direct", "fft", "auto")


def small(symbol="P 21", anisotropic=False, dispersion=True, n=1, d_min=3.0):
    structure = random_xray_structure(symbol, anisotropic=anisotropic, elements=("C", "O", "S"), n=n)
    atoms = sfdiff.Atoms.from_cctbx(structure)
    if not dispersion:
        atoms = atoms.replace(fp=atoms.fp * 0, fdp=atoms.fdp * 0)
    indices = miller.build_set(structure, anomalous_flag=True, d_min=d_min)
    return atoms, sfdiff.plan(atoms.crystal, indices)


def target_of(atoms, plan, **options):
    """A real function of the parameters: a sum of squares of F's distance from somewhere else."""
    generator = torch.Generator().manual_seed(1)
    aim = torch.view_as_complex(torch.randn((len(plan), 2), generator=generator, dtype=torch.float64)) * 5

    def target(*values, names=PARAMETERS):
        f = sfdiff.structure_factors(atoms.replace(**dict(zip(names, values))), plan, **options)
        return ((f - aim).abs() ** 2).sum(-1).sum()

    return target


def leaves(atoms):
    return [getattr(atoms, name).clone().requires_grad_() for name in PARAMETERS]


@pytest.mark.parametrize("symbol, anisotropic", [("P 21", False), ("P 1", False), ("P 31 2 1", True)])
def test_second_derivatives_of_direct_summation(symbol, anisotropic):
    atoms, plan = small(symbol, anisotropic, d_min=4.0)

    def function(*values):
        return sfdiff.structure_factors(atoms.replace(**dict(zip(PARAMETERS, values))), plan, method="direct")

    assert torch.autograd.gradcheck(function, leaves(atoms), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves(atoms), fast_mode=True, atol=1e-5, rtol=1e-6)


def test_third_derivatives():
    atoms, plan = small("P 21", True, d_min=5.0)
    target = target_of(atoms, plan, method="direct")

    def second(*values):
        first = torch.autograd.grad(target(*values), values, create_graph=True)
        again = torch.autograd.grad(sum((x * x).sum() for x in first), values, create_graph=True)
        return tuple(again)

    values = leaves(atoms)
    assert torch.autograd.gradcheck(second, values, fast_mode=True, atol=1e-2, rtol=1e-5)


@pytest.mark.parametrize("method, tolerance", [("direct", 1e-6), ("fft", 1e-4), ("auto", 1e-6)])
@pytest.mark.parametrize("anisotropic", [False, True])
def test_hessians_by_every_way(method, tolerance, anisotropic):
    atoms, plan = small("P 21 21 21", anisotropic)
    target = target_of(atoms, plan, method=method)
    sites = atoms.sites_cart

    def of_sites(sites):
        return target(sites, names=("sites_cart",))

    # Central differences of exact gradients.
    exact = target_of(atoms, plan, method="direct")
    step, columns = 1e-4, []
    for i in range(sites.numel()):
        found = []
        for sign in (1, -1):
            moved = sites.clone()
            moved.view(-1)[i] += sign * step
            moved.requires_grad_()
            found.append(torch.autograd.grad(exact(moved, names=("sites_cart",)), moved)[0].reshape(-1))
        columns.append((found[0] - found[1]) / (2 * step))
    expected = torch.stack(columns).reshape(*sites.shape, *sites.shape)
    for hessian in (
        torch.autograd.functional.hessian(of_sites, sites),
        torch.func.hessian(of_sites)(sites),
        torch.func.jacrev(torch.func.jacrev(of_sites))(sites),
    ):
        assert relative_l2(hessian, expected) <= max(tolerance, 1e-6)
    direction = torch.randn(sites.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = torch.autograd.functional.hvp(of_sites, sites, direction)[1]
    assert relative_l2(product, torch.einsum("abcd,cd->ab", expected, direction)) <= max(tolerance, 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_second_derivatives(method):
    atoms, plan = small("P 21", True)
    for other in PARAMETERS[1:]:
        target = target_of(atoms, plan, method=method)
        both = [atoms.sites_cart.clone().requires_grad_(), getattr(atoms, other).clone().requires_grad_()]
        names = ("sites_cart", other)
        (first,) = torch.autograd.grad(target(*both, names=names), both[0], create_graph=True)
        v = torch.randn(first.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        (mixed,) = torch.autograd.grad(first, both[1], v)
        exact, step, found = target_of(atoms, plan, method="direct"), 1e-4, []
        for sign in (1, -1):
            moved = [(both[0] + sign * step * v).detach(), both[1].detach().requires_grad_()]
            found.append(torch.autograd.grad(exact(*moved, names=names), moved[1])[0])
        expected = (found[0] - found[1]) / (2 * step)
        tolerance = 1e-4 if method == "fft" else 1e-6
        assert float((mixed - expected).norm()) <= tolerance * float(expected.norm()), other


@pytest.mark.parametrize("method", METHODS)
def test_transforms_of_torch_func(method):
    atoms, plan = small("P 21 21 21", n=4)
    shifts = 0.2 * torch.randn((3, *atoms.sites_cart.shape), generator=torch.Generator().manual_seed(0)).double()
    batch = atoms.sites_cart + shifts
    target = target_of(atoms, plan, method=method)

    def f(sites, u_iso=atoms.u_iso):
        return sfdiff.structure_factors(atoms.replace(sites_cart=sites, u_iso=u_iso), plan, method=method)

    def of_sites(sites):
        return target(sites, names=("sites_cart",))

    close = dict(rtol=1e-3, atol=1e-3) if method == "fft" else dict(rtol=1e-10, atol=1e-9)
    together = f(batch)
    torch.testing.assert_close(torch.func.vmap(f)(batch), together, **close)
    torch.testing.assert_close(torch.func.vmap(f, in_dims=1)(batch.transpose(0, 1)), together, **close)
    # Several batches in one, and models of one vmap with those of another.
    twice = torch.func.vmap(torch.func.vmap(f, in_dims=(0, None)), in_dims=(None, 0))(batch, atoms.u_iso[None] + 0.1)
    torch.testing.assert_close(twice[0], f(batch, atoms.u_iso + 0.1), **close)
    torch.testing.assert_close(torch.func.vmap(f, in_dims=(None, 0))(batch, atoms.u_iso[None])[0], together, **close)

    by_grad = torch.func.grad(of_sites)(batch[0])
    leaf = batch[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(of_sites(leaf), leaf)
    torch.testing.assert_close(by_grad, expected, rtol=0, atol=0)
    per_model = torch.func.vmap(torch.func.grad(of_sites))(batch)
    each = torch.stack([torch.func.grad(of_sites)(x) for x in batch])
    assert relative_l2(per_model, each) < (1e-3 if method == "fft" else 1e-11)
    # A parameter that all models share has a gradient of each.
    of_u = torch.func.vmap(torch.func.grad(lambda u, x: f(x, u).abs().sum()), in_dims=(None, 0))(atoms.u_iso, batch)
    assert of_u.shape == (3, atoms.n_atoms)
    rows = torch.func.jacrev(lambda sites: torch.view_as_real(f(sites)))(batch[0])
    assert rows.shape == (len(plan), 2, atoms.n_atoms, 3)
    columns = torch.func.jacfwd(lambda sites: torch.view_as_real(f(sites)))(batch[0])
    assert relative_l2(rows, columns) < (1e-3 if method == "fft" else 1e-11)


def test_vmap_over_indices_is_refused_in_a_sentence():
    atoms, plan = small()
    indices = torch.stack([plan.miller_indices] * 2)
    with pytest.raises(NotImplementedError, match="not over indices"):
        torch.func.vmap(lambda h: sfdiff.structure_factors(atoms, atoms.crystal, h))(indices)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by", ["plan", "indices"])
def test_compiled_in_one_graph(method, by):
    torch._dynamo.reset()
    atoms, plan = small("P 21 21 21", n=4)
    place = (plan,) if by == "plan" else (atoms.crystal, plan.miller_indices)

    def target(atoms, sites, *place):
        f = sfdiff.structure_factors(atoms.replace(sites_cart=sites), *place, method=method)
        return (f.abs() * 2).sum()

    compiled = torch.compile(target, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        found = []
        for function in (compiled, target):
            leaf = atoms.sites_cart.clone().requires_grad_()
            value = function(atoms, leaf, *place)
            value.backward()
            found.append((value.detach(), leaf.grad))
        torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-10)
        # Another crystal, another number of atoms and reflections: not what was traced.
        atoms, plan = small("P 1", n=3, d_min=2.5)
        place = (plan,) if by == "plan" else (atoms.crystal, plan.miller_indices)
    with pytest.raises(ValueError, match="sites_cart of atom 2 is "):
        bad = atoms.sites_cart.clone()
        bad[2, 1] = float("nan")
        compiled(atoms, bad, *place)


@pytest.mark.parametrize("method", METHODS)
def test_inference_mode_and_indices_made_in_it(method):
    atoms, plan = small("P 21 21 21", n=4)
    expected = sfdiff.structure_factors(atoms, plan, method=method)
    with torch.inference_mode():
        indices = plan.miller_indices + 0
        assert torch.equal(sfdiff.structure_factors(atoms, plan, method=method), expected)
        assert torch.equal(sfdiff.structure_factors(atoms, atoms.crystal, indices, method=method), expected)
        inside = sfdiff.plan(atoms.crystal, indices)
    # Made inside, used outside with a gradient; changed in place, noticed.
    sites = atoms.sites_cart.clone().requires_grad_()
    for place in ((atoms.crystal, indices), (inside,)):
        f = sfdiff.structure_factors(atoms.replace(sites_cart=sites), *place, method=method)
        assert torch.equal(f.detach(), expected)
        f.abs().sum().backward()
    with torch.inference_mode():
        indices[0] = indices[1]
        changed = sfdiff.structure_factors(atoms, atoms.crystal, indices, method=method)
        assert abs(changed[0] - changed[1]) < 1e-6 * abs(changed[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("anisotropic", [False, True])
def test_no_mode_and_no_default_changes_a_value(method, dtype, anisotropic):
    structure = random_xray_structure("P 21", anisotropic=anisotropic, n=20)
    atoms = sfdiff.Atoms.from_cctbx(structure, dtype=dtype)
    indices = atoms.crystal.build_miller_indices(2.0)

    def run():
        values = [getattr(atoms, name).clone().requires_grad_() for name in PARAMETERS]
        replaced = atoms.replace(**dict(zip(PARAMETERS, values)))
        f = sfdiff.structure_factors(replaced, sfdiff.plan(atoms.crystal, indices), method=method)
        g = torch.autograd.grad((f.abs() ** 2).sum(), values, create_graph=True)
        h = torch.autograd.grad(sum((x**2).sum() for x in g), values)
        return f.detach(), *(x.detach() for x in (*g, *h))

    expected = run()

    def check(atol=0.0):
        for value, reference in zip(run(), expected):
            assert value.dtype == reference.dtype
            error, size = (torch.view_as_real(x).double() if x.is_complex() else x.double() for x in (value, reference))
            assert float((error - size).norm()) <= atol * float(size.norm())

    for reduced in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=reduced):
            check()
    with torch.device("meta"):
        check()
    try:
        for default in (torch.float16, torch.bfloat16, torch.float64):
            torch.set_default_dtype(default)
            check()
    finally:
        torch.set_default_dtype(torch.float32)
    # Products of single precision are then made in double precision: the same to rounding.
    rounding = 1e-6 if dtype == torch.float32 else 0.0
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("high", "medium"):
            torch.set_float32_matmul_precision(precision)
            check(rounding)
    finally:
        torch.set_float32_matmul_precision(before)
    try:
        torch.use_deterministic_algorithms(True)
        check()
    finally:
        torch.use_deterministic_algorithms(False)


class Shifted(torch.utils.data.Dataset):
    def __init__(self, atoms, plan):
        self.atoms, self.plan = atoms, plan

    def __len__(self):
        return 4

    def __getitem__(self, i):
        sites = (self.atoms.sites_cart + 0.1 * i).requires_grad_()
        f = sfdiff.structure_factors(self.atoms.replace(sites_cart=sites), self.plan, method="fft")
        (gradient,) = torch.autograd.grad(f.abs().sum(), sites)
        return f.detach(), gradient


def test_workers_of_a_data_loader():
    atoms, plan = small("P 21 21 21", n=40)
    data = Shifted(atoms, plan)
    expected = [data[i] for i in range(4)]
    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=context)
        for found, (f, gradient) in zip(loader, expected):
            torch.testing.assert_close(found[0], f, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(found[1], gradient, rtol=1e-3, atol=1e-2)


def test_atoms_and_plans_survive_pickle():
    atoms, plan = small()
    atoms_again, plan_again = pickle.loads(pickle.dumps((atoms, plan)))
    assert plan_again.handle != plan.handle
    found = sfdiff.structure_factors(atoms_again, plan_again)
    assert torch.equal(found, sfdiff.structure_factors(atoms, plan))
    assert multiprocessing.current_process().name == "MainProcess"


def test_autocast_does_not_reach_the_fft_of_many_atoms():
    atoms = make_atoms(n=600)
    plan = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(2.5))
    expected = sfdiff.structure_factors(atoms, plan, method="fft")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sfdiff.structure_factors(atoms, plan, method="fft"), expected)
