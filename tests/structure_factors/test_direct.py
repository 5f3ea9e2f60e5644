"""Direct summation against cctbx's own, in every space group, and its gradients."""

import importlib

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.kernels.engines import engine

import numpy as np
import pytest
from cctbx import miller, sgtbx, xray

from tests.support.structures import (
    NON_STANDARD_SETTINGS,
    cctbx_direct,
    random_complex,
    random_xray_structure,
    relative_l2,
)

# The package's attribute of this name is the function.
direct_module = importlib.import_module("mmtbx_sfdiff.structure_factors.direct")
ALL_GROUPS = [str(sgtbx.space_group_info(number)) for number in range(1, 231)]
PARAMETERS = ("sites_cart", "u_iso", "u_star", "occupancies", "fp", "fdp")


@pytest.fixture(params=["numba", "torch"])
def kernel(request, monkeypatch):
    """Run with the CPU kernels and with the plain torch code that CUDA takes."""
    if request.param == "torch":
        monkeypatch.setattr(direct_module, "engine", lambda device: engine(device, "torch"))
    else:
        pytest.importorskip("numba")
    return request.param


def compare(structure, miller_set, **options):
    reference = cctbx_direct(structure, miller_set)
    errors = []
    for dtype in (torch.float64, torch.float32):
        atoms = sfdiff.Atoms.from_cctbx(structure, dtype=dtype)
        f = sfdiff.structure_factors(atoms, atoms.crystal, miller_set, method="direct", **options)
        assert f.dtype == (torch.complex128 if dtype == torch.float64 else torch.complex64)
        errors.append(relative_l2(f.to(torch.complex128), reference))
    return errors


@pytest.mark.parametrize("symbol", ALL_GROUPS)
def test_every_space_group(symbol):
    number = sgtbx.space_group_info(symbol).type().number()
    structure = random_xray_structure(symbol, anisotropic=number % 2 == 0, seed=number, n=1)
    miller_set = miller.build_set(structure, anomalous_flag=True, d_min=2.2)
    double, single = compare(structure, miller_set)
    assert double <= 1e-12
    assert single <= 5e-6


@pytest.mark.parametrize("anisotropic", [False, True])
@pytest.mark.parametrize("symbol", NON_STANDARD_SETTINGS)
def test_non_standard_settings(symbol, anisotropic):
    structure = random_xray_structure(symbol, anisotropic=anisotropic, seed=7, n=1)
    double, single = compare(structure, miller.build_set(structure, anomalous_flag=False, d_min=2.0))
    assert double <= 1e-12
    assert single <= 5e-6


@pytest.mark.parametrize("table", ["n_gaussian", "it1992", "wk1995", "electron", "neutron"])
def test_scattering_tables(table):
    elements = ("C", "N", "O", "H", "Fe", "S")
    structure = random_xray_structure("P 21 21 21", anisotropic=True, elements=elements, table=table)
    double, single = compare(structure, miller.build_set(structure, anomalous_flag=False, d_min=1.0))
    assert double <= 1e-12
    assert single <= 5e-6


def test_isotropic_and_anisotropic_displacement_on_one_atom():
    structure = random_xray_structure("C 1 2 1", anisotropic=True)
    for scatterer in structure.scatterers():
        scatterer.flags.set_use_u_iso(True)
        scatterer.u_iso = 0.07
    double, _ = compare(structure, miller.build_set(structure, anomalous_flag=False, d_min=1.5))
    assert double <= 1e-12


def test_any_list_of_indices():
    """Outside the asymmetric unit, repeated, systematically absent, (0, 0, 0), in any order, one, none."""
    structure = random_xray_structure("I 41 2 2")
    indices = torch.tensor([[3, 1, 2], [0, 0, 0], [-3, -1, -2], [3, 1, 2], [1, 0, 0], [0, 0, 2], [-5, 4, 1]])
    miller_set = miller.set(structure.crystal_symmetry(), sfdiff.crystal.as_flex_miller_index(indices), True)
    atoms = sfdiff.Atoms.from_cctbx(structure)
    f = sfdiff.structure_factors(atoms, atoms.crystal, indices, method="direct")
    reference = cctbx_direct(structure, miller_set)
    assert relative_l2(f, reference) < 1e-13
    assert f[4].abs() < 1e-10 and f[5].abs() < 1e-10
    one = sfdiff.structure_factors(atoms, atoms.crystal, indices[:1], method="direct")
    assert torch.allclose(one, f[:1])
    none = sfdiff.structure_factors(atoms, atoms.crystal, indices[:0], method="direct")
    assert none.shape == (0,)


