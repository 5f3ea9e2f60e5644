"""Refinement of latent vectors, placements, B factors and sites, with a generator that needs no training."""

import dataclasses
import json
import math
from types import SimpleNamespace

import torch
from mmtbx_sfdiff.files import load_entry
from mmtbx_sfdiff.latent.refinement import (
    b_factors,
    baselines,
    models,
    objective,
    optimise,
    placement,
    polish,
    problem,
    refine,
)
from mmtbx_sfdiff.latent.refinement.experiment import Experiment
from mmtbx_sfdiff.numerics.superposition import superposed

import numpy as np
import pytest

from tests.support import latent_crystal
from tests.support.latent_crystal import ToyGenerator

QUICK = optimise.Settings(steps=60, stages=2, first_d_min=2.0, rigid_d_min=2.2, rigid_steps=20, refresh=20)


def rotation(seed):
    vector = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return placement.rotation_matrices(vector)


def some_sites(n=12, seed=0):
    return 4 * torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Placement


def test_rotations_are_those_of_the_matrix_exponential_and_differentiable_at_zero():
    vectors = torch.cat([torch.zeros(1, 3), torch.full((1, 3), 1e-6), torch.tensor([[0.3, -1.0, 2.0]])]).to(
        torch.float64
    )
    vectors.requires_grad_(True)
    zero = torch.zeros_like(vectors[:, 0])
    x, y, z = vectors.unbind(-1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    torch.testing.assert_close(placement.rotation_matrices(vectors), torch.matrix_exp(cross))
    assert torch.autograd.gradcheck(placement.rotation_matrices, vectors)


def test_each_chain_has_its_own_movement():
    sites, chains = some_sites(12), torch.tensor([0] * 6 + [3] * 6)
    target = torch.cat([sites[:6] @ rotation(1).T + 5, sites[6:] @ rotation(2).T - 9])
    placed = placement.Placement(chains).superpose(sites, target)
    torch.testing.assert_close(placed(sites), target, rtol=0, atol=1e-10)
    with torch.no_grad():
        placed.shifts[1] += 1.0
    torch.testing.assert_close(placed(sites)[:6], target[:6], rtol=0, atol=1e-10)
    torch.testing.assert_close(placed(sites)[6:], target[6:] + 1, rtol=0, atol=1e-10)
    # Rotations are about the chain's own place, so that they do not carry it away.
    with torch.no_grad():
        placed.rotations[0] += 0.4
    torch.testing.assert_close(placed(sites)[:6].mean(0), target[:6].mean(0), rtol=0, atol=1e-10)
    assert torch.autograd.gradcheck(
        lambda s, r, t: torch.func.functional_call(placed, {"rotations": r, "shifts": t}, (s,)),
        (sites.clone().requires_grad_(True), placed.rotations, placed.shifts),
    )


# B factors


def test_b_from_plddt_and_fluctuations():
    b = b_factors.b_from_plddt([95.0, 90.0, 70.0, 20.0])
    assert bool((b[1:] >= b[:-1]).all()) and float(b.max()) == b_factors.MOST_B
    assert float(b[2]) == pytest.approx(8 * math.pi**2 / 3 * 1.5**2)
    torch.testing.assert_close(b_factors.b_from_plddt([0.9, 0.7]), b[1:3])
    frames = torch.zeros(2, 1, 3, dtype=torch.float64)
    frames[:, 0, 0] = torch.tensor([-0.5, 0.5])
    assert float(b_factors.b_from_fluctuations(frames)) == pytest.approx(8 * math.pi**2 / 3 * 0.25)


def test_residue_b_has_two_groups_a_residue_and_holds_neighbours():
    residue, main = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([True, True, False] * 2)
    start = torch.tensor([10.0, 10, 20, 30, 30, 40])
    b = b_factors.ResidueB(start, residue, main)
    assert len(b.log_b) == 4 and float(b.penalty().detach()) == 0.0
    torch.testing.assert_close(b(), start.to(torch.float64))
    # Main chains of neighbours, side chains of neighbours, main and side chain of each residue.
    assert len(b.pairs) == 4
    with torch.no_grad():
        b.log_b += 1.0
    assert float(b.penalty().detach()) == pytest.approx(4 * 0.5 / b.sigma**2)
    assert torch.autograd.gradcheck(lambda log_b: torch.func.functional_call(b, {"log_b": log_b}, ()), b.log_b)


def test_atom_b_restrains_bonded_atoms_and_stays_in_its_limits():
    sites = torch.tensor([[0.0, 0, 0], [1.5, 0, 0], [9.0, 0, 0]])
    b = b_factors.AtomB(torch.tensor([10.0, 20.0, 1e5]), sites)
    assert b.pairs.tolist() == [[0, 1]] and float(b().detach()[2]) == pytest.approx(b_factors.B_LIMITS[1])
    assert float(b.penalty().detach()) == pytest.approx(0.5 * (math.log(2) / b.sigma_neighbour) ** 2)


# The crystal


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crystal")
    truth = latent_crystal.SITES + [0.5, 0.3, 3.0]
    model, data = latent_crystal.write_crystal(folder, truth)
    rng = np.random.default_rng(5)
    start = truth + 0.35 * rng.standard_normal(truth.shape) + [0.25, -0.2, 0.15]
    (folder / "start.pdb").write_text(latent_crystal.pdb_text(start))
    entry = load_entry(folder / "start.pdb", data)
    prepared = SimpleNamespace(
        sites_cart=torch.tensor(start),
        heavy_index=torch.arange(10),
        model_index=torch.arange(10),
        chain_index=torch.zeros(10, dtype=torch.int64),
        residue_index=torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2]),
    )
    task = problem.make_problem(prepared, entry, dtype=torch.float64, method="direct", mask={"method": "binary"})
    return SimpleNamespace(truth=torch.tensor(truth), problem=task, prepared=prepared, entry=entry)


