"""The probe-shrink mask: its two engines, its hard limit against mmtbx, and its gradients."""

import random

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.bulk_solvent import soft_groups

import mmtbx.masks
import pytest
from cctbx import crystal, miller, sgtbx, xray
from cctbx.array_family import flex
from cctbx.development import random_structure

GROUPS = [
    "P 1",
    "P -1",
    "P 1 21 1",
    "C 1 2 1",
    "I 1 2 1",
    "P 21 21 21",
    "F d d d :1",
    "P 41 21 2",
    "I 41/a :2",
    "R 3 :R",
    "R 3 :H",
    "P 31 2 1",
    "P 65 2 2",
    "P 21 3",
    "I 4 3 2",
    "F 2 3",
    "A 1 1 2",
    "Hall: C 2y (x-y,x+y,z)",
]

HARD_GROUPS = ["P 1", "C 1 2 1", "P 31 2 1"]


def structure(symbol, n_atoms=5, volume_per_atom=60, seed=0):
    random.seed(seed)
    flex.set_random_seed(seed)
    elements = [("C", "N", "O", "S", "P")[i % 5] for i in range(n_atoms)]
    return random_structure.xray_structure(
        space_group_info=sgtbx.space_group_info(symbol),
        elements=elements,
        volume_per_atom=volume_per_atom,
        min_distance=1.0,
        general_positions_only=False,
    )


def atoms_of(symbol, dtype=torch.float64, **options):
    return sfdiff.Atoms.from_cctbx(structure(symbol, **options), dtype=dtype)


def one_atom(cell, symbol="P 1", site=(0.1, 0.2, 0.3), element="C", occupancy=1.0):
    result = xray.structure(crystal_symmetry=crystal.symmetry(unit_cell=cell, space_group_symbol=symbol))
    result.add_scatterer(xray.scatterer(element, site=site, scattering_type=element, occupancy=occupancy))
    return sfdiff.Atoms.from_cctbx(result)


def mask(atoms, **options):
    return sfdiff.solvent_mask(atoms, atoms.crystal, **{"method": "probe_shrink", "precision": "double"} | options)


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm().clamp(min=1e-300))


def gradients(atoms, engine, softness, seed=0, **options):
    there = atoms.device
    sites = atoms.sites_cart.clone().requires_grad_()
    occupancies = (0.3 * torch.ones_like(atoms.occupancies)).requires_grad_()
    radii = atoms.vdw_radii().requires_grad_()
    lengths = [torch.tensor(x, dtype=torch.float64, requires_grad=True, device=there) for x in (1.1, 0.9, softness)]
    result = mask(
        atoms.replace(sites_cart=sites, occupancies=occupancies),
        engine=engine,
        radii=radii,
        r_probe=lengths[0],
        r_shrink=lengths[1],
        softness=lengths[2],
        full_occupancy=0.7,
        **options,
    )
    weights = torch.randn(result.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(there)
    inputs = [sites, radii, *lengths[:2]] + ([occupancies, lengths[2]] if softness else [])
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), inputs)]


@pytest.mark.parametrize("softness", [0.8, 0.0])
@pytest.mark.parametrize("symbol", GROUPS)
def test_engines_agree_and_the_mask_has_the_symmetry(symbol, softness):
    if softness == 0 and symbol not in HARD_GROUPS:
        pytest.skip("a few groups are enough for the hard mask")
    order = sgtbx.space_group_info(symbol).group().order_z()
    atoms = atoms_of(symbol, n_atoms=5 if order < 20 else 2, volume_per_atom=60 if order < 20 else 25)
    compiled, plain = (gradients(atoms, engine, softness) for engine in ("cpu", "torch"))
    assert float((compiled[0] - plain[0]).abs().max()) < 1e-10
    # On special positions two images are equally near, and the hard mask's gradient goes to either.
    for a, b in zip(compiled[1:], plain[1:]):
        if softness:
            assert float((a - b).norm()) <= 1e-8 * float(b.norm()) + 1e-9
    indices = atoms.crystal.build_miller_indices(3.0)
    f = sfdiff.mask_structure_factors(compiled[0], atoms.crystal, indices)
    equivalent, shifts = atoms.crystal.equivalent_indices(indices)
    moved = sfdiff.mask_structure_factors(compiled[0], atoms.crystal, equivalent[-1])
    assert relative(moved * torch.exp(2j * torch.pi * shifts[-1]), f) < 1e-8 or float(f.norm()) < 1e-6


