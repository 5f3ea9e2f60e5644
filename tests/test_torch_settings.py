"""No mode, default or precision that a program sets in torch changes a number of any public operation."""

import contextlib
import functools

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff import targets
from mmtbx_sfdiff.likelihood.alpha_beta import estimate_alpha_beta

import pytest

from tests.support.long_life import random_atoms
from tests.support.monomers import peptide_restraints

CELL = (14.0, 15.0, 17.0, 90.0, 90.0, 90.0)
D_MIN = 2.2
WEIGHTS = (0.6, 0.4)
DTYPES = (torch.float32, torch.float64)


@functools.lru_cache(maxsize=2)
def world(dtype):
    """Atoms, their data, and F of another model, made outside every setting."""
    crystal = sfdiff.Crystal(CELL, "P 21 21 21")
    atoms = random_atoms(crystal, 24, 3)
    indices = crystal.build_miller_indices(D_MIN)
    f = sfdiff.structure_factors(atoms, crystal, indices, method="direct")
    f = f + 0.35 * sfdiff.solvent_structure_factors(atoms, crystal, indices)
    f_obs = f.abs()
    free = torch.arange(len(indices)) % 8 == 0
    data = sfdiff.Reflections.from_arrays(crystal, indices, f_obs, 0.03 * f_obs + 0.1 * f_obs.mean(), free, dtype=dtype)
    moved = atoms.replace(sites_cart=atoms.sites_cart + 0.3 * torch.sin(7.0 * atoms.sites_cart))
    return moved.to(dtype=dtype), data


def with_gradient(function, atoms, *names):
    """The value of a function of atoms, and the gradient of a number made of it in the parameters named."""
    names = names or ("sites_cart",)
    leaves = [getattr(atoms, name).detach().clone().requires_grad_() for name in names]
    value = function(atoms.replace(**dict(zip(names, leaves))))
    real = torch.view_as_real(value) if value.is_complex() else value
    return [value.detach(), *torch.autograd.grad(real.square().sum(), leaves)]


def structure_factors(method):
    def operation(atoms, data):
        place = data.crystal, data.miller_indices
        names = ("sites_cart", "u_iso", "occupancies")
        return with_gradient(lambda a: sfdiff.structure_factors(a, *place, method=method), atoms, *names)

    return operation


def solvent(**options):
    def operation(atoms, data):
        def f(a):
            return sfdiff.solvent_structure_factors(a, data.crystal, data.miller_indices, **options)

        def mask(a):
            return sfdiff.solvent_mask(a, data.crystal, **options)

        if options.get("method") == "binary":
            return [f(atoms), mask(atoms)]
        return with_gradient(f, atoms) + with_gradient(mask, atoms)

    return operation


def mask_structure_factors(atoms, data):
    mask = torch.rand(
        data.crystal.grid(0.8), generator=torch.Generator("cpu").manual_seed(1), dtype=torch.float64, device="cpu"
    )
    mask = mask.to(atoms.dtype).requires_grad_()
    f = sfdiff.mask_structure_factors(mask, data.crystal, data.miller_indices)
    return [f.detach(), *torch.autograd.grad(f.abs().square().sum(), mask)]


def ensemble_mask(atoms, data):
    two = atoms.replace(sites_cart=torch.stack([atoms.sites_cart, atoms.sites_cart + 0.3]))
    weights = torch.tensor(WEIGHTS, dtype=atoms.dtype, device="cpu")
    place = data.crystal, data.miller_indices
    return with_gradient(lambda a: sfdiff.solvent_structure_factors(a, *place, ensemble=weights), two)


def density(d_min):
    def operation(atoms, data):
        return with_gradient(
            lambda a: sfdiff.density(a, data.crystal, (12, 12, 12), d_min=d_min),
            atoms.select(torch.arange(6, device="cpu")),
        )

    return operation


def f_model_of(atoms, data):
    return sfdiff.structure_factors(atoms, data.crystal, data.miller_indices, method="direct")


def e_values(atoms, data):
    found = sfdiff.e_values(data)
    return [found.e, found.sigma, found.epsilon]


def sigma_a(atoms, data):
    return [sfdiff.sigma_a(data, f_model_of(atoms, data))]


