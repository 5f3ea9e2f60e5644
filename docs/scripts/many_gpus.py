"""A batch of models over several processes, one a GPU; on the CPU with gloo.

    torchrun --nproc-per-node 2 many_gpus.py [--models 8] [--output f.pt]

Every process takes its share of the models, on its own card where there are any, and calculates structure factors and their
gradients; the results are gathered.  Models do not know of one another, so nothing else crosses.
"""

import argparse
import os

import mmtbx_sfdiff as sfdiff
import torch
import torch.distributed


def models(n):
    """The same atoms and n sets of coordinates in every process; yours come from a file, or from a network."""
    generator = torch.Generator().manual_seed(0)
    crystal = sfdiff.Crystal((20, 25, 30, 90, 90, 90), "P 21 21 21")
    sites = torch.rand(40, 3, generator=generator) * 20
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "N", "O", "C"] * 10, sites, b_iso=20.0, dtype=torch.float32)
    return atoms, atoms.sites_cart + 0.1 * torch.randn(n, 40, 3, generator=generator)


def share(n, rank, world):
    """Which of n models a process takes."""
    return slice(n * rank // world, n * (rank + 1) // world)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--output", default="f.pt")
    options = parser.parse_args()
    on_gpus = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if on_gpus else "gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    atoms, sites = models(options.models)
    own = share(options.models, rank, world)
    there = atoms.to(device=device)
    plan = sfdiff.plan(there.crystal, there.crystal.build_miller_indices(2.5))
    x = sites[own].to(device).requires_grad_()
    f = sfdiff.structure_factors(there.replace(sites_cart=x), plan, method="fft", accuracy=1e-3)
    (gradient,) = torch.autograd.grad(f.abs().square().sum(), x)
    results = [None] * world
    torch.distributed.all_gather_object(results, (f.detach().cpu(), gradient.cpu()))
    if rank == 0:
        torch.save([torch.cat(parts) for parts in zip(*results)], options.output)
        print(f"{options.models} models, {len(plan)} reflections, {world} processes on {device.type}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
