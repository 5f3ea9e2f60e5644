"""The backend inside cctbx: gradients of the whole f_model, minimisation, scaling, overhead.

    python -m validation.studies.plugin gradients [entry ...] [--mask probe_shrink]
    python -m validation.studies.plugin minimize [entry ...]
    python -m validation.studies.plugin scaling [entry ...]
    python -m validation.studies.plugin overhead [entry ...]

``gradients``: derivatives of ``ls_wunit_k1`` and ``ml`` along random directions of all sites, by mmtbx (its FFT, its
mask, a constant for the gradient), by this package in mmtbx with the mask's gradient, each against central differences
of its own whole f_model, mask recomputed and scales fixed.
``minimize``: ``mmtbx.refinement.minimization.lbfgs`` of sites, then of B, from sites shaken by 0.2 A.
``scaling``: ``update_all_scales`` by mmtbx and with ``register(scaling=True)``.
``overhead``: F_calc and gradients of the sites through a manager that asks for ``sfdiff``, against the same
calculation by this package on tensors that are ready, in turn, medians.

Each part adds its rows to ``--output`` (JSON).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import mmtbx_sfdiff
import torch
from mmtbx_sfdiff.crystal import as_miller_tensor
from mmtbx_sfdiff.files import find_entry, load_entry
from mmtbx_sfdiff.files.writing import write_atomically
from mmtbx_sfdiff.structure_factors import structure_factor_gradients

import mmtbx.f_model
import mmtbx.masks
import numpy as np
import scitbx.lbfgs
from cctbx import xray
from cctbx.array_family import flex
from mmtbx.refinement import minimization

# Å, root mean square.  Least squares on amplitudes has a cusp wherever an |F| goes through 0; large steps cross many.
_STEPS = {"ml": 0.01, "ls_wunit_k1": 0.0003}
_GRADIENT_ENTRIES = ("1yjp", "2okz", "5wkd", "1aie", "1bdw", "1dtx", "1dur", "3ds1", "1bff", "1cbs")
_OVERHEAD_ENTRIES = ("5gge", "6n87", "4tql", "3nm9", "2uxj", "4fsx", "5diz", "4iid")
_MINIMIZE_ENTRIES = ("1aie", "1dtx", "1dur", "1bff", "1cbs")


def load(entry):
    """Model and data of an entry."""
    files = find_entry(entry, download=False)
    return load_entry(files.model, files.data)


def parameters(algorithm, mask, **extra):
    """mmtbx's parameters that ask for an engine and a mask."""
    accuracy = mmtbx.f_model.f_model.sf_and_grads_accuracy_master_params.extract()
    accuracy.algorithm = algorithm
    for name, value in extra.items():
        setattr(accuracy.extra.sfdiff, name, value)
    mask_params = mmtbx.masks.mask_master_params.extract()
    if mask is not None:
        mask_params.algorithm = "sfdiff"
        mask_params.sfdiff.method = mask
    return {"sf_and_grads_accuracy_params": accuracy, "mask_params": mask_params}


def manager(entry, structure=None, **options):
    """An f_model manager of an entry."""
    structure = entry.model.xray_structure if structure is None else structure
    return mmtbx.f_model.manager(
        f_obs=entry.data.f_obs,
        r_free_flags=entry.data.r_free_flags,
        xray_structure=structure.deep_copy_scatterers(),
        **options,
    )


def gradients(entry_id, mask, directions=5):
    """Rows of derivatives along random directions, against central differences."""
    entry = load(entry_id)
    rows = []
    for name, options in (("mmtbx", parameters("fft", None)), ("sfdiff", parameters("sfdiff", mask, method="direct"))):
        if name == "mmtbx":
            options["sf_and_grads_accuracy_params"].algorithm = "direct"
        model = manager(entry, **options)
        model.update_all_scales(remove_outliers=False)
        for target in ("ls_wunit_k1", "ml"):
            model.set_target_name(target)
            scatterers = model.xray_structure.scatterers()
            xray.set_scatterer_grad_flags(scatterers=scatterers, site=True)
            functor = model.target_functor()
            gradient = functor(compute_gradients=True).gradients_wrt_atomic_parameters().packed().as_numpy_array()
            rng = np.random.default_rng(0)
            found, expected = [], []
            for _ in range(directions):
                direction = rng.standard_normal(gradient.shape)
                direction /= np.sqrt((direction**2).mean())
                found.append(float(gradient @ direction))
                expected.append(_central_difference(model, functor, direction, _STEPS[target]))
            error = np.linalg.norm(np.subtract(found, expected)) / np.linalg.norm(expected)
            rows.append(
                {
                    "part": "gradients",
                    "entry": entry_id,
                    "engine": name,
                    "mask": mask,
                    "target": target,
                    "relative_error": float(error),
                    "derivatives": found,
                    "differences": expected,
                }
            )
            print(f"{entry_id} {name:7s} {target:12s} error {error:8.1%}", flush=True)
    return rows