def llg(atoms, data):
    return with_gradient(lambda a: sfdiff.llg(data, f_model_of(a, data)), atoms)


def update_all_scales(atoms, data):
    place = data.crystal, data.miller_indices
    scales = sfdiff.update_all_scales(data, f_model_of(atoms, data), sfdiff.solvent_structure_factors(atoms, *place))
    exponential = sfdiff.update_all_scales(
        data, f_model_of(atoms, data), sfdiff.solvent_structure_factors(atoms, *place), model="exponential"
    )
    return [
        x
        for s in (scales, exponential)
        for x in (s.k_total, s.k_masks[0], torch.tensor([s.r_work], dtype=torch.float64, device="cpu"))
    ]


def least_squares(atoms, data):
    return [
        *with_gradient(lambda a: targets.least_squares(data, f_model_of(a, data), f_obs_scale=1.0), atoms),
        *with_gradient(lambda a: targets.normalized_least_squares(data, f_model_of(a, data)), atoms),
        *with_gradient(lambda a: targets.r_factors(data, f_model_of(a, data))[0], atoms),
    ]


def maximum_likelihood(atoms, data):
    alpha_beta = estimate_alpha_beta(data, f_model_of(atoms, data))
    found = with_gradient(
        lambda a: targets.maximum_likelihood(data, f_model_of(a, data), alpha_beta, f_obs_scale=1.0), atoms
    )
    return [alpha_beta.alpha, alpha_beta.beta, *found]


def fmodel(**options):
    def operation(atoms, data):
        if "ensemble" in options:
            atoms = atoms.replace(sites_cart=torch.stack([atoms.sites_cart, atoms.sites_cart + 0.2]))
        model = sfdiff.FModel(atoms, data, refine=("sites_cart", "u_iso"), **options)
        model.update_scales()
        found = []
        for name in ("maximum_likelihood", "least_squares"):
            model.zero_grad()
            value = model.target(name)
            value.backward()
            found += [value.detach(), model.sites_cart.grad.clone(), model.u_iso.grad.clone()]
        return [*found, model.f_model().detach(), model.r_work().detach(), *model.map_coefficients().values()]

    return operation


def nouns(atoms, data):
    """Atoms, a crystal and reflections made anew, moved and converted."""
    again = sfdiff.Atoms.from_arrays(
        data.crystal, ["C"] * 4, [[1.1, 2.3, 3.7 + i] for i in range(4)], b_iso=20.3, dtype=atoms.dtype
    )
    crystal = sfdiff.Crystal((31.0, 33.0, 35.0, 90.0, 95.0, 90.0), "P 1 21 1")
    reflections = sfdiff.Reflections.from_arrays(
        crystal, [[1, 2, 3], [0, 2, 0]], [2.0, 3.0], [0.1, 0.1], dtype=atoms.dtype
    )
    indices = crystal.build_miller_indices(4.0)
    return [
        again.sites_cart,
        again.u_iso,
        again.u_star,
        again.sites_frac,
        again.to(dtype=torch.float64).sites_cart,
        atoms.sites_frac,
        atoms.b_iso,
        atoms.vdw_radii(),
        atoms.select(atoms.hydrogens.logical_not()).u_iso,
        crystal.orthogonalization,
        crystal.d_star_sq(indices),
        crystal.epsilons(indices),
        reflections.f_obs,
        reflections.sigmas,
    ]


def restraints(atoms, data):
    """Bonds and the like of two residues, whose sites are those of atoms."""
    geometry = peptide_restraints()
    sites = atoms.sites_cart[: geometry.n_atoms].detach().clone().requires_grad_()
    value = geometry(sites)
    return [value.detach(), *torch.autograd.grad(value, sites)]


def plan_of_lists(atoms, data):
    """A plan of indices as a list, and what follows from it."""
    place = sfdiff.plan(data.crystal, data.miller_indices.tolist())
    f = sfdiff.structure_factors(atoms, place, method="direct")
    return [place.miller_indices, f, sfdiff.solvent_structure_factors(atoms, place)]


def scales_of(atoms, data):
    scales = sfdiff.update_all_scales(data, f_model_of(atoms, data), f_model_of(atoms, data).conj())
    return [scales.f_model(f_model_of(atoms, data), f_model_of(atoms, data)), scales.to(torch.float64).k_total]