@pytest.mark.parametrize("symbol", ["P 1", "P 21 21 21", "C 1 2 1", "R 3 :R", "P 31 2 1", "F d d d :1"])
@pytest.mark.parametrize("anisotropic", [False, True])
def test_gradients_against_cctbx(symbol, anisotropic, kernel):
    structure = random_xray_structure(symbol, anisotropic=anisotropic, seed=3)
    xray.set_scatterer_grad_flags(
        scatterers=structure.scatterers(), site=True, u_iso=True, u_aniso=True, occupancy=True, fp=True, fdp=True
    )
    miller_set = miller.build_set(structure, anomalous_flag=True, d_min=1.6)
    weights, flex_weights = random_complex(miller_set.size())
    reference = xray.structure_factors.gradients_direct(
        xray_structure=structure,
        u_iso_refinable_params=None,
        miller_set=miller_set,
        d_target_d_f_calc=flex_weights,
        n_parameters=0,
    )
    expected = {
        "sites_cart": reference.d_target_d_site_cart().as_double().as_numpy_array().reshape(-1, 3),
        "occupancies": reference.d_target_d_occupancy().as_numpy_array(),
        "fp": reference.d_target_d_fp().as_numpy_array(),
        "fdp": reference.d_target_d_fdp().as_numpy_array(),
    }
    if anisotropic:
        expected["u_star"] = np.array(list(reference.d_target_d_u_star()))
    else:
        expected["u_iso"] = reference.d_target_d_u_iso().as_numpy_array()
    atoms = sfdiff.Atoms.from_cctbx(structure)
    leaves = {name: getattr(atoms, name).clone().requires_grad_() for name in PARAMETERS}
    f = sfdiff.structure_factors(atoms.replace(**leaves), atoms.crystal, miller_set, method="direct")
    gradients = dict(zip(leaves, torch.autograd.grad(f, list(leaves.values()), weights)))
    for name, value in expected.items():
        assert relative_l2(gradients[name], torch.from_numpy(value)) <= 1e-10, name
    unused = "u_iso" if anisotropic else "u_star"
    assert float(gradients[unused].abs().max()) == 0


@pytest.mark.parametrize("symbol,anisotropic", [("P 21", False), ("P 1", False), ("P 2 2 2", True)])
def test_gradcheck(symbol, anisotropic, kernel):
    structure = random_xray_structure(symbol, anisotropic=anisotropic, elements=("C", "O"), n=1)
    miller_set = miller.build_set(structure, anomalous_flag=False, d_min=3.5)
    atoms = sfdiff.Atoms.from_cctbx(structure)

    def function(*leaves):
        return torch.view_as_real(
            sfdiff.structure_factors(
                atoms.replace(**dict(zip(PARAMETERS, leaves))), atoms.crystal, miller_set, method="direct"
            )
        )

    leaves = [getattr(atoms, name).clone().requires_grad_() for name in PARAMETERS]
    assert torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-5, fast_mode=False)


