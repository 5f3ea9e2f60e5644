"""A small entry without network or deposited data: a model shipped with cctbx, amplitudes simulated.

The amplitudes are |F_calc + k_sol exp(-B_sol s²/4) F_mask| with cctbx's direct summation, plus Gaussian noise.  F_mask is
the mean of mmtbx's and of this package's default mask, each on its default grid: halfway between the two, so that neither
fits the data better because they were made with it.  The file's title, its columns and its name all say that they are
simulated.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import iotbx
import libtbx.load_env
import numpy as np
from cctbx.array_family import flex
from mmtbx import masks

from ..atoms import Atoms
from ..bulk_solvent import mask_structure_factors, solvent_mask
from ..crystal import Crystal, as_miller_tensor
from .errors import Sorry
from .fetch import EntryFiles
from .model import read_model

K_SOL = 0.35  # e/Å³
B_SOL = 50.0  # Å²
NOISE = 0.03  # of each amplitude
FREE_FRACTION = 0.05
TITLE = "SIMULATED amplitudes, not measured"
_MODELS = (
    "iotbx/regression/data/2ERL.pdb",
    "iotbx/regression/data/1yjp.pdb",
    "mmtbx/regression/pdbs/1yjp_h.pdb",
    "mmtbx/regression/pdbs/1ucs_cutted_xyz_rounded.pdb",
)


def shipped_model() -> Path:
    """The model that the demonstration uses, inside the installed cctbx.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    libtbx.utils.Sorry
        If this cctbx was installed without its example files.
    """
    package = Path(iotbx.__file__).parent.parent
    for relative in _MODELS:
        found = [package / relative]
        for prefix in ("", "cctbx_project/"):
            with contextlib.suppress(Exception):  # libtbx.env is incomplete in some installations
                path = libtbx.env.find_in_repositories(relative_path=prefix + relative, test=os.path.isfile)
                found += [Path(path)] if path else []
        for path in found:
            if path.is_file():
                return path
    raise Sorry(
        "This cctbx was installed without its example models, so there is no demonstration: give a "
        "PDB identifier, or the names of a model and a data file."
    )


def demo_entry(directory: str | Path = ".", d_min: float = 1.6, seed: int = 0) -> EntryFiles:
    """Write simulated data for a model shipped with cctbx.

    Parameters
    ----------
    directory : path
        Where the MTZ file goes; created if needed.
    d_min : float
        Resolution, Å.
    seed : int
        Of the noise and the test set: the same seed gives the same numbers.

    Returns
    -------
    EntryFiles
        ``source`` begins with ``demo``.

    Raises
    ------
    libtbx.utils.Sorry
        If there is no model, or the file cannot be written.
    """
    model = read_model(shipped_model(), d_min=d_min)
    name = model.path.stem.lower()
    path = Path(directory) / f"{name}_simulated.mtz"
    f_obs, flags = simulate(model.xray_structure, d_min, seed)
    dataset = f_obs.as_mtz_dataset(column_root_label="FOBS_SIMULATED", title=TITLE)
    dataset.add_miller_array(flags, column_root_label="R-free-flags")
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix="." + path.name, suffix=".part")
        os.close(handle)
        dataset.mtz_object().write(part)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Sorry(f"Cannot write {path} ({reason}): choose another folder.") from None
    finally:
        if part and os.path.exists(part):
            os.unlink(part)
    return EntryFiles(
        entry=model.entry_id, model=model.path, data=path, source="demo: model shipped with cctbx, simulated amplitudes"
    )


def simulate(xray_structure: Any, d_min: float, seed: int = 0) -> tuple[Any, Any]:
    """Amplitudes with bulk solvent and noise, and a test set.

    Parameters
    ----------
    xray_structure : cctbx.xray.structure
    d_min : float
        Å.
    seed : int

    Returns
    -------
    f_obs : cctbx.miller.array
        With sigmas.
    r_free_flags : cctbx.miller.array of int
        1 for the test set.
    """
    f_calc = xray_structure.structure_factors(d_min=d_min, anomalous_flag=False, algorithm="direct").f_calc()
    theirs = masks.manager(miller_array=f_calc, xray_structure=xray_structure).shell_f_masks()[0].data()
    crystal, indices = Crystal.from_cctbx(xray_structure), as_miller_tensor(f_calc.indices())
    ours = mask_structure_factors(solvent_mask(Atoms.from_cctbx(xray_structure), crystal), crystal, indices)
    f_mask = (theirs.as_numpy_array() + ours.numpy()) / 2
    quarter_s2 = f_calc.unit_cell().d_star_sq(f_calc.indices()) / 4
    damped = K_SOL * np.exp(-B_SOL * quarter_s2.as_numpy_array())
    exact = np.abs(f_calc.data().as_numpy_array() + damped * f_mask)
    rng = np.random.default_rng(seed)
    sigmas = NOISE * exact + 0.01 * exact.mean()
    noisy = np.abs(exact + sigmas * rng.standard_normal(exact.size))
    f_obs = f_calc.customized_copy(data=flex.double(noisy), sigmas=flex.double(sigmas))
    f_obs.set_observation_type_xray_amplitude()
    flags = np.zeros(exact.size, dtype=np.int32)
    flags[rng.permutation(exact.size)[: round(FREE_FRACTION * exact.size)]] = 1
    return f_obs, f_obs.customized_copy(data=flex.int(flags), sigmas=None).set_observation_type(None)