def springs(crystal):
    """A force field of springs to the true distances, kJ/mol; it knows nothing of where the molecule is."""
    wanted = torch.pdist(crystal.truth)

    def energy(sites):
        distances = torch.stack([torch.pdist(s) for s in sites.reshape(-1, *sites.shape[-2:])])
        return (200 * (distances - wanted).square()).sum(-1).reshape(sites.shape[:-2])

    return energy


def test_problem(crystal):
    task = crystal.problem
    names = [atom.name.strip() for atom in crystal.entry.model.manager.get_hierarchy().atoms()]
    assert names == [atom[0] for atom in latent_crystal.ATOMS]
    assert task.main_chain.tolist() == [a[0] in ("N", "CA", "C", "O") for a in latent_crystal.ATOMS]
    assert not bool(task.fmodel.atoms.use_u_aniso.any())
    torch.testing.assert_close(task.b_start, torch.full((10,), 15.0, dtype=torch.float64), rtol=0, atol=0.01)
    other = SimpleNamespace(**{**vars(crystal.prepared), "model_index": torch.arange(5, 15)})
    with pytest.raises(ValueError, match="prepare this model again"):
        problem.make_problem(other, crystal.entry)
    with pytest.raises(ValueError, match="b_source"):
        problem.make_problem(crystal.prepared, crystal.entry, b_source="guess")


def test_wilson_b_is_that_of_the_model(crystal):
    fmodel = crystal.problem.fmodel
    assert b_factors.wilson_b(fmodel.atoms, fmodel.reflections) == pytest.approx(15, abs=3)
    few = fmodel.reflections.select(fmodel.reflections.d_spacings > 3)
    assert b_factors.wilson_b(fmodel.atoms, few) == 25.0