@pytest.mark.parametrize("symbol", ["P 1", "P 21 21 21", "C 1 2 1", "P 31 2 1", "I 4 3 2"])
def test_hard_mask_is_mmtbx_on_a_fine_grid(symbol):
    group = sgtbx.space_group_info(symbol).group()
    xray_structure = structure(symbol, n_atoms=8, volume_per_atom=150)
    parameters = mmtbx.masks.mask_master_params.extract()
    parameters.step, parameters.Fmask_res_high = 0.1 if group.order_z() < 24 else 0.15, 0.0
    miller_set = miller.build_set(xray_structure.crystal_symmetry(), anomalous_flag=False, d_min=3.0)
    manager = mmtbx.masks.manager(
        miller_array=miller_set.array(data=flex.double(miller_set.size())),
        xray_structure=xray_structure,
        mask_params=parameters,
    )
    expected = torch.tensor(manager.shell_f_masks()[0].data().as_numpy_array())
    atoms = sfdiff.Atoms.from_cctbx(xray_structure)
    hard, coarse = (
        sfdiff.mask_structure_factors(m, atoms.crystal, miller_set)
        for m in (
            mask(atoms, softness=0, r_probe=1.1, r_shrink=0.9),
            sfdiff.solvent_mask(atoms, atoms.crystal, method="binary"),
        )
    )
    assert relative(hard, expected) < 0.1
    assert relative(hard, expected) < 0.5 * relative(coarse, expected)


