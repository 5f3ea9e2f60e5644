"""R factors of both sides' F_calc and F_mask, by mmtbx's scaling and by ours; twins, and why R is absurd."""

from __future__ import annotations

from typing import Any

import torch

from libtbx.utils import Sorry

from ..files.disagreement import HIGH, disagreement_messages
from ..files.twinning import twin_sentence
from ..fmodel import FModel
from ..reflections import Reflections
from ..scaling import update_all_scales
from ..scaling.scales import Scales
from . import mmtbx_numbers as reference
from .bench import Bench
from .timing import timed
from .twin import twin_section


class ScaledBench(Bench):
    """The part of the report that needs the data; structure factors are there (``f_protein``, ``f_mask`` ...)."""

    f_protein: Any
    f_fft: Any
    f_mask: Any
    f_mask_mmtbx: Any
    f_mask_cutoff: Any

    def _pairs(self) -> dict[str, tuple[Any, Any]]:
        """F_calc and F_mask that are scaled, by name; those by direct summation come last."""
        return {
            "sfdiff": (self.f_protein, self.f_mask),
            "mmtbx": (self.f_fft, self.f_mask_mmtbx),
            "mmtbx_direct": (getattr(self, "f_direct", None), self.f_mask_mmtbx),
            "density_cutoff": (self.f_protein, self.f_mask_cutoff),
        }

    def _r_factors(self, known: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """R factors through mmtbx's scaling, what differs being F_calc and F_mask only, and through ours; and both times."""
        pairs, seconds = self._pairs(), {}
        result: dict[str, Any] = {"scaling": "mmtbx"}
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

    def _fmodel(self, **options: Any) -> FModel:
        given = {"dtype": self.dtype, "device": self.settings.device}
        reflections = Reflections.from_cctbx(self.f_obs, self.entry.data.r_free_flags, **given)
        mask = {"method": self.settings.mask, "grid_step": self.settings.grid_step}
        given = {"accuracy": self.settings.accuracy, "mask": mask, "source": self.entry} | options
        return FModel(self.atoms, reflections, **given)

    def _disagreement(self, r_factors: dict[str, Any]) -> list[str]:
        """Why R is absurd, where it is."""
        if r_factors["twin"] is not None or r_factors["sfdiff_scaling"]["sfdiff"]["r_work"] <= HIGH:
            return self.twin_messages
        self.report("why R is so high", None)
        fmodel = self._fmodel()
        with self._explained():
            fmodel.update_scales()
        return disagreement_messages(fmodel)

    def _scale(self, f_calc: Any, f_mask: Any) -> Any:
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

    def _own_scale(self, f_calc: Any, f_mask: Any) -> Any:
        """(R factors, seconds) of this package's scaling."""
        reflections = Reflections.from_cctbx(self.f_obs, self.entry.data.r_free_flags, device=self.settings.device)
        f_calc, f_mask = (torch.as_tensor(f, device=self.settings.device) for f in (f_calc, f_mask))
        model = FModel(self.atoms, reflections, method=self.settings.method, accuracy=self.settings.accuracy)

        def scale() -> Scales:
            with torch.no_grad():
                return update_all_scales(reflections, f_calc, f_mask, **model.riding_hydrogens())

        with self._explained():
            scales, seconds = timed(self._synchronized(scale))
        used = scales.selection
        has_free = reflections.r_free_flags is not None and bool((reflections.r_free_flags & used).any())
        return {
            "r_work": scales.r_work,
            "r_free": scales.r_free if has_free else None,
            "n_used": int(used.sum()),
        }, seconds
