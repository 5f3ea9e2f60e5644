"""Masks and their structure factors under torch's transforms, compilation, modes and global settings."""

import contextlib

import mmtbx_sfdiff as sfdiff
import torch

import pytest
from cctbx import crystal, xray

from tests.bulk_solvent.test_probe_shrink import one_atom

METHODS = {
    "soft": {"precision": "double"},
    "soft, torch": {"precision": "double", "engine": "torch"},
    "hard": {"softness": 0.0},
    "density_cutoff": {"method": "density_cutoff", "solvent_fraction": 0.6},
}
STEP = 1.0


def few_atoms(dtype=torch.float64):
    structure = xray.structure(crystal_symmetry=crystal.symmetry((8, 9, 10, 90, 100, 90), "P 1 21 1"))
    for element, site in (("C", (0.1, 0.2, 0.3)), ("N", (0.2, 0.25, 0.3)), ("O", (0.15, 0.3, 0.35))):
        structure.add_scatterer(xray.scatterer(element, site=site, u=0.2))
    return sfdiff.Atoms.from_cctbx(structure, dtype=dtype)


ATOMS = few_atoms()
PLAN = sfdiff.plan(ATOMS.crystal, ATOMS.crystal.build_miller_indices(3.0))


def weights(shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def totals(options):
    """Scalars of the sites: one of the map, one of its structure factors."""
    of_map, of_f = weights(ATOMS.crystal.grid(STEP)), weights(len(PLAN), torch.complex128)

    def by_map(sites):
        return (sfdiff.solvent_mask(ATOMS.replace(sites_cart=sites), PLAN, grid_step=STEP, **options) * of_map).sum()

    def by_f(sites):
        f = sfdiff.solvent_structure_factors(ATOMS.replace(sites_cart=sites), PLAN, grid_step=STEP, **options)
        return (f * of_f).real.sum()

    return by_map, by_f


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


@pytest.mark.parametrize("name", METHODS)
def test_torch_func(name):
    several = torch.stack([ATOMS.sites_cart, ATOMS.sites_cart + 0.1, ATOMS.sites_cart - 0.2])
    for total in totals(METHODS[name]):
        expected = torch.stack([gradient(total, x) for x in several])
        size = float(expected.abs().max())
        found = torch.func.vmap(torch.func.grad(total))(several)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * size)
        torch.testing.assert_close(torch.func.grad(total)(several[0]), expected[0], rtol=1e-10, atol=1e-10 * size)
        values = torch.stack([total(x) for x in several])
        torch.testing.assert_close(torch.func.vmap(total)(several), values, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_jacrev(name):
    def f(sites):
        moved = ATOMS.replace(sites_cart=sites)
        return torch.view_as_real(sfdiff.solvent_structure_factors(moved, PLAN, grid_step=STEP, **METHODS[name]))

    jacobian = torch.func.jacrev(f)(ATOMS.sites_cart)
    assert jacobian.shape == (len(PLAN), 2, ATOMS.n_atoms, 3)
    chosen = weights((len(PLAN), 2))
    expected = gradient(lambda x: (f(x) * chosen).sum(), ATOMS.sites_cart)
    torch.testing.assert_close(torch.einsum("hi,hiax->ax", chosen, jacobian), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_compile_in_one_graph(name):
    for total in totals(METHODS[name]):
        torch._dynamo.reset()
        compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(ATOMS.sites_cart.clone()), total(ATOMS.sites_cart), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            gradient(compiled, ATOMS.sites_cart), gradient(total, ATOMS.sites_cart), rtol=1e-10, atol=1e-9
        )
        wrong = ATOMS.sites_cart.clone()
        wrong[1, 2] = torch.nan
        with pytest.raises(ValueError, match="atom 1"):
            compiled(wrong)


def test_gradcheck():
    lengths = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.1, 0.9, 0.8)]
    occupancies = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)
    radii = ATOMS.vdw_radii().requires_grad_()
    inputs = (ATOMS.sites_cart.clone().requires_grad_(), occupancies, radii, *lengths)

    def f(sites, occupancies, radii, r_probe, r_shrink, softness):
        moved = ATOMS.replace(sites_cart=sites, occupancies=occupancies)
        return torch.view_as_real(
            sfdiff.solvent_structure_factors(
                moved,
                PLAN,
                grid_step=STEP,
                precision="double",
                full_occupancy=0.7,
                radii=radii,
                r_probe=r_probe,
                r_shrink=r_shrink,
                softness=softness,
            )
        )

    # The lengths change which fine steps are within the ball: there the sum is not smooth, to 2e-3 of the integral.
    assert torch.autograd.gradcheck(f, inputs, eps=1e-5, rtol=2e-3, atol=2e-3)
    fixed = tuple(x.detach() for x in inputs[3:])
    assert torch.autograd.gradcheck(lambda *first: f(*first, *fixed), inputs[:3], eps=1e-5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_second_derivatives_are_refused(name):
    direction = torch.ones_like(ATOMS.sites_cart)
    for total in totals(METHODS[name]):
        attempts = (
            lambda: torch.autograd.functional.hvp(total, ATOMS.sites_cart, direction),
            lambda: torch.autograd.functional.hessian(total, ATOMS.sites_cart),
            lambda: torch.func.hessian(total)(ATOMS.sites_cart),
            lambda: torch.func.jacrev(torch.func.jacrev(total))(ATOMS.sites_cart),
            lambda: torch.func.jvp(total, (ATOMS.sites_cart,), (direction,)),
        )
        for attempt in attempts:
            with pytest.raises(NotImplementedError, match="of the solvent mask.*not available"):
                attempt()


def test_a_mask_held_constant_leaves_the_second_derivative_of_the_rest():
    def total(sites):
        mask = sfdiff.solvent_structure_factors(ATOMS.replace(sites_cart=sites.detach()), PLAN, grid_step=STEP)
        return mask.abs().square().sum() * sites.square().sum()

    _, found = torch.autograd.functional.hvp(total, ATOMS.sites_cart, torch.ones_like(ATOMS.sites_cart))
    f = sfdiff.solvent_structure_factors(ATOMS, PLAN, grid_step=STEP).abs().square().sum()
    torch.testing.assert_close(found, torch.full_like(found, float(2 * f)))


def test_the_transform_is_linear_in_every_derivative():
    mask, direction = torch.rand(ATOMS.crystal.grid(STEP), dtype=torch.float64), weights(ATOMS.crystal.grid(STEP))

    def quadratic(mask):
        return torch.view_as_real(sfdiff.mask_structure_factors(mask, PLAN)).square().sum()

    twice = torch.func.grad(quadratic)(direction)
    assert torch.autograd.gradgradcheck(quadratic, (mask[:4, :4, :4].repeat(2, 2, 2).requires_grad_(),), fast_mode=True)
    torch.testing.assert_close(torch.autograd.functional.hvp(quadratic, mask, direction)[1], twice)
    forward = torch.func.jvp(torch.func.grad(quadratic), (mask,), (direction,))[1]
    torch.testing.assert_close(forward, twice)
    torch._dynamo.reset()
    compiled = torch.compile(quadratic, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, mask), gradient(quadratic, mask))