OPERATIONS = {
    "structure_factors, direct": structure_factors("direct"),
    "structure_factors, fft": structure_factors("fft"),
    "soft mask": solvent(),
    "soft mask, torch": solvent(engine="torch", grid_step=1.7),
    "hard mask": solvent(softness=0.0),
    "binary mask": solvent(method="binary"),
    "density cutoff": solvent(method="density_cutoff", solvent_fraction=0.5),
    "ensemble mask": ensemble_mask,
    "mask_structure_factors": mask_structure_factors,
    "density": density(None),
    "density to d_min": density(3.6),
    "e_values": e_values,
    "sigma_a": sigma_a,
    "llg": llg,
    "update_all_scales": update_all_scales,
    "least squares": least_squares,
    "maximum likelihood": maximum_likelihood,
    "FModel": fmodel(),
    "FModel, direct, following scales": fmodel(method="direct", follow_scales=True),
    "FModel of an ensemble": fmodel(ensemble=torch.tensor(WEIGHTS), solvent="combined"),
    "Atoms, Crystal, Reflections": nouns,
    "plan": plan_of_lists,
    "Scales": scales_of,
    "GeometryRestraints": restraints,
}
#: Public names without a tensor in them.
OTHERS = {"register", "takeover", "unregister"}
#: Names of the operations that are not the public name itself.
ALSO = {
    "Atoms": "Atoms, Crystal, Reflections",
    "Crystal": "Atoms, Crystal, Reflections",
    "Reflections": "Atoms, Crystal, Reflections",
    "solvent_mask": "soft mask",
    "solvent_structure_factors": "soft mask",
    "structure_factors": "structure_factors, direct",
    "targets": "least squares",
}


def test_every_public_name_is_among_the_operations():
    named = {name for name in sfdiff.__all__ if name not in OTHERS}
    assert {name for name in named if ALSO.get(name, name) not in OPERATIONS} == set()


@contextlib.contextmanager
def setting(getter, setter, value):
    before = getter()
    setter(value)
    try:
        yield
    finally:
        setter(before)


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def tf32():
    backends = (torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32")
    before = [getattr(*b) for b in backends]
    for b in backends:
        setattr(*b, True)
    try:
        yield
    finally:
        for b, value in zip(backends, before):
            setattr(*b, value)


def precision(name):
    return setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, name)


def dtype_by_default(dtype):
    return setting(torch.get_default_dtype, torch.set_default_dtype, dtype)


SETTINGS = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "matmul precision high": lambda: precision("high"),
    "matmul precision medium": lambda: precision("medium"),
    "allow_tf32": tf32,
    "default dtype float64": lambda: dtype_by_default(torch.float64),
    "default dtype float16": lambda: dtype_by_default(torch.float16),
    "default dtype bfloat16": lambda: dtype_by_default(torch.bfloat16),
    "default device meta": lambda: default_device("meta"),
    "default device cpu": lambda: default_device("cpu"),
    "deterministic algorithms": lambda: setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
}
# Where torch may round factors to few bits, products of single precision are made in double: closer, not equal.
ROUNDING = {"matmul precision high": 1e-5, "matmul precision medium": 1e-5, "allow_tf32": 1e-5}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_setting_changes_a_number(name, dtype):
    atoms, data = world(dtype)
    operation = OPERATIONS[name]
    expected = operation(atoms, data)
    assert all(x.device.type == "cpu" for x in expected)
    for label, enter in SETTINGS.items():
        with enter():
            found = operation(atoms, data)
        assert len(found) == len(expected)
        for i, (a, b) in enumerate(zip(found, expected)):
            assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device), (label, i)
            # In complex double: what is compared is not to be rounded by the setting, nor overflow.
            a, b = a.to(torch.complex128), b.to(torch.complex128)
            # Masks of double precision have kernels of single precision by default.
            rounding = ROUNDING.get(label, 0.0) * (1.0 if dtype == torch.float32 else 0.1)
            same = (a == b) | (a.isnan() & b.isnan())
            off, size = float((a - b).norm()), float(b.norm())
            assert bool(same.all()) or off <= rounding * size, (label, i, off, size)
