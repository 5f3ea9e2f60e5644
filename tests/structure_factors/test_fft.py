"""Structure factors by FFT against direct summation: error within the request, exact derivatives,
determinism."""

import gzip
import importlib

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.structure_factors.scatterers import Scatterers
from mmtbx_sfdiff.structure_factors.setting import choose_setting

import iotbx.pdb
import numpy as np
import pytest
from cctbx import adptbx, sgtbx
from cctbx.array_family import flex
from cctbx.development import random_structure

engines = importlib.import_module("mmtbx_sfdiff.kernels.engines")
jobs = importlib.import_module("mmtbx_sfdiff.kernels.jobs")
error_model = importlib.import_module("mmtbx_sfdiff.structure_factors.accuracy")

PARAMETERS = ("sites_cart", "u_iso", "u_star", "occupancies", "fp", "fdp")
GROUPS = (
    "P 1",
    "P -1",
    "P 1 21 1",
    "C 1 2 1",
    "P 21 21 21",
    "F d d d :1",
    "P 41 21 2",
    "I 41/a :1",
    "P 31 2 1",
    "R 3 :H",
    "R 3 :R",
    "P 65 2 2",
    "I 21 3",
    "F 4 3 2",
    "P 1 1 21",
    "P 4 m m",
    "P 6 m m",
)
N_UNIFORM = 90


def make_atoms(
    symbol="P 21 21 21",
    n=N_UNIFORM,
    d_min=2.0,
    b=(10, 60),
    table="n_gaussian",
    aniso=False,
    dispersion=False,
    seed=0,
    dtype=torch.float64,
    volume=20,
):
    flex.set_random_seed(seed)
    import random

    random.seed(seed)
    rng = np.random.default_rng(seed)
    elements = (["C"] * 3 + ["N", "O", "S"]) * (n // 6)
    structure = random_structure.xray_structure(
        space_group_info=sgtbx.space_group_info(symbol),
        elements=elements,
        volume_per_atom=volume,
        min_distance=0.8,
        general_positions_only=False,
    )
    for i, scatterer in enumerate(structure.scatterers()):
        scatterer.u_iso = adptbx.b_as_u(rng.uniform(*b))
        scatterer.occupancy = rng.uniform(0.5, 1)
        if aniso and i % 2 == 0:
            axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
            u = axes @ np.diag(rng.uniform(*b, 3) / (8 * np.pi**2)) @ axes.T
            scatterer.flags.set_use_u_aniso(True)
            scatterer.flags.set_use_u_iso(i % 4 == 0)
            scatterer.u_star = adptbx.u_cart_as_u_star(
                structure.unit_cell(), (u[0, 0], u[1, 1], u[2, 2], u[0, 1], u[0, 2], u[1, 2])
            )
        if dispersion and i % 3 == 0:
            scatterer.fp, scatterer.fdp = rng.normal() * 3, rng.uniform(0, 4)
    if table == "neutron":
        structure.switch_to_neutron_scattering_dictionary()
    else:
        structure.scattering_type_registry(d_min=d_min, table=table)
    return sfdiff.Atoms.from_cctbx(structure, dtype=dtype)


def evaluate(atoms, indices, names=(), seed=0, **keywords):
    """F and gradients of a random linear functional of F."""
    leaves = {name: getattr(atoms, name).clone().requires_grad_() for name in names}
    f = sfdiff.structure_factors(atoms.replace(**leaves), atoms.crystal, indices, **keywords)
    if not names:
        return f, ()
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.view_as_complex(torch.randn((*f.shape, 2), generator=generator, dtype=torch.float64))
    return f.detach(), torch.autograd.grad(f, list(leaves.values()), seeds.to(f))


def relative(value, reference):
    return float((value - reference).norm() / reference.norm())


def errors(atoms, indices, accuracy, names=("sites_cart", "u_iso"), **keywords):
    found = evaluate(atoms, indices, names, method="fft", accuracy=accuracy, **keywords)
    exact = evaluate(atoms, indices, names, method="direct")
    return [relative(found[0], exact[0]), *(relative(a, b) for a, b in zip(found[1], exact[1]) if b.norm() > 0)]


def within(found, accuracy):
    """The largest of the errors is within the request, and not more than ten times smaller."""
    assert max(found) <= accuracy, [x / accuracy for x in found]
    assert max(found) >= accuracy / 10, [x / accuracy for x in found]


@pytest.mark.parametrize("symbol", GROUPS)
def test_error_is_as_requested_in_every_space_group(symbol):
    atoms = make_atoms(symbol)
    indices = atoms.crystal.build_miller_indices(2.0, anomalous=True)
    for accuracy in (1e-3, 1e-5):
        within(errors(atoms, indices, accuracy), accuracy)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 231))