@contextlib.contextmanager
def matmul_precision(name):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "medium": lambda: matmul_precision("medium"),
    "high": lambda: matmul_precision("high"),
    "default float64": lambda: default_dtype(torch.float64),
    "default float16": lambda: default_dtype(torch.float16),
    "default device": lambda: torch.device("meta"),
    "deterministic": deterministic,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_changes_a_number(setting, dtype):
    atoms = few_atoms(dtype)
    plan = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(3.0))

    def numbers():
        found = []
        for options in ({}, {"softness": 0.0}, {"method": "binary"}, {"method": "density_cutoff", "d_min": 2.5}):
            sites = atoms.sites_cart.clone().requires_grad_()
            moved = atoms.replace(sites_cart=sites)
            f = sfdiff.solvent_structure_factors(moved, plan, **options)
            mask = sfdiff.solvent_mask(moved, plan, **options)
            found += [f.detach(), mask.detach(), sfdiff.mask_structure_factors(mask.detach(), plan)]
            if f.requires_grad:
                found.append(torch.autograd.grad(torch.view_as_real(f).square().sum(), sites)[0])
        return found

    expected = numbers()
    with SETTINGS[setting]():
        found = numbers()
    for a, b in zip(found, expected):
        assert a.dtype == b.dtype
        # Where torch may round factors to few bits, products of single precision are made in double: closer, not equal.
        rounding = 1e-5 if setting in ("high", "medium") else 0.0
        assert float((a - b).norm()) <= rounding * float(b.norm())


