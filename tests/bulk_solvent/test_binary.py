"""The binary mask is mmtbx's own, in every space group; F_mask to rounding."""

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff import tables
from mmtbx_sfdiff.bulk_solvent import solvent_fraction

import gemmi
import mmtbx.masks
import numpy as np
import pytest
from cctbx import crystal, miller, sgtbx, xray
from cctbx.array_family import flex
from cctbx.development import random_structure
from scipy.spatial import cKDTree

SETTINGS = [
    "R 3 :R",
    "R -3 c :R",
    "P 1 1 21",
    "I 1 2 1",
    "A 1 1 2",
    "B 1 1 2",
    "F d d d :1",
    "P n n n :1",
    "B 1 1 2/b",
    "Hall: C 2y (x-y,x+y,z)",
    "P 21 1 1",
    "P 1 2/n 1",
    "Hall: P 31 2 (x,y,z+1/3)",
]
NUMBERS = [str(number) for number in range(1, 231)]


def structure(symbol, seed, n_atoms=6, volume_per_atom=150, elements=("C", "N", "O", "S", "P", "Fe")):
    random_structure.random.seed(seed)
    flex.set_random_seed(seed)
    elements = [elements[i % len(elements)] for i in range(n_atoms)]
    return random_structure.xray_structure(
        space_group_info=sgtbx.space_group_info(symbol),
        elements=elements,
        volume_per_atom=volume_per_atom,
        min_distance=1.0,
        general_positions_only=False,
    )


def mmtbx_f_mask(structure, d_min=3.0, **parameters):
    params = mmtbx.masks.mask_master_params.extract()
    for name, value in parameters.items():
        assert hasattr(params, name)
        setattr(params, name, value)
    miller_set = miller.build_set(structure.crystal_symmetry(), anomalous_flag=False, d_min=d_min)
    manager = mmtbx.masks.manager(
        miller_array=miller_set.array(data=flex.double(miller_set.size())), xray_structure=structure, mask_params=params
    )
    return miller_set, torch.tensor(manager.shell_f_masks()[0].data().as_numpy_array()), manager


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def check(structure, d_min=3.0, bound=1e-10, atoms=None, mask_options=None, **parameters):
    atoms = atoms or sfdiff.Atoms.from_cctbx(structure)
    miller_set, expected, manager = mmtbx_f_mask(structure, d_min=d_min, **parameters)
    mask = sfdiff.solvent_mask(atoms, atoms.crystal, method="binary", **(mask_options or {}))
    f_mask = sfdiff.mask_structure_factors(mask, atoms.crystal, miller_set)
    # Where there is no solvent at all, or nothing else, both are rounding: compare to the volume of the cell.
    assert float((f_mask - expected).norm()) <= bound * max(float(expected.norm()), atoms.crystal.volume)
    fraction = solvent_fraction(mask.to(torch.float64))
    assert float(fraction) == pytest.approx(manager.solvent_content_via_mask, abs=1e-12)
    return mask, f_mask, expected


@pytest.mark.parametrize("symbol", NUMBERS + SETTINGS)
def test_every_space_group(symbol):
    n_ops = sgtbx.space_group_info(symbol).group().order_z()
    check(structure(symbol, seed=n_ops, volume_per_atom=60 + 10 * min(n_ops, 12)))


@pytest.mark.parametrize("symbol", ["P 1", "P 21 21 21", "P 31 2 1", "I a -3 d", "R 3 2 :R", "C 1 2 1", "F d -3 m :2"])
@pytest.mark.parametrize("n_atoms, volume_per_atom", [(1, 15), (2, 40), (1, 400), (3, 1500)])
def test_tiny_and_empty_cells(symbol, n_atoms, volume_per_atom):
    """Cells smaller than an atom's reach, with no solvent, and with hardly anything else."""
    check(structure(symbol, seed=3, n_atoms=n_atoms, volume_per_atom=volume_per_atom), d_min=1.5, bound=1e-10)


def test_a_sphere_wraps_a_short_axis():
    symmetry = crystal.symmetry(unit_cell=(14, 3.1, 12, 90, 95, 90), space_group_symbol="P 1 21 1")
    xrs = xray.structure(crystal_symmetry=symmetry)
    xrs.add_scatterer(xray.scatterer("S1", site=(0.1, 0.2, 0.3), scattering_type="S"))
    xrs.add_scatterer(xray.scatterer("O1", site=(0.8, 0.9, 0.45), scattering_type="O"))
    mask, _, _ = check(xrs)
    assert 0.1 < float(mask.mean()) < 0.9


