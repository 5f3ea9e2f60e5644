"""An FModel of twinned data: the law, the mates, and amplitudes of two domains.

    |F_model(h)|^2 = k_total(h)^2 [ (1 - alpha) |F(h)|^2 + alpha |F(hT)|^2 ],    F = F_calc + k_mask F_mask

Reference: :mod:`mmtbx_sfdiff.scaling.twin`, :mod:`mmtbx_sfdiff.plans.twin`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .likelihood import targets
from .plans.twin import TwinMates, parse_law, twin_laws, twin_mates
from .reflections import Reflections
from .scaling import Scales
from .scaling.twin import fit_fraction, mixed_amplitude, update_twin_scales

#: A twin is recognised from this fraction on, if R falls by this share of itself.  A single crystal's model gains up to 4 %.
LEAST_FRACTION, LEAST_GAIN = 0.1, 0.1
_SCALING = ("bulk_solvent", "anisotropic_scaling", "scale_f_obs")


@dataclasses.dataclass(frozen=True)
class TwinCandidate:
    """A twin law, the fraction that explains the data best under the scales of a single crystal, and R-work without it, with it, and
    of the data indexed by the law."""

    law: str
    fraction: float
    r: float
    r_twinned: float
    r_reindexed: float

    @property
    def suspected(self) -> bool:
        """Whether the data look twinned by it, and not indexed by it."""
        gain = self.r_twinned <= (1 - LEAST_GAIN) * self.r
        return self.fraction >= LEAST_FRACTION and gain and self.r_twinned <= self.r_reindexed


class FModelTwin:
    """The part of :class:`~mmtbx_sfdiff.FModel` that knows of twins."""

    reflections: Reflections
    scales: Scales | None
    twin_law: str | None
    twin_fraction: float | None
    f_partial: torch.Tensor | None
    follow_scales: bool

    def _set_twin(self, law: str | None, fraction: float | None) -> None:
        """Take the options; what is impossible is refused."""
        self._twin_auto = isinstance(law, str) and law.strip().lower() == "auto"
        self.twin_law, self.twin_fraction = (None if self._twin_auto else law), fraction
        self._known_mates: tuple[Any, TwinMates] | None = None
        self.recognised_twin: TwinCandidate | None = None
        if law is None:
            if fraction is not None:
                raise ValueError("twin_fraction goes with twin_law: give the law, such as h,-k,-l, or auto.")
            return
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"twin_fraction must be between 0 and 1, not {fraction!r}.")
        if self.f_partial is not None or self.follow_scales:
            name = "f_partial" if self.f_partial is not None else "follow_scales"
            raise ValueError(f"{name} is not possible with twin_law: leave one of them out.")
        if self.twin_law is not None:
            parse_law(self.twin_law)
            self._mates()

    def _mates(self) -> TwinMates:
        indices = self.reflections.miller_indices
        if (
            self._known_mates is None
            or self._known_mates[0] is not indices
            or self._known_mates[1].law != self.twin_law
        ):
            assert self.twin_law is not None
            found = twin_mates(self.reflections.crystal, indices, self.twin_law, self.reflections.anomalous)
            self._known_mates = indices, found
        return self._known_mates[1]

    def _indices(self, mates: bool) -> torch.Tensor:
        """The reflections', and with ``mates`` after them those of twin mates that are not among them."""
        own = self.reflections.miller_indices
        return torch.cat([own, self._mates().extra]) if mates and self.twin_law is not None else own

    def _checked_mask(self, f_mask: torch.Tensor) -> torch.Tensor:
        """F_mask that was given: of the mates, too."""
        if self.twin_law is not None and f_mask.shape[-1] != len(self._indices(True)):
            raise ValueError(
                f"f_mask of twinned data needs the mates, too ({len(self._indices(True))} values, not {f_mask.shape[-1]}): "
                "make it with f_mask(mates=True)."
            )
        return f_mask

    def _twinned(self, scales: Scales, f_calc: torch.Tensor, f_mask: torch.Tensor, twinned: bool) -> torch.Tensor:
        """F_model of the first domain, or with the amplitude of the twin and the first domain's phase."""
        mates, n = self._mates(), len(self.reflections)
        k_mask = scales.k_masks[0]
        own = f_calc[..., :n] + k_mask * f_mask[..., :n]
        if not twinned:
            return scales.k_total * own
        mate = f_calc[..., mates.rows] + k_mask * f_mask[..., mates.rows]
        own_square, mate_square = (f.real.square() + f.imag.square() for f in (own, mate))
        fraction = 0.0 if scales.twin_fraction is None else scales.twin_fraction
        amplitude = mixed_amplitude(own_square, mate_square, fraction)
        some = own_square > 0
        size = torch.where(some, own_square, 1.0).sqrt()
        phase = torch.where(some, own / size, 1.0)
        return scales.k_total * amplitude * phase

    def _twin_scales(
        self, reflections: Reflections, f_calc: torch.Tensor, f_mask: torch.Tensor, **options: Any
    ) -> Scales:
        """The scales and the fraction; of the options those that have a meaning here."""
        if options.get("model", "mmtbx") != "mmtbx":
            raise ValueError("Twinned data are scaled with model='mmtbx' only: leave twin_law or the model out.")
        mates, n = self._mates(), len(reflections)
        given = {name: options[name] for name in _SCALING if name in options}
        parts = (f_calc[:n], f_mask[:n], f_calc[mates.rows], f_mask[mates.rows])
        return update_twin_scales(reflections, *parts, self.twin_fraction, **given)

    def find_twin_laws(self) -> list[TwinCandidate]:
        """Each law that the lattice allows, with the fraction that explains the data best under the present scales.

        Raises
        ------
        RuntimeError
            Before :meth:`update_scales`.
        ValueError
            For an FModel of a twin.

        Examples
        --------
        >>> fmodel.find_twin_laws()     # this lattice has no more symmetry than the crystal
        []
        """
        if self.twin_law is not None:
            raise ValueError("The model is one of a twin already: look for laws without twin_law.")
        scales = self.known_scales()  # type: ignore[attr-defined]
        reflections, n = self.reflections, len(self.reflections)
        work = scales.selection & reflections.work
        if int(work.sum()) < 100:
            return []
        f_obs, k = (reflections.f_obs / scales.f_obs_scale)[work], scales.k_total[work]
        found = []
        try:
            for law in twin_laws(reflections.crystal):
                self.twin_law = law
                with torch.no_grad():
                    rows = self._mates().rows[work]
                    f_calc, f_mask = self.f_calc(mates=True), self.f_mask(mates=True)  # type: ignore[attr-defined]
                    k_mask = scales.k_masks[0][work]
                    own = (f_calc[:n][work] + k_mask * f_mask[:n][work]).abs().square()
                    mate = (f_calc[rows] + k_mask * f_mask[rows]).abs().square()
                    fraction = fit_fraction(f_obs, own, mate, k)
                    r = [
                        float(targets.residual.r_factor(f_obs, k * mixed_amplitude(own, mate, a)))
                        for a in (0.0, fraction, 1.0)
                    ]
                found.append(TwinCandidate(law, fraction, *r))
        finally:
            self.twin_law = None
        return found

    def _recognise_twin(self) -> None:
        """Of twin_law="auto", with the scales of a single crystal: the law that explains the data best, if one does."""
        self._twin_auto = False
        suspected = [one for one in self.find_twin_laws() if one.suspected]
        if suspected:
            self.recognised_twin = min(suspected, key=lambda one: one.r_twinned)
            self.twin_law = self.recognised_twin.law