@pytest.mark.parametrize("name", METHODS)
def test_inference_mode(name):
    expected = sfdiff.solvent_structure_factors(ATOMS, PLAN, grid_step=STEP, **METHODS[name])
    with torch.inference_mode():
        sites = torch.stack([ATOMS.sites_cart] * 3)
        f = sfdiff.solvent_structure_factors(ATOMS.replace(sites_cart=sites), PLAN, grid_step=STEP, **METHODS[name])
    assert f.is_inference()
    torch.testing.assert_close(f, expected.expand(f.shape))


def test_non_contiguous_and_expanded_tensors():
    sites = ATOMS.sites_cart
    strange = [
        sites.T.contiguous().T,
        sites.expand(2, *sites.shape),
        torch.stack([sites, sites], 2)[..., 0],
    ]
    expected = sfdiff.solvent_structure_factors(ATOMS, PLAN, grid_step=STEP)
    for x in strange:
        f = sfdiff.solvent_structure_factors(ATOMS.replace(sites_cart=x), PLAN, grid_step=STEP)
        torch.testing.assert_close(f, expected.expand(f.shape), rtol=1e-6, atol=1e-6)
    mask = sfdiff.solvent_mask(ATOMS, PLAN, grid_step=STEP)
    torch.testing.assert_close(
        sfdiff.mask_structure_factors(mask.permute(2, 1, 0).contiguous().permute(2, 1, 0), PLAN),
        sfdiff.mask_structure_factors(mask, PLAN),
    )
    (by_one,) = torch.autograd.grad(
        sfdiff.mask_structure_factors(mask.requires_grad_(), PLAN).real.sum().expand(3).sum(), mask
    )
    assert bool(by_one.isfinite().all())


def test_a_plan_and_indices_exclude_each_other():
    mask = sfdiff.solvent_mask(ATOMS, PLAN, grid_step=STEP)
    with pytest.raises(TypeError, match="its own"):
        sfdiff.mask_structure_factors(mask, PLAN, PLAN.miller_indices)
    with pytest.raises(TypeError, match="missing"):
        sfdiff.mask_structure_factors(mask, ATOMS.crystal)
    other = one_atom((20, 21, 22, 90, 90, 90))
    with pytest.raises(ValueError, match="belong"):
        sfdiff.solvent_mask(other, PLAN)


def test_torch_s_own_threads_are_left_asleep():
    """Every large operation of torch within a call happens with one thread: pools of two kinds would wait for each other."""
    from mmtbx_sfdiff.bulk_solvent import transform
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __init__(self, most=2**15, name=""):
            super().__init__()
            self.most, self.name = most, name

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes = [x.numel() for x in (*args, result) if isinstance(x, torch.Tensor)]
            if max(sizes, default=0) > self.most and self.name in str(function) and torch.get_num_threads() > 1:
                seen.append(str(function))
            return result

    atoms = one_atom((40, 41, 42, 90, 90, 90))
    plan = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(3.0))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        masks = sfdiff.solvent_mask(atoms, plan)[None]
        # What happens within an operation is hidden from modes: its function is called as it is.
        with Watch():
            f = transform.mask_factors.plain(masks, plan.handle, 3.0)
        assert len([name for name in seen if "empty" not in name]) <= 2, seen
        seen.clear()
        with Watch():
            transform.mask_factors_transposed.plain(f, list(masks.shape[1:]), plan.handle, 3.0)
        assert len([name for name in seen if "empty" not in name]) <= 2, seen
        # Indexing wakes them from 3,000 numbers on.
        many = atoms.select(torch.zeros(4000, dtype=torch.int64))
        moved = many.sites_cart + 40 * torch.rand(many.sites_cart.shape, dtype=torch.float64)
        many = many.replace(sites_cart=moved.requires_grad_())
        seen.clear()
        with Watch(3000, "index.Tensor"), torch.no_grad():
            sfdiff.solvent_structure_factors(many, plan)
            sfdiff.structure_factors(many, plan, method="fft")
        assert not seen
    finally:
        torch.set_num_threads(before)
