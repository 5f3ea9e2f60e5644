"""Parameters that atoms share: groups, TLS, occupancies, rigid bodies, and how they are chosen."""

import dataclasses

import mmtbx_sfdiff  # noqa: F401  (first: it owns the order in which native libraries are loaded)
import torch
from mmtbx_sfdiff import Atoms, FModel, Reflections, structure_factors
from mmtbx_sfdiff.refinement import Settings, refine
from mmtbx_sfdiff.refinement.groups import AtomLabels
from mmtbx_sfdiff.refinement.occupancies import OccupancyVariables, rounded
from mmtbx_sfdiff.refinement.parameters import Parameters, choose, with_tensors
from mmtbx_sfdiff.refinement.rigid import RigidBodies
from mmtbx_sfdiff.refinement.tls import TLSGroups, motions
from mmtbx_sfdiff.refinement.variables import Variables

import numpy as np
import pytest
from cctbx import crystal, xray

from tests.support.scaling_data import manager
from tests.support.structures import random_xray_structure


def labels_of(n, chains=1, altlocs=None, names=None, residue_names=None):
    """Residues of four atoms."""
    per = n // chains
    return AtomLabels.from_columns(
        names or ["N", "CA", "CB", "OG"] * (n // 4),
        altlocs or [""] * n,
        residue_names or ["SER"] * n,
        ["AB"[i // per] for i in range(n)],
        [str(i // 4) for i in range(n)],
    )


@pytest.fixture(scope="module")
def made_up():
    fmodel = FModel.from_cctbx(
        manager("P 21 21 21", n_atoms=40, d_min=2.0, seed=2), method="direct", mask={"method": "binary"}
    )
    fmodel.update_scales()
    return fmodel


def ideal(atoms, indices, crystal):
    """Data of a model without solvent or errors, five in a hundred free."""
    f = structure_factors(atoms, crystal, indices, method="direct").abs()
    free = torch.arange(len(f)) % 20 == 0
    return Reflections.from_arrays(crystal, indices, f, sigmas=0.01 * f + 0.01, free=free)


# groups


def test_main_and_side_chains_are_two_groups_and_a_ligand_is_one():
    labels = AtomLabels.from_columns(
        ["N", "CA", "CB", "OG", "C1", "C2", "O"],
        [""] * 7,
        ["SER"] * 4 + ["LIG"] * 2 + ["HOH"],
        ["A"] * 7,
        ["1"] * 4 + ["2"] * 2 + ["3"],
    )
    assert labels.main_and_side_chains().tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert labels.waters.tolist() == [False] * 6 + [True]
    assert labels.polymer_chains().tolist() == [-1] * 7  # four atoms have no motion of their own


def test_alternatives_of_neighbors_go_together_and_others_do_not():
    altlocs = ["", "A", "B", "", "", "A", "B", "", "", "", "", "", "", "A", "C", ""]
    found = labels_of(16, altlocs=altlocs).alternatives()
    assert [[rows.tolist() for rows in parts] for parts in found] == [[[1, 5], [2, 6]], [[13], [14]]]


def test_alone_are_waters_ligands_and_partly_occupied_atoms_without_alternative():
    labels = AtomLabels.from_columns(
        ["N", "CA", "SE", "O", "C1", "C2", "OG", "OG"],
        [""] * 6 + ["A", "B"],
        ["MSE"] * 3 + ["HOH"] + ["LIG"] * 2 + ["SER"] * 2,
        ["A"] * 8,
        ["1"] * 3 + ["2"] + ["3"] * 2 + ["4"] * 2,
    )
    among = np.array([False, False, True, True, True, True, True, True])
    assert [rows.tolist() for rows in labels.alone(among)] == [[2], [3], [4, 5]]


# occupancies


def test_occupancies_of_alternatives_sum_to_one_for_any_variables():
    sets = [[np.array([0, 1]), np.array([2, 3])], [np.array([4]), np.array([5]), np.array([6])]]
    start = torch.tensor([0.7, 0.7, 0.3, 0.3, 0.2, 0.5, 0.3, 0.8, 1.0], dtype=torch.float64)
    occupancies = OccupancyVariables(sets, [np.array([7])], start)
    assert occupancies.n == 6
    torch.testing.assert_close(occupancies(torch.zeros(6, dtype=torch.float64)), start, rtol=0, atol=1e-12)
    for seed in range(5):
        vector = 3 * torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        q = occupancies(vector)
        assert float((q[0] + q[2] - 1).abs()) < 1e-15 and float((q[4:7].sum() - 1).abs()) < 1e-15
        assert q[0] == q[1] and q[2] == q[3] and 0 < q[7] < 1 and q[8] == 1
    assert torch.autograd.gradcheck(occupancies, torch.randn(6, dtype=torch.float64).requires_grad_())


def test_rounded_occupancies_still_sum_to_one():
    atoms = Atoms.from_cctbx(manager("P 1", n_atoms=6, d_min=3.0, seed=5).xray_structure)
    q = atoms.occupancies.clone()
    q[:3] = torch.tensor([0.3349, 0.3349, 0.3302], dtype=q.dtype)
    done = rounded(atoms.replace(occupancies=q), [[np.array([0]), np.array([1]), np.array([2])]]).occupancies
    assert [round(100 * x) / 100 for x in done[:3].tolist()] == done[:3].tolist()
    assert sum(round(100 * x) for x in done[:3].tolist()) == 100


def test_occupancies_are_recovered():
    atoms = Atoms.from_cctbx(random_xray_structure("P 1", anisotropic=False, seed=3)).replace()
    n = atoms.n_atoms
    crystal = atoms.crystal
    true = torch.ones(n, dtype=torch.float64)
    true[0], true[1], true[2] = 0.65, 0.35, 0.8
    data = ideal(atoms.replace(occupancies=true), crystal.build_miller_indices(1.5), crystal)
    begin = true.clone()
    begin[:3] = 0.5
    parameters = Parameters(alternatives=([np.array([0]), np.array([1])],), alone=(np.array([2]),))
    model = FModel(atoms.replace(occupancies=begin), data, method="direct", mask={"method": "binary"})
    settings = Settings(target="least_squares", adp=False, cycles=4, tolerance=1e-6, damping=0.0, remove_outliers=False)
    refined, history = refine(model, settings, parameters=parameters)
    assert refined.atoms.occupancies[0] + refined.atoms.occupancies[1] == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(refined.atoms.occupancies[:3], true[:3], rtol=0, atol=0.03)
    assert "occupancies" in history.cycles[0]["refined"]


# rigid bodies


def test_rigid_bodies_keep_distances_and_their_gradient_is_that_of_differences():
    sites = 10 * torch.rand(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    groups = torch.tensor([0] * 5 + [1] * 6 + [-1])
    bodies = RigidBodies(sites, groups)
    assert bodies.n == 12
    torch.testing.assert_close(bodies(torch.zeros(12, dtype=torch.float64)), sites, rtol=0, atol=1e-12)
    vector = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moved = bodies(vector)
    for rows in (slice(0, 5), slice(5, 11)):
        torch.testing.assert_close(torch.cdist(moved[rows], moved[rows]), torch.cdist(sites[rows], sites[rows]))
    assert torch.equal(moved[11], sites[11]) and float((moved - sites)[:11].abs().max()) > 0.1
    assert torch.autograd.gradcheck(bodies, (0.3 * vector).requires_grad_())


def test_a_displaced_body_is_brought_back(made_up):
    """0.5 Å and 3 degrees off."""
    atoms, crystal = made_up.atoms, made_up.reflections.crystal
    data = ideal(atoms, made_up.reflections.miller_indices, crystal)
    center = atoms.sites_cart.mean(0)
    angle = torch.tensor(0.05, dtype=torch.float64)
    turn = torch.eye(3, dtype=torch.float64)
    turn[0, 0] = turn[1, 1] = angle.cos()
    turn[0, 1], turn[1, 0] = -angle.sin(), angle.sin()
    off = (atoms.sites_cart - center) @ turn.T + center + torch.tensor([0.3, -0.3, 0.25], dtype=torch.float64)
    parameters = Parameters(bodies=labels_of(atoms.n_atoms).bodies())
    model = FModel(atoms.replace(sites_cart=off), data, method="direct", mask={"method": "binary"})
    settings = Settings(adp=False, cycles=4, resolution_cycles=2, first_d_min=3.5, tolerance=1e-7, damping=0.0)
    refined, _ = refine(model, settings, parameters=parameters)
    error = (refined.atoms.sites_cart - atoms.sites_cart).square().sum(-1).mean().sqrt()
    assert float(error) < 0.02 < float((off - atoms.sites_cart).square().sum(-1).mean().sqrt())


def test_first_bodies_are_of_the_first_macro_cycle():
    parameters = Parameters(first_bodies=np.zeros(4, dtype=np.int64))
    assert parameters.of_cycle(1).bodies is not None and parameters.of_cycle(2).bodies is None


# displacement parameters


def tls_model(seed=4):
    """(atoms of one group with tensors of TLS and a residual, C, the residuals)"""
    atoms = Atoms.from_cctbx(manager("P 21 21 21", n_atoms=40, d_min=2.0, seed=seed).xray_structure)
    sites = atoms.sites_cart
    generator = torch.Generator().manual_seed(seed)
    k = 0.3 * torch.randn(6, 6, dtype=torch.float64, generator=generator).tril() + torch.eye(6, dtype=torch.float64)
    k[:3] *= 0.02
    k[3:] *= 0.15
    c = k @ k.T
    m = motions(sites - sites.mean(0))
    residual = 0.02 + 0.03 * torch.rand(len(sites), dtype=torch.float64, generator=generator)
    u_cart = m @ c @ m.mT + residual[:, None, None] * torch.eye(3, dtype=torch.float64)
    tensor_atoms = with_tensors(atoms, torch.ones(len(sites), dtype=torch.bool))
    f = atoms.crystal.fractionalization
    u = f @ u_cart @ f.T
    u_star = torch.stack([u[:, i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))], -1)
    return tensor_atoms.replace(u_star=u_star), u_cart, c, residual


def test_tls_of_tensors_that_have_it_is_found():
    atoms, u_cart, _, residual = tls_model()
    groups = torch.zeros(atoms.n_atoms, dtype=torch.int64)
    tls = TLSGroups(atoms.sites_cart, u_cart, groups, 0.01)
    zero = torch.zeros(tls.n, dtype=torch.float64)
    unit = torch.eye(3, dtype=torch.float64)
    moved = tls.tensors(zero)
    mean = (u_cart - moved).diagonal(dim1=-2, dim2=-1).mean(-1)
    torch.testing.assert_close(moved + mean[:, None, None] * unit, u_cart, rtol=0, atol=1e-6)
    # T and the residuals share a constant: it leaves nearly all residuals at least the least.
    torch.testing.assert_close(mean - mean.mean(), residual - residual.mean(), rtol=0, atol=1e-6)
    assert torch.equal(tls.residual, mean.clamp(min=0.01)) and float((mean < 0.0099).sum()) <= 2


def test_tls_tensors_are_positive_and_their_gradient_is_that_of_differences():
    atoms, u_cart, _, _ = tls_model()
    groups = torch.arange(atoms.n_atoms) % 2
    tls = TLSGroups(atoms.sites_cart, u_cart, groups, 0.01)
    assert tls.n == 42
    vector = torch.randn(42, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert float(torch.linalg.eigvalsh(tls.tensors(vector)).min()) >= -1e-12
    assert torch.autograd.gradcheck(tls.tensors, (0.1 * vector).requires_grad_(), atol=1e-4, rtol=1e-5, fast_mode=True)
    # d^2 / dK^2 of sum of squares of the tensors' changes, by differences, is what the curvature counts.
    step = 1e-6 * torch.eye(42, dtype=torch.float64)
    zero = torch.zeros(42, dtype=torch.float64)
    change = torch.stack([(tls.tensors(s) - tls.tensors(zero)) / 1e-6 for s in step])
    expected = change.square().sum((1, 2, 3)) / 5
    torch.testing.assert_close(
        tls.curvature(torch.ones(atoms.n_atoms, dtype=torch.float64)), expected, rtol=1e-3, atol=1e-6
    )


def test_tls_is_refined_from_isotropic_displacements():
    """R falls from that of the isotropic model to nearly nothing; tensors come near the true ones."""
    true, u_true, _, _ = tls_model()
    crystal = true.crystal
    data = ideal(true, crystal.build_miller_indices(1.7), crystal)
    mean = u_true.diagonal(dim1=-2, dim2=-1).mean(-1)
    begin = Atoms.from_cctbx(manager("P 21 21 21", n_atoms=40, d_min=2.0, seed=4).xray_structure).replace(u_iso=mean)
    model = FModel(begin, data, method="direct", mask={"method": "binary"})
    settings = Settings(sites=False, target="least_squares", cycles=5, steps=40, tolerance=1e-6, remove_outliers=False)
    results = {}
    for name, parameters in (("isotropic", None), ("tls", Parameters(tls=np.zeros(true.n_atoms, dtype=np.int64)))):
        refined, _ = refine(model, settings, parameters=parameters)
        results[name] = refined
    assert results["tls"].scales.r_work < 0.4 * results["isotropic"].scales.r_work
    atoms = results["tls"].atoms
    assert bool(atoms.use_u_aniso.all()) and atoms.to_cctbx().is_positive_definite_u().all_eq(True)


def test_a_group_has_one_displacement_parameter_and_aniso_atoms_get_tensors():
    atoms = Atoms.from_cctbx(manager("P 21 21 21", n_atoms=40, d_min=2.0, seed=4).xray_structure)
    groups = labels_of(40).main_and_side_chains()
    variables = Variables(atoms, sites=False, parameters=Parameters(b_groups=groups))
    assert variables.n == len(set(groups.tolist())) == 20
    u = variables(0.3 * torch.randn(20, dtype=torch.float64)).u_iso
    for number in set(groups.tolist()):
        assert len(set(u[torch.from_numpy(groups == number)].tolist())) == 1
    parameters = Parameters(anisotropic=np.arange(40) < 30)
    prepared = parameters.prepared(atoms)
    assert int(prepared.use_u_aniso.sum()) == 30 and parameters.prepared(prepared) is prepared
    indices = atoms.crystal.build_miller_indices(2.5)
    for x in (prepared, Atoms.from_cctbx(prepared.to_cctbx())):
        torch.testing.assert_close(
            structure_factors(x, atoms.crystal, indices, method="direct"),
            structure_factors(atoms, atoms.crystal, indices, method="direct"),
            rtol=1e-10,
            atol=1e-8,
        )


@pytest.mark.parametrize("kind", ["grouped", "tls", "bodies", "occupancies"])
def test_gradient_with_respect_to_shared_variables(kind):
    atoms = Atoms.from_cctbx(manager("P 21 21 21", n_atoms=40, d_min=2.0, seed=4).xray_structure)
    labels = labels_of(40, chains=2)
    parameters = {
        "grouped": Parameters(b_groups=labels.main_and_side_chains()),
        "tls": Parameters(tls=np.arange(40) // 20),
        "bodies": Parameters(bodies=labels.bodies()),
        "occupancies": Parameters(alternatives=([np.arange(4), np.arange(4, 8)],), alone=(np.array([9, 10]),)),
    }[kind]
    atoms = parameters.prepared(atoms)
    variables = Variables(atoms, parameters=parameters)
    indices = atoms.crystal.build_miller_indices(3.0)

    def target(vector):
        return structure_factors(variables(vector), atoms.crystal, indices, method="direct").abs().square().mean()

    vector = 0.05 * torch.randn(variables.n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert torch.autograd.gradcheck(target, vector.requires_grad_(), eps=1e-6, rtol=1e-4, atol=1e-3, fast_mode=True)


# the choice


@pytest.mark.parametrize(
    "n_work, d_min, words",
    [
        (40 * 25, 1.2, ["a site for each atom", "a displacement tensor for each atom"]),
        (40 * 25, 1.6, ["a displacement parameter for each atom"]),
        (40 * 2, 3.2, ["a site for each atom", "20 displacement parameters of residues"]),
        (40 * 8, 3.8, ["20 displacement parameters of residues"]),
        (30, 6.0, ["2 rigid bodies", "20 displacement parameters of residues"]),
    ],
)
def test_the_strategy_follows_the_data(n_work, d_min, words):
    atoms = Atoms.from_cctbx(manager("P 21 21 21", n_atoms=40, d_min=2.0, seed=4).xray_structure)
    atoms = atoms.replace(occupancies=torch.ones_like(atoms.occupancies))
    found = choose(labels_of(40, chains=2), atoms, n_work, d_min, np.zeros(40, dtype=bool))
    for word in words:
        assert word in found.words
    assert ("a site for each atom" in found.words) == (found.bodies is None)
    assert "occupancies" not in found.words


def test_as_read_refines_what_each_atom_has_and_what_is_asked_for():
    atoms = Atoms.from_cctbx(manager("P 21 21 21", n_atoms=40, d_min=2.0, seed=4).xray_structure)
    half = torch.full_like(atoms.occupancies, 0.5)
    labels, riding = labels_of(40, altlocs=["", "", "A", "B"] * 10), np.zeros(40, dtype=bool)
    left = choose(labels, atoms.replace(occupancies=half), 10, 4.0, riding, strategy="as_read")
    assert dataclasses.replace(left, words="") == Parameters()
    asked = choose(labels, atoms.replace(occupancies=half), 10, 4.0, riding, strategy="as_read", occupancies="auto")
    assert not asked.alternatives
    every = choose(labels, atoms.replace(occupancies=half), 1000, 2.0, riding)
    assert len(every.alternatives) == 1 and "occupancies of 1 sets" in every.words
    with pytest.raises(ValueError, match="adp_model"):
        choose(labels, atoms, 10, 4.0, riding, adp_model="isotropic")


def test_a_shared_special_position_keeps_its_occupancy():
    structure = xray.structure(crystal_symmetry=crystal.symmetry((10, 10, 12, 90, 90, 120), "P -3"))
    for site in ((0, 0, 0.2), (0, 0, 0), (0.1, 0.25, 0.4), (0.3, 0.1, 0.2)):
        structure.add_scatterer(xray.scatterer("O", site=site, u=0.05))
    atoms = Atoms.from_cctbx(structure)
    special = atoms.site_weights < 1
    assert int(special.sum()) == 2
    atoms = atoms.replace(occupancies=torch.full_like(atoms.occupancies, 0.5))
    n = atoms.n_atoms
    labels = AtomLabels.from_columns(["O"] * n, [""] * n, ["HOH"] * n, ["W"] * n, [str(i) for i in range(n)])
    found = choose(labels, atoms, 1000, 2.0, np.zeros(n, dtype=bool))
    refined = {int(row) for rows in found.alone for row in rows}
    assert refined == set((~special).nonzero()[:, 0].tolist())
