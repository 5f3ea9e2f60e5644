"""Whatever the cell, the setting and the resolution: what symmetry asks for holds, with gemmi as witness; without cctbx."""

import mmtbx_sfdiff as sfdiff
import torch

import gemmi
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

TABLE = list(gemmi.spacegroup_table())


@st.composite
def crystals(draw):
    """A tabulated setting with a cell that it allows."""
    entry = draw(st.sampled_from(TABLE))
    lengths = st.floats(4.0, 20.0)
    a, b, c = draw(lengths), draw(lengths), draw(lengths)
    alpha, beta, gamma = (draw(st.floats(75.0, 105.0)) for _ in range(3))
    # Average the metric over the point group: a cell that the operators leave what it is.
    cell = gemmi.UnitCell(a, b, c, alpha, beta, gamma)
    orth = np.array(cell.orth.mat.tolist())
    metric = orth.T @ orth
    rotations = [np.array(op.rot) / 24 for op in entry.operations().sym_ops]
    metric = sum(r.T @ metric @ r for r in rotations) / len(rotations)
    lengths = np.sqrt(metric.diagonal())
    angles = [np.degrees(np.arccos(metric[i, j] / lengths[i] / lengths[j])) for i, j in ((1, 2), (0, 2), (0, 1))]
    return sfdiff.Crystal((*lengths, *angles), entry), entry


@settings(max_examples=60, deadline=None)
@given(crystals(), st.floats(1.5, 4.0), st.booleans())
def test_a_miller_set_has_every_reflection_once(made, d_min, anomalous):
    crystal, entry = made
    indices = crystal.build_miller_indices(d_min, anomalous)
    operations = entry.operations()
    found = [tuple(h) for h in indices.tolist()]
    assert len(set(found)) == len(found)
    assert not any(operations.is_systematically_absent(h) for h in found)
    # Every allowed index to the resolution is equivalent to exactly one of the set.
    images = {}
    for number, h in enumerate(found):
        for op in operations.sym_ops:
            image = tuple(op.apply_to_hkl(h))
            for mate in (image,) if anomalous else (image, tuple(-x for x in image)):
                assert images.setdefault(mate, number) == number
    largest = [int(length / d_min) + 1 for length in crystal.unit_cell[:3]]
    axes = [np.arange(-n, n + 1) for n in largest]
    everything = torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))
    squares = crystal.d_star_sq(everything)
    inside = (squares > 0) & (squares <= (1 - 1e-9) / d_min**2)
    for h in everything[inside].tolist():
        assert tuple(h) in images or operations.is_systematically_absent(h)


@settings(max_examples=60, deadline=None)
@given(crystals(), st.lists(st.tuples(*[st.integers(-9, 9)] * 3), min_size=1, max_size=20))
def test_statistical_weights_are_those_of_gemmi(made, indices):
    crystal, entry = made
    indices = [h for h in indices if any(h)] or [(1, 2, 3)]
    operations = entry.operations()
    tensor = torch.tensor(indices)
    centrings = len(list(operations.cen_ops))
    # gemmi counts the lattice translations, which multiply every allowed reflection alike.
    assert (crystal.epsilons(tensor) * centrings).tolist() == [operations.epsilon_factor(h) for h in indices]
    assert crystal.centric_flags(tensor).tolist() == [operations.is_reflection_centric(h) for h in indices]
    for h, factor in zip(indices, crystal.centring_factor(tensor).tolist()):
        assert factor in (0.0, float(centrings))
        if factor == 0.0:
            assert operations.is_systematically_absent(h)


@settings(max_examples=60, deadline=None)
@given(crystals(), st.floats(0.3, 1.5))
def test_operators_take_grid_points_to_grid_points(made, step):
    crystal, _ = made
    n = np.array(crystal.grid(step))
    rest = n.copy()
    for prime in (2, 3, 5):
        while (rest % prime == 0).any():
            rest = np.where(rest % prime == 0, rest // prime, rest)
    assert (rest == 1).all() and (n >= 2 * (np.array(crystal.unit_cell[:3]) / (2 * step)).astype(int) + 1).all()
    rotations = crystal.rotations.numpy() * n[None, :, None] / n[None, None, :]
    shifts = (crystal.translations[:, None] + crystal.centring[None]).numpy() * n
    assert np.abs(rotations - rotations.round()).max() < 1e-9 and np.abs(shifts - shifts.round()).max() < 1e-9


@settings(max_examples=60, deadline=None)
@given(crystals())
def test_a_crystal_comes_back_from_its_symbols_and_from_gemmi(made):
    crystal, entry = made
    assert sfdiff.Crystal(crystal.unit_cell, f"Hall: {crystal.hall_symbol}").is_same_as(crystal)
    cell, group = crystal.to_gemmi()
    assert list(group.operations()) and sfdiff.Crystal(cell.parameters, group).is_same_as(crystal)
    assert group.number == entry.number and crystal.order_z == len(list(entry.operations()))


@settings(max_examples=30, deadline=None)
@given(crystals(), st.integers(0, 2**16))
def test_symmetry_mates_have_the_same_amplitude(made, seed):
    crystal, _ = made
    generator = torch.Generator().manual_seed(seed)
    sites = torch.rand(3, 3, generator=generator, dtype=torch.float64) @ crystal.orthogonalization.T
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "N", "S"], sites, b_iso=[5.0, 8.0, 11.0])
    indices = torch.randint(-6, 7, (12, 3), generator=generator)
    equivalent, shifts = crystal.equivalent_indices(indices)
    f = sfdiff.structure_factors(atoms, crystal, indices, method="direct")
    for images, shift in zip(equivalent, shifts):
        mates = sfdiff.structure_factors(atoms, crystal, images.contiguous(), method="direct")
        turned = mates * torch.polar(torch.ones_like(shift), 2 * torch.pi * shift)
        assert torch.allclose(turned, f, rtol=1e-9, atol=1e-9 * float(f.abs().max() + 1))
