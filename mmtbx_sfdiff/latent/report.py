"""What a latent refinement leaves behind: runs on disk to go on from, a history, a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import numpy as np

from ..files.writing import write_atomically
from ..refinement import History
from .refinement.refine import Run

_COLUMNS = (
    "run",
    "step",
    "cycle",
    "d_min",
    "function",
    "target",
    "objective",
    "penalty",
    "r_work",
    "r_free",
    "z_norm",
    "energy",
)


def save_run(path: str | Path, run: Run) -> None:
    """Write a run as ``path`` (NumPy, no pickled objects); its FModel is made again from its sites and B
    factors."""
    arrays: dict[str, torch.Tensor] = {"sites_cart": run.sites_cart, "all_sites_cart": run.all_sites_cart, "b": run.b}
    if run.z is not None:
        arrays["z"] = run.z
    text = json.dumps({"summary": run.summary(), "steps": run.history.steps, "cycles": run.history.cycles})
    buffer = io.BytesIO()
    content: dict[str, Any] = {name: value.detach().cpu().double().numpy() for name, value in arrays.items()}
    np.savez(buffer, text=np.array(text), **content)
    write_atomically(Path(path), buffer.getvalue())


def load_run(path: str | Path, device: str | torch.device = "cpu") -> Run | None:
    """Read what :func:`save_run` wrote, tensors to a device; None where there is nothing that can be read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = json.loads(str(archive["text"]))
            arrays = {name: torch.from_numpy(archive[name]).to(device) for name in archive.files if name != "text"}
        return Run(
            **content["summary"],
            history=History(cycles=content["cycles"], steps=content["steps"]),
            fmodel=None,
            sites_cart=arrays["sites_cart"],
            all_sites_cart=arrays["all_sites_cart"],
            b=arrays["b"],
            z=arrays.get("z"),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def history_csv(runs: Sequence[Any]) -> str:
    """Every step of runs, as the text of a CSV file."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for run in runs:
        limits = {cycle["cycle"]: cycle["d_min"] for cycle in run.history.cycles}
        for step in run.history.steps:
            writer.writerow({**step, "run": run.label, "d_min": limits[step["cycle"]]})
    return buffer.getvalue()


def table(rows: Sequence[tuple[Any, ...]]) -> str:
    """Rows of (name, R-work, R-free, note) as lines of text."""
    width = max(len(row[0]) for row in rows)
    lines = [f"{'':{width}s}  R-work  R-free"]
    for name, r_work, r_free, note in rows:
        lines.append(
            f"{name:{width}s}  {r_work:.4f}  {'-     ' if r_free is None else f'{r_free:.4f}'}  {note}".rstrip()
        )
    return "\n".join(lines)
