"""mmtbx's own minimiser with geometry restraints, unmodified, and the gradient of the solvent mask that the backend adds to it.

    python -m validation.studies.plugin_restrained [entry ...] [--mask probe_shrink] [--output plugin_restrained.json]

For each entry, sites shaken by 0.2 Å, ``mmtbx.refinement.minimization.lbfgs`` with mmtbx's interpretation of a monomer library (the one of
``MMTBX_CCP4_MONOMER_LIB``, ``CLIBD_MON``, or the extra ``refine``) and one weight for all engines, the ratio of the norms of the
gradients of restraints and likelihood at the start, halved:

* ``mmtbx``: its FFT and its mask;
* ``sfdiff, mask fixed``: ``register()``, the differentiable mask, its gradient left out (``mask_gradient=False``);
* ``sfdiff``: the same with its gradient, the default;
* ``takeover``: mmtbx's parameters as for ``mmtbx``, within ``takeover(mask=...)``.

Printed are the derivatives of the minimiser's functional (likelihood and restraints) along random directions of all sites against
central differences of likelihood, with the mask made anew at each place, and restraints; norms of the parts of the gradient; and R
factors, bonds and angles after three rounds of scales and 25 steps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
from pathlib import Path

import mmtbx_sfdiff
from mmtbx_sfdiff.cctbx_backend.restraints import library_in_environment
from mmtbx_sfdiff.files.writing import write_atomically

import mmtbx.model
import numpy as np
import scitbx.lbfgs
from cctbx import xray
from cctbx.array_family import flex
from libtbx.utils import null_out
from mmtbx.refinement import minimization
from mmtbx.refinement.weights import weights

from validation.studies.plugin import load, manager, parameters

ENTRIES = ("1aie", "6nfs", "6jqs", "5kzb", "5xsl")
_SHAKE = 0.2  # Å
_STEP = 0.01  # Å, of the differences
_DIRECTIONS = 5
_ROUNDS, _ITERATIONS = 3, 25
_SCALE = 0.5  # of the ratio of gradients, as in mmtbx


class _Weights:
    """As the minimiser takes them."""

    def __init__(self, of_data):
        self.xyz_weights_result = weights(wx=of_data, wx_scale=1, w=1)


def restrained(entry):
    """mmtbx's model with its restraints."""
    model = mmtbx.model.manager(
        model_input=None,
        pdb_hierarchy=entry.model.manager.get_hierarchy().deep_copy(),
        crystal_symmetry=entry.model.manager.crystal_symmetry(),
        log=null_out(),
    )
    with library_in_environment():
        model.process(make_restraints=True)
    return model


def parts(fmodel, model):
    """(value, gradient) of the likelihood, and of the restraints."""
    fmodel.set_target_name("ml")
    xray.set_scatterer_grad_flags(scatterers=fmodel.xray_structure.scatterers(), site=True)
    found = fmodel.target_functor()(compute_gradients=True)
    geometry = model.restraints_manager_energies_sites(compute_gradients=True)
    return (
        (found.target_work(), found.gradients_wrt_atomic_parameters().packed().as_numpy_array()),
        (geometry.target, geometry.gradients.as_double().as_numpy_array()),
    )


def differences(fmodel, model, weight):
    """(derivatives of the minimiser's functional, differences of the whole of it with the mask made anew)"""
    start = fmodel.xray_structure.sites_cart().deep_copy()
    (_, of_data), (_, of_geometry) = parts(fmodel, model)
    gradient = weight * of_data + of_geometry
    rng = np.random.default_rng(0)
    found, expected = [], []
    functor = fmodel.target_functor()
    for _ in range(_DIRECTIONS):
        direction = rng.standard_normal(gradient.shape)
        direction /= np.sqrt((direction**2).mean())
        values = []
        for sign in (1, -1):
            shift = flex.vec3_double(flex.double(np.ascontiguousarray(sign * _STEP * direction)))
            fmodel.xray_structure.set_sites_cart(start + shift)
            fmodel.update_xray_structure(
                xray_structure=fmodel.xray_structure, update_f_calc=True, update_f_mask=True, force_update_f_mask=True
            )
            geometry = model.restraints_manager_energies_sites(compute_gradients=False).target
            values.append((weight * functor(compute_gradients=False).target_work(), geometry))
        found.append((weight * float(of_data @ direction), float(of_geometry @ direction)))
        expected.append([(a - b) / (2 * _STEP) for a, b in zip(*values, strict=True)])
    fmodel.xray_structure.set_sites_cart(start)
    fmodel.update_xray_structure(
        xray_structure=fmodel.xray_structure, update_f_calc=True, update_f_mask=True, force_update_f_mask=True
    )
    return np.array(found), np.array(expected)


