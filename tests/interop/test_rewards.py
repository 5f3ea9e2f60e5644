"""The reward of guided sampling: against the same sums by hand, its gradient, and its policies."""

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.geometry import find_library
from mmtbx_sfdiff.interop.rewards import StructureFactorReward
from mmtbx_sfdiff.likelihood import targets

import gemmi
import numpy as np
import pytest

from tests.interop.crystals import write_crystal


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_crystal(tmp_path_factory.mktemp("crystal"))


@pytest.fixture(scope="module")
def model(files):
    return gemmi.read_structure(str(files[0]))


def prepared(files, model, **options):
    reward = StructureFactorReward(files[1], **options)
    reward.prepare(model)
    return reward


def members(reward, n, scale=0.1, seed=0):
    noise = torch.randn(n, reward._atoms.n_atoms, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return reward._atoms.sites_cart + scale * noise


@pytest.mark.parametrize("target", ["llg", "maximum_likelihood", "least_squares"])
@pytest.mark.parametrize("solvent", ["combined", "per_conformer", "off"])
def test_gradient_agrees_with_differences(files, model, target, solvent):
    reward = prepared(files, model, target=target, solvent=solvent, refresh_scales=0, accuracy=1e-6)
    x = members(reward, 2)
    reward(x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(x), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 2e-3
    with torch.no_grad():
        difference = (reward(x + step * direction) - reward(x - step * direction)) / (2 * step)
    # llg's derivative takes the normalization of F_model for constant.
    assert abs(float((gradient * direction).sum()) / float(difference) - 1) < (0.1 if target == "llg" else 0.02)


def test_it_is_the_target_of_the_weighted_sum(files, model):
    reward = prepared(files, model, target="least_squares", solvent="off")
    x = members(reward, 3)
    value = reward(x)
    data, atoms = reward.data, reward._atoms
    f = sum(
        sfdiff.structure_factors(atoms.replace(sites_cart=y), data.crystal, data.miller_indices, method="direct") / 3
        for y in x
    )
    scales = sfdiff.update_all_scales(data, f, torch.zeros_like(f))
    expected = targets.least_squares(
        data, scales.f_model(f, 0 * f), selection=scales.selection, f_obs_scale=scales.f_obs_scale
    )
    assert abs(float(value) / float(expected) - 1) < 1e-3


def test_a_better_ensemble_is_rewarded(files, model):
    reward = prepared(files, model)
    good, bad = (float(prepared(files, model)(members(reward, 2, scale))) for scale in (0.02, 0.5))
    assert good < bad and good < 0


def test_occupancies_of_one_over_n_are_the_default(files, model):
    reward = prepared(files, model, target="least_squares", refresh_scales=0)
    x = members(reward, 4)
    first = reward(x)
    occupancies = torch.full(x.shape[:2], 0.25, dtype=torch.float32)
    assert torch.equal(first, reward(x, None, None, occupancies))
    b = (8 * torch.pi**2 * reward._atoms.u_iso).expand(4, -1)
    torch.testing.assert_close(first, reward(x, None, b), rtol=1e-9, atol=0)


def test_b_factors_replace_tensors_too(files):
    """Of an anisotropic model the given B counts as of an isotropic one."""
    plain, tensors = (gemmi.read_structure(str(files[0])) for _ in range(2))
    for atom in (atom for chain in tensors[0] for residue in chain for atom in residue):
        atom.aniso = gemmi.SMat33f(0.3, 0.1, 0.2, 0, 0, 0)
    isotropic, anisotropic = (
        prepared(files, structure, target="least_squares", refresh_scales=0) for structure in (plain, tensors)
    )
    assert bool(anisotropic._atoms.use_u_aniso.all())
    x = members(isotropic, 2)
    b = (12.0 + 5 * torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(0))).requires_grad_()
    value = anisotropic(x, None, b)
    torch.testing.assert_close(value, isotropic(x, None, b), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(value, b)
    assert bool((gradient != 0).any(0).all())


def test_missing_coordinates_by_policy(files, model):
    x = members(prepared(files, model), 2)
    x[1, 5] = float("nan")
    with pytest.raises(ValueError, match="atom 5 .* of member 1 are NaN"):
        prepared(files, model)(x)
    reward = prepared(files, model, missing="absent")
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(x), x)
    assert bool(gradient.isfinite().all()) and not bool(gradient[1, 5].any())


def test_hydrogens_by_policy(files):
    structure = gemmi.read_structure(str(files[0]))
    residue = structure[0][0][0]
    hydrogen = residue[0].clone()
    hydrogen.name, hydrogen.element = "H", gemmi.Element("H")
    hydrogen.pos = gemmi.Position(hydrogen.pos.x + 1, hydrogen.pos.y, hydrogen.pos.z)
    residue.add_atom(hydrogen)
    absent, included = (prepared(files, structure, hydrogens=policy) for policy in ("absent", "include"))
    where = absent._atoms.elements.index("H")
    for reward, moves in ((absent, False), (included, True)):
        x = members(reward, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(reward(x), x)
        assert bool(gradient[0, where].any()) == moves


def test_further_terms_add_up(files, model):
    plain = prepared(files, model, target="least_squares", refresh_scales=0)
    more = prepared(
        files, model, target="least_squares", refresh_scales=0, terms=[(2.0, lambda x: x.square().sum((-2, -1)))]
    )
    x = members(plain, 2)
    torch.testing.assert_close(more(x), plain(x) + 2 * x.square().sum(), rtol=1e-9, atol=0)


def test_geometry_by_the_library_adds_half_its_mean_energy_per_reflection(files, model):
    find_library_or_skip()
    options = {"target": "least_squares", "refresh_scales": 0}
    plain = prepared(files, model, **options)
    more = prepared(files, model, geometry="library", geometry_weight=3.0, **options)
    x = members(plain, 2)
    n_work = int((plain_scales(plain, x).selection & plain.data.work).sum())
    energy = sfdiff.GeometryRestraints.from_gemmi(model)(x)
    torch.testing.assert_close(more(x), plain(x) + 3 * energy.mean() / (2 * n_work), rtol=1e-9, atol=0)
    given = prepared(files, model, geometry=sfdiff.GeometryRestraints.from_gemmi(model), geometry_weight=3.0, **options)
    torch.testing.assert_close(given(x), more(x))
    # Its gradient, and an atom that is not there.
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(more(leaf) - plain(leaf), leaf)
    (alone,) = torch.autograd.grad(sfdiff.GeometryRestraints.from_gemmi(model)(leaf).mean() * 3 / (2 * n_work), leaf)
    torch.testing.assert_close(gradient, alone, rtol=1e-6, atol=1e-9 * float(alone.abs().max()))
    absent = prepared(files, model, geometry="library", missing="absent", **options)
    leaf = x.clone()
    leaf[0, 5] = torch.nan
    (gradient,) = torch.autograd.grad(absent(leaf.requires_grad_()), leaf)
    assert bool(gradient.isfinite().all()) and not gradient[0, 5].any()


def test_geometry_that_does_not_fit_is_said(files, model):
    find_library_or_skip()
    other = gemmi.read_structure(str(files[0]))
    del other[0][-1]
    restraints = sfdiff.GeometryRestraints.from_gemmi(other)
    with pytest.raises(ValueError, match="geometry is of .* atoms, and prepare"):
        prepared(files, model, geometry=restraints)
    for options, said in (
        ({"geometry": "amber"}, "geometry is 'library'"),
        ({"geometry_weight": -1.0}, "geometry_weight is a number from 0 on"),
    ):
        with pytest.raises(ValueError, match=said):
            StructureFactorReward(files[1], **options)


def plain_scales(reward, x):
    reward(x)
    return reward.scales


def find_library_or_skip():
    try:
        find_library(None)
    except ValueError as error:
        pytest.skip(str(error))


def test_atoms_of_biotite(files, model):
    structure = pytest.importorskip("biotite.structure")
    reward = prepared(files, model)
    atoms = [atom for chain in model[0] for residue in chain for atom in residue]
    array = structure.AtomArray(len(atoms))
    array.coord = np.array([atom.pos.tolist() for atom in atoms])
    array.element = np.array([atom.element.name.upper() for atom in atoms])
    array.atom_name = np.array([atom.name for atom in atoms])
    array.set_annotation("b_factor", np.array([atom.b_iso for atom in atoms]))
    other = StructureFactorReward(files[1])

    class Inputs:
        def to_atom_array(self):
            return array

    for inputs in (array, Inputs()):
        other.prepare(inputs)
        x = members(reward, 2).float()
        assert abs(float(other(x)) - float(prepared(files, model)(x))) < 1e-4
        assert other(x).dtype == torch.float32


def test_what_cannot_be_is_said(files, model, tmp_path):
    with pytest.raises(RuntimeError, match="call prepare"):
        StructureFactorReward(files[1])(torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match="coordinates must have the shape"):
        prepared(files, model)(torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="solvent is one of combined"):
        StructureFactorReward(files[1], solvent="flat")
    with pytest.raises(TypeError, match="prepare"):
        StructureFactorReward(files[1]).prepare(3)
    with pytest.raises(ValueError, match="no.mtz"):
        StructureFactorReward(tmp_path / "no.mtz")
    with pytest.raises(ValueError, match="no reflection"):
        StructureFactorReward(files[1], d_min=50.0)