def test_special_positions_and_shells_of_equal_distance():
    """Atoms on grid points, so that many grid points lie at equal distances."""
    for symbol in ("P m -3 m", "F m -3 m", "P 6/m m m", "R -3 m :H", "I 41/a m d :2"):
        info = sgtbx.space_group_info(symbol)
        xrs = xray.structure(crystal_symmetry=info.any_compatible_crystal_symmetry(volume=4000))
        for element, site in (("C", (0, 0, 0)), ("N", (0.5, 0.5, 0.5)), ("O", (0.25, 0.25, 0.25))):
            xrs.add_scatterer(xray.scatterer(element, site=site, scattering_type=element))
        check(xrs)


def test_which_atoms_take_part():
    xrs = structure("P 21 21 21", seed=5, n_atoms=12, elements=("C", "H", "O", "D", "N"))
    for i, occupancy in ((0, 0.0), (2, 0.01), (5, 0.0), (7, -0.5)):
        xrs.scatterers()[i].occupancy = occupancy
    mask, f, _ = check(xrs)
    for options, parameters in (
        ({"include_hydrogens": True}, {"ignore_hydrogens": False}),
        ({"include_zero_occupancy": True}, {"ignore_zero_occupancy_atoms": False}),
    ):
        other, _, _ = check(xrs, mask_options=options, **parameters)
        assert float((other - mask).abs().sum()) > 0


@pytest.mark.parametrize(
    "r_probe, r_shrink, step", [(1.1, 0.9, 0.3), (0.0, 0.0, 0.6), (1.4, 0.0, 0.5), (0.8, 1.5, 0.7)]
)
def test_radii_and_steps(r_probe, r_shrink, step):
    xrs = structure("P 31 2 1", seed=9, n_atoms=10, volume_per_atom=200)
    check(
        xrs,
        mask_options={"r_probe": r_probe, "r_shrink": r_shrink, "grid_step": step},
        solvent_radius=r_probe,
        shrink_truncation_radius=r_shrink,
        step=step,
    )


def test_own_radii():
    xrs = structure("P 21 21 21", seed=1, n_atoms=8)
    atoms = sfdiff.Atoms.from_cctbx(xrs)
    default = sfdiff.solvent_mask(atoms, atoms.crystal, method="binary")
    same = sfdiff.solvent_mask(atoms, atoms.crystal, method="binary", radii=atoms.vdw_radii())
    larger = sfdiff.solvent_mask(atoms, atoms.crystal, method="binary", radii=atoms.vdw_radii() + 0.5)
    assert torch.equal(default, same)
    assert bool((larger <= default).all()) and float(larger.mean()) < float(default.mean())


