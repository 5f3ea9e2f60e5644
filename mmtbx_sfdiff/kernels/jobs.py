"""What crosses from the equations to the machines: frozen, typed, arrays in and arrays out.

Nothing here knows an :class:`~mmtbx_sfdiff.Atoms` or a :class:`~mmtbx_sfdiff.Crystal`: whoever calls a kernel says what
it reads.  What follows from a crystal and Miller indices is given as what :mod:`mmtbx_sfdiff.plans` makes of them; the
Protocols below are the parts of it that kernels read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch

import numpy as np

#: Gradients in sites (fractional), u_iso, u_star, weights, and f' or f'', float64, in the shapes of the job's tensors.
DensityGradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class FFTUnsuitable(ValueError):
    """The FFT cannot do what is asked; direct summation can."""


class NotPositiveDefinite(FFTUnsuitable):
    """Displacement parameters of which no density can be made; ``atom`` is its number in its model."""

    def __init__(self, atom: int, label: str | None = None):
        self.atom = atom
        name = f"atom {atom}" if label is None else f"atom {atom} ({label.strip()})"
        super().__init__(
            f"The displacement parameters of {name} are not positive definite enough for the FFT: raise them, or use "
            "method='direct'."
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """A unit cell as numbers: it compares, and is found again, by its values.

    Attributes
    ----------
    orthogonalization : tuple of float
        9 numbers, row by row, Å.
    reciprocal_metric : tuple of float
        9 numbers, row by row, Å^-2.
    volume : float
        Å^3.
    """

    orthogonalization: tuple[float, ...]
    reciprocal_metric: tuple[float, ...]
    volume: float

    @property
    def basis(self) -> np.ndarray:
        """(3, 3) orthogonalization matrix."""
        return np.array(self.orthogonalization).reshape(3, 3)

    @property
    def reciprocal(self) -> np.ndarray:
        """(3, 3) metric of the reciprocal cell."""
        return np.array(self.reciprocal_metric).reshape(3, 3)

    @property
    def reciprocal_lengths(self) -> np.ndarray:
        """(3,) lengths of the reciprocal axes, Å^-1: half the extent along the axes of a sphere of radius 1 Å, in cells."""
        return np.sqrt(np.diag(self.reciprocal))


class PackedTransform(Protocol):
    """Where reflections are in a transform of which only some columns are kept; see ``plans.grid.PackedPlan``."""

    columns: np.ndarray
    turned: np.ndarray
    n_s: int
    rows: np.ndarray
    targets: np.ndarray
    kinds: np.ndarray
    starts: np.ndarray
    readers: np.ndarray
    reflections: np.ndarray
    bounds: np.ndarray


class TransformGrid(Protocol):
    """A grid and where reflections are in its transform; see ``plans.grid.GridPlan``."""

    @property
    def axes(self) -> tuple[int, int, int]: ...

    @property
    def dims(self) -> tuple[int, int, int]: ...

    @property
    def targets(self) -> torch.Tensor: ...

    @property
    def mirror(self) -> torch.Tensor: ...

    @property
    def rows(self) -> torch.Tensor: ...

    @property
    def conjugate(self) -> torch.Tensor: ...

    @property
    def starts(self) -> torch.Tensor: ...

    @property
    def sources(self) -> torch.Tensor: ...

    @property
    def n_points(self) -> int: ...

    @property
    def spectrum_shape(self) -> tuple[int, int, int]: ...

    @property
    def packed(self) -> PackedTransform: ...


class Terms(Protocol):
    """Form factors as Gaussian terms: (n_types, n_terms), (n_types, n_terms) and (n_types,) numpy."""

    @property
    def alphas(self) -> np.ndarray: ...

    @property
    def exponents(self) -> np.ndarray: ...

    @property
    def constants(self) -> np.ndarray: ...

    @property
    def has_constants(self) -> bool: ...
    @property
    def typical_factor(self) -> float: ...


@dataclasses.dataclass(frozen=True, eq=False)
class DensitySetting:
    """How atoms are put on a grid, and reflections read off its transform: what an accuracy was turned into.

    Attributes
    ----------
    cell : Cell
    grid : TransformGrid
    dtype : torch.dtype
        Of the grid.
    sharpening : float
        q(s) = exp(-sharpening s^2 / s_max^2).
    s_sq : float
        s_max^2, Å^-2.
    cuts : tuple
        (table, first log width, step, first level, step): the exponent at which a Gaussian ends, over log(width) and
        log(tolerance / amplitude).
    tolerance, typical_weight : float
    table : Terms
    factor : torch.Tensor
        (n,) q of each reflection.
    phase : torch.Tensor
        (n_primitive, n) complex.
    box : tuple of int
        Bound on the points along each axis under one atom, multiples of eight.
    """

    cell: Cell
    grid: TransformGrid
    dtype: torch.dtype
    sharpening: float
    s_sq: float
    cuts: tuple[np.ndarray, float, float, float, float]
    tolerance: float
    typical_weight: float
    table: Terms
    factor: torch.Tensor
    phase: torch.Tensor
    box: tuple[int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class DensityJob:
    """The atoms of one density: tensors (n_atoms, ...) of one model, or (n_models, n_atoms, ...).

    Attributes
    ----------
    setting : DensitySetting
    sites : torch.Tensor
        (..., n_atoms, 3) fractional, float64.
    u_iso : torch.Tensor
        (..., n_atoms) Å^2, added to ``u_star`` where both count.
    u_star : torch.Tensor
        (..., n_atoms, 6) fractional, 11, 22, 33, 12, 13, 23; read where ``use_aniso``.
    weights : torch.Tensor
        (..., n_atoms) occupancies times the weights of the sites.
    fp : torch.Tensor
        (..., n_atoms) a constant term added to the form factor, or all of it when ``dispersion``.
    use_aniso : torch.Tensor
        (n_atoms,) bool.
    type_index : torch.Tensor
        (n_atoms,) int64, row of the form factor table.
    dispersion : bool
    gradient : bool
        Whether the gradient in ``fp`` is wanted, so that terms of zero are kept.
    """

    setting: DensitySetting
    sites: torch.Tensor
    u_iso: torch.Tensor
    u_star: torch.Tensor
    weights: torch.Tensor
    fp: torch.Tensor
    use_aniso: torch.Tensor
    type_index: torch.Tensor
    dispersion: bool = False
    gradient: bool = False

    @property
    def n_atoms(self) -> int:
        return self.weights.shape[-1]

    @property
    def has_constant(self) -> bool:
        """Whether there is a constant term beside the Gaussian ones."""
        if self.dispersion or self.gradient or self.setting.table.has_constants:
            return True
        return bool(self.fp.numpy().any() if self.fp.device.type == "cpu" else (self.fp != 0).any())


class Columns(Protocol):
    """Unique Miller indices in columns, and how the operators read them; see ``plans.miller.MillerPlan``."""

    @property
    def axes(self) -> tuple[int, int, int]: ...
    @property
    def indices(self) -> torch.Tensor: ...
    @property
    def columns(self) -> torch.Tensor: ...
    @property
    def column_of(self) -> torch.Tensor: ...
    @property
    def column_start(self) -> list[int]: ...
    @property
    def s_min(self) -> list[int]: ...
    @property
    def s_max(self) -> list[int]: ...
    @property
    def gather(self) -> torch.Tensor: ...
    @property
    def conjugate(self) -> torch.Tensor: ...
    @property
    def phase(self) -> torch.Tensor: ...


@dataclasses.dataclass(frozen=True, eq=False)
class DirectJob:
    """E(h) = sum_t f_t(h) sum_{j in t} w_j exp(-2 pi^2 h U_j h) exp(2 pi i h.x_j) on the plan's unique indices.

    Attributes
    ----------
    plan : Columns
    sites : torch.Tensor
        (n_models, n_atoms, 3) fractional, float64; atoms sorted by type.
    u : torch.Tensor
        (n_models, n_atoms, 1) isotropic in Å^2 where the Debye-Waller factor separates, or (n_models, n_atoms, 6)
        fractional.
    weights : torch.Tensor
        (n_models, n_atoms).
    table : torch.Tensor
        (n_types, n_unique) form factors.
    counts : sequence of int
        Atoms of each type, in order.
    metric : torch.Tensor
        (3, 3) float64 reciprocal metric.
    memory : int
        Bound on working storage, bytes.
    """

    plan: Columns
    sites: torch.Tensor
    u: torch.Tensor
    weights: torch.Tensor
    table: torch.Tensor
    counts: Sequence[int]
    metric: torch.Tensor
    memory: int


@dataclasses.dataclass(frozen=True, eq=False)
class MaskGrid:
    """A grid in the whole cell and the operators that permute its points.

    Attributes
    ----------
    cell : Cell
    n_real : tuple of int
    rotations, translations : numpy.ndarray
        (n, 3, 3) and (n, 3) int64 of all operators, centring included, on grid points, the identity first: a point g
        goes to (R g + t) mod n_real.
    asymmetric_box : tuple
        Two corners, fractional, of a box with an asymmetric unit in it.
    key : hashable
        What says that two of them are the same; the unit that is made of one is found again by it.
    """

    cell: Cell
    n_real: tuple[int, int, int]
    rotations: np.ndarray
    translations: np.ndarray
    asymmetric_box: tuple[tuple[float, ...], tuple[float, ...]]
    key: Hashable

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, MaskGrid) and self.key == other.key

    @property
    def fractional_operators(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotations (n, 3, 3) and translations (n, 3) on fractional coordinates, float64."""
        n = np.array(self.n_real)
        return self.rotations / n[:, None] * n[None, :], self.translations / n


@dataclasses.dataclass(frozen=True, eq=False)
class MaskJob:
    """Where a mask is wanted and how finely; the atoms come with each call.

    Attributes
    ----------
    grid : MaskGrid
    fine : int
        The mask's integral is a sum over a grid so many times finer.
    reach : float
        Radius of the ball that is summed over, Å.
    dtype : torch.dtype
        Of what the engine gives; compiled ones work in it.
    memory : int
        Bound on working storage, bytes.
    kept : int
        Bytes that may be kept from the values for the gradient.
    models : torch.Tensor, optional
        (n_atoms,) int64, which model each atom belongs to, for engines that take several at once.
    n_models : int
    device : torch.device
    """

    grid: MaskGrid
    fine: int
    reach: float
    dtype: torch.dtype
    memory: int
    kept: int = 0
    models: torch.Tensor | None = None
    n_models: int = 1
    device: torch.device = torch.device("cpu")
