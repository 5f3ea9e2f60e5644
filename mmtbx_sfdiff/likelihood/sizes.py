"""What can be computed of data and a model: finite numbers, of which squares do not overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..kernels import checks

if TYPE_CHECKING:
    from ..reflections import Reflections
    from .intensities import Intensities

# Of the largest F of a model that is not all zeros: squares of these do not overflow in single precision.
_SIZES = (1e-15, 1e15)


def a_number(value: torch.Tensor, data: Reflections | Intensities, f_model: torch.Tensor) -> torch.Tensor:
    """The value, where it is one or nobody can look (compiled, in ``vmap``, on a GPU).

    Raises
    ------
    ValueError
        Structure factors that are not finite, by the first; numbers of which squares, or what they are divided by, overflow.
    """
    if not f_model.numel() or not checks.shows(f_model.device):
        return value
    size = f_model.detach().abs()
    most = size.flatten(0, -2).amax(-1) if size.ndim > 1 else size.amax()
    usable = (most == 0) | ((most >= _SIZES[0]) & (most <= _SIZES[1]))
    if checks.seen(usable.all() & torch.isfinite(value.detach()).all()) is not False:
        return value
    wrong = (~torch.isfinite(size)).nonzero()
    if len(wrong):
        *batch, row = wrong[0].tolist()
        where = f" in model {tuple(batch) if len(batch) > 1 else batch[0]} of the batch" if batch else ""
        raise ValueError(
            f"f_model of reflection {row} {tuple(data.miller_indices[row].tolist())}{where} is "
            f"{complex(f_model.detach()[tuple(wrong[0].tolist())]):g}: it must be finite."
        )
    observed, values = ("f_obs", data.f_obs) if hasattr(data, "f_obs") else ("i_obs", data.i_obs)
    sigmas = "" if data.sigmas is None else f", sigmas down to {float(data.sigmas.min()):.3g}"
    raise ValueError(
        f"These numbers are none to compute with in {str(value.dtype).split('.')[1]}: {observed} is up to "
        f"{float(values.max()):.3g}, F_model up to {float(most.min()):.3g}{sigmas}; bring them to a scale near that of electrons."
    )