def test_a_radius_is_needed_only_for_who_takes_part(monkeypatch):
    xrs = structure("P 1", seed=1, n_atoms=3, elements=("C", "N", "Fe"))
    atoms = sfdiff.Atoms.from_cctbx(xrs)
    monkeypatch.delitem(tables.read("van_der_waals_radii"), "Fe")
    with pytest.raises(ValueError, match="van der Waals radius.*Fe"):
        sfdiff.solvent_mask(atoms, atoms.crystal, method="binary")
    absent = atoms.replace(occupancies=torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    assert 0 < float(sfdiff.solvent_mask(absent, atoms.crystal, method="binary").mean()) < 1


def test_nobody_in_the_mask():
    xrs = structure("P 1", seed=1, n_atoms=3, elements=("H",))
    atoms = sfdiff.Atoms.from_cctbx(xrs)
    mask = sfdiff.solvent_mask(atoms, atoms.crystal, method="binary")
    assert bool((mask == 1).all())


def test_a_batch_is_its_models():
    xrs = structure("P 41", seed=2, n_atoms=10)
    atoms = sfdiff.Atoms.from_cctbx(xrs)
    generator = torch.Generator().manual_seed(0)
    sites = atoms.sites_cart + torch.randn(2, 3, 10, 3, generator=generator, dtype=torch.float64)
    occupancies = (torch.rand(3, 10, generator=generator, dtype=torch.float64) > 0.3).to(torch.float64)
    batch = atoms.replace(sites_cart=sites, occupancies=occupancies)
    masks = sfdiff.solvent_mask(batch, atoms.crystal, method="binary")
    indices = atoms.crystal.build_miller_indices(3.0)
    f = sfdiff.mask_structure_factors(masks, atoms.crystal, indices)
    assert masks.shape[:2] == (2, 3) and f.shape == (2, 3, len(indices))
    for i in range(2):
        for j in range(3):
            one = sfdiff.solvent_mask(batch.model(i, j), atoms.crystal, method="binary")
            assert torch.equal(one, masks[i, j])


def test_memory_bound_changes_nothing():
    xrs = structure("P 1", seed=2, n_atoms=40)
    atoms = sfdiff.Atoms.from_cctbx(xrs)
    whole = sfdiff.solvent_mask(atoms, atoms.crystal, method="binary")
    pieces = sfdiff.solvent_mask(atoms, atoms.crystal, method="binary", memory=2**16)
    assert torch.equal(whole, pieces)


def test_float32():
    xrs = structure("P 21 21 21", seed=4)
    atoms = sfdiff.Atoms.from_cctbx(xrs, dtype=torch.float32)
    mask, f, _ = check(xrs, atoms=atoms, bound=1e-6)
    assert mask.dtype == torch.float32 and f.dtype == torch.complex64


@pytest.mark.parametrize("symbol", ["P 1", "P 21 21 21", "C 1 2 1", "P 4 3 2", "R 3 :H"])
def test_gemmi_finds_the_same_mask(symbol):
    """Another program with mmtbx's definition, where its grid is the same."""
    xrs = structure(symbol, seed=11, n_atoms=12, volume_per_atom=150)
    atoms = sfdiff.Atoms.from_cctbx(xrs)
    mask = sfdiff.solvent_mask(atoms, atoms.crystal, method="binary")
    model = gemmi.Structure()
    model.cell = gemmi.UnitCell(*atoms.crystal.unit_cell)
    model.spacegroup_hm = gemmi.find_spacegroup_by_name(atoms.crystal.space_group_symbol.replace(" :", ":")).xhm()
    model.setup_cell_images()
    residue = gemmi.Residue()
    residue.name = "UNK"
    for label, site, element in zip(atoms.labels, atoms.sites_cart.tolist(), atoms.elements):
        atom = gemmi.Atom()
        atom.name, atom.pos, atom.element = label, gemmi.Position(*site), gemmi.Element(element)
        residue.add_atom(atom)
    chain = gemmi.Chain("A")
    chain.add_residue(residue)
    gemmi_model = gemmi.Model(1)
    gemmi_model.add_chain(chain)
    model.add_model(gemmi_model)
    grid = gemmi.FloatGrid(*mask.shape)
    grid.spacegroup = model.find_spacegroup()
    grid.set_unit_cell(model.cell)
    masker = gemmi.SolventMasker(gemmi.AtomicRadiiSet.Cctbx)
    masker.put_mask_on_float_grid(grid, model[0])
    # gemmi works in single precision: a point at a radius to seven digits may fall on either side.
    assert float((mask - torch.tensor(np.array(grid, copy=True))).abs().mean()) < 2e-5


def test_transform():
    """F_mask against the plain sum, for any indices, and its derivative."""
    info = sgtbx.space_group_info("C 1 2 1")
    c = sfdiff.Crystal.from_cctbx(info.any_compatible_crystal_symmetry(volume=500))
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 8, 9, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    h = torch.tensor([[0, 0, 0], [1, 2, 3], [-3, 4, -4], [3, -4, 0], [0, 0, -4], [-1, -2, -3]])
    f = sfdiff.mask_structure_factors(mask, c, h, d_min=None)
    axes = [torch.arange(n, dtype=torch.float64) / n for n in mask.shape[-3:]]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    waves = torch.exp(2j * torch.pi * torch.einsum("ijkx,nx->nijk", points, h.to(torch.float64)))
    expected = torch.einsum("bijk,nijk->bn", mask.to(torch.complex128), waves) * c.volume / 720
    torch.testing.assert_close(f, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(f[:, 1], f[:, 5].conj())
    small = torch.rand(1, 6, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda m: torch.view_as_real(
            sfdiff.mask_structure_factors(m, c, torch.tensor([[0, 0, 0], [1, -2, -1]]), d_min=None)
        ),
        (small,),
    )


def test_resolution_cut():
    c = sfdiff.Crystal.from_cctbx(sgtbx.space_group_info("P 1").any_compatible_crystal_symmetry(volume=2000))
    mask = torch.rand(20, 20, 20, dtype=torch.float64)
    h = c.build_miller_indices(2.0)
    d = c.d_spacings(h)
    whole = sfdiff.mask_structure_factors(mask, c, h, d_min=None)
    cut = sfdiff.mask_structure_factors(mask, c, h)
    assert torch.equal(cut[d >= 3], whole[d >= 3]) and bool((cut[d < 3] == 0).all()) and bool((d < 3).any())
    far = torch.tensor([[10, 0, 0]])
    assert float(sfdiff.mask_structure_factors(mask, c, far).abs()) == 0
    with pytest.raises(ValueError, match="Nyquist"):
        sfdiff.mask_structure_factors(mask, c, far, d_min=None)


def test_refusals():
    xrs = structure("P 1", seed=1, n_atoms=3)
    atoms = sfdiff.Atoms.from_cctbx(xrs)
    other = sfdiff.Crystal.from_cctbx(sgtbx.space_group_info("P 1").any_compatible_crystal_symmetry(volume=123))
    with pytest.raises(ValueError, match="Unknown method"):
        sfdiff.solvent_mask(atoms, atoms.crystal, method="flat")
    with pytest.raises(ValueError, match="belong"):
        sfdiff.solvent_mask(atoms, other, method="binary")
    with pytest.raises(ValueError, match="grid_step"):
        sfdiff.solvent_mask(atoms, atoms.crystal, method="binary", grid_step=0)
    with pytest.raises(ValueError, match="negative"):
        sfdiff.solvent_mask(atoms, atoms.crystal, method="binary", r_probe=-1)
    with pytest.raises(ValueError, match="shape"):
        sfdiff.solvent_mask(atoms, atoms.crystal, method="binary", radii=torch.ones(2))
    with pytest.raises(TypeError, match="softness"):
        sfdiff.solvent_mask(atoms, atoms.crystal, method="binary", softness=0.3)
    hexagonal = structure("P 6", seed=1)
    with pytest.raises(ValueError, match="symmetry"):
        sfdiff.solvent_mask(
            sfdiff.Atoms.from_cctbx(hexagonal),
            sfdiff.Crystal.from_cctbx(hexagonal),
            method="binary",
            n_real=(20, 21, 20),
        )
    with pytest.raises(TypeError, match="real"):
        sfdiff.mask_structure_factors(torch.ones(3, 3, 3, dtype=torch.int64), atoms.crystal, torch.zeros(1, 3).long())
    with pytest.raises(ValueError, match="n1, n2, n3"):
        sfdiff.mask_structure_factors(torch.ones(3, 3), atoms.crystal, torch.zeros(1, 3).long())


@pytest.mark.parametrize("entry", ["1yjp", "5wkd", "1dur", "6mw0", "5awl", "1aie", "5c11", "5o5i", "3sb3"])
def test_real_entries(pdb_dir, entry):
    import iotbx.pdb

    path = next(pdb_dir.joinpath(entry).glob(f"{entry}.[pc][di][bf].gz"))
    xrs = iotbx.pdb.input(file_name=str(path)).xray_structure_simple()
    check(xrs, bound=1e-12)


@pytest.mark.parametrize("limits", [(0, 0, 0), (2, 0, 1), (2, 3, 3)])
def test_few_frequencies_are_those_of_the_whole_transform(limits):
    atoms = sfdiff.Atoms.from_cctbx(
        random_structure.xray_structure(
            space_group_info=sgtbx.space_group_info("P 1"), elements=["C"], unit_cell=(9, 10, 11, 80, 95, 100)
        )
    )
    mask = torch.rand(2, 5, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    h = torch.cartesian_prod(*(torch.arange(-n, n + 1) for n in limits))
    grid = torch.cartesian_prod(*(torch.arange(n) for n in mask.shape[1:])).to(torch.float64)
    phases = torch.exp(2j * torch.pi * (h.to(torch.float64) @ (grid / torch.tensor(mask.shape[1:])).T))
    expected = mask.detach().flatten(1).to(phases.dtype) @ phases.T * atoms.crystal.volume / mask[0].numel()
    f_mask = sfdiff.mask_structure_factors(mask, atoms.crystal, h, d_min=None)
    assert torch.allclose(f_mask.detach(), expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(torch.view_as_real(f_mask).square().sum(), mask, create_graph=True)
    # A quadratic form: its gradient is linear, and the gradient of half its own product with the map is itself.
    (again,) = torch.autograd.grad((gradient * mask).sum() / 2, mask)
    assert torch.allclose(again, gradient, rtol=1e-12, atol=1e-12)
    assert float((gradient * mask).sum().detach()) == pytest.approx(2 * float(expected.abs().square().sum()), rel=1e-12)


def odd_cell(seed):
    """A symmetry with an angle of up to 150 degrees or axes in a ratio of up to 15, and a few atoms."""
    rng = np.random.default_rng(seed)
    symbol = ("P 1", "P -1", "P 1 21 1", "C 1 2/c 1", "P 21 21 21", "P 43", "P 31 2 1")[seed % 7]
    lengths = rng.uniform(7, 14, 3)
    if seed % 2 or symbol in ("P 21 21 21", "P 43", "P 31 2 1"):
        lengths[rng.integers(3)] *= rng.uniform(6, 15)
    if symbol in ("P 43", "P 31 2 1"):
        lengths = np.array([7.0, 7.0, rng.uniform(60, 105)])
    angles = {"P 31 2 1": (90, 90, 120), "P 1 21 1": (90, rng.uniform(120, 150), 90)}.get(symbol, (90, 90, 90))
    if symbol in ("P 1", "P -1"):
        angles = [(90, 90, 150), (145, 80, 95), (90, 148, 85), (100, 70, 148)][rng.integers(4)]
    if symbol == "C 1 2/c 1":
        angles = (90, rng.uniform(130, 150), 90)
    symmetry = crystal.symmetry(unit_cell=(*lengths, *angles), space_group_symbol=symbol)
    xrs = xray.structure(crystal_symmetry=symmetry)
    for i in range(int(rng.integers(1, 6))):
        element = ("C", "N", "O", "S", "Zn")[i]
        xrs.add_scatterer(xray.scatterer(f"{element}{i}", site=tuple(rng.random(3)), scattering_type=element))
    return xrs


@pytest.mark.parametrize("seed", range(28))
def test_oblique_and_elongated_cells(seed):
    check(odd_cell(seed))


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_definition_point_by_point_in_oblique_cells(seed):
    """Every grid point against every image of every atom, and every candidate for the probe's centre."""
    xrs = odd_cell(seed)
    atoms = sfdiff.Atoms.from_cctbx(xrs)
    mask = sfdiff.solvent_mask(atoms, atoms.crystal, method="binary", grid_step=0.9).numpy()
    radii = atoms.vdw_radii().numpy()
    sites = np.array([np.array(op(s.site)) for op in xrs.space_group().all_ops() for s in xrs.scatterers()])
    radii = np.tile(radii, len(sites) // len(radii))
    ortho = np.array(xrs.unit_cell().orthogonalization_matrix()).reshape(3, 3)
    points = np.stack(np.meshgrid(*(np.arange(n) / n for n in mask.shape), indexing="ij"), -1).reshape(-1, 3)

    def images(sites, reach):
        """Cartesian places of the translated copies that come within reach of the cell."""
        far = np.ceil(reach * np.linalg.norm(np.linalg.inv(ortho), axis=1)).astype(int) + 1
        cells = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in far), indexing="ij"), -1).reshape(-1, 3)
        copies = ((sites % 1.0)[None] + cells[:, None]).reshape(-1, 3)
        near = ((copies > -far / 1.0 - 1) & (copies < far + 1.0)).all(1)
        return copies[near] @ ortho.T, np.tile(np.arange(len(sites)), len(cells))[near]

    xyz = points @ ortho.T
    places, which = images(sites, radii.max() + 1.2)
    inside = probe = None
    for place, radius in zip(places, radii[which]):
        squared = ((xyz - place) ** 2).sum(1)
        inside = squared < radius**2 if inside is None else inside | (squared < radius**2)
        probe = squared >= (radius + 1.1) ** 2 if probe is None else probe & (squared >= (radius + 1.1) ** 2)
    middle = ~inside & ~probe
    expected = probe.astype(float)
    nearest, _ = cKDTree(images(points[probe], 1.0)[0]).query(xyz[middle], distance_upper_bound=1.0)
    expected[middle] = nearest < 0.9
    assert 0 < expected.mean() < 1
    assert np.array_equal(mask.reshape(-1), expected)
