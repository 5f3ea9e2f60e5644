"""Where one entry is measured: its arrays on both sides, and how something is called, waited for and timed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterator
from typing import Any

import torch

import numpy as np
from cctbx.array_family import flex
from libtbx.utils import Sorry

from ..atoms import Atoms
from ..crystal import Crystal, as_miller_tensor
from ..files.entry import Entry
from ..structure_factors import structure_factors
from ..versions import versions
from .schema import SCHEMA_VERSION
from .timing import side_by_side, timed

# mmtbx takes F_mask to be zero beyond this resolution, Å (``Fmask_res_high``).
F_MASK_D_MIN = 3.0


class Bench:
    """One entry's arrays, ours and mmtbx's, and how something is called, waited for and timed."""

    def __init__(self, entry: Entry, settings: Any, report: Callable[..., Any], compiling: Any = None) -> None:
        self.entry, self.settings, self.report, self.compiling = entry, settings, report, compiling
        self.structure, self.f_obs = entry.model.xray_structure, entry.data.f_obs
        self.dtype = getattr(torch, settings.dtype)
        with self._explained():
            self.atoms = Atoms.from_cctbx(self.structure, dtype=self.dtype, device=settings.device)
        self.crystal = Crystal.from_cctbx(self.structure, device=settings.device)
        self.indices = as_miller_tensor(self.f_obs, device=settings.device)
        self.d_spacings = self.f_obs.d_spacings().data().as_numpy_array()
        self.low = self.d_spacings >= F_MASK_D_MIN
        #: What is going to be timed: (name, functions, how long each took when it was called first, preparations).
        self.to_time: list[tuple[Any, ...]] = []

    def _header(self) -> dict[str, Any]:
        entry, symmetry = self.entry, self.f_obs.crystal_symmetry()
        return {
            "schema_version": SCHEMA_VERSION,
            "entry": entry.name + (" SIMULATED" if entry.data.simulated else ""),
            "simulated": bool(entry.data.simulated),
            "space_group": str(symmetry.space_group_info()),
            "unit_cell": list(symmetry.unit_cell().parameters()),
            "d_max": float(self.d_spacings.max()),
            "d_min": float(self.d_spacings.min()),
            "n_atoms": self.structure.scatterers().size(),
            "n_reflections": len(self.d_spacings),
            "n_free": None if entry.data.r_free_flags is None else entry.data.r_free_flags.data().count(True),
            "reflections": entry.data.reflections,
            "files": {"model": entry.model.path.name, "data": entry.data.path.name, "labels": entry.data.labels},
            "scattering_table": entry.model.scattering_table,
            "messages": list(entry.messages),
            "settings": dataclasses.asdict(self.settings),
            "versions": versions(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }

    def _conditions(self) -> dict[str, Any]:
        device = self.settings.device
        name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "CPU"
        return {
            "device": device,
            "device_name": name,
            "threads_sfdiff": torch.get_num_threads(),
            "threads_mmtbx": 1,
            "repeats": self.settings.n_timing,
            "statistic": "median of calls taken in turns; one call if slow",
        }

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What this package says about a model that it cannot use, with the name of the file."""
        try:
            yield
        except ValueError as error:
            raise Sorry(f"{self.entry.model.path}: {error}") from None

    def _synchronized(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, waiting for the device to finish, so that its time is all of its time."""
        if torch.device(self.settings.device).type != "cuda":
            return function

        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            torch.cuda.synchronize(self.settings.device)
            return result

        return call

    def _ready(self, *groups: Any) -> None:
        """Wait for kernels: of these groups, or for all."""
        if self.compiling:
            step = "compiling kernels (the first time)"
            told = lambda done, n: self.report(step, done / n)  # noqa: E731
            self.compiling.wait(told, groups) if groups else self.compiling.wait(told)

    def _first(self, function: Callable[..., Any]) -> tuple[Any, float]:
        """(its result, seconds); 0 where others were at work meanwhile: it is not the time of a slow one, then."""
        quiet = self.compiling is None or self.compiling.finished
        result, seconds = timed(function)
        return result, seconds if quiet else 0.0

    def _time(
        self,
        name: str,
        ours: Callable[..., Any],
        mmtbx: Callable[..., Any],
        first: dict[str, float],
        prepare: dict[str, Callable[[], Any]] | None = None,
    ) -> dict[str, float]:
        self.report(f"timing of {name.replace('_', ' ')}", None)
        return side_by_side({"sfdiff": ours, "mmtbx": mmtbx}, first, self.settings.n_timing, prepare)

    def _random_part(self, max_terms: int) -> Any:
        """(n,) bool: the reflections on which direct summation has at most so many terms; all of them for None."""
        n = len(self.d_spacings)
        terms = self.structure.scatterers().size() * self.crystal.order_z
        chosen = n if max_terms is None else min(n, max(1, int(max_terms / terms)))
        part = np.zeros(n, dtype=bool)
        part[np.random.default_rng(0).permutation(n)[:chosen]] = True
        return part

    def _sf(self, atoms: Any, indices: torch.Tensor) -> torch.Tensor:
        return structure_factors(
            atoms,
            self.crystal,
            indices,
            method=self.settings.method,
            accuracy=self.settings.accuracy,
            memory=self.settings.memory,
        )


def flex_bool(values: Any) -> Any:
    return flex.bool(np.ascontiguousarray(values))
