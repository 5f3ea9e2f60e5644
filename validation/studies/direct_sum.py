"""Direct summation beside cctbx's: time, error and their ratio, entry by entry.

    python -m validation.studies.direct_sum 1dur 1cbs 3ds1

Single precision, forward, and forward with the gradient in sites and displacement parameters; both sides in one process,
in turns, medians of three.  cctbx's time is proportional to the reflections and is taken on a random part of them where
there are many (its direct summation needs 36 ns a term on its one thread).  Entries are looked for as in
``mmtbx_sfdiff.compare``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.crystal import as_miller_tensor
from mmtbx_sfdiff.files import find_entry, load_entry

from cctbx import xray
from cctbx.array_family import flex
from libtbx.utils import Sorry

# Terms (atoms x reflections x operators) of cctbx's part: about a second.
_TERMS = 3e7
_REPEATS = 3


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(entry_id):
    """One line of the table."""
    files = find_entry(entry_id)
    entry = load_entry(files.model, files.data)
    structure, miller_set = entry.model.xray_structure, entry.data.f_obs.complete_set()
    n, order = structure.scatterers().size(), structure.space_group().order_p()
    flex.set_random_seed(0)
    share = min(1.0, _TERMS / (n * miller_set.size() * order))
    part = miller_set.select(flex.random_permutation(miller_set.size())[: max(50, int(share * miller_set.size()))])
    share = part.size() / miller_set.size()
    xray.set_scatterer_grad_flags(structure.scatterers(), site=True, u_iso=True, u_aniso=True)
    d_target = flex.complex_double(torch.randn(part.size(), dtype=torch.complex128).numpy())
    atoms = sfdiff.Atoms.from_cctbx(structure, dtype=torch.float32)
    indices = as_miller_tensor(miller_set)
    weights = torch.randn(len(indices), dtype=torch.complex64)

    def f_calc(atoms, miller_indices):
        return sfdiff.structure_factors(atoms, atoms.crystal, miller_indices, method="direct")

    def with_gradient():
        leaves = {name: getattr(atoms, name).clone().requires_grad_() for name in ("sites_cart", "u_iso", "u_star")}
        torch.autograd.grad(f_calc(atoms.replace(**leaves), indices), list(leaves.values()), weights)

    calls = {
        "cctbx": lambda: xray.structure_factors.from_scatterers_direct(xray_structure=structure, miller_set=part),
        "cctbx gradient": lambda: xray.structure_factors.gradients_direct(
            xray_structure=structure,
            u_iso_refinable_params=None,
            miller_set=part,
            d_target_d_f_calc=d_target,
            n_parameters=0,
        ),
        "forward": lambda: f_calc(atoms, indices),
        "both": with_gradient,
    }
    first = seconds(calls["forward"])
    with_gradient()
    times = {name: [] for name in calls}
    for _ in range(_REPEATS):
        for name, call in calls.items():
            times[name].append(seconds(call))
    median = {name: statistics.median(values) for name, values in times.items()}
    cctbx, cctbx_both = median["cctbx"] / share, (median["cctbx"] + median["cctbx gradient"]) / share
    reference = torch.from_numpy(calls["cctbx"]().f_calc().data().as_numpy_array())
    error = float((f_calc(atoms, part).to(torch.complex128) - reference).norm() / reference.norm())
    return (
        f"{entry_id:5s} {str(structure.space_group_info()):12s} {n:7d} {len(indices):7d} "
        f"{structure.use_u_aniso().count(True):7d} {cctbx:8.3f} {cctbx_both:8.3f} {first:7.3f} {median['forward']:8.4f} "
        f"{median['both']:8.4f} {cctbx / median['forward']:6.1f} {cctbx_both / median['both']:6.1f}  {error:.1e}"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("entries", nargs="+", help="PDB entries")
    options = parser.parse_args(arguments)
    print(
        f"torch threads: {torch.get_num_threads()}; cctbx: 1. Seconds; float32; ratio = cctbx / ours; "
        "error against cctbx direct."
    )
    print("entry group          atoms    refl   aniso    cctbx    +grad   first  forward    +grad  ratio  +grad  error")
    for entry_id in options.entries:
        try:
            print(measure(entry_id), flush=True)
        except Sorry as error:
            print(f"Sorry: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