@pytest.mark.parametrize("symbol", ["P 1", "P 31 2 1", "C 1 2 1", "P 43 21 2"])
def test_engines_agree_on_the_gradient_of_full_atoms(symbol):
    atoms = atoms_of(symbol)
    found = []
    for engine in ("cpu", "torch"):
        sites, radii = atoms.sites_cart.clone().requires_grad_(), atoms.vdw_radii().requires_grad_()
        softness = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        result = mask(atoms.replace(sites_cart=sites), radii=radii, softness=softness, engine=engine)
        weights = torch.randn(result.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        found.append(torch.autograd.grad((result * weights).sum(), (sites, radii, softness)))
    for a, b in zip(*found):
        assert float((a - b).norm()) <= 1e-8 * float(b.norm()) + 1e-9


@pytest.mark.parametrize("symbol", ["P 1", "P 31 2 1", "C 1 2 1"])
def test_gradients_against_differences(symbol):
    atoms = atoms_of(symbol, n_atoms=4, volume_per_atom=100)
    weights = torch.randn(atoms.crystal.grid(0.6), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    radii = atoms.vdw_radii()

    def value(sites, occupancies, radii, r_probe, r_shrink, softness):
        result = mask(
            atoms.replace(sites_cart=sites, occupancies=occupancies),
            radii=radii,
            r_probe=r_probe,
            r_shrink=r_shrink,
            softness=softness,
            full_occupancy=0.7,
        )
        return (result * weights).sum()

    point = [
        atoms.sites_cart,
        0.3 * torch.ones(atoms.n_atoms, dtype=torch.float64),
        radii,
        *(torch.tensor(x, dtype=torch.float64) for x in (1.1, 0.9, 0.8)),
    ]
    point = [x.clone().requires_grad_() for x in point]
    found = torch.autograd.grad(value(*point), point)
    for number, gradient in enumerate(found):
        direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        h = 1e-4
        with torch.no_grad():
            up, down = (
                [x + sign * h * direction if i == number else x for i, x in enumerate(point)] for sign in (1, -1)
            )
            difference = float(value(*up) - value(*down)) / (2 * h)
        # Beyond the fine steps, what the sum over the fine grid lacks of the integral is differentiated too.
        assert float((gradient * direction).sum()) == pytest.approx(difference, rel=2e-3, abs=2e-3)


def test_gradient_holds_over_finite_steps():
    """Directional derivatives against central differences, over steps that a refinement takes."""
    atoms = atoms_of("P 21 21 21", n_atoms=12, volume_per_atom=25)
    indices = atoms.crystal.build_miller_indices(3.0)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(len(indices), dtype=torch.complex128, generator=generator)

    def value(sites):
        return (
            sfdiff.mask_structure_factors(
                mask(atoms.replace(sites_cart=sites), precision="single"), atoms.crystal, indices
            )
            * weights
        ).real.sum()

    sites = atoms.sites_cart.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(sites), sites)
    deviations = []
    for _ in range(10):
        direction = torch.randn(sites.shape, dtype=torch.float64, generator=generator)
        slope = float((gradient * direction).sum())
        for h in (0.001, 0.003, 0.01, 0.02):
            with torch.no_grad():
                difference = float(value(sites + h * direction) - value(sites - h * direction)) / (2 * h)
            deviations.append(abs(difference - slope) / abs(slope))
    assert torch.tensor(deviations).median() < 0.05


def test_batch_is_one_by_one():
    atoms = atoms_of("P 1 21 1")
    sites = atoms.sites_cart + 0.1 * torch.randn(2, 3, *atoms.sites_cart.shape, dtype=torch.float64)
    together = mask(atoms.replace(sites_cart=sites))
    assert together.shape[:2] == (2, 3)
    for i in range(2):
        for j in range(3):
            assert torch.equal(together[i, j], mask(atoms.replace(sites_cart=sites[i, j])))


def test_memory_bounds_slabs_not_results():
    atoms = atoms_of("P 21 21 21", n_atoms=20, volume_per_atom=100)
    for softness in (0.8, 0.0):
        whole, slabs = (gradients(atoms, "cpu", softness, memory=memory) for memory in (2**28, 2**16))
        assert all(float((a - b).norm()) <= 1e-10 * float(a.norm()) + 1e-12 for a, b in zip(whole, slabs))
    portions = gradients(atoms, "torch", 0.8, memory=2**20)
    assert relative(portions[1], gradients(atoms, "torch", 0.8)[1]) < 1e-10


@pytest.mark.parametrize("threads", [(1, 8), (8, 1)])
def test_the_gradient_of_a_batch_is_right_when_threads_and_room_have_changed_since_its_values(threads):
    """Models that are worked on together share the memory: what was kept of a whole box is of no use to parts of it."""
    atoms = atoms_of("P 21 21 21", n_atoms=20, volume_per_atom=100)
    moved = atoms.sites_cart + 0.1 * torch.randn(8, *atoms.sites_cart.shape, dtype=torch.float64)
    sizes = []

    def gradient(memory, before, after):
        """The gradient, with so many threads before and after the mask has been made."""
        sites = moved.clone().requires_grad_()
        torch.set_num_threads(before)
        total = mask(atoms.replace(sites_cart=sites), memory=memory).square().sum()
        sizes.append(soft_groups._recent._kept[0][2][0].field_size)
        soft_groups._recent._kept = ()
        torch.set_num_threads(after)
        return torch.autograd.grad(total, sites)[0]

    n_threads = torch.get_num_threads()
    try:
        whole = gradient(2**28, 2, 2)
        # Room for the fields of all models when one is worked on at a time, not for one in one piece when all are.
        memory = 18 * 8 * sizes[0]
        changed = gradient(memory, *threads)
        gradient(memory, *reversed(threads))
    finally:
        torch.set_num_threads(n_threads)
    assert relative(changed, whole) < 1e-10
    assert 0 in sizes[1:] and sizes[0] in sizes[1:]


def test_single_precision():
    double = atoms_of("P 31 2 1", n_atoms=10)
    single = double.to(dtype=torch.float32)
    a, b = mask(double), mask(single, precision="single")
    assert b.dtype == torch.float32
    assert float((a - b).abs().max()) < 1e-4
    assert float((mask(double, precision="single") - a).abs().max()) < 1e-4
    with pytest.raises(ValueError, match="precision"):
        mask(double, precision="half")


def test_cell_without_solvent_and_cell_of_almost_nothing_else():
    crowded = one_atom((3.0, 3.1, 3.2, 80, 95, 100))
    empty = one_atom((30, 31, 32, 90, 90, 90))
    for softness in (0.8, 0.0):
        for engine in ("cpu", "torch"):
            assert float(mask(crowded, softness=softness, engine=engine).max()) < 1e-6
            solvent = mask(empty, softness=softness, engine=engine)
            assert float(solvent.mean()) > 0.998
            assert float(solvent.min()) == pytest.approx(0, abs=1e-6)
            assert float(solvent.max()) == pytest.approx(1, abs=1e-6)


def test_no_atom_takes_part():
    for occupancy, softness, engine in ((0.0, 0.8, "cpu"), (0.0, 0.0, "cpu"), (0.0, 0.8, "torch"), (0.0, 0.0, "torch")):
        atoms = one_atom((9, 10, 11, 90, 90, 90), occupancy=occupancy)
        assert float((mask(atoms, softness=softness, engine=engine) - 1).abs().max()) < 1e-6
    hydrogen = one_atom((9, 10, 11, 90, 90, 90), element="H")
    assert float(mask(hydrogen).min()) > 1 - 1e-6
    assert float(mask(hydrogen, include_hydrogens=True).min()) < 0.01


def test_an_atom_fades_with_its_occupancy():
    values = [
        float(mask(one_atom((12, 12, 12, 90, 90, 90), occupancy=q)).mean()) for q in (1.0, 0.5, 0.1, 0.05, 1e-4, 0.0)
    ]
    assert values[0] == values[1] == values[2] < values[3] < values[4] < values[5]
    assert values[5] - values[4] < 1e-4


def test_grid_origin_hardly_matters():
    """The mask is sub-voxel: a model moved by a fraction of a grid step keeps its F_mask, but for the phase."""
    atoms = atoms_of("P 1", n_atoms=20, volume_per_atom=60)
    indices = atoms.crystal.build_miller_indices(3.0)
    shift = torch.tensor([0.013, 0.021, 0.017], dtype=torch.float64)
    moved = atoms.replace(sites_frac=atoms.sites_frac + shift)
    phase = torch.exp(2j * torch.pi * (indices.to(torch.float64) @ shift))
    f, g = (sfdiff.mask_structure_factors(mask(a), atoms.crystal, indices) for a in (atoms, moved))
    rough = [
        sfdiff.mask_structure_factors(sfdiff.solvent_mask(a, a.crystal, method="binary"), a.crystal, indices)
        for a in (atoms, moved)
    ]
    assert relative(g, f * phase) < 0.03
    assert relative(g, f * phase) < 0.2 * relative(rough[1], rough[0] * phase)


@pytest.mark.parametrize("options", [{"r_probe": -1.0}, {"r_shrink": -0.1}, {"softness": -0.1}, {"engine": "gpu"}])
def test_errors(options):
    with pytest.raises(ValueError):
        mask(atoms_of("P 1"), **options)


def test_zero_radii_are_allowed():
    atoms = atoms_of("P 1", volume_per_atom=100)
    for engine in ("cpu", "torch"):
        assert torch.isfinite(mask(atoms, r_shrink=0.0, engine=engine)).all()
        assert torch.isfinite(
            mask(atoms, r_probe=0.0, radii=torch.zeros(atoms.n_atoms, dtype=torch.float64), engine=engine)
        ).all()
        assert torch.isfinite(mask(atoms, r_shrink=0.0, softness=0, engine=engine)).all()
