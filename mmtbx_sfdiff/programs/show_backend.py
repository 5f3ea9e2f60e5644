"""``mmtbx_sfdiff.show_backend``: which of cctbx's C++ entry points compute, as it is and taken over.

A small crystal is put through the ways mmtbx has to structure factors, gradients and masks, three times: by cctbx, with
``sfdiff`` by name, and inside ``takeover()``.  What is printed is counted, not claimed: calls of the C++ entry points, and
calls that this package answered.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import mmtbx_sfdiff
import torch

import mmtbx.f_model
import mmtbx.masks
from cctbx import xray
from cctbx.xray.structure_factors.algorithm import algorithms

from ..cctbx_backend import registry, usage
from ..cctbx_backend.entry_points import ENTRY_POINTS, spy
from ..files.demo import shipped_model, simulate
from ..files.model import read_model
from ..text_tables import render, table
from ..versions import versions
from . import startup_file
from .runner import guarded

_D_MIN = 2.5


def run(args: Sequence[str] | None = None) -> int:
    """Print the table; return the exit code."""

    def show() -> None:
        argparse.ArgumentParser(prog="mmtbx_sfdiff.show_backend", description=__doc__.splitlines()[0]).parse_args(args)
        print(report())

    return guarded(show)


def report() -> str:
    """The table as text."""
    lines = [" ".join(f"{name} {value}" for name, value in versions().items() if value)]
    lines.append(
        f"torch: {torch.get_num_threads()} threads, "
        + (f"CUDA: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "no CUDA device")
    )
    lines.append(startup_file.state())
    lines.append(f"Algorithms that cctbx knows now: {', '.join(sorted(algorithms))}")
    counts, ours = {}, {}

    def count(mode: str, algorithm: str) -> None:
        before = usage.OURS.copy()
        counts[mode] = count_calls(algorithm)
        ours[mode] = usage.OURS - before

    count("as it is", "fft")
    count("by name", "sfdiff")
    with mmtbx_sfdiff.takeover():
        count("takeover()", "fft")
    rows = [[point.name, *(str(counts[mode][point.name]) for mode in counts), point.purpose] for point in ENTRY_POINTS]
    rows += [[f"mmtbx_sfdiff: {kind}", *(str(ours[mode][kind]) for mode in ours), ""] for kind in usage.KINDS]
    lines.append(render(lambda style: [table(style, ["calls of", *counts, ""], rows)], width=110))
    lines.append("")
    lines += [f"{point.name}: {point.remark}" for point in ENTRY_POINTS]
    lines.append(
        "\nCounted: calls while a small crystal is scaled, tried with another mask, differentiated with two targets and "
        "mapped.\nEngines of their own, never replaced: smtbx, phaser, density maps of cctbx.maptbx."
    )
    return "\n".join(lines)


def count_calls(algorithm: str = "fft") -> dict[str, int]:
    """Calls of the C++ entry points in a round through mmtbx.

    Parameters
    ----------
    algorithm : {"fft", "sfdiff"}
        What the manager asks for; the mask's follows.

    Returns
    -------
    collections.Counter
    """
    structure = read_model(shipped_model(), d_min=_D_MIN).xray_structure
    f_obs, flags = simulate(structure, _D_MIN)
    registered = algorithm == "sfdiff" and not registry.is_registered()
    if registered:
        mmtbx_sfdiff.register()
    try:
        parameters = mmtbx.f_model.f_model.sf_and_grads_accuracy_master_params.extract()
        mask = mmtbx.masks.mask_master_params.extract()
        parameters.algorithm = algorithm
        if algorithm == "sfdiff":
            mask.algorithm = "sfdiff"
        with spy() as counts:
            _round(structure, f_obs, flags, parameters, mask)
    finally:
        if registered:
            mmtbx_sfdiff.unregister()
    return counts


def _round(structure: Any, f_obs: Any, flags: Any, parameters: Any, mask: Any) -> None:
    manager = mmtbx.f_model.manager(
        f_obs=f_obs,
        r_free_flags=flags.customized_copy(data=flags.data() == 1),
        xray_structure=structure,
        sf_and_grads_accuracy_params=parameters,
        mask_params=mask,
    )
    manager.update_all_scales()
    manager.try_mask_params((1.0, 0.8))
    xray.set_scatterer_grad_flags(scatterers=manager.xray_structure.scatterers(), site=True)
    for target in ("ml", "ls_wunit_k1"):
        manager.set_target_name(target)
        manager.target_functor()(compute_gradients=True).gradients_wrt_atomic_parameters().packed()
    manager.electron_density_map().map_coefficients("2mFo-DFc", fill_missing=True)
    f_obs.structure_factors_from_scatterers(structure, algorithm="direct")
    mmtbx.masks.mask_from_xray_structure(
        xray_structure=structure, p1=True, for_structure_factors=True, n_real=(24, 24, 24)
    )
    mmtbx.masks.bulk_solvent(
        xray_structure=structure,
        ignore_zero_occupancy_atoms=True,
        solvent_radius=1.1,
        shrink_truncation_radius=0.9,
        grid_step=0.8,
    )
