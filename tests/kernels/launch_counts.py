"""Counts of :mod:`tests.support.launches` for a very small crystal, as JSON: ``python -m tests.kernels.launch_counts``."""

import functools
import json

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.kernels import engines

from tests.support.interpreter import small_tiles
from tests.support.launches import counting

small_tiles()


def main():
    crystal = sfdiff.Crystal((6, 7, 8, 90, 90, 90), "P 21 21 21")
    generator = torch.Generator().manual_seed(0)
    sites = torch.rand(3, 3, generator=generator) * 6
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "N", "O"], sites, b_iso=20.0, dtype=torch.float32)
    indices = crystal.build_miller_indices(3.0)
    n, ones = len(indices), torch.ones(len(indices))
    data = sfdiff.Reflections.from_arrays(crystal, indices, 10 + torch.rand(n, generator=generator), ones, ones == 0)
    options = {"grid_step": 1.5}
    with engines.everywhere("cpu"):
        fmodel = sfdiff.FModel(atoms, data, method="fft", accuracy=1e-3, mask=options)
        fmodel.update_scales()
        fmodel.alpha_beta()
        f_model = fmodel.f_model()
    plan, found = fmodel._plan, {}

    def moved(*batch):
        """Atoms of a batch of models, and the leaves that gradients are wanted of."""
        x = (atoms.sites_cart + torch.zeros(*batch, 1, 1)).requires_grad_()
        u = (atoms.u_iso + torch.zeros(*batch, 1)).requires_grad_()
        return atoms.replace(sites_cart=x, u_iso=u), [x, u]

    def record(name, count):
        found[name] = {"launches": count.launches, **{k: dict(v) for k, v in vars(count).items()}}

    def both(name, function, leaves, seed, count):
        """A call, and its gradients."""
        count.clear()
        value = function()
        record(name, count)
        torch.autograd.grad(value, leaves, seed)
        record(f"{name} and gradients", count)

    with counting() as count:
        for turn in ("first", ""):
            some, leaves = moved()
            seed = torch.ones(n, dtype=torch.complex64)
            both(
                "F" + turn,
                lambda a=some: sfdiff.structure_factors(a, plan, method="fft", accuracy=1e-3),
                leaves,
                seed,
                count,
            )
            mask = functools.partial(sfdiff.solvent_structure_factors, some, plan, **options)
            both("mask" + turn, mask, leaves[:1], seed, count)
            leaf, one = f_model.clone().requires_grad_(), torch.ones(())
            for target in ("least_squares", "maximum_likelihood"):
                both(target + turn, lambda t=target, f=leaf: fmodel.target(t, f_model=f), [leaf], one, count)
        some, leaves = moved()
        fmodel.atoms = some
        both("step", lambda: fmodel.target("least_squares"), leaves, one, count)
        both("step of maximum likelihood", fmodel.target, leaves, one, count)
        some, leaves = moved(2)
        seed = seed.expand(2, n).contiguous()
        both("F of 2", lambda: sfdiff.structure_factors(some, plan, method="fft", accuracy=1e-3), leaves, seed, count)
        mask = functools.partial(sfdiff.solvent_structure_factors, some, plan, **options)
        both("mask of 2", mask, leaves[:1], seed, count)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