def test_floored_gaussian_by_hand(crystal):
    reflections = crystal.problem.fmodel.reflections
    model = (
        reflections.f_obs
        * torch.exp(
            0.3 * torch.randn(len(reflections), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        )
        + 0j
    )
    rows, bins = objective.work_bins(reflections, per_bin=40)
    assert set(rows.tolist()) == set(reflections.work.nonzero()[:, 0].tolist()) and int(bins.max()) >= 2
    d = reflections.d_spacings[rows]
    expected = 0.0
    for b in range(int(bins.max()) + 1):
        chosen = bins == b
        assert int(chosen.sum()) >= 40
        if b:
            assert float(d[chosen].max()) <= float(d[bins == b - 1].min()) + 1e-9
        fo, fm = reflections.f_obs[rows[chosen]], model[rows[chosen]].abs()
        k = float((fo * fm).sum() / fm.square().sum())
        ratio = float((fo - k * fm).square().sum() / fo.square().sum())
        expected += 0.5 * int(chosen.sum()) * math.log(ratio + 0.15**2)
    value = objective.floored_gaussian(reflections, model, bins=(rows, bins))
    assert float(value) == pytest.approx(expected)
    free = ~reflections.work
    changed = torch.where(free, 5 * model, model)
    assert float(objective.floored_gaussian(reflections, changed, bins=(rows, bins))) == float(value)
    batch = objective.floored_gaussian(reflections, torch.stack([model, 2 * model]), bins=(rows, bins))
    torch.testing.assert_close(batch, value.expand(2))


@pytest.mark.parametrize("name", objective.OBJECTIVES)
def test_objectives_have_the_gradient_of_finite_differences(crystal, name):
    experiment = Experiment(crystal.problem.fmodel, name)
    sites, b = crystal.problem.sites_cart, crystal.problem.b_start
    experiment.refresh(sites, b)
    sites, b = sites.clone().requires_grad_(True), b.clone().requires_grad_(True)
    experiment(sites, b).objective.backward()
    for tensor, row in ((sites, (4, 1)), (sites, (0, 2)), (b, (3,))):
        values = []
        for sign in (1, -1):
            moved = {id(t): t.detach().clone() for t in (sites, b)}
            moved[id(tensor)][row] += sign * 1e-4
            values.append(float(experiment(moved[id(sites)], moved[id(b)]).objective.detach()))
        assert (values[0] - values[1]) / 2e-4 == pytest.approx(float(tensor.grad[row]), rel=1e-3)


def test_objective_is_lower_for_the_truth(crystal):
    task = crystal.problem
    for name in objective.OBJECTIVES:
        experiment, values = Experiment(task.fmodel, name), []
        for sites in (task.sites_cart, crystal.truth):
            experiment.refresh(task.sites_cart, task.b_start)
            values.append(float(experiment(sites, task.b_start).objective.detach()))
        assert values[1] < values[0] - 10, name


def distance(sites, truth):
    """Root mean square, Å; in P21 nothing says where a molecule is along b."""
    shift = sites - truth
    shift = shift - shift.mean(0) * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    return float(shift.square().sum(-1).mean().sqrt())


# Stages


def test_stages(crystal):
    reflections = crystal.problem.fmodel.reflections
    plan = optimise.stages(reflections, QUICK)
    assert sum(steps for _, steps in plan) == QUICK.steps and plan[-1] == (None, 24)
    assert [limit for limit, _ in plan[:-1]] == sorted((limit for limit, _ in plan[:-1]), reverse=True)
    assert optimise.stages(reflections, dataclasses.replace(QUICK, stages=1)) == [(None, 60)]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"steps": 0}, "steps"),
        ({"objective": "r1"}, "objective"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"annealing": 2.0}, "annealing"),
        ({"refresh": 0}, "refresh"),
        ({"floor": math.nan}, "floor"),
    ],
)
def test_bad_settings(crystal, change, words):
    task = crystal.problem
    with pytest.raises(ValueError, match=words):
        refine.refine_latent(task, ToyGenerator(task.sites_cart, 0.4), dataclasses.replace(QUICK, **change))


# Refinement


@pytest.fixture(scope="module")
def runs(crystal):
    task = crystal.problem
    seen = []
    found = refine.refine_latent(
        task,
        ToyGenerator(task.sites_cart + 0.05, 0.4),
        QUICK,
        starts=((1.0, 0.0), (0.0, 0.0), (0.5, 0.5)),
        on_run=seen.append,
    )
    return found, seen


def test_latent_refinement_comes_to_the_truth(crystal, runs):
    found, _ = runs
    best, task = found[0], crystal.problem
    before, after = (distance(sites, crystal.truth) for sites in (task.sites_cart, best.sites_cart))
    assert before > 0.4 and after < 0.35 * before
    assert best.r_work < 0.2 and best.r_free < 0.3
    start = Experiment(task.fmodel).finished(task.sites_cart, task.b_start)
    assert start.r_work() > 0.35


def test_the_best_start_is_that_of_the_lowest_target_of_the_work_set(crystal, runs):
    found, seen = runs
    assert len(found) == len(seen) == 3 and {r.label for r in found} == {r.label for r in seen}
    assert [r.target for r in found] == sorted(r.target for r in seen)
    assert json.dumps([r.summary() for r in found])
    for run in found:
        assert run.target == pytest.approx(run.objective + run.penalty)