def test_error_is_as_requested_in_all_230_space_groups(number):
    atoms = make_atoms(str(sgtbx.space_group_info(number)), n=30)
    indices = atoms.crystal.build_miller_indices(2.0)
    for accuracy in (1e-3, 1e-4, 1e-5):
        found = errors(atoms, indices, accuracy)
        assert max(found) <= accuracy, (accuracy, found)


@pytest.mark.parametrize("table", ("n_gaussian", "it1992", "wk1995", "electron", "neutron"))
@pytest.mark.parametrize("d_min, volume", ((0.8, 20), (2.0, 20), (4.0, 60)))
def test_error_is_as_requested_for_every_table_and_width(table, d_min, volume):
    for b in ((2, 8), (10, 60), (2, 200)):
        atoms = make_atoms("P 1 21 1", n=48, d_min=d_min, b=b, table=table, volume=volume)
        indices = atoms.crystal.build_miller_indices(d_min)
        for accuracy in (1e-3, 1e-5):
            found = errors(atoms, indices, accuracy, names=())
            assert accuracy / 100 <= found[0] <= accuracy, (b, accuracy, found)


@pytest.mark.parametrize("symbol", ("P 1", "P 21 21 21", "P 31 2 1", "F 4 3 2"))
def test_anisotropic_and_anomalous_atoms(symbol):
    atoms = make_atoms(symbol, aniso=True, dispersion=True)
    indices = atoms.crystal.build_miller_indices(2.0, anomalous=True)
    for accuracy in (1e-3, 1e-5):
        found = errors(atoms, indices, accuracy, names=PARAMETERS)
        assert found[0] <= accuracy
        assert max(found) <= accuracy, found


@pytest.mark.parametrize(
    "symbol, n, table", (("P 21 21 21", 6, "neutron"), ("R 3 :H", 12, "n_gaussian"), ("P 1", 6, "it1992"))
)
@pytest.mark.parametrize("name", PARAMETERS)
def test_gradients_of_a_few_atoms_some_of_them_anisotropic(symbol, n, table, name):
    atoms = make_atoms(symbol, n=n, d_min=1.5, b=(2, 200), table=table, aniso=True, dispersion=True)
    indices = atoms.crystal.build_miller_indices(1.5, anomalous=True)
    for accuracy in (1e-2, 1e-4, 1e-6):
        assert max(errors(atoms, indices, accuracy, names=(name,))) <= accuracy


@pytest.mark.parametrize("symbol", ("P 21 21 21", "P 1", "P 31 2 1"))
def test_plain_torch_engine_agrees(symbol, monkeypatch):
    atoms = make_atoms(symbol, n=36, aniso=True, dispersion=True)
    indices = atoms.crystal.build_miller_indices(2.0, anomalous=True)
    engine = engines.engine("cpu", "torch")
    monkeypatch.setattr(engines, "engine", lambda device: engine)
    found = errors(atoms, indices, 1e-4, names=PARAMETERS)
    assert found[0] <= 1e-4 and max(found) <= 1e-4, found


def test_derivatives_are_those_of_the_function_itself():
    atoms = make_atoms("P 1 21 1", n=6, aniso=True, dispersion=True)
    indices = atoms.crystal.build_miller_indices(2.5, anomalous=True)

    def function(*values):
        return sfdiff.structure_factors(
            atoms.replace(**dict(zip(PARAMETERS, values))), atoms.crystal, indices, method="fft", accuracy=1e-8
        )

    values = [getattr(atoms, name).clone().requires_grad_() for name in PARAMETERS]
    assert torch.autograd.gradcheck(function, values, eps=1e-4, atol=5e-3, rtol=5e-4, nondet_tol=0.0)


