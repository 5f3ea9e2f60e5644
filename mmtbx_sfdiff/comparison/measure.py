"""Everything ``mmtbx_sfdiff.compare`` reports about one entry.

Four things are computed by this package and by mmtbx from the same model and the same data: structure factors
(equation 4; the reference is cctbx's direct summation), the bulk-solvent mask and its structure factors (the
reference is mmtbx's mask on a grid so fine that its rounding hardly matters), gradients with respect to the
sites, and R factors (equation 3) after mmtbx's scaling and after this package's.  Each is timed on both sides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime

import torch

import numpy as np
from cctbx.array_family import flex
from libtbx.utils import Sorry

from ..atoms import Atoms
from ..bulk_solvent import DEFAULT_MASK, mask_structure_factors, solvent_mask
from ..crystal import Crystal, as_miller_tensor
from ..files.disagreement import HIGH, disagreement_messages
from ..files.twinning import twin_sentence
from ..fmodel import FModel
from ..reflections import Reflections
from ..scaling import update_all_scales
from ..structure_factors import DEFAULT_MEMORY, structure_factors
from ..versions import versions
from . import mmtbx_numbers as reference
from .schema import SCHEMA_VERSION
from .section import mask_section
from .statistics import agreement, correlation, relative_l2
from .timing import side_by_side, timed
from .twin import twin_section

# mmtbx takes F_mask to be zero beyond this resolution, Å (``Fmask_res_high``).
F_MASK_D_MIN = 3.0
MMTBX_GRID_STEP = 0.6
MMTBX_RADII = {"r_probe": 1.1, "r_shrink": 0.9}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to compute, and how.

    Attributes
    ----------
    method, accuracy
        Of :func:`mmtbx_sfdiff.structure_factors`.
    mask, grid_step
        Method and grid step (Å) of :func:`mmtbx_sfdiff.solvent_mask`.
    reference_step : float
        Grid step of the mmtbx mask that masks are compared with, Å; coarser where a cell is too large for it.
    device, dtype : str
        Where, and in which precision ("float32", "float64"), this package computes.
    n_timing : int
        Calls of which a time is the median.
    memory : int
        Bound on the working storage of structure factors, bytes.
    twin_law : str or None
        "auto", None for a single crystal, or indices of the mate.
    direct_terms : float or None
        cctbx's direct summation takes 36 ns a term (atom x reflection x operator).  Where the entry has more terms than
        this, the reference is taken on a random part of the reflections.  None: always on all.
    gradient_terms : float or None
        The same for the check of the gradients, which takes twice as long a term and is timed apart.
    """

    method: str = "auto"
    accuracy: float = 1e-4
    mask: str = DEFAULT_MASK
    grid_step: float = 0.6
    reference_step: float = 0.15
    device: str = "cpu"
    dtype: str = "float64"
    n_timing: int = 3
    memory: int = DEFAULT_MEMORY
    twin_law: str | None = "auto"
    direct_terms: float | None = 1e9
    gradient_terms: float | None = 3e8


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes
    ----------
    result : dict
        As :data:`.schema.SCHEMA` says; what is written as JSON.
    section : MaskSection
        A section through both masks, for the figure.
    pairs : dict of str to tuple of numpy.ndarray
        F_protein and F_mask, (n,) complex, that were scaled: of "sfdiff" and of "mmtbx".
    """

    result: dict
    section: object
    pairs: dict = dataclasses.field(default_factory=dict)


def measure(entry, settings=Settings(), report=None, compiling=None):
    """Compare this package with mmtbx on one entry.

    Parameters
    ----------
    entry : mmtbx_sfdiff.files.Entry
        Model and data; neither is changed.
    settings : Settings
    report : callable, optional
        Called with (what is being done, fraction of it that is done or None).
    compiling : mmtbx_sfdiff.kernels.compilation.Compilation, optional
        Of the kernels, begun: it is waited for where they are needed, and ends before anything is timed.

    Returns
    -------
    Comparison

    Raises
    ------
    libtbx.utils.Sorry
        When the model cannot be used, mmtbx cannot scale it to the data, or the device has too little memory.
    """
    try:
        return _Measurement(entry, settings, report or (lambda step, fraction=None: None), compiling).run()
    except torch.cuda.OutOfMemoryError:
        raise Sorry(
            f"The device {settings.device} has too little free memory for {entry.name}: use device=cpu."
        ) from None


class _Measurement:
    """One entry's arrays, ours and mmtbx's, and the parts of the report.

    First everything is computed once, kernels being compiled meanwhile; then, when nothing else is going on, what is timed.
    """

    def __init__(self, entry, settings, report, compiling=None):
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
        self.to_time = []

    def run(self):
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

    def _header(self):
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

    def _conditions(self):
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
    def _explained(self):
        """What this package says about a model that it cannot use, with the name of the file."""
        try:
            yield
        except ValueError as error:
            raise Sorry(f"{self.entry.model.path}: {error}") from None

    def _synchronised(self, function):
        """The function, waiting for the device to finish, so that its time is all of its time."""
        if torch.device(self.settings.device).type != "cuda":
            return function

        def call(*arguments):
            result = function(*arguments)
            torch.cuda.synchronize(self.settings.device)
            return result

        return call

    def _ready(self, *groups):
        """Wait for kernels: of these groups, or for all."""
        if self.compiling:
            step = "compiling kernels (the first time)"
            told = lambda done, n: self.report(step, done / n)  # noqa: E731
            self.compiling.wait(told, groups) if groups else self.compiling.wait(told)

    def _first(self, function):
        """(its result, seconds); 0 where others were at work meanwhile: it is not the time of a slow one, then."""
        quiet = self.compiling is None or self.compiling.finished
        result, seconds = timed(function)
        return result, seconds if quiet else 0.0

    def _time(self, name, ours, mmtbx, first, prepare=None):
        self.report(f"timing of {name.replace('_', ' ')}", None)
        return side_by_side({"sfdiff": ours, "mmtbx": mmtbx}, first, self.settings.n_timing, prepare)

    def _random_part(self, max_terms):
        """(n,) bool: the reflections on which direct summation has at most so many terms; all of them for None."""
        n = len(self.d_spacings)
        terms = self.structure.scatterers().size() * self.crystal.order_z
        chosen = n if max_terms is None else min(n, max(1, int(max_terms / terms)))
        part = np.zeros(n, dtype=bool)
        part[np.random.default_rng(0).permutation(n)[:chosen]] = True
        return part

    # structure factors

    def _sf(self, atoms, indices):
        return structure_factors(
            atoms,
            self.crystal,
            indices,
            method=self.settings.method,
            accuracy=self.settings.accuracy,
            memory=self.settings.memory,
        )

    def _f_protein(self):
        ours = self._synchronised(lambda: self._sf(self.atoms, self.indices))
        mmtbx = lambda: reference.f_calc_fft(self.structure, self.f_obs)  # noqa: E731
        first = {}
        self._ready("structure_factors", "double", "direct")
        self.report("structure factors", None)
        f, first["sfdiff"] = self._first(ours)
        self.f_protein = _numpy(f)
        self.report("structure factors (cctbx, FFT)", None)
        self.f_fft, first["mmtbx"] = self._first(mmtbx)
        self.to_time.append(("f_protein", ours, mmtbx, first))

    def _against_direct(self):
        """(errors of F_protein, seconds of cctbx's direct summation)."""
        step = "structure factors (cctbx, direct summation)"
        self.report(step, 0.0)
        part = self._random_part(self.settings.direct_terms)
        f_direct, seconds = timed(
            lambda: reference.f_calc_direct(
                self.structure,
                self.f_obs.select(_flex_bool(part)),
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

    def _mask(self, method, **parameters):
        """(mask, F_mask of the reflections to 3 Å, those that were not measured last)."""
        with self._explained():
            mask = solvent_mask(
                self.atoms, self.crystal, method=method, grid_step=self.settings.grid_step, **parameters
            )
        return mask, mask_structure_factors(mask, self.crystal, self.low_indices.to(mask.device))

    def _reference_mask(self):
        """mmtbx's on a fine grid: what masks are compared with."""
        self.low_set = _with_missing(self.f_obs.select(_flex_bool(self.low)), F_MASK_D_MIN)
        self.low_indices = as_miller_tensor(self.low_set)
        step = reference.affordable_mask_step(self.f_obs.crystal_symmetry(), self.settings.reference_step)
        self.report(f"solvent mask (mmtbx, {step:g} Å grid)", None)
        self.f_reference, self.reference_step = reference.f_mask(self.structure, self.low_set, step), step

    def _masks(self):
        low_set, f_reference, step = self.low_set, self.f_reference, self.reference_step
        n_measured = int(self.low.sum())
        ours = self._synchronised(lambda: self._mask(self.settings.mask))
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

        def against_reference(values):
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

    def _all_reflections(self, values):
        """F_mask of every reflection: zero beyond 3 Å, as mmtbx has it."""
        result = np.zeros(len(self.d_spacings), dtype=np.complex128)
        result[self.low] = values
        return result

    # gradients

    def _gradients(self):
        """Of a least-squares target with respect to the sites; checked on a random part of the data."""
        d_target = self._d_target_d_f_calc()
        self._ready("gradients", "double", "direct")
        self.report("gradients", None)
        part = self._random_part(self.settings.gradient_terms)
        part_set = self.f_obs.select(_flex_bool(part))
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

    def _d_target_d_f_calc(self):
        """dT/dRe(F) + i dT/dIm(F) of T = sum (|F| - k F_obs)^2, (n,) complex."""
        tiny = np.finfo(np.float64).tiny
        amplitudes, f_obs = np.abs(self.f_protein), self.f_obs.data().as_numpy_array()
        scale = (amplitudes @ f_obs) / max(f_obs @ f_obs, tiny)
        return 2 * (amplitudes - scale * f_obs) * self.f_protein / np.maximum(amplitudes, tiny)

    def _graph(self, indices, d_target):
        """(sites, F, dT/dF): F is computed, its gradient is not."""
        sites = self.atoms.sites_cart.detach().clone().requires_grad_()
        f = self._sf(self.atoms.replace(sites_cart=sites), indices)
        return sites, f, torch.as_tensor(d_target, dtype=f.dtype, device=f.device)

    def _time_gradients(self, d_target):
        """To be timed. Ours is the backward pass alone: mmtbx's gradients do not include F_calc either."""
        graph = self._synchronised(lambda: self._graph(self.indices, d_target))
        ours = self._synchronised(_backward)
        mmtbx = lambda: reference.site_gradients(self.structure, self.f_obs, d_target)  # noqa: E731
        ready = graph()
        first = {"sfdiff": self._first(lambda: ours(ready))[1], "mmtbx": self._first(mmtbx)[1]}
        self.to_time.append(("gradients", ours, mmtbx, first, {"sfdiff": graph}))

    # R factors

    def _pairs(self):
        """F_calc and F_mask that are scaled, by name; those by direct summation come last."""
        return {
            "sfdiff": (self.f_protein, self.f_mask),
            "mmtbx": (self.f_fft, self.f_mask_mmtbx),
            "mmtbx_direct": (getattr(self, "f_direct", None), self.f_mask_mmtbx),
            "density_cutoff": (self.f_protein, self.f_mask_cutoff),
        }

    def _r_factors(self, known):
        """R factors through mmtbx's scaling, what differs being F_calc and F_mask only, and through ours; and both times."""
        pairs, result, seconds = self._pairs(), {"scaling": "mmtbx"}, {}
        for name, (f_calc, f_mask) in pairs.items():
            if f_calc is None or name in known:
                result[name] = known.get(name)
                continue
            self.report(f"scaling ({name.replace('_', ' ')})", None)
            result[name], seconds[name] = self._scale(f_calc, f_mask)
        self.report("scaling (mmtbx_sfdiff)", None)
        ours = {name: self._own_scale(*pairs[name]) for name in ("sfdiff", "mmtbx")}
        result["sfdiff_scaling"] = {name: part for name, (part, _) in ours.items()}
        # Of the same F_calc and F_mask, by both; the first call of a function pays for what the later ones find made.
        times = {"sfdiff": ours["mmtbx"][1], "mmtbx": seconds["mmtbx"]}
        # What the header says was measured, so it has no bearing on simulated data.
        header = None if self.entry.data.simulated else self.entry.model
        result["deposited"] = {"r_work": header and header.r_work, "r_free": header and header.r_free}
        self.report("twinning", None)
        with self._explained():
            fmodel = self._fmodel(twin_law=self.settings.twin_law)
            result["twin"] = twin_section(fmodel, self.structure)
        self.twin_messages = [twin_sentence(fmodel)] if result["twin"] else []
        return result, times

    def _fmodel(self, **options):
        given = {"dtype": self.dtype, "device": self.settings.device}
        reflections = Reflections.from_cctbx(self.f_obs, self.entry.data.r_free_flags, **given)
        mask = {"method": self.settings.mask, "grid_step": self.settings.grid_step}
        given = {"accuracy": self.settings.accuracy, "mask": mask, "source": self.entry} | options
        return FModel(self.atoms, reflections, **given)

    def _disagreement(self, r_factors):
        """Why R is absurd, where it is."""
        if r_factors["twin"] is not None or r_factors["sfdiff_scaling"]["sfdiff"]["r_work"] <= HIGH:
            return self.twin_messages
        self.report("why R is so high", None)
        fmodel = self._fmodel()
        with self._explained():
            fmodel.update_scales()
        return disagreement_messages(fmodel)

    def _scale(self, f_calc, f_mask):
        """(R factors, seconds) of mmtbx's scaling."""
        try:
            manager = reference.unscaled_model(self.f_obs, self.entry.data.r_free_flags, self.structure, f_calc, f_mask)
            _, seconds = timed(lambda: reference.scale_model(manager))
        except (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise Sorry(
                f"mmtbx cannot scale the model to {self.entry.data.path} "
                f"({len(self.d_spacings)} reflections): {reason}. Use more reflections, or another "
                "model."
            ) from None
        r_free = None
        if self.entry.data.r_free_flags is not None and manager.r_free_flags().data().count(True):
            r_free = float(manager.r_free())
        return {"r_work": float(manager.r_work()), "r_free": r_free, "n_used": manager.f_obs().size()}, seconds

    def _own_scale(self, f_calc, f_mask):
        """(R factors, seconds) of this package's scaling."""
        reflections = Reflections.from_cctbx(self.f_obs, self.entry.data.r_free_flags, device=self.settings.device)
        f_calc, f_mask = (torch.as_tensor(f, device=self.settings.device) for f in (f_calc, f_mask))
        model = FModel(self.atoms, reflections, method=self.settings.method, accuracy=self.settings.accuracy)

        def scale():
            with torch.no_grad():
                return update_all_scales(reflections, f_calc, f_mask, **model.riding_hydrogens())

        with self._explained():
            scales, seconds = timed(self._synchronised(scale))
        used = scales.selection
        has_free = reflections.r_free_flags is not None and bool((reflections.r_free_flags & used).any())
        return {
            "r_work": scales.r_work,
            "r_free": scales.r_free if has_free else None,
            "n_used": int(used.sum()),
        }, seconds


def _backward(graph):
    sites, f, d_target = graph
    return torch.autograd.grad(f, sites, grad_outputs=d_target)[0]


def _numpy(values):
    return values.detach().cpu().numpy().astype(np.complex128)


def _with_missing(miller_array, d_min):
    """The array, followed by the reflections to that resolution that it lacks, as zeros."""
    missing = miller_array.complete_set(d_min=d_min).lone_set(miller_array)
    return miller_array.array(data=flex.double(miller_array.size())).concatenate(
        missing.array(data=flex.double(missing.size()))
    )


def _flex_bool(values):
    return flex.bool(np.ascontiguousarray(values))
