"""Refinement: its variables, its minimisers, and what it recovers."""

import copy
import dataclasses

import torch
from mmtbx_sfdiff import Atoms, FModel, structure_factors
from mmtbx_sfdiff.refinement import History, Settings, refine, state
from mmtbx_sfdiff.refinement.curvature import Curvature
from mmtbx_sfdiff.refinement.minimize import Evaluation, minimize
from mmtbx_sfdiff.refinement.restraint import LibraryRestraint
from mmtbx_sfdiff.refinement.settings import next_target, resolution_schedule
from mmtbx_sfdiff.refinement.variables import Variables

import pytest
from cctbx import crystal, xray

from tests.support.scaling_data import manager
from tests.support.structures import random_xray_structure


def atoms_of(symbol="P 4/n :1", anisotropic=True, seed=1):
    return Atoms.from_cctbx(random_xray_structure(symbol, anisotropic=anisotropic, seed=seed))


@pytest.fixture(scope="module")
def made_up():
    """A made-up crystal: F_obs of one model, its sites shifted at random in another."""
    reference = manager("P 21 21 21", n_atoms=40, d_min=2.0, seed=2)
    fmodel = FModel.from_cctbx(reference, method="direct", mask={"method": "binary"})
    fmodel.update_scales()
    shifted = FModel.from_cctbx(reference, method="direct", mask={"method": "binary"})
    shift = torch.randn(fmodel.atoms.sites_cart.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted.replace(sites_cart=fmodel.atoms.sites_cart + 0.17 * shift)
    return fmodel, shifted


# variables


@pytest.mark.parametrize("symbol", ["P 1", "P 4/n :1", "R 3 :R"])
@pytest.mark.parametrize("anisotropic", [False, True])
def test_the_zero_vector_is_the_model(symbol, anisotropic):
    atoms = atoms_of(symbol, anisotropic)
    variables = Variables(atoms)
    same = variables(variables.vector())
    torch.testing.assert_close(same.sites_cart, atoms.sites_cart, rtol=0, atol=1e-9)
    positive = torch.tensor(list(atoms.to_cctbx().is_positive_definite_u(u_cart_tolerance=-0.002)))
    assert bool(positive.any())
    torch.testing.assert_close(same.u_star[positive], atoms.u_star[positive], rtol=1e-9, atol=1e-12)
    chosen = atoms.use_u_iso & ~atoms.use_u_aniso
    torch.testing.assert_close(same.u_iso[chosen], atoms.u_iso[chosen], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("anisotropic", [False, True])
def test_gradient_with_respect_to_the_vector(anisotropic):
    atoms = atoms_of(anisotropic=anisotropic)
    indices = atoms.crystal.build_miller_indices(2.5)
    variables = Variables(atoms)
    variables.scale = torch.rand(variables.n, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5

    def target(vector):
        return structure_factors(variables(vector), atoms.crystal, indices, method="direct").abs().square().sum()

    vector = 0.01 * torch.randn(variables.n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert torch.autograd.gradcheck(target, vector.requires_grad_(), eps=1e-6, rtol=1e-4, atol=1e-3, fast_mode=True)


def test_special_positions_and_positive_displacements_are_kept():
    """cctbx finds the same site symmetries after a large shift; every U is positive."""
    structure = xray.structure(crystal_symmetry=crystal.symmetry((10, 10, 12, 90, 90, 120), "P -3"))
    for site, aniso in (((0, 0, 0.2), True), ((0, 0, 0), True), ((1 / 3, 2 / 3, 0.4), False), ((0.1, 0.25, 0.4), True)):
        structure.add_scatterer(xray.scatterer("C", site=site, u=0.05))
        if aniso:
            structure.scatterers()[-1].convert_to_anisotropic(structure.unit_cell())
    special = list(structure.special_position_indices())
    assert special == [0, 1, 2]
    atoms = Atoms.from_cctbx(structure)
    variables = Variables(atoms)
    vector = torch.randn(variables.n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    moved = variables(0.2 * vector).to_cctbx()
    assert moved.is_positive_definite_u().all_eq(True)
    table = structure.site_symmetry_table()
    for i in special:
        site = moved.scatterers()[i].site
        for x, y in zip(table.get(i).special_op() * site, site):
            assert x == pytest.approx(y, abs=1e-9)
        if moved.scatterers()[i].flags.use_u_aniso():
            assert table.get(i).is_compatible_u_star(moved.scatterers()[i].u_star, 1e-6)
    assert min(moved.scatterers().extract_u_iso().select(moved.scatterers().extract_use_u_iso())) > 0


def test_hydrogens_ride():
    reference = manager("P 1", n_atoms=8, hydrogens=4, d_min=3.0, seed=5)
    atoms = Atoms.from_cctbx(reference.xray_structure)
    variables = Variables(atoms, adp=False)
    assert variables.n == 3 * 8
    moved = variables(torch.ones(24, dtype=torch.float64)).sites_cart - atoms.sites_cart
    torch.testing.assert_close(moved, torch.ones_like(moved))


def test_expected_curvature_is_that_of_many_reflections():
    """Mean over atoms and directions, against the second derivative by autograd."""
    atoms = atoms_of("P 1", anisotropic=False, seed=3)
    indices = atoms.crystal.build_miller_indices(1.2)
    f_obs = structure_factors(atoms, atoms.crystal, indices, method="direct").abs().detach()
    ones = torch.ones_like(f_obs)
    variables = Variables(atoms)
    of_sites, of_u = Curvature(atoms.crystal, atoms.crystal.d_star_sq(indices), 2 * ones)(
        atoms, variables.free, atoms.u_iso
    )

    def second(name, value):
        """Diagonal of the second derivative, by differences of gradients."""

        def gradient(x):
            x = x.detach().clone().requires_grad_()
            model = structure_factors(atoms.replace(**{name: x}), atoms.crystal, indices, method="direct")
            return torch.autograd.grad((f_obs - model.abs()).square().sum(), x)[0].reshape(-1)

        steps = 1e-5 * torch.eye(value.numel(), dtype=torch.float64).reshape(-1, *value.shape)
        return torch.stack(
            [(gradient(value + step) - gradient(value - step))[i] / 2e-5 for i, step in enumerate(steps)]
        )

    sites = second("sites_cart", atoms.sites_cart).reshape(-1, 3).mean(1)
    assert float((sites / of_sites).median()) == pytest.approx(1, abs=0.3)
    assert float((second("u_iso", atoms.u_iso) / of_u).median()) == pytest.approx(1, abs=0.5)


# minimisers


@pytest.mark.parametrize("name, steps, accuracy", [("lbfgs", 25, 1e-5), ("adam", 400, 1e-2)])
def test_minimisers(name, steps, accuracy):
    target = torch.linspace(-1, 1, 50, dtype=torch.float64)
    stiffness = torch.linspace(0.3, 3, 50, dtype=torch.float64)
    calls = []

    def evaluate(x):
        x = x.detach()
        calls.append(x.clone())
        return Evaluation(float((stiffness * (x - target).square()).sum()), 2 * stiffness * (x - target), None)

    x, seen = torch.zeros(50, dtype=torch.float64, requires_grad=True), []
    end = minimize(evaluate, x, steps, name, learning_rate=0.05, on_step=seen.append)
    assert float((x.detach() - target).abs().max()) < accuracy
    assert end.value == min([end.value, *(s.value for s in seen)])
    # No point is evaluated twice: that would double the price of a refinement.
    assert len({tuple(c.tolist()) for c in calls}) == len(calls)
    assert len(calls) < 1.6 * steps + 5


def test_minimiser_ends_when_nothing_is_gained():
    x, seen = torch.zeros(1, dtype=torch.float64, requires_grad=True), []
    minimize(
        lambda v: Evaluation(float(v.detach()[0] ** 2 + 1), 2 * v.detach(), None),
        x,
        100,
        on_step=seen.append,
        tolerance=1e-3,
    )
    assert len(seen) <= 6


# refinement


@pytest.mark.parametrize(
    "changes",
    [{}, {"target": "least_squares"}, {"minimiser": "adam", "steps": 40}, {"least_squares_cycles": 1, "cycles": 4}],
)
def test_shifts_are_recovered(changes, made_up):
    reference, shifted = made_up
    before = shifted.atoms
    settings = dataclasses.replace(Settings(cycles=3), **changes)
    refined, history = refine(shifted, settings)
    start, end = history.cycles[0]["r_work_start"], refined.r_work()
    assert end < reference.scales.r_work + 0.02 < start and shifted.atoms is before
    error = [
        float((m.atoms.sites_cart - reference.atoms.sites_cart).square().sum(-1).mean().sqrt())
        for m in (shifted, refined)
    ]
    assert error[1] < 0.7 * error[0]
    for cycle in history.cycles:
        assert cycle["target_end"] <= cycle["target_start"]
    assert [s["step"] for s in history.steps] == list(range(len(history.steps)))
    if "least_squares_cycles" in changes:
        assert history.cycles[-1]["target"] == "least_squares" != history.cycles[0]["target"]


@pytest.mark.parametrize("target", ["least_squares", "maximum_likelihood"])
def test_free_reflections_feed_no_gradient(target, made_up):
    """With scales, alpha and beta as they are, targets and gradients are the same whatever the free amplitudes."""
    fmodel, _ = made_up
    results = []
    for factor in (1.0, 1.7):
        f_obs = fmodel.reflections.f_obs.clone()
        f_obs[fmodel.reflections.r_free_flags] *= factor
        model = copy.copy(fmodel)
        model.alpha_beta()
        model.reflections = dataclasses.replace(fmodel.reflections, f_obs=f_obs)
        sites = model.atoms.sites_cart.clone().requires_grad_()
        value = model.target(target, sites_cart=sites, f_mask=torch.zeros_like(model.scales.k_masks[0]))
        results.append((value.detach(), *torch.autograd.grad(value, sites), model.r_free()))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert results[0][2] != results[1][2]


@pytest.mark.parametrize("r_free", [None, 0.0, 0.9, float("nan")])
def test_r_free_decides_no_stop_and_no_weight(r_free):
    """Whatever it is said to have been, the next target and the weight of the geometry are the same."""
    history = History()
    for number, decrease in enumerate((3.0, 0.5, 0.008), 1):
        cycle = {"target": "maximum_likelihood", "decrease": decrease, "r_free": r_free, "r_free_start": r_free}
        history.cycles.append(cycle | {"cycle": number, "next_weight": 0.17})
        ends = next_target(history, Settings()) is None
        assert ends == (number == 3)
    restraint = LibraryRestraint(None, target=0.008)
    restraint.resume(history.cycles)
    assert restraint.weight == 0.17


def test_mask_that_follows(made_up):
    """The gradient of the density-cutoff mask is part of that of the target."""
    _, shifted = made_up
    model = FModel(
        shifted.atoms, shifted.reflections, method="direct", mask={"method": "density_cutoff", "grid_step": 0.6}
    )
    _, history = refine(model, Settings(cycles=1, steps=2, resolution_cycles=1, adp=False))
    assert history.cycles[0]["mask_gradient"]
    _, held = refine(model, Settings(cycles=1, steps=2, resolution_cycles=1, adp=False, mask_update="cycle"))
    assert not held.cycles[0]["mask_gradient"]
    assert history.steps[0]["target"] == pytest.approx(held.steps[0]["target"], rel=1e-9)
    assert history.steps[-1]["target"] != held.steps[-1]["target"]


def test_schedule(made_up):
    reflections = made_up[0].reflections
    limits = resolution_schedule(reflections, 40, Settings(first_d_min=3.0, resolution_cycles=3))
    assert limits[0] == pytest.approx(3.0) and limits[-1] is None and len(limits) == 3
    # Too few reflections for the atoms: full resolution at once.
    assert resolution_schedule(reflections, 10**6, Settings()) == [None]
    assert resolution_schedule(reflections, 40, Settings(resolution_cycles=1)) == [None]


def test_when_refinement_ends():
    def done(*cycles):
        return History(cycles=[{"target": target, "decrease": decrease} for target, decrease in cycles])

    ml, ls = "maximum_likelihood", "least_squares"
    settings = Settings(cycles=5, resolution_cycles=2, adp_from_cycle=2, tolerance=0.1)
    assert next_target(done(), settings) == ml
    assert next_target(done((ml, 0.0)), settings) == ml  # not yet at full resolution
    assert next_target(done((ml, 1), (ml, 0.01)), settings) is None
    assert next_target(done(*[(ml, 1)] * 5), settings) is None
    late = dataclasses.replace(settings, least_squares_cycles=2)
    assert next_target(done((ml, 1), (ml, 0.01)), late) == ls
    assert next_target(done((ml, 1), (ml, 1), (ml, 1)), late) == ls
    assert next_target(done((ml, 1), (ml, 1), (ml, 1), (ls, 1)), late) == ls
    assert next_target(done((ml, 1), (ml, 1), (ml, 1), (ls, 1), (ls, 1)), late) is None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"target": "r1"}, "target"),
        ({"minimiser": "sgd"}, "minimiser"),
        ({"cycles": 0}, "cycles"),
        ({"sites": False, "adp": False}, "Nothing"),
        ({"damping": -1}, "damping"),
        ({"tolerance": 0}, "tolerance"),
    ],
)
def test_impossible_settings(changes, words, made_up):
    with pytest.raises(ValueError, match=words):
        refine(made_up[1], Settings(**changes))


def test_a_refinement_goes_on_as_if_it_had_not_been_interrupted(made_up, tmp_path):
    _, shifted = made_up
    settings = Settings(cycles=2, steps=5, tolerance=1e-9)
    whole, history = refine(shifted, settings)
    path = tmp_path / "state.npz"
    refine(shifted, dataclasses.replace(settings, cycles=1), on_cycle=lambda m, h: state.save(path, m, h, "mark"))
    assert state.load(path, shifted.atoms, "another mark") is None
    assert state.load(tmp_path / "none.npz", shifted.atoms, "mark") is None
    atoms, earlier = state.load(path, shifted.atoms, "mark")
    assert len(earlier.cycles) == 1
    resumed = FModel(atoms, shifted.reflections, method="direct", mask={"method": "binary"})
    again, whole_history = refine(resumed, settings, earlier)
    assert [s["target"] for s in whole_history.steps] == [s["target"] for s in history.steps]
    assert torch.equal(again.atoms.sites_frac, whole.atoms.sites_frac)
    for damaged in (b"", b"PK\x03\x04 cut short", path.read_bytes()[:-30]):
        path.write_bytes(damaged)
        assert state.load(path, shifted.atoms, "mark") is None


def test_fingerprint(tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    for number, path in enumerate(files):
        path.write_text(str(number))
    mark = state.fingerprint(files, {"x": 1})
    assert mark == state.fingerprint(files, {"x": 1}) != state.fingerprint(files, {"x": 2})
    files[1].write_text("changed")
    assert mark != state.fingerprint(files, {"x": 1})