def _central_difference(model, functor, direction, step):
    values = []
    own = functor.manager
    try:
        for sign in (1, -1):
            moved = model.deep_copy()
            structure = moved.xray_structure
            structure.set_sites_cart(
                structure.sites_cart() + flex.vec3_double(flex.double(np.ascontiguousarray(sign * step * direction)))
            )
            moved.update_xray_structure(
                xray_structure=structure, update_f_calc=True, update_f_mask=True, force_update_f_mask=True
            )
            functor.manager = moved
            values.append(functor(compute_gradients=False).target_work())
    finally:
        functor.manager = own
    return (values[0] - values[1]) / (2 * step)


def minimize(entry_id, mask):
    """R factors and times of mmtbx's minimiser with its own engine and with this one."""
    entry = load(entry_id)
    random.seed(0)
    flex.set_random_seed(0)
    start = entry.model.xray_structure.deep_copy_scatterers()
    start.shake_sites_in_place(mean_distance=0.2)
    engines = {
        "mmtbx": lambda: parameters("fft", None),
        "sfdiff": lambda: parameters("sfdiff", "binary"),
        f"sfdiff, {mask} mask": lambda: parameters("sfdiff", mask),
    }
    rows = []
    for name, options in engines.items():
        model = manager(entry, start, **options())
        model.update_all_scales(remove_outliers=False)
        row = {
            "part": "minimize",
            "entry": entry_id,
            "engine": name,
            "n_atoms": start.scatterers().size(),
            "start": [model.r_work(), model.r_free()],
        }
        begin = time.perf_counter()
        for kind in ("sites", "adp"):
            _lbfgs(entry, model, kind)
            row[kind] = [model.r_work(), model.r_free()]
        row["seconds"] = time.perf_counter() - begin
        model.update_all_scales(remove_outliers=False)
        row["end"] = [model.r_work(), model.r_free()]
        rows.append(row)
        print(
            f"{entry_id} {name:28s} R {row['start'][0]:.4f}/{row['start'][1]:.4f} -> {row['end'][0]:.4f}/"
            f"{row['end'][1]:.4f}  {row['seconds']:.1f} s",
            flush=True,
        )
    return rows


def _lbfgs(entry, model, kind):
    scatterers = model.xray_structure.scatterers()
    model.set_target_name("ml")
    scatterers.flags_set_grads(state=False)
    everyone = flex.size_t_range(scatterers.size())
    if kind == "sites":
        scatterers.flags_set_grad_site(iselection=everyone)
    else:
        scatterers.flags_set_grad_u_iso(iselection=scatterers.extract_use_u_iso().iselection())
        scatterers.flags_set_grad_u_aniso(iselection=scatterers.extract_use_u_aniso().iselection())
    minimization.lbfgs(
        fmodels=mmtbx.fmodels(fmodel_xray=model),
        model=entry.model.manager,
        is_neutron_scat_table=False,
        refine_xyz=kind == "sites",
        refine_adp=kind == "adp",
        collect_monitor=False,
        lbfgs_termination_params=scitbx.lbfgs.termination_parameters(max_iterations=25),
    )