def test_free_reflections_decide_nothing(crystal):
    """Other free amplitudes: nearly the same steps, and another R-free."""
    task = crystal.problem
    reflections = task.fmodel.reflections
    random = torch.rand(len(reflections), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factor = torch.where(reflections.work, 1.0, 0.3 + 1.4 * random)
    other = dataclasses.replace(reflections, f_obs=reflections.f_obs * factor)
    model = type(task.fmodel)(
        task.fmodel.atoms, other, task.fmodel.method, task.fmodel.accuracy, task.fmodel.mask_options
    )
    changed = dataclasses.replace(task, fmodel=model)
    settings = dataclasses.replace(QUICK, steps=8, stages=1, rigid_steps=0)
    a, b = (
        refine.refine_latent(t, ToyGenerator(t.sites_cart, 0.4), settings, starts=((0.0, 0.0),))[0]
        for t in (task, changed)
    )
    assert a.r_free != pytest.approx(b.r_free, abs=0.05)
    # Scaling in mmtbx's way looks at whole bins, so that scales may differ a little; without refreshing they do not.
    targets = [[s["target"] for s in run.history.steps] for run in (a, b)]
    assert targets[0] == pytest.approx(targets[1], rel=0.05)


def test_history_and_schedule(crystal, runs):
    run = runs[0][0]
    steps, cycles = run.history.steps, run.history.cycles
    assert len(steps) == sum(c["steps"] for c in cycles) == QUICK.steps + QUICK.rigid_steps
    assert cycles[0]["rigid"] and not any(c["rigid"] for c in cycles[1:])
    assert [c["d_min"] for c in cycles[1:]] == sorted((c["d_min"] for c in cycles[1:]), reverse=True)
    for step in steps:
        assert step["target"] == pytest.approx(step["objective"] + step["penalty"]) and "z_norm" in step


def test_rigid_body_stage_moves_only_the_placement(crystal):
    task = crystal.problem
    generator = ToyGenerator(task.sites_cart, 0.4)
    model = models.LatentModel(
        generator,
        torch.zeros(30, dtype=torch.float64),
        task.rows,
        task.residue_b(),
        task.chain_index,
        task.sites_cart,
    )
    experiment = Experiment(task.fmodel)
    loop = optimise._Loop(model, experiment, QUICK, optimise.History(), None, "x", 10)
    loop.stage(2.2, 10, True, False)
    assert float(model.z.detach().abs().max()) == 0 and float(model.placement.shifts.detach().abs().max()) > 1e-3
    distances = torch.pdist(model().sites_cart.detach())
    torch.testing.assert_close(distances, torch.pdist(task.sites_cart), rtol=0, atol=1e-9)


def test_an_infinite_energy_spoils_no_step(crystal):
    task = crystal.problem
    calls = []

    def energy(sites):
        calls.append(1)
        value = springs(crystal)(sites)
        return value * torch.inf if len(calls) == 3 else value

    model = models.CartesianModel(task.sites_cart, task.rows, task.residue_b(), energy)
    optimise.optimise(model, Experiment(task.fmodel), dataclasses.replace(QUICK, steps=8, stages=1))
    assert bool(torch.isfinite(model.sites).all()) and len(calls) >= 8


def test_polish_and_baselines(crystal, runs):
    task, energy = crystal.problem, springs(crystal)
    best = runs[0][0]
    polished = polish.polish(task, best.all_sites_cart, best.b, energy, QUICK, steps=60)
    assert polished.facts["energy"] < 0.2 * float(energy(best.all_sites_cart))
    assert polished.r_free < best.r_free + 0.02
    assert len(polished.history.steps) == 60
    torch.testing.assert_close(task.sites_cart, crystal.prepared.sites_cart, rtol=0, atol=0)
    free = baselines.run_baseline("sites", task, settings=QUICK)
    held = baselines.run_baseline("sites_ff", task, energy, settings=QUICK)
    assert "energy" not in free.facts and float(energy(held.all_sites_cart)) < float(energy(free.all_sites_cart))
    assert held.r_work < 0.3 and len(held.history.steps) == QUICK.steps
    frames = (
        crystal.truth
        + 0.1 * torch.randn(40, 10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        + 30
    )
    average = baselines.trajectory_average(frames, task, energy)
    placed = superposed(crystal.truth, task.sites_cart)
    assert task.rmsd(average, placed, main_chain=False) < 0.15
    for name, words in (("sites_ff", "energy"), ("best", "Unknown")):
        with pytest.raises(ValueError, match=words):
            baselines.run_baseline(name, task)
    with pytest.raises(ValueError, match="frames"):
        baselines.run_baseline("average_ff", task, energy)


def test_relax_lowers_the_energy_and_stays_near(crystal):
    energy, start = springs(crystal), crystal.problem.sites_cart
    relaxed = models.relax(start, energy)
    assert float(energy(relaxed)) < 0.2 * float(energy(start))
    assert float((relaxed - start).square().sum(-1).mean().sqrt()) < 0.7


def test_experiment_refuses_what_it_cannot_refine(crystal):
    fmodel = crystal.problem.fmodel
    atoms = dataclasses.replace(fmodel.atoms, use_u_aniso=torch.ones(10, dtype=torch.bool))
    with pytest.raises(ValueError, match="isotropic"):
        Experiment(type(fmodel)(atoms, fmodel.reflections))
    bare = dataclasses.replace(fmodel.reflections, sigmas=None)
    with pytest.raises(ValueError, match="standard deviations"):
        Experiment(type(fmodel)(fmodel.atoms, bare), "least_squares")
