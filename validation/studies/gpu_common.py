"""What :mod:`.gpu_study` and :mod:`.gpu_peers` share: entries, their exact numbers, and a clock that keeps to the time that is left.

Peers run in processes, and perhaps environments, of their own that have no mmtbx_sfdiff: it is imported where it is used.
"""

from __future__ import annotations

import statistics
import time

import torch

import numpy as np

MEMORY = 8 * 2**30
#: Form factors of peers; ours and cctbx's are cctbx's own default.
PEERS_TABLE = "it1992"


class OutOfTime(Exception):
    """No time is left for the next number."""


class Clock:
    """Medians of calls, ms, after some that make plans and compile; as many calls as the time allows, one at least."""

    def __init__(self, device, repeat, until, warm=2):
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.repeat, self.until, self.warm = repeat, until, warm

    def __call__(self, call):
        times = []
        for turn in range(self.repeat + self.warm):
            if time.monotonic() > self.until:
                if times:
                    break
                raise OutOfTime
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            if turn >= self.warm:
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)


def relative(a, b):
    """Relative L2 of a from b."""
    return float(torch.linalg.vector_norm(a.to(b.dtype) - b) / torch.linalg.vector_norm(b))


def load(path, device, table="n_gaussian"):
    """(atoms in single and in double precision, reflections in single precision, F_mask of the CPU)."""
    import mmtbx_sfdiff as sfdiff

    found = np.load(path)
    crystal = sfdiff.Crystal(tuple(found["unit_cell"].tolist()), str(found["space_group"]))
    double = sfdiff.Atoms.from_arrays(
        crystal,
        [str(x) for x in found["types"]],
        found["sites_cart"],
        b_iso=found["b_iso"],
        occupancies=found["occupancies"],
        u_cart=found["u_cart"],
        table=table,
    )
    indices = torch.from_numpy(found["miller_indices"].astype(np.int64))
    data = sfdiff.Reflections.from_arrays(crystal, indices, found["f_obs"], found["sigmas"], found["free"])
    double = double.to(device=device)
    return (
        double.to(dtype=torch.float32),
        double,
        data.to(dtype=torch.float32, device=device),
        torch.from_numpy(found["f_mask"]),
    )


def leaves(atoms, batch=(), seed=0):
    """The atoms, moved a little in each model of a batch, and their sites and u_iso as leaves."""
    noise = torch.randn((*batch, *atoms.sites_cart.shape), generator=torch.Generator().manual_seed(seed))
    x = (atoms.sites_cart + 0.1 * bool(batch) * noise.to(atoms.sites_cart)).requires_grad_()
    u = (atoms.u_iso + torch.zeros((*batch, 1)).to(atoms.u_iso)).requires_grad_()
    return atoms.replace(sites_cart=x, u_iso=u), [x, u]


def seed_of(n, device="cpu"):
    """What F is weighted by when its gradients are asked for."""
    return torch.randn(n, dtype=torch.complex64, generator=torch.Generator().manual_seed(1)).to(device)


def exact_numbers(double, plan, seed):
    """F by direct summation in double precision and its gradients in sites and u_iso."""
    import mmtbx_sfdiff as sfdiff

    moving, wanted = leaves(double)
    f = sfdiff.structure_factors(moving, plan, method="direct", memory=MEMORY)
    gradients = torch.autograd.grad(f, wanted, seed.to(f.dtype))
    return f.detach(), gradients


def write_reference(path, plan, device, out):
    """What the numbers of peers are compared with: :func:`exact_numbers` of an entry by their form factors."""
    f, gradients = exact_numbers(load(path, device, PEERS_TABLE)[1], plan, seed_of(len(plan), device))
    np.savez(out, **{name: x.cpu().numpy() for name, x in zip(("f", "sites", "u_iso"), (f, *gradients))})


def in_asymmetric_unit(indices, space_group):
    """Miller indices (n, 3), each as its equivalent in the asymmetric unit of gemmi, which peers take for granted."""
    import gemmi

    group = gemmi.find_spacegroup_by_name(space_group)
    unit, operations = gemmi.ReciprocalAsu(group), group.operations()
    return np.array([unit.to_asu(list(map(int, x)), operations)[0] for x in indices])