def test_batch_is_its_models():
    atoms = make_atoms(n=30)
    indices = atoms.crystal.build_miller_indices(2.0)
    shift = torch.randn((2, 3, atoms.n_atoms, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1
    batch = atoms.replace(sites_cart=atoms.sites_cart + shift)
    together = sfdiff.structure_factors(batch, atoms.crystal, indices, method="fft")
    assert together.shape == (2, 3, len(indices))
    exact = sfdiff.structure_factors(batch, atoms.crystal, indices, method="direct")
    assert relative(together, exact) <= 1e-4
    torch.testing.assert_close(
        together[1, 2],
        sfdiff.structure_factors(batch.model(1, 2), atoms.crystal, indices, method="fft"),
        rtol=1e-4,
        atol=1e-2,
    )


def test_same_bits_every_time_and_the_same_grid_for_any_number_of_threads():
    atoms = make_atoms(n=600, volume=15)
    plan = sfdiff.plan(atoms.crystal, atoms.crystal.build_miller_indices(2.0))
    scatterers = Scatterers.of(atoms)
    setting = choose_setting(scatterers, plan, 1e-4, 2**28)
    own = (getattr(scatterers, name)[0] for name in ("sites", "u_iso", "u_star", "weights", "fp"))
    job = jobs.DensityJob(setting, *own, atoms.use_u_aniso, atoms.type_index)
    engine = importlib.import_module("mmtbx_sfdiff.kernels.cpu.density")
    before = torch.get_num_threads()
    grids = []
    try:
        for n_threads in (1, 2, 2, 3, 3):
            torch.set_num_threads(n_threads)
            grids.append(engine.splat(job))
    finally:
        torch.set_num_threads(before)
    assert torch.get_num_threads() == before
    assert torch.equal(grids[1], grids[2]) and torch.equal(grids[3], grids[4])
    for grid in grids[1:]:
        torch.testing.assert_close(grid, grids[0], rtol=1e-5, atol=1e-5 * float(grids[0].abs().max()))


def test_value_does_not_depend_on_what_came_before_or_on_gradients():
    indices = make_atoms().crystal.build_miller_indices(2.0)
    first = make_atoms()
    fresh = evaluate(first, indices, method="fft")[0]
    other = first.replace(u_iso=first.u_iso * 3)
    sfdiff.structure_factors(other, first.crystal, indices, method="fft")
    again = evaluate(first, indices, ("sites_cart", "u_iso", "occupancies"), method="fft")[0]
    assert torch.equal(fresh, again)


def test_float32_atoms():
    atoms = make_atoms(dtype=torch.float32)
    indices = atoms.crystal.build_miller_indices(2.0)
    f = sfdiff.structure_factors(atoms, atoms.crystal, indices, method="fft", accuracy=1e-5)
    assert f.dtype == torch.complex64
    exact = sfdiff.structure_factors(make_atoms(), atoms.crystal, indices, method="direct")
    assert relative(f.to(torch.complex128), exact) <= 1e-5


def test_zero_occupancy_and_empty_set():
    atoms = make_atoms(n=12)
    indices = atoms.crystal.build_miller_indices(2.5)
    none = atoms.replace(occupancies=atoms.occupancies * 0)
    assert float(sfdiff.structure_factors(none, atoms.crystal, indices, method="fft").abs().max()) == 0
    empty = sfdiff.structure_factors(atoms, atoms.crystal, indices[:0], method="fft")
    assert empty.shape == (0,)
    # The gradient at zero occupancy is that of direct summation.
    some = atoms.replace(occupancies=torch.where(torch.arange(atoms.n_atoms) % 2 == 0, atoms.occupancies, 0.0))
    found = errors(some, indices, 1e-4, names=("occupancies",))
    assert found[1] <= 1e-4


def test_refusals_name_the_remedy():
    atoms = make_atoms(n=12)
    indices = atoms.crystal.build_miller_indices(2.0)
    with pytest.raises(ValueError, match="method='direct'"):
        sfdiff.structure_factors(atoms, atoms.crystal, indices, method="fft", accuracy=1e-10)
    with pytest.raises(ValueError, match="not positive definite.*method='direct'"):
        sfdiff.structure_factors(atoms.replace(u_iso=atoms.u_iso - 50.0), atoms.crystal, indices, method="fft")
    big = make_atoms(n=600, d_min=0.8)
    fine = big.crystal.build_miller_indices(0.8)
    with pytest.raises(ValueError, match="memory"):
        sfdiff.structure_factors(big, big.crystal, fine, method="fft", memory=2**20)


def test_auto_takes_direct_where_the_fft_cannot():
    atoms = make_atoms(n=12)
    indices = atoms.crystal.build_miller_indices(2.0)
    bad = atoms.replace(u_iso=atoms.u_iso - 3.0)
    torch.testing.assert_close(
        sfdiff.structure_factors(bad, atoms.crystal, indices, method="auto"),
        sfdiff.structure_factors(bad, atoms.crystal, indices, method="direct"),
    )


@pytest.mark.parametrize("entry", ("1dur", "1yjp", "5wkd", "4olr", "5awl"))
def test_real_entries(pdb_dir, entry):
    path = next((pdb_dir / entry).glob(f"{entry}.pdb*"), None) or next((pdb_dir / entry).glob(f"{entry}.cif*"))
    text = gzip.open(path, "rt").read() if path.suffix == ".gz" else path.read_text()
    structure = iotbx.pdb.input(source_info=None, lines=text.splitlines()).xray_structure_simple()
    structure.scattering_type_registry(d_min=1.8, table="n_gaussian")
    atoms = sfdiff.Atoms.from_cctbx(structure)
    indices = atoms.crystal.build_miller_indices(1.8)
    for accuracy in (1e-3, 1e-5):
        assert max(errors(atoms, indices, accuracy)) <= accuracy
