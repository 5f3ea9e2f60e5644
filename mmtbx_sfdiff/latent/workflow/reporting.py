"""The last stage: figures 4a and 4b, and the table once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ...files.writing import write_atomically
from .. import figures
from .. import report as reporting
from ..generator.boltzmann_generator import BoltzmannGenerator
from ..generator.energy import OpenMMEnergy
from ..generator.force_field import create_system
from .context import Context
from .sampling import one_copy

_SAMPLES = 100


def report(context: Context) -> dict[str, Any] | None:
    """Figures 4a and 4b, and the table once more."""
    work, progress = context.work, context.progress
    settings = {"figures": context.figures}
    if not work.begin("report", settings, None, context.inputs.random_seed, context.inputs.restart):
        return context.already("report")
    folder, refined = work.folder("report"), work.folder("refine")
    content = json.loads((refined / "table.json").read_text())
    context.say(reporting.table([tuple(row) for row in content["rows"]]))
    write_atomically(folder / "report.txt", reporting.table([tuple(row) for row in content["rows"]]) + "\n")
    outputs = [folder / "report.txt"]
    if settings["figures"]:
        if work.record("train") is not None:
            progress("energies of samples", None)
            outputs.append(_energies(context, folder))
        outputs.append(_course(folder, refined, content))
    context.say("Written: " + ", ".join(map(str, outputs)))
    return work.finish("report", outputs)


def _energies(context: Context, folder: Path) -> Path:
    work = context.work
    prepared, frames = one_copy(work, work.need("train")["settings"]["skip"])
    energy = OpenMMEnergy(create_system(prepared))
    random = torch.Generator().manual_seed(context.inputs.random_seed)
    flow = work.need("train")["settings"]["flow"]
    with torch.no_grad():
        chosen = frames[torch.linspace(0, len(frames) - 1, min(_SAMPLES, len(frames))).long()]
        values = {"dynamics": energy(chosen)}
        for name in dict.fromkeys(("linear", flow)):
            file = "linear.pt" if name == "linear" else "generator.pt"
            generator = BoltzmannGenerator.load(work.folder("train") / file)
            values[name] = energy(generator.sample(_SAMPLES, 1.0, random))
        values[f"{flow}, z x 0.5"] = energy(generator.sample(_SAMPLES, 0.5, random))
    picture = figures.energies({k: v.numpy() for k, v in values.items()}, prepared.n_ff, "Energies of structures")
    path = folder / "energies.png"
    write_atomically(path, figures.png(picture))
    return path


def course_steps(refined: Path, content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Steps of the run that was taken, from its start to the end of polishing, and of the baselines, by what they are called.

    Parameters
    ----------
    refined : path
        Folder of the stage refine.
    content : dict
        Of its ``table.json``.
    """
    taken = content["runs"][0]
    latent: list[dict[str, Any]] = []
    baselines: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(refined.glob("*.npz")):
        run = reporting.load_run(path)
        if run is None:
            continue
        if path.name == "search.npz" or path.name.startswith("start") and run.target == taken["target"]:
            latent = list(run.history.steps)
        elif path.name.startswith("baseline"):
            baselines[run.label] = run.history.steps
    for name in ("rebuilt", "polished"):
        run = reporting.load_run(refined / f"{name}.npz")
        latent = latent + ([] if run is None else run.history.steps)
    return {f"latent ({taken['label']})": latent, **baselines}


def _course(folder: Path, refined: Path, content: dict[str, Any]) -> Path:
    lines = {row[0]: (row[1], row[2]) for row in content["rows"] if row[0].startswith("reference")}
    path = folder / "course.png"
    picture = figures.course(course_steps(refined, content), lines, content["name"])
    write_atomically(path, figures.png(picture))
    return path
