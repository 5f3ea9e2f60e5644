"""Everything ``mmtbx_sfdiff.compare`` reports about one entry.

Four things are computed by this package and by mmtbx from the same model and the same data: structure factors
(equation 4; the reference is cctbx's direct summation), the bulk-solvent mask and its structure factors (the
reference is mmtbx's mask on a grid so fine that its rounding hardly matters), gradients with respect to the
sites, and R factors (equation 3) after mmtbx's scaling and after this package's.  Each is timed on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import numpy as np
import numpy.typing as npt
from cctbx.array_family import flex
from libtbx.utils import Sorry

from ..bulk_solvent import mask_structure_factors, solvent_mask
from ..crystal import as_miller_tensor
from ..files.entry import Entry
from ..kernels import compilation
from . import mmtbx_numbers as reference
from .bench import F_MASK_D_MIN, flex_bool
from .scaled import ScaledBench
from .section import mask_section
from .settings import Comparison, Settings, kernels_for
from .statistics import agreement, correlation, relative_l2
from .timing import timed

MMTBX_GRID_STEP = 0.6
MMTBX_RADII = {"r_probe": 1.1, "r_shrink": 0.9}


def measure(
    entry: Entry,
    settings: Any = Settings(),
    report: Callable[..., Any] | None = None,
    compiling: Any = None,
) -> Comparison:
    """Compare this package with mmtbx on one entry.

    Parameters
    ----------
    entry : mmtbx_sfdiff.files.Entry
        Model and data; neither is changed.
    settings : Settings
    report : callable, optional
        Called with (what is being done, fraction of it that is done or None).
    compiling : mmtbx_sfdiff.kernels.compilation.Compilation, optional
        Of :func:`.kernels_for` these settings, begun: it is waited for where they are needed, and ends before anything is timed.
        Without it they are compiled here.

    Returns
    -------
    Comparison

    Raises
    ------
    libtbx.utils.Sorry
        When the model cannot be used, mmtbx cannot scale it to the data, or the device has too little memory.

    Examples
    --------
    >>> from mmtbx_sfdiff.comparison import Settings, measure
    >>> from mmtbx_sfdiff.files import load_entry
    >>> from mmtbx_sfdiff.files.demo import demo_entry
    >>> files = demo_entry(d_min=3.0)
    >>> result = measure(load_entry(files.model, files.data), Settings(reference_step=0.4, n_timing=1)).result
    >>> result["f_protein"]["relative_l2_vs_direct"] < result["f_protein"]["mmtbx_fft_relative_l2_vs_direct"]
    True
    >>> sorted(result["timing_s"])
    ['conditions', 'f_mask', 'f_protein', 'gradients', 'scaling']
    """
    report = report or (lambda step, fraction=None: None)
    # In this process: whoever calls may have threads.
    compiling = compiling or compilation.start(kernels_for(settings), n_processes=1)
    try:
        return _Measurement(entry, settings, report, compiling).run()
    except torch.cuda.OutOfMemoryError:
        raise Sorry(
            f"The device {settings.device} has too little free memory for {entry.name}: use device=cpu."
        ) from None


class _Measurement(ScaledBench):
    """The parts of the report.

    First everything is computed once, kernels being compiled meanwhile; then, when nothing else is going on, what is timed.
    """

    def run(self) -> Comparison:
        result = self._header()
        self._reference_mask()
        self._f_protein()
        result["f_protein"] = None
        result["f_mask"], result["mask_map"], section = self._masks()
        untimed = {name: self._scale(*self._pairs()[name])[0] for name in ("sfdiff", "density_cutoff")}
        result["gradients"] = self._gradients()
        self._ready()
        result["f_protein"], direct_time = self._against_direct()
        result["r_factors"], scaling = self._r_factors(untimed)
        result["messages"] += self._disagreement(result["r_factors"])
        times = {name: self._time(name, *rest) for name, *rest in self.to_time}
        times["f_protein"]["mmtbx_direct"] = direct_time
        result["timing_s"] = times | {"scaling": scaling, "conditions": self._conditions()}
        return Comparison(
            result, section, {"sfdiff": (self.f_protein, self.f_mask), "mmtbx": (self.f_fft, self.f_mask_mmtbx)}
        )

    # structure factors

    def _f_protein(self) -> None:
        ours = self._synchronized(lambda: self._sf(self.atoms, self.indices))
        mmtbx = lambda: reference.f_calc_fft(self.structure, self.f_obs)  # noqa: E731
        first = {}
        self._ready("structure_factors", "double", "direct")
        self.report("structure factors", None)
        f, first["sfdiff"] = self._first(ours)
        self.f_protein = _numpy(f)
        self.report("structure factors (cctbx, FFT)", None)
        self.f_fft, first["mmtbx"] = self._first(mmtbx)
        self.to_time.append(("f_protein", ours, mmtbx, first))

    def _against_direct(self) -> Any:
        """(errors of F_protein, seconds of cctbx's direct summation)."""
        step = "structure factors (cctbx, direct summation)"
        self.report(step, 0.0)
        part = self._random_part(self.settings.direct_terms)
        f_direct, seconds = timed(
            lambda: reference.f_calc_direct(
                self.structure,
                self.f_obs.select(flex_bool(part)),
                progress=lambda fraction: self.report(step, fraction),
            )
        )
        self.f_direct = f_direct if part.all() else None
        exact = agreement(self.d_spacings[part], self.f_protein[part], f_direct)
        fft = agreement(self.d_spacings[part], self.f_fft[part], f_direct)
        return {
            "method": self.settings.method,
            "reference": "cctbx direct summation",
            "n_reflections": int(part.sum()),
            "relative_l2_vs_direct": exact["relative_l2"],
            "mmtbx_fft_relative_l2_vs_direct": fft["relative_l2"],
            "cc": exact["cc"],
            "shells": exact["shells"],
            "mmtbx_fft": {"cc": fft["cc"], "shells": fft["shells"]},
        }, seconds * part.size / part.sum()

    # mask

    def _mask(self, method: str, **parameters: Any) -> Any:
        """(mask, F_mask of the reflections to 3 Å, those that were not measured last)."""
        with self._explained():
            mask = solvent_mask(
                self.atoms, self.crystal, method=method, grid_step=self.settings.grid_step, **parameters
            )
        return mask, mask_structure_factors(mask, self.crystal, self.low_indices.to(mask.device))

    def _reference_mask(self) -> None:
        """mmtbx's on a fine grid: what masks are compared with."""
        self.low_set = _with_missing(self.f_obs.select(flex_bool(self.low)), F_MASK_D_MIN)
        self.low_indices = as_miller_tensor(self.low_set)
        step = reference.affordable_mask_step(self.f_obs.crystal_symmetry(), self.settings.reference_step)
        self.report(f"solvent mask (mmtbx, {step:g} Å grid)", None)
        self.f_reference, self.reference_step = reference.f_mask(self.structure, self.low_set, step), step

    def _masks(self) -> Any:
        low_set, f_reference, step = self.low_set, self.f_reference, self.reference_step
        n_measured = int(self.low.sum())
        ours = self._synchronized(lambda: self._mask(self.settings.mask))
        mmtbx = lambda: reference.f_mask(self.structure, low_set, MMTBX_GRID_STEP)  # noqa: E731
        first = {}
        self._ready("masks")
        self.report("solvent mask", None)
        (mask, f_mask), first["sfdiff"] = self._first(ours)
        f_mask = _numpy(f_mask)
        # As in the paper, its map is made of the data's own resolution (as far as the grid can hold it), and it encloses
        # the solvent fraction of a probe-shrink mask.
        d_min = max(self.d_spacings.min(), 3 * self.settings.grid_step)
        fraction = float(solvent_mask(self.atoms, self.crystal, method="binary", grid_step=MMTBX_GRID_STEP).mean())
        f_cutoff = _numpy(
            self._mask("density_cutoff", d_min=d_min, solvent_fraction=min(max(fraction, 1e-3), 0.999))[1]
        )
        exact_radii = None
        if self.settings.mask == "probe_shrink":
            exact_radii = _numpy(self._mask("probe_shrink", softness=0, **MMTBX_RADII)[1])
        self.report("solvent mask (mmtbx)", None)
        f_mmtbx, first["mmtbx"] = self._first(mmtbx)
        self.to_time.append(("f_mask", ours, mmtbx, first))
        self.f_mask, self.f_mask_mmtbx, self.f_mask_cutoff = (
            self._all_reflections(values[:n_measured]) for values in (f_mask, f_mmtbx, f_cutoff)
        )
        d = low_set.d_spacings().data().as_numpy_array()

        def against_reference(values: Any) -> dict[str, Any]:
            """Of the measured reflections and, as geometry has nothing to do with what was measured, of all."""
            measured = agreement(d[:n_measured], values[:n_measured], f_reference[:n_measured])
            return measured | {"complete": agreement(d, values, f_reference)}

        report = {
            "method": self.settings.mask,
            "reference": f"mmtbx at {step:g} Å",
            "d_min": F_MASK_D_MIN,
            **against_reference(f_mask),
            "density_cutoff": against_reference(f_cutoff),
            "mmtbx_default": against_reference(f_mmtbx) | {"grid_step": MMTBX_GRID_STEP},
            "equal_radii": None,
        }
        if exact_radii is not None:
            report["equal_radii"] = against_reference(exact_radii) | MMTBX_RADII
        mask = mask.detach().cpu().numpy().astype(np.float64)
        mask_mmtbx = reference.mask_map(self.structure, mask.shape)
        maps = {
            "cc": correlation(mask, mask_mmtbx),
            "grid": list(mask.shape),
            "grid_step": self.settings.grid_step,
            "solvent_fraction": float(mask.mean()),
            "solvent_fraction_mmtbx": float(mask_mmtbx.mean()),
        }
        return report, maps, mask_section(mask, mask_mmtbx, self.crystal.unit_cell)

    def _all_reflections(self, values: Any) -> Any:
        """F_mask of every reflection: zero beyond 3 Å, as mmtbx has it."""
        result = np.zeros(len(self.d_spacings), dtype=np.complex128)
        result[self.low] = values
        return result

    # gradients

    def _gradients(self) -> dict[str, Any]:
        """Of a least-squares target with respect to the sites; checked on a random part of the data."""
        d_target = self._d_target_d_f_calc()
        self._ready("gradients", "double", "direct")
        self.report("gradients", None)
        part = self._random_part(self.settings.gradient_terms)
        part_set = self.f_obs.select(flex_bool(part))
        ours = _backward(self._graph(as_miller_tensor(part_set, device=self.settings.device), d_target[part]))
        self.report("gradients (cctbx)", None)
        exact = reference.site_gradients(self.structure, part_set, d_target[part], "direct")
        fft = reference.site_gradients(self.structure, part_set, d_target[part], "fft")
        self._time_gradients(d_target)
        return {
            "parameters": "sites",
            "n_reflections": int(part.sum()),
            "relative_l2_vs_direct": relative_l2(ours.cpu().numpy(), exact),
            "mmtbx_fft_relative_l2_vs_direct": relative_l2(fft, exact),
        }

    def _d_target_d_f_calc(self) -> Any:
        """dT/dRe(F) + i dT/dIm(F) of T = sum (|F| - k F_obs)^2, (n,) complex."""
        tiny = np.finfo(np.float64).tiny
        amplitudes, f_obs = np.abs(self.f_protein), self.f_obs.data().as_numpy_array()
        scale = (amplitudes @ f_obs) / max(f_obs @ f_obs, tiny)
        return 2 * (amplitudes - scale * f_obs) * self.f_protein / np.maximum(amplitudes, tiny)

    def _graph(self, indices: Any, d_target: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(sites, F, dT/dF): F is computed, its gradient is not."""
        sites = self.atoms.sites_cart.detach().clone().requires_grad_()
        f = self._sf(self.atoms.replace(sites_cart=sites), indices)
        return sites, f, torch.as_tensor(d_target, dtype=f.dtype, device=f.device)

    def _time_gradients(self, d_target: Any) -> None:
        """To be timed. Ours is the backward pass alone: mmtbx's gradients do not include F_calc either."""
        graph = self._synchronized(lambda: self._graph(self.indices, d_target))
        ours = self._synchronized(_backward)
        mmtbx = lambda: reference.site_gradients(self.structure, self.f_obs, d_target)  # noqa: E731
        ready = graph()
        first = {"sfdiff": self._first(lambda: ours(ready))[1], "mmtbx": self._first(mmtbx)[1]}
        self.to_time.append(("gradients", ours, mmtbx, first, {"sfdiff": graph}))


def _backward(graph: tuple[torch.Tensor, ...]) -> torch.Tensor:
    sites, f, d_target = graph
    return torch.autograd.grad(f, sites, grad_outputs=d_target)[0]


def _numpy(values: Any) -> npt.NDArray[Any]:
    return values.detach().cpu().numpy().astype(np.complex128)  # type: ignore[no-any-return]


def _with_missing(miller_array: Any, d_min: float) -> Any:
    """The array, followed by the reflections to that resolution that it lacks, as zeros."""
    missing = miller_array.complete_set(d_min=d_min).lone_set(miller_array)
    return miller_array.array(data=flex.double(miller_array.size())).concatenate(
        missing.array(data=flex.double(missing.size()))
    )
