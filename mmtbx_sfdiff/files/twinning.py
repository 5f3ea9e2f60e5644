"""Whether data look twinned, with a model at hand.

With the intensities |F_model(h)|^2 and those of the twin mates h T, the fraction alpha for which

    |F_twin(h)|^2 = (1 - alpha) |F_model(h)|^2 + alpha |F_model(h T)|^2

agrees best with the data is near zero for a single crystal.  The laws T are those that the lattice allows.

Reference: ``mmtbx.scaling.twin_analyses.twin_laws``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import mmtbx.scaling.twin_analyses
import numpy as np
import numpy.typing as npt
from cctbx import miller, sgtbx

from ..numerics.residual import r_factor

#: A twin is suspected from this fraction on, if R falls by this share of itself.  A single crystal's model gains up to 4 %.
LEAST_FRACTION, LEAST_GAIN = 0.1, 0.1
#: Above this R-work another indexing is looked for; it is named if R falls by this share of itself.
ABSURD, LEAST_REINDEXED = 0.45, 0.2
#: Below it, if R falls to this share of itself.
CLEARLY = 0.6


@dataclasses.dataclass(frozen=True)
class Twin:
    """A twin law, the fraction that explains the data best, R without and with it, and R of data reindexed by the law."""

    law: str
    fraction: float
    r: float
    r_twinned: float
    r_reindexed: float = 1.0

    @property
    def suspected(self) -> bool:
        return self.fraction >= LEAST_FRACTION and self.r_twinned <= (1 - LEAST_GAIN) * self.r

    def __str__(self) -> str:
        return (
            f"The data look twinned: with a fraction of {self.fraction:.2f} by the law {self.law}, R falls from {self.r:.3f} "
            f"to {self.r_twinned:.3f}. R factors, scales and what is refined here are those of a single crystal: "
            f"twin_law={self.law} (or auto) takes the twin into account."
        )


def twin_sentence(fmodel: Any) -> str:
    """What to say of an FModel of a twin with scales."""
    known = fmodel.recognised_twin
    how = "The data look twinned" if known else "The data are taken as those of a twin"
    single = f" ({known.r:.3f} as a single crystal)" if known else ""
    return (
        f"{how}: by the law {fmodel.twin_law}, with a fraction of {fmodel.scales.twin_fraction:.2f}, R-work is "
        f"{fmodel.scales.r_work:.3f}{single}. Scales, R factors, what is refined and maps (of detwinned data) are those of the twin."
    )


def twin_messages(fmodel: Any) -> list[str]:
    """What to tell the user of an FModel with scales: one sentence or two about the likeliest twin, or nothing."""
    if fmodel.twin_law is not None:
        return [twin_sentence(fmodel)]
    every = twins(fmodel)
    other = min(every, key=lambda twin: twin.r_reindexed, default=None)
    share = 1 - LEAST_REINDEXED if other is not None and other.r > ABSURD else CLEARLY
    if other is not None and other.r_reindexed <= min(share * other.r, other.r_twinned):
        return [
            f"R-work is {other.r:.3f}, but {other.r_reindexed:.3f} with the data reindexed by {other.law}, which the lattice "
            f"allows: the data are in the other indexing; gemmi reindex --hkl='{other.law}' DATA.mtz REINDEXED.mtz changes it."
        ]
    found = [twin for twin in every if twin.suspected]
    return [str(min(found, key=lambda twin: twin.r_twinned))] if found else []


def twins(fmodel: Any) -> list[Twin]:
    """A :class:`Twin` for each law that the lattice allows, over the work set."""
    reflections = fmodel.reflections
    f_obs, _ = reflections.to_cctbx()
    try:
        laws = mmtbx.scaling.twin_analyses.twin_laws(f_obs).operators
    except (AssertionError, RuntimeError):
        return []  # cctbx has none for some unconventional settings
    f_model = fmodel.f_model().detach().abs().cpu().numpy()
    used = (fmodel.scales.selection & reflections.work).cpu().numpy()
    observed = reflections.f_obs.cpu().numpy()
    standard = f_obs.map_to_asu().indices()
    found = []
    for law in laws:
        operator = sgtbx.change_of_basis_op(law.operator)
        mates = f_obs.customized_copy(indices=operator.apply(f_obs.indices())).map_to_asu().indices()
        # Their own numbers among the reflections.
        pairs = miller.match_indices(standard, mates)
        rows, columns = (pairs.pairs().column(i).as_numpy_array() for i in (0, 1))
        both = used[columns]
        found.append(
            _best(law.operator.r().as_hkl(), observed[columns][both], f_model[columns][both], f_model[rows][both])
        )
    return [twin for twin in found if twin is not None]


def _best(law: str, observed: npt.NDArray[Any], own: npt.NDArray[Any], mate: npt.NDArray[Any]) -> Twin | None:
    if len(observed) < 100:
        return None

    def r(fraction: float) -> float:
        model = np.sqrt((1 - fraction) * own**2 + fraction * mate**2)
        return float(r_factor(torch.from_numpy(observed), torch.from_numpy(model)))

    fractions = np.arange(0, 0.501, 0.01)
    values = [r(fraction) for fraction in fractions]
    best = int(np.argmin(values))
    return Twin(law, float(fractions[best]), float(values[0]), float(values[best]), float(r(1.0)))
