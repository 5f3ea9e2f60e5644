"""Time of one step of a refinement, beside mmtbx's, in one process, in turns of a few steps each.

For every entry, medians over the repeats:

- *whole step*: F_protein, solvent mask, F_model, least-squares target and its gradient with respect to all sites and
  displacement parameters; ours differentiates the mask too, mmtbx's (F_calc, F_mask, target functor, gradients by FFT)
  does not have that term.  It is told to make the mask anew in every step, as ours is; by itself it would keep it until
  the atoms have moved by 0.1 Å in the mean;
- *mask held fixed*: the same without the mask.

Both start from atoms that have moved since the last step.  In a refinement steps follow one another, so each side has a
turn of three, of which the first, which finds the other's data in the caches, does not count.  Structure factors are by FFT
on both sides, mmtbx's at its default accuracy, ours at the accuracy given; how far each is from direct summation is in
``validation/studies/timing.py``.

    python -m validation.studies.refinement_step [--entries 1cbs ...] [--mask probe_shrink] [--repeat 5] [--threads 2]
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.bulk_solvent import DEFAULT_MASK
from mmtbx_sfdiff.files import find_entry, load_entry, write_all
from mmtbx_sfdiff.likelihood import targets

import mmtbx.f_model
import numpy as np
from cctbx.array_family import flex
from libtbx.utils import null_out

ENTRIES = ("1bff", "1cbs", "4cjl", "2uui", "2xiu", "5edl", "1ehz", "1nsf", "5orl", "6n87", "3mpq", "2q9e")
_STEPS = 3


class Ours:
    def __init__(self, entry, mask, accuracy, method, device="cpu"):
        files = find_entry(entry, download=False)
        self.fmodel = FModel.from_files(
            files.model, files.data, mask={"method": mask}, method=method, accuracy=accuracy, device=device
        )
        self.fmodel.update_scales()
        atoms = self.atoms = self.fmodel.atoms
        self.start = {"sites_cart": atoms.sites_cart, "u_iso": atoms.u_iso, "u_star": atoms.u_star}
        self.f_mask = self.fmodel.f_mask()
        self.names = ["sites_cart", "u_iso"] + ["u_star"] * bool(atoms.use_u_aniso.any())

    def step(self, shift, fixed_mask):
        values = {name: self.start[name].detach().clone() for name in self.names}
        values["sites_cart"] += torch.from_numpy(shift).to(self.atoms.device)
        for value in values.values():
            value.requires_grad_()
        self.fmodel.atoms = self.atoms.replace(**values)
        f_model = self.fmodel.f_model(f_mask=self.f_mask if fixed_mask else None)
        target = targets.normalized_least_squares(self.fmodel.reflections, f_model, **self.fmodel.in_use())
        return float(target.detach()), torch.autograd.grad(target, list(values.values()))


class Theirs:
    def __init__(self, entry):
        files = find_entry(entry, download=False)
        loaded = load_entry(files.model, files.data)
        self.manager = mmtbx.f_model.manager(
            f_obs=loaded.data.f_obs,
            r_free_flags=loaded.data.r_free_flags,
            xray_structure=loaded.model.xray_structure,
            target_name="ls_wunit_k1",
        )
        self.manager.update_all_scales(log=null_out())
        structure = self.structure = self.manager.xray_structure
        self.sites = structure.sites_cart()
        scatterers = structure.scatterers()
        scatterers.flags_set_grads(state=False)
        scatterers.flags_set_grad_site(iselection=flex.size_t_range(scatterers.size()))
        scatterers.flags_set_grad_u_iso(iselection=scatterers.extract_use_u_iso().iselection())
        scatterers.flags_set_grad_u_aniso(iselection=scatterers.extract_use_u_aniso().iselection())
        self.functor = self.manager.target_functor()

    def step(self, shift, fixed_mask):
        self.structure.set_sites_cart(self.sites + flex.vec3_double(np.ascontiguousarray(shift)))
        self.manager.update_xray_structure(
            self.structure, update_f_calc=True, update_f_mask=not fixed_mask, force_update_f_mask=not fixed_mask
        )
        result = self.functor(compute_gradients=True)
        gradients = result.gradients_wrt_atomic_parameters(site=True, u_iso=True, u_aniso=True)
        return result.target_work(), gradients


def step_times(ours, theirs, repeat, fixed_mask, wait=lambda: None):
    """Seconds of each step of both sides, taken in turns, and the targets; ``wait`` ends what a device still does."""
    rng = np.random.default_rng(0)
    seconds, values = {"sfdiff": [], "mmtbx": []}, {}
    for turn in range(repeat + 1):
        shift = 0.02 * rng.standard_normal((ours.atoms.n_atoms, 3))
        for who, side in (("sfdiff", ours), ("mmtbx", theirs)):
            wait()
            start = time.perf_counter()
            values[who] = side.step(shift, fixed_mask)[0]
            wait()
            if turn:  # the first call of everything makes plans and compiles
                seconds[who].append(time.perf_counter() - start)
    return seconds, values


def measure(entry, mask, accuracy, method, repeat):
    ours, theirs = Ours(entry, mask, accuracy, method), Theirs(entry)
    result = {
        "entry": entry,
        "n_atoms": ours.atoms.n_atoms,
        "n_reflections": len(ours.fmodel.reflections),
        "d_min": ours.fmodel.reflections.d_min,
        "anisotropic": int(ours.atoms.use_u_aniso.sum()),
        "threads": torch.get_num_threads(),
        "mask": mask,
        "accuracy": accuracy,
        "method": method,
    }
    for fixed, name in ((False, "whole"), (True, "fixed_mask")):
        seconds, targets_ = step_times(ours, theirs, repeat, fixed)
        times = {who: statistics.median(values) for who, values in seconds.items()}
        result[name] = times | {"ratio": times["mmtbx"] / times["sfdiff"], "targets": targets_}
    return result


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", nargs="*", default=ENTRIES)
    parser.add_argument("--mask", default=DEFAULT_MASK)
    parser.add_argument("--accuracy", type=float, default=1e-3)
    parser.add_argument("--method", default="auto", help="of structure factors: auto, fft or direct")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    print("entry   atoms  aniso   refl. | whole step, ms: sfdiff  mmtbx  ratio | mask fixed, ms: sfdiff  mmtbx  ratio")
    results = []
    for entry in options.entries:
        r = measure(entry, options.mask, options.accuracy, options.method, options.repeat)
        results.append(r)
        whole, fixed = r["whole"], r["fixed_mask"]
        print(
            f"{entry:6s}{r['n_atoms']:7d}{r['anisotropic']:7d}{r['n_reflections']:8d} |"
            f"{1e3 * whole['sfdiff']:21.1f}{1e3 * whole['mmtbx']:8.1f}{whole['ratio']:6.2f} |"
            f"{1e3 * fixed['sfdiff']:21.1f}{1e3 * fixed['mmtbx']:8.1f}{fixed['ratio']:6.2f}",
            flush=True,
        )
        if options.json:
            write_all({options.json: json.dumps(results, indent=1).encode()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
