"""Molecular dynamics in chunks, which goes on where it was interrupted.

Each chunk starts from the state on disk in a new context, its random numbers seeded by the run's seed and the
chunk's number. A run that was interrupted and continued is therefore the run that was not: bit for bit on the
Reference platform and on the CPU platform with one thread.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import numpy as np

from ...files.writing import write_atomically
from .energy import make_context
from .prepared_model import PreparedModel
from .requirements import require
from .units import NM_PER_ANGSTROM, md_value

_FORMAT = 1
_FIRST_ITERATIONS = 200


def minimise(
    system: Any,
    sites_cart: torch.Tensor,
    n_steps: int = 0,
    tolerance: float = 10.0,
    platform: str = "CPU",
    threads: int = 1,
) -> tuple[torch.Tensor, float]:
    """Sites of a local minimum of the energy.

    Parameters
    ----------
    system : openmm.System
    sites_cart : torch.Tensor
        (n_ff, 3), Å.
    n_steps : int
        At most so many iterations; 0 is until it has converged.
    tolerance : float
        Root mean square of the force at which it has, kJ/mol/nm.
    platform : str
    threads : int

    Returns
    -------
    sites_cart : torch.Tensor
        (n_ff, 3) float64, Å.
    energy : float
        kJ/mol.

    Raises
    ------
    ValueError
        When no finite energy is found.

    Examples
    --------
    >>> sites, energy = minimise(system, frames[0], n_steps=20)
    >>> sites.shape, energy < 0
    (torch.Size([22, 3]), True)
    """
    openmm = require("openmm")
    context = make_context(system, openmm.VerletIntegrator(0.001), platform, threads)
    _set_sites(context, sites_cart)
    context.applyConstraints(1e-6)
    openmm.LocalEnergyMinimizer.minimize(context, tolerance, n_steps)
    state = context.getState(getPositions=True, getEnergy=True)
    energy = md_value(state.getPotentialEnergy())
    if not np.isfinite(energy):
        raise ValueError("the minimisation ended without a finite energy: atoms of the model lie on top of each other.")
    return torch.from_numpy(md_value(state.getPositions(asNumpy=True)) / NM_PER_ANGSTROM), energy


def run_md(
    prepared: PreparedModel,
    system: Any,
    folder: str | Path,
    duration: float,
    frame_interval: float = 0.2,
    time_step: float = 4.0,
    temperature: float = 300.0,
    friction: float = 1.0,
    solvent_interval: int = 1,
    seed: int = 0,
    minimise_first: bool = True,
    chunk_frames: int = 100,
    platform: str = "CPU",
    threads: int = 1,
    progress: Callable[..., None] | None = None,
) -> Path:
    """Langevin dynamics from the sites of a prepared model, or the rest of it.

    Parameters
    ----------
    prepared : PreparedModel
    system : openmm.System
    folder : str or pathlib.Path
        Gets ``md.json``, ``frames_0000.npz`` ... and ``state_0000.xml`` ...; what is there already is not
        computed again.
    duration : float
        ps; a longer one later continues the same trajectory.
    frame_interval : float
        ps between frames.
    time_step : float
        fs.
    temperature : float
        K.
    friction : float
        1/ps.
    solvent_interval : int
        The solvent's forces, which take most of the time, act on every second (2) or third (3) step only, by
        the reversible multiple-time-step scheme (Tuckerman et al. 1992); 1 is every step.
    seed : int
    minimise_first : bool
        By at most 200 iterations: what matters is that no atoms overlap.
    chunk_frames : int
        Frames in a file; what is lost at most when a run is killed.
    platform : str
    threads : int
    progress : callable, optional
        Called with the frames done, all frames, and the last energy in kJ/mol.

    Returns
    -------
    pathlib.Path
        `folder`.

    Raises
    ------
    ValueError
        For settings that make no sense, a folder with a run of other settings, or dynamics that blow up.

    Examples
    --------
    >>> folder = run_md(model, system, "md", duration=0.4, frame_interval=0.04, chunk_frames=5, seed=1)
    >>> sorted(path.name for path in folder.glob("frames_*.npz"))
    ['frames_0000.npz', 'frames_0001.npz']
    """
    openmm = require("openmm")
    for name, value in (
        ("duration", duration),
        ("frame_interval", frame_interval),
        ("time_step", time_step),
        ("temperature", temperature),
        ("friction", friction),
        ("chunk_frames", chunk_frames),
        ("solvent_interval", solvent_interval),
    ):
        if not np.isfinite(value) or value <= 0:
            raise ValueError(f"{name} must be positive, not {value!r}.")
    outer_step = time_step * solvent_interval
    steps = round(frame_interval * 1000 / outer_step)
    if steps < 1 or abs(steps * outer_step - frame_interval * 1000) > 1e-6:
        times = "" if solvent_interval == 1 else f" times solvent_interval ({solvent_interval})"
        raise ValueError(
            f"frame_interval ({frame_interval} ps) must be a multiple of time_step ({time_step} fs){times}."
        )
    n_frames = round(duration / frame_interval)
    if n_frames < 1:
        raise ValueError(f"duration ({duration} ps) is shorter than frame_interval ({frame_interval} ps).")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    system = _with_groups(openmm, system)
    settings = {
        "format": _FORMAT,
        "frame_interval": frame_interval,
        "time_step": time_step,
        "temperature": temperature,
        "friction": friction,
        "solvent_interval": int(solvent_interval),
        "seed": int(seed),
        "chunk_frames": int(chunk_frames),
        "minimise_first": bool(minimise_first),
        "platform": platform,
        "threads": threads,
        "system": _digest(openmm.XmlSerializer.serialize(system).encode()),
        "start": _digest(prepared.sites_cart.numpy().tobytes()),
    }
    _check_settings(folder / "md.json", settings)
    if not (folder / "state_0000.xml").exists():
        _first_state(openmm, prepared, system, folder, settings, platform, threads)
    for chunk in range(-(-n_frames // chunk_frames)):
        frames_path = folder / f"frames_{chunk:04d}.npz"
        next_state = folder / f"state_{chunk + 1:04d}.xml"
        if frames_path.exists() and next_state.exists():
            continue
        integrator = _integrator(openmm, settings, chunk + 1)
        context = make_context(system, integrator, platform, threads)
        context.setState(openmm.XmlSerializer.deserialize((folder / f"state_{chunk:04d}.xml").read_text()))
        sites = np.empty((chunk_frames, system.getNumParticles(), 3), dtype=np.float32)
        energies = np.empty(chunk_frames)
        for i in range(chunk_frames):
            try:
                integrator.step(steps)
                state = context.getState(getPositions=True, getEnergy=True)
            except openmm.OpenMMException as error:
                raise ValueError(
                    f"the dynamics blew up in chunk {chunk} of {folder} ({error}): use a shorter time_step "
                    "or a start with fewer overlaps."
                ) from error
            sites[i] = md_value(state.getPositions(asNumpy=True)) / NM_PER_ANGSTROM
            energies[i] = md_value(state.getPotentialEnergy())
            if progress is not None:
                progress(chunk * chunk_frames + i + 1, n_frames, energies[i])
        if not np.isfinite(energies).all():
            raise ValueError(f"the dynamics blew up in chunk {chunk} of {folder}: use a shorter time_step.")
        state = context.getState(getPositions=True, getVelocities=True)
        buffer = io.BytesIO()
        np.savez(buffer, sites_cart=sites, energy=energies)
        write_atomically(next_state, openmm.XmlSerializer.serialize(state))
        write_atomically(frames_path, buffer.getvalue())
    return folder


def load_frames(folder: str | Path, skip: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of a trajectory.

    Parameters
    ----------
    folder : str or pathlib.Path
        Of :func:`run_md`, finished or not.
    skip : float
        ps at the start that are left out.

    Returns
    -------
    sites_cart : torch.Tensor
        (n_frames, n_ff, 3) float32, Å, in the order of time.
    energy : torch.Tensor
        (n_frames,) float64, kJ/mol; with the restraints, if there were any.

    Raises
    ------
    ValueError
        When there are no frames.

    Examples
    --------
    >>> folder = run_md(model, system, "md", duration=0.4, frame_interval=0.04, chunk_frames=5, seed=1)
    >>> sites, energies = load_frames(folder, skip=0.08)
    >>> sites.shape, energies.shape
    (torch.Size([8, 22, 3]), torch.Size([8]))
    """
    folder = Path(folder)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for path in sorted(folder.glob("frames_*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            parts.append((arrays["sites_cart"], arrays["energy"]))
    if not parts:
        raise ValueError(f"{folder} holds no frames of molecular dynamics.")
    first = round(skip / json.loads((folder / "md.json").read_text())["frame_interval"])
    sites, energies = (np.concatenate(values)[first:] for values in zip(*parts))
    if len(sites) == 0:
        raise ValueError(f"skip = {skip} ps leaves no frame of {folder}.")
    return torch.from_numpy(sites), torch.from_numpy(energies)


def _first_state(
    openmm: Any,
    prepared: PreparedModel,
    system: Any,
    folder: Path,
    settings: dict[str, Any],
    platform: str,
    threads: int,
) -> None:
    sites = prepared.sites_cart
    if settings["minimise_first"]:
        sites, _ = minimise(system, sites, _FIRST_ITERATIONS, platform=platform, threads=threads)
    integrator = _integrator(openmm, settings, 0)
    context = make_context(system, integrator, platform, threads)
    _set_sites(context, sites)
    context.applyConstraints(1e-6)
    context.setVelocitiesToTemperature(settings["temperature"], _seed(settings, 0))
    state = context.getState(getPositions=True, getVelocities=True)
    write_atomically(folder / "state_0000.xml", openmm.XmlSerializer.serialize(state))


def _with_groups(openmm: Any, system: Any) -> Any:
    """A copy with the solvent's force in group 1 and all others in group 0."""
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    for force in system.getForces():
        force.setForceGroup(int(isinstance(force, openmm.GBSAOBCForce)))
    return system


def _integrator(openmm: Any, settings: dict[str, Any], number: int) -> Any:
    step, ratio = settings["time_step"] * 0.001, settings["solvent_interval"]
    thermostat = settings["temperature"], settings["friction"]
    if ratio == 1:
        integrator = openmm.LangevinMiddleIntegrator(*thermostat, step)
    else:
        integrator = openmm.MTSLangevinIntegrator(*thermostat, ratio * step, [(1, 1), (0, ratio)])
    integrator.setRandomNumberSeed(_seed(settings, number))
    return integrator


def _seed(settings: dict[str, Any], number: int) -> int:
    """A seed for a chunk: positive, because 0 means 'any' to OpenMM."""
    return int(np.random.SeedSequence([settings["seed"], number]).generate_state(1)[0] % (2**31 - 1)) + 1


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: delete the folder and start again.") from error
        different = sorted(name for name in settings if found.get(name) != settings[name])
        if different:
            raise ValueError(
                f"{path.parent} holds molecular dynamics with another {', '.join(different)}: "
                "use another folder, or delete it."
            )
    else:
        write_atomically(path, json.dumps(settings, indent=1))


def _set_sites(context: Any, sites_cart: torch.Tensor) -> None:
    context.setPositions(np.asarray(torch.as_tensor(sites_cart), dtype=np.float64) * NM_PER_ANGSTROM)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
