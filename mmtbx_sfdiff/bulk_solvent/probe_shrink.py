"""The probe-shrink mask, accurate between grid points and differentiable.

Hard definition (Jiang & Brünger, 1994; ``softness=0``): the centre of a probe cannot enter the spheres of radius
R_j = r_j + r_probe around the atoms and their images; what is closer than r_shrink to a place where it can be is
solvent.  On a coarse grid this rounds the surface, and it jumps when a pocket opens: a ball of radius r_shrink appears
at once, so that its gradient says nothing about finite steps.  See :mod:`.hard_mask`.

Soft definition (default).  With the step S(t) = 0, t^2 (3 - 2 t), 1 for t below, between and above 0 and 1:

    E(y)    = prod_j [1 - c_j (1 - S(phi_j(y) / w + 1/2))]               a probe's centre may be at y
    phi_j(y) = (|y - x_j|^2 - R_j^2) / (2 R_j)                           distance to a sphere, to first order
    V(x)    = integral E(y) B(|x - y|) dy,   B(d) = S((r_shrink - d) / b + 1/2)
    mask(x) = [1 - exp(-V(x) / v)] / [1 - exp(-V_free / v)]

V is the volume accessible to a probe within r_shrink of x.  If probes were placed at random, 1/v of them in a unit of
volume, 1 - exp(-V/v) is the probability that one of them reaches x: what the hard mask, found with a grid of probes of
one point in the volume v, is on average over all origins of that grid.  Hence softness, a length: w = softness,
v = (3/4 softness)^3, b = 3/8 softness; the default 0.8 Å has v = (0.6 Å)^3, mmtbx's grid, without that grid's noise.
V_free is V where there are no atoms.  Everything is smooth, and a pocket fills as it opens.  See :mod:`.soft_mask`.

c_j is 1 for an atom that counts in full.  mmtbx counts all atoms of positive occupancy in full; here c_j falls smoothly
to 0 below an occupancy of ``full_occupancy``, so that an atom that fades away does not jump out of the mask.  Alternative
conformations count each by itself: the solvent keeps clear of all of them.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from ..atoms import Atoms
from ..crystal import Crystal
from ..kernels import checks
from ..kernels.engines import engine as engine_of
from ..kernels.opaque import constant_result
from ..plans import Plan
from .ensemble import combined
from .hard_mask import apply_hard_values
from .mask_atoms import MaskAtoms, mask_atoms
from .mask_values import MASK_MEMORY, Recipe, apply_on_cell, apply_unit_factors
from .options import Ensemble, length, number
from .soft_mask import apply_soft_values
from .transform import mask_structure_factors, resolution

R_PROBE = 1.1
R_SHRINK = 0.9
SOFTNESS = 0.8
FULL_OCCUPANCY = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeShrinkOptions:
    """Arguments of the differentiable probe-shrink mask.

    Attributes
    ----------
    r_probe, r_shrink : float or torch.Tensor
        Å.
    softness : float or torch.Tensor
        Å; 0 is the hard definition.
    radii : torch.Tensor, optional
        (..., n_atoms) van der Waals radii, Å; by default cctbx's, by element.
    include_hydrogens, include_zero_occupancy : bool
        An atom of zero occupancy that is included counts in full.
    full_occupancy : float
        Occupancy from which on an atom, or a part of an ensemble, counts in full; 0: all positive ones, as in mmtbx.
    memory : int
        Bound in bytes on working storage beyond a few numbers a grid point.
    engine : {"cpu", "triton", "torch"}, optional
        Kernels compiled by numba, or for a GPU by Triton (the soft mask), or PyTorch alone (any device); by default what the
        device and the installation allow.
    precision : {"single", "double"}
        Of E and V in the compiled kernels, which the mask repeats to some 1e-6; "double" is for tests.

    Raises
    ------
    ValueError
        A negative length; a number that is none; an unknown precision.
    """

    r_probe: float | torch.Tensor = R_PROBE
    r_shrink: float | torch.Tensor = R_SHRINK
    softness: float | torch.Tensor = SOFTNESS
    radii: torch.Tensor | None = None
    include_hydrogens: bool = False
    include_zero_occupancy: bool = False
    full_occupancy: float = FULL_OCCUPANCY
    memory: int = MASK_MEMORY
    engine: str | None = None
    precision: str = "single"

    def __post_init__(self) -> None:
        for name in ("r_probe", "r_shrink", "softness"):
            length(name, getattr(self, name))
        number("full_occupancy", self.full_occupancy)
        if self.precision not in ("single", "double"):
            raise ValueError(f"precision must be 'single' or 'double', not {self.precision!r}.")

    def recipe(self, atoms: Atoms, n_real: tuple[int, int, int]) -> Recipe:
        """What crosses into the operations."""
        return Recipe(
            n_real,
            _engine_name(atoms.device.type, self.engine),
            self.precision,
            int(self.memory),
            float(self.full_occupancy),
            bool(self.include_zero_occupancy),
            any(isinstance(x, torch.Tensor) for x in (self.r_probe, self.r_shrink, self.softness)),
        )

    def lengths(self, there: MaskAtoms) -> torch.Tensor:
        """(n_models, 3) r_probe, r_shrink, softness; float64, on the CPU unless one was given elsewhere."""
        given = (self.r_probe, self.r_shrink, self.softness)
        if not any(isinstance(x, torch.Tensor) for x in given):
            return torch.tensor([[float(x) for x in given]], dtype=torch.float64, device="cpu").expand(
                math.prod(there.batch), 3
            )
        device = next((x.device for x in given if isinstance(x, torch.Tensor)), torch.device("cpu"))
        together = torch.stack(
            [
                x.to(dtype=torch.float64, device=device)
                if isinstance(x, torch.Tensor)
                else torch.tensor(float(x), dtype=torch.float64, device=device)
                for x in given
            ]
        )
        return together.expand(math.prod(there.batch), 3)

    @property
    def hard(self) -> bool:
        """Whether the softness is 0; a tensor within a transform of torch.func or a compilation is taken as positive."""
        if not isinstance(self.softness, torch.Tensor):
            return float(self.softness) == 0
        if torch.compiler.is_compiling():
            return False
        try:
            return float(self.softness.detach()) == 0
        except RuntimeError:
            return False


class ProbeShrink:
    """The differentiable probe-shrink mask; see :class:`~.masks.Mask`."""

    name = "probe_shrink"
    options = ProbeShrinkOptions
    option_names = tuple(field.name for field in dataclasses.fields(ProbeShrinkOptions))

    def on_grid(
        self,
        atoms: Atoms,
        crystal: Crystal,
        n_real: tuple[int, int, int],
        options: ProbeShrinkOptions,
        ensemble: Ensemble | None = None,
    ) -> torch.Tensor:
        there, recipe = (
            mask_atoms(atoms, options.radii, options.include_hydrogens, options.include_zero_occupancy),
            options.recipe(atoms, n_real),
        )
        values, batch = _values(atoms, crystal, there, recipe, options, atoms.dtype, ensemble)
        if recipe.engine != "cpu":
            return values.reshape(*batch, *n_real)  # other engines know it at all points of the cell
        return apply_on_cell(values, crystal.handle, recipe.packed()).reshape(*batch, *n_real)

    def structure_factors(
        self,
        atoms: Atoms,
        plan: Plan,
        n_real: tuple[int, int, int],
        d_min: float | None,
        options: ProbeShrinkOptions,
        ensemble: Ensemble | None = None,
    ) -> torch.Tensor:
        recipe = options.recipe(atoms, n_real)
        if recipe.engine != "cpu" or options.hard:
            return mask_structure_factors(
                self.on_grid(atoms, plan.crystal, n_real, options, ensemble), plan, d_min=d_min
            )
        there = mask_atoms(atoms, options.radii, options.include_hydrogens, options.include_zero_occupancy)
        values, batch = _values(atoms, plan.crystal, there, recipe, options, recipe.kernel_dtype(atoms.dtype), ensemble)
        f = apply_unit_factors(values, atoms.dtype, plan.handle, recipe.packed(), resolution(d_min))
        return f.reshape(*batch, len(plan))


def _values(
    atoms: Atoms,
    crystal: Crystal,
    there: MaskAtoms,
    recipe: Recipe,
    options: ProbeShrinkOptions,
    dtype: torch.dtype,
    ensemble: Ensemble | None,
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The masks at the engine's points, (n_models, n_points), and the batch."""
    tensors = (*there.tensors[:4], options.lengths(there), there.candidates)
    how = crystal.handle, recipe.packed()
    keep = not torch.compiler.is_compiling() and torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    with checks.naming(lambda: atoms.labels):
        if options.hard:
            values = apply_hard_values(*tensors, *how)[0]
        else:
            values = apply_soft_values(*tensors, *how, dtype, keep)[0]
    if ensemble is None:
        return values, there.batch
    weights, batch = ensemble.of(there.batch, atoms.device)
    return combined(values.reshape(*weights.shape, values.shape[-1]), weights, options.full_occupancy), batch


@constant_result
def _engine_name(device: str, asked: str | None) -> str:
    return engine_of(device, asked).name


def probe_shrink_defaults() -> tuple[float, float, float]:
    """Default (r_probe, r_shrink, softness), Å.

    Examples
    --------
    >>> probe_shrink_defaults()
    (1.1, 0.9, 0.8)
    """
    return R_PROBE, R_SHRINK, SOFTNESS