def minimise(fmodel, model, weight):
    """R factors, bonds and angles after some rounds of scales and steps."""
    for _ in range(_ROUNDS):
        fmodel.update_all_scales(remove_outliers=False)
        fmodel.set_target_name("ml")
        scatterers = fmodel.xray_structure.scatterers()
        scatterers.flags_set_grads(state=False)
        scatterers.flags_set_grad_site(iselection=flex.size_t_range(scatterers.size()))
        minimization.lbfgs(
            fmodels=mmtbx.fmodels(fmodel_xray=fmodel),
            restraints_manager=model.get_restraints_manager(),
            model=model,
            is_neutron_scat_table=False,
            target_weights=_Weights(weight),
            refine_xyz=True,
            collect_monitor=False,
            lbfgs_termination_params=scitbx.lbfgs.termination_parameters(max_iterations=_ITERATIONS),
        )
    fmodel.update_all_scales(remove_outliers=False)
    geometry = model.get_restraints_manager().geometry
    energies = geometry.energies_sites(sites_cart=fmodel.xray_structure.sites_cart(), compute_gradients=False)
    return {
        "r_work": fmodel.r_work(),
        "r_free": fmodel.r_free(),
        "bond": energies.bond_deviations()[2],
        "angle": energies.angle_deviations()[2],
    }


def study(entry_id, mask):
    """A row for each engine."""
    entry = load(entry_id)
    random.seed(0)
    flex.set_random_seed(0)
    start = entry.model.xray_structure.deep_copy_scatterers()
    start.shake_sites_in_place(rms_difference=_SHAKE)
    engines = {
        "mmtbx": (parameters("fft", None), False),
        "sfdiff, mask fixed": (parameters("sfdiff", mask, mask_gradient=False), False),
        "sfdiff": (parameters("sfdiff", mask), False),
        "takeover": (parameters("fft", None), True),
    }
    rows, weight = [], None
    model = restrained(entry)
    for name, (options, everywhere) in engines.items():
        with mmtbx_sfdiff.takeover(mask=mask) if everywhere else contextlib.nullcontext():
            fmodel = manager(entry, start, **options)
            fmodel.update_all_scales(remove_outliers=False)
            model.set_xray_structure(fmodel.xray_structure)
            of_data, of_geometry = (part[1] for part in parts(fmodel, model))
            if weight is None:
                weight = _SCALE * float(np.linalg.norm(of_geometry) / np.linalg.norm(of_data))
            row = {
                "entry": entry_id,
                "engine": name,
                "d_min": fmodel.f_obs().d_min(),
                "weight": weight,
                "n_atoms": start.scatterers().size(),
                "start": [fmodel.r_work(), fmodel.r_free()],
                "norm_data": weight * float(np.linalg.norm(of_data)),
                "norm_restraints": float(np.linalg.norm(of_geometry)),
            }
            found, expected = differences(fmodel, model, weight)
            whole = np.linalg.norm(found.sum(1) - expected.sum(1)) / np.linalg.norm(expected.sum(1))
            of_likelihood = np.linalg.norm(found[:, 0] - expected[:, 0]) / np.linalg.norm(expected[:, 0])
            row |= {"error": float(whole), "error_data": float(of_likelihood)}
            row |= minimise(fmodel, model, weight)
        rows.append(row)
        print(
            f"{entry_id} {row['d_min']:.2f} Å {name:20s} gradient off by {row['error']:7.2%} (likelihood {row['error_data']:7.2%}); "
            f"R {row['start'][0]:.4f}/{row['start'][1]:.4f} -> {row['r_work']:.4f}/{row['r_free']:.4f}, bonds {row['bond']:.4f} Å, "
            f"angles {row['angle']:.2f}°",
            flush=True,
        )
    by_name = {row["engine"]: row for row in rows}
    for name in ("sfdiff", "takeover"):
        by_name[name]["mask_share"] = _share(entry, start, mask)
    return rows


def _share(entry, start, mask):
    """Norm of the mask's part of the gradient, in that of the likelihood without it."""
    vectors = []
    for with_mask in (True, False):
        fmodel = manager(entry, start, **parameters("sfdiff", mask, mask_gradient=with_mask))
        fmodel.update_all_scales(remove_outliers=False)
        fmodel.set_target_name("ml")
        xray.set_scatterer_grad_flags(scatterers=fmodel.xray_structure.scatterers(), site=True)
        found = fmodel.target_functor()(compute_gradients=True)
        vectors.append(found.gradients_wrt_atomic_parameters().packed().as_numpy_array())
    return float(np.linalg.norm(vectors[0] - vectors[1]) / np.linalg.norm(vectors[1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("entries", nargs="*")
    parser.add_argument("--mask", default="probe_shrink")
    parser.add_argument("--output", type=Path, default=Path("plugin_restrained.json"))
    options = parser.parse_args()
    mmtbx_sfdiff.register()
    rows = json.loads(options.output.read_text()) if options.output.exists() else []
    for entry in options.entries or ENTRIES:
        rows = [row for row in rows if row["entry"] != entry] + study(entry, options.mask)
        write_atomically(options.output, json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