@pytest.mark.parametrize("symbol,anisotropic", [("P 21 21 21", False), ("P 1", False), ("P 31 2 1", True)])
def test_batch_is_the_models_one_by_one(symbol, anisotropic, kernel):
    structure = random_xray_structure(symbol, anisotropic=anisotropic)
    atoms = sfdiff.Atoms.from_cctbx(structure)
    miller_set = miller.build_set(structure, anomalous_flag=False, d_min=2.0)
    shifts = torch.randn((2, 3, atoms.n_atoms, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sites = (atoms.sites_cart + 0.3 * shifts).requires_grad_()
    batch = atoms.replace(sites_cart=sites)
    assert batch.batch_shape == (2, 3)
    f = sfdiff.structure_factors(batch, atoms.crystal, miller_set, method="direct")
    assert f.shape == (2, 3, miller_set.size())
    (gradient,) = torch.autograd.grad(f.abs().square().sum(), sites)
    for i in range(2):
        for j in range(3):
            site = sites[i, j].detach().clone().requires_grad_()
            single = sfdiff.structure_factors(
                atoms.replace(sites_cart=site), atoms.crystal, miller_set, method="direct"
            )
            assert relative_l2(f[i, j], single) < 1e-13
            (expected,) = torch.autograd.grad(single.abs().square().sum(), site)
            assert relative_l2(gradient[i, j], expected) < 1e-12


def test_batch_of_occupancies_shares_the_sites():
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21"))
    occupancies = torch.stack([atoms.occupancies, torch.zeros_like(atoms.occupancies)]).requires_grad_()
    f = sfdiff.structure_factors(atoms.replace(occupancies=occupancies), atoms.crystal, torch.tensor([[1, 0, 2]]))
    assert f.shape == (2, 1) and float(f[1].detach().abs()) == 0
    f.abs().sum().backward()
    assert torch.isfinite(occupancies.grad).all()


@pytest.mark.parametrize("anisotropic", [False, True])
def test_small_memory_gives_the_same_sum(anisotropic, kernel):
    structure = random_xray_structure("C 1 2 1", anisotropic=anisotropic, n=40)
    atoms = sfdiff.Atoms.from_cctbx(structure)
    miller_set = miller.build_set(structure, anomalous_flag=False, d_min=1.2)
    results = []
    for memory in (2**20, 2**28):
        sites = atoms.sites_cart.clone().requires_grad_()
        f = sfdiff.structure_factors(
            atoms.replace(sites_cart=sites), atoms.crystal, miller_set, "direct", memory=memory
        )
        results.append((f, *torch.autograd.grad(f.abs().square().sum(), sites)))
    for small, large in zip(*results):
        assert relative_l2(small, large) < 1e-12


def test_the_same_call_gives_the_same_bits():
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 1", anisotropic=True, n=30))
    indices = atoms.crystal.build_miller_indices(1.5)

    def run():
        sites = atoms.sites_cart.clone().requires_grad_()
        f = sfdiff.structure_factors(atoms.replace(sites_cart=sites), atoms.crystal, indices, method="direct")
        return f, torch.autograd.grad(f.abs().square().sum(), sites)[0]

    first, second = run(), run()
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_indices_changed_in_place_are_noticed():
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21"))
    indices = torch.tensor([[1, 2, 3], [0, 1, 4]])
    before = sfdiff.structure_factors(atoms, atoms.crystal, indices)
    indices[0, 0] = 2
    after = sfdiff.structure_factors(atoms, atoms.crystal, indices)
    assert before[1] == after[1] and abs(before[0] - after[0]) > 1e-6


def test_errors():
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21"))
    other = sfdiff.Crystal.from_cctbx(random_xray_structure("P 21 21 21"))
    indices = torch.tensor([[1, 2, 3]])
    for error, match, arguments in (
        (ValueError, "Unknown method", dict(method="exact")),
        (ValueError, "accuracy must be", dict(accuracy=0.0)),
        (ValueError, "memory must be", dict(memory=10)),
        (ValueError, "atoms belong to", dict(crystal=other)),
        (ValueError, r"shape \(n, 3\)", dict(miller_indices=indices[0])),
        (TypeError, "must be integers", dict(miller_indices=indices.double())),
    ):
        with pytest.raises(error, match=match):
            sfdiff.structure_factors(**(dict(atoms=atoms, crystal=atoms.crystal, miller_indices=indices) | arguments))


@pytest.mark.gpu
@pytest.mark.parametrize("anisotropic", [False, True])
def test_cuda_agrees_with_the_cpu(anisotropic):
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 31 2 1", anisotropic=anisotropic, n=10))
    indices = atoms.crystal.build_miller_indices(1.5)
    results = []
    for device in ("cpu", "cuda"):
        here = atoms.to(device=device)
        sites = here.sites_cart.clone().requires_grad_()
        f = sfdiff.structure_factors(here.replace(sites_cart=sites), here.crystal, indices, method="direct")
        assert f.device.type == device
        results.append((f.cpu(), torch.autograd.grad(f.abs().square().sum(), sites)[0].cpu()))
    for cpu, cuda in zip(*results):
        assert relative_l2(cuda, cpu) < 1e-12
