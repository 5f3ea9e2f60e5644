"""Kernels called directly with numbers that are none: ``python -m tests.kernels.bounded ENGINE`` ends, and says for each
call whether it was refused or what it gave.  A crash or a hang is the caller's to notice."""

import dataclasses
import sys

import torch
from mmtbx_sfdiff.kernels import engines

import numpy as np

from tests.kernels.conformance import CASES, _ball, _mask_atoms, density_jobs, mask_job

BAD = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30)
# Isotropic and anisotropic; cells with and without symmetry.
CHOSEN = (CASES[1], CASES[6])


def spoiled(tensor, value, part=6):
    """The same, with one number replaced, of an atom that counts."""
    tensor = tensor.clone()
    tensor.reshape(-1)[tensor.numel() // part] = value
    return tensor


def outcome(function):
    try:
        found = function()
    except (ValueError, RuntimeError) as error:
        return f"refused: {type(error).__name__}"
    found = found if isinstance(found, (list, tuple)) else [found]
    return "finite" if all(bool(torch.isfinite(x).all()) for x in found) else "not finite"


def density(engine, case, value):
    together, one_by_one = density_jobs(case)
    job = together if engine.batched else one_by_one[0]
    seed = torch.ones_like(engine.structure_factors(job))
    grid = torch.ones_like(engine.density(job))
    for name in ("sites", "u_iso", "u_star", "weights", "fp"):
        bad = dataclasses.replace(job, **{name: spoiled(getattr(job, name), value, 3 if name == "u_star" else 6)})
        yield f"density, {name}", outcome(lambda bad=bad: engine.structure_factors(bad))
        yield f"density gradients, {name}", outcome(lambda bad=bad: engine.density_gradients(seed, bad))
    yield "seed of density gradients", outcome(lambda: engine.density_gradients(spoiled(seed, value), job))
    yield "grid of density pull back", outcome(lambda: engine.density_pull_back(spoiled(grid, value), job))


def masks(engine, case, value):
    sites, radii, cover = _mask_atoms(case)
    parameters = {"sites": sites[0], "radii": radii, "cover": cover}
    n = len(radii)
    for name, tensor in parameters.items():
        bad = {**parameters, name: spoiled(tensor, value)}

        def soft(bad=bad):
            mask = engine.soft_mask(mask_job(case, 1, n))
            weights = mask.weights(_ball)
            v = mask.forward(*bad.values(), 0.7, [weights])[0]
            return [v, *mask.backward(torch.ones_like(v), *bad.values(), 0.7, weights)]

        yield f"soft mask, {name}", outcome(soft)
        if name == "cover":
            continue

        def hard(bad=bad):
            mask = engine.hard_mask(mask_job(case))
            psi, source = mask.psi(bad["sites"], bad["radii"], -0.8, 0.3)
            return [psi, *mask.pull_back(torch.ones_like(psi), source, bad["sites"], bad["radii"], 0.3)]

        yield f"hard mask, {name}", outcome(hard)
    mask = engine.soft_mask(mask_job(case, 1, n))
    weights = mask.weights(_ball)
    v = mask.forward(*parameters.values(), 0.7, [weights])[0]
    bad_seed = spoiled(torch.ones_like(v), value)
    yield "seed of the soft mask", outcome(lambda: mask.backward(bad_seed, *parameters.values(), 0.7, weights))


def compiled(value):
    """The kernels below the engine's, which have no job."""
    from mmtbx_sfdiff.kernels.cpu.histogram import population

    result = np.zeros((3, 2, 20))
    for i in range(3):
        numbers = [np.full(3, 0.1), np.zeros((3, 6)), np.ones(3)]
        numbers[i].reshape(-1)[0] = value
        u_iso, u_star, weights = numbers
        population(
            u_iso, u_star, np.ones(3, bool), np.eye(3), 1.0, weights, np.zeros((0, 3)), 0.0, np.zeros(3, np.int64), -1.0,
            1.5, 0.1, result,
        )  # fmt: skip
        yield f"population {i}", "finite"


if __name__ == "__main__":
    torch.set_num_threads(1)
    tested = engines.engine("cpu", sys.argv[1])
    for case in CHOSEN[: int(sys.argv[2])]:
        for value in BAD[: int(sys.argv[3])]:
            for part in (density, masks):
                for name, found in part(tested, case, value):
                    print(f"{case}: {value}: {name}: {found}", flush=True)
            if tested.name == "cpu":
                for name, found in compiled(value):
                    print(f"{case}: {value}: {name}: {found}", flush=True)
    print("ended")