def scaling(entry_id, rounds=3):
    """R factors and times of update_all_scales by mmtbx and by this package in its place."""
    entry = load(entry_id)
    first = manager(entry)
    times, managers = {"mmtbx": [], "sfdiff": []}, {}
    for _ in range(rounds):
        for name in times:
            mmtbx_sfdiff.unregister()
            mmtbx_sfdiff.register(scaling=name == "sfdiff")
            model = first.deep_copy()
            begin = time.perf_counter()
            model.update_all_scales()
            times[name].append(time.perf_counter() - begin)
            managers[name] = model
    mmtbx_sfdiff.unregister()
    mmtbx_sfdiff.register()
    row = {"part": "scaling", "entry": entry_id, "n_reflections": first.f_obs().size()}
    for name, model in managers.items():
        row[name] = {
            "r_work": model.r_work(),
            "r_free": model.r_free(),
            "n": model.f_obs().size(),
            "seconds": statistics.median(times[name]),
        }
    row["ratio"] = row["mmtbx"]["seconds"] / row["sfdiff"]["seconds"]
    print(
        f"{entry_id} {row['n_reflections']} reflections: {row['mmtbx']['seconds']:.2f} / {row['sfdiff']['seconds']:.2f} "
        f"s = {row['ratio']:.1f}; R-work {row['sfdiff']['r_work'] - row['mmtbx']['r_work']:+.5f}, R-free "
        f"{row['sfdiff']['r_free'] - row['mmtbx']['r_free']:+.5f}, kept {row['sfdiff']['n'] - row['mmtbx']['n']:+d}",
        flush=True,
    )
    return [row]


def overhead(entry_id, rounds=41):
    """Times of the same calculation through cctbx and by this package on tensors that are ready."""
    entry = load(entry_id)
    model = manager(entry, **parameters("sfdiff", None))
    model.update_all_scales(remove_outliers=False)
    model.set_target_name("ml")
    structure, miller_set = model.xray_structure, model.f_obs().set()
    xray.set_scatterer_grad_flags(scatterers=structure.scatterers(), site=True)
    work_set, n_parameters = model.f_obs_work().set(), structure.n_parameters()
    d_target = flex.complex_double(np.random.default_rng(0).standard_normal((work_set.size(), 2)) @ (1, 1j))
    atoms = mmtbx_sfdiff.Atoms.from_cctbx(structure)
    indices, work_indices = (as_miller_tensor(some.indices()) for some in (miller_set, work_set))
    seed = torch.from_numpy(d_target.as_numpy_array())
    pairs = {
        "f_calc": (model.compute_f_calc, lambda: mmtbx_sfdiff.structure_factors(atoms, atoms.crystal, indices)),
        "gradients": (
            lambda: model.structure_factor_gradients_w(
                xray_structure=structure,
                u_iso_refinable_params=None,
                miller_set=work_set,
                d_target_d_f_calc=d_target,
                n_parameters=n_parameters,
                algorithm="sfdiff",
                extra_params=model.sfg_params.extra,
            ).packed(),
            lambda: structure_factor_gradients(atoms, atoms.crystal, work_indices, seed),
        ),
    }
    row = {"part": "overhead", "entry": entry_id, "n_atoms": atoms.n_atoms, "n_reflections": len(indices)}
    for name, pair in pairs.items():
        times = interleaved(pair, rounds)
        row[name] = {"cctbx": times[0], "alone": times[1], "overhead": times[0] / times[1] - 1}
        print(
            f"{entry_id} {atoms.n_atoms} atoms {name}: {times[0] * 1e3:.1f} / {times[1] * 1e3:.1f} ms, "
            f"{row[name]['overhead']:+.1%}",
            flush=True,
        )
    return [row]


def interleaved(functions, rounds):
    """Median seconds of each function, called in turn; the first round is not counted."""
    times = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, own in zip(functions, times):
            begin = time.perf_counter()
            function()
            own.append(time.perf_counter() - begin)
    return [statistics.median(own[1:]) for own in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("gradients", "minimize", "scaling", "overhead"))
    parser.add_argument("entries", nargs="*")
    parser.add_argument("--mask", default="probe_shrink")
    parser.add_argument("--output", type=Path, default=Path("plugin.json"))
    options = parser.parse_args()
    mmtbx_sfdiff.register()
    work = {
        "gradients": (lambda e: gradients(e, options.mask), _GRADIENT_ENTRIES),
        "minimize": (lambda e: minimize(e, options.mask), _MINIMIZE_ENTRIES),
        "scaling": (scaling, ("1exr",)),
        "overhead": (overhead, _OVERHEAD_ENTRIES),
    }
    function, default = work[options.part]
    rows = json.loads(options.output.read_text()) if options.output.exists() else []
    for entry in options.entries or default:
        rows = [row for row in rows if (row["part"], row["entry"]) != (options.part, entry)] + function(entry)
        write_atomically(options.output, json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
