"""What cctbx is told about this backend, as PHIL parameters, and how they are read."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from libtbx.utils import Sorry

from ..structure_factors import DEFAULT_MEMORY, METHODS

#: Parameters of the scope ``extra.sfdiff`` of mmtbx's structure-factor parameters.
STRUCTURE_FACTOR_PHIL = """\
method = *auto direct fft
  .type = choice
  .help = "direct sums over atoms and reflections, exact to rounding; fft samples the density on a grid that is fine \
          enough for the accuracy asked for; auto takes the faster."
accuracy = 1.e-4
  .type = float(value_min=1.e-7, value_max=0.1)
  .help = "Largest relative error of structure factors and gradients with the FFT."
dtype = *float64 float32
  .type = choice
  .help = "Precision of the computation; results are double precision in cctbx either way."
device = cpu
  .type = str
  .help = "Where to compute: cpu, cuda, cuda:1, ..."
memory = 2048
  .type = int(value_min=16)
  .help = "Bound on working storage, MiB."
mask_gradient = True
  .type = bool
  .help = "Add the gradient through the solvent mask to gradients of the sites, where the mask is sfdiff's and has one. \
          False gives mmtbx's own gradient, for which the mask is a constant."
"""

#: Parameters that are added to ``mmtbx.masks.mask_master_params``.
MASK_PHIL = """\
algorithm = *cctbx sfdiff
  .type = choice
  .help = "cctbx: the mask as it always was.  sfdiff: the mask of mmtbx_sfdiff."
sfdiff
  .help = "The mask of mmtbx_sfdiff, used with algorithm=sfdiff."
{
  method = *probe_shrink density_cutoff binary
    .type = choice
    .help = "probe_shrink is accurate between grid points and differentiable; density_cutoff cuts the density of the \
            model at a percentile; binary is cctbx's mask, bit for bit, without a gradient."
  softness = None
    .type = float(value_min=0)
    .help = "How gradually pockets open in the probe_shrink mask, in Angstrom; 0 is the hard definition."
  device = cpu
    .type = str
    .help = "Where to compute: cpu, cuda, cuda:1, ..."
  memory = 1024
    .type = int(value_min=16)
    .help = "Bound on working storage, MiB."
}
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How structure factors and gradients are computed for cctbx.

    Attributes
    ----------
    method, accuracy
        Of :func:`~mmtbx_sfdiff.structure_factors`.
    dtype : torch.dtype
    device : str
    memory : int
        Bytes.
    mask_gradient : bool
        Whether gradients of the sites contain the solvent mask's.
    """

    method: str = "auto"
    accuracy: float = 1e-4
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    memory: int = DEFAULT_MEMORY
    mask_gradient: bool = True

    def __post_init__(self) -> None:
        if self.method != "auto" and self.method not in METHODS:
            raise ValueError(f"Unknown method {self.method!r}: choose from auto, {', '.join(METHODS)}.")
        if not 0 < self.accuracy < 1:
            raise ValueError(f"accuracy must be between 0 and 1, not {self.accuracy!r}.")

    @classmethod
    def from_phil(cls, extra_params: Any) -> Settings:
        """Read ``extra.sfdiff`` where a caller has it; others get the defaults.

        Parameters
        ----------
        extra_params : libtbx.phil.scope_extract or None
            mmtbx's ``extra`` scope; it lacks ``sfdiff`` where it was extracted before registration.
        """
        scope = getattr(extra_params, "sfdiff", None)
        if scope is None:
            return cls()
        return cls(
            method=scope.method,
            accuracy=scope.accuracy,
            dtype=getattr(torch, scope.dtype),
            device=scope.device,
            memory=scope.memory * 2**20,
            mask_gradient=scope.mask_gradient,
        )


def usable_device(name: str, parameter: str = "extra.sfdiff.device") -> torch.device:
    """The device of that name; the CPU in a forked child of a process that has used CUDA, which no child can.

    Raises
    ------
    libtbx.utils.Sorry
        When there is no such device here.
    """
    try:
        device = torch.device(str(name))
    except RuntimeError:
        raise Sorry(f"{parameter}={name} is not a device: choose cpu or cuda.") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise Sorry(f"{parameter}={name} is not supported: choose cpu or cuda.")
    if torch.cuda._is_in_bad_fork():
        return torch.device("cpu")
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        raise Sorry(f"{parameter}={name}: torch finds no such CUDA device on this machine; set {parameter}=cpu.")
    return device
