"""Which engine carries out the jobs on a device: one answer for all of them.

An engine is anything with the names of :class:`Engine`.  :mod:`.reference` is written in plain torch operations and is
the specification: ``tests/kernels/conformance.py`` holds every other engine to it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

import numpy as np

from .atom_jobs import AtomsJob, MapReflections, SpheresJob
from .jobs import Columns, DensityGradients, DensityJob, DirectJob, MaskGrid, MaskJob

#: The oldest Triton that compiles every kernel (3.1 knows no tuples as arguments); with an older one there is as good as none.
LEAST_TRITON = (3, 3)


def _takes_kernels(version: str) -> bool:
    """Whether a Triton of this version compiles the kernels.

    Examples
    --------
    >>> _takes_kernels("3.1.0"), _takes_kernels("3.10.0+git1")
    (False, True)
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is None or (int(found[1]), int(found[2])) >= LEAST_TRITON


def _have_triton() -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        return _takes_kernels(importlib.metadata.version("triton"))
    except importlib.metadata.PackageNotFoundError:  # a build under another name
        return True


HAVE_TRITON = _have_triton()
HAVE_NUMBA = importlib.util.find_spec("numba") is not None


class SoftMask(Protocol):
    """The soft mask of one job.

    V and the mask are known at the engine's own points, (n_points,): one of each orbit, or all of the cell's.
    """

    @property
    def field_size(self) -> int:
        """Numbers of E, (field_size,), that :meth:`forward` can hand over to :meth:`backward` within the job's ``kept``."""
        ...

    def weights(self, function: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
        """A function of the distance (Å) at the steps of the ball, times the volume of a step."""
        ...

    def forward(
        self,
        sites: torch.Tensor,
        radii: torch.Tensor,
        cover: torch.Tensor,
        width: float,
        weights: Sequence[torch.Tensor],
        field: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Weighted sums of E = prod_j [1 - c_j (1 - S(t_j))] over the ball around each point, for each array of weights.

        S(t) = t^2 (3 - 2 t), t_j = 1/2 + (d^2 / R_j - R_j) / (2 width) within 0..1, over all images of atom j.
        ``sites`` (n, 3) fractional, ``radii`` and ``cover`` (n,), float64; E goes into ``field``.
        """
        ...

    def backward(
        self,
        gradient: torch.Tensor,
        sites: torch.Tensor,
        radii: torch.Tensor,
        cover: torch.Tensor,
        width: float,
        weights: torch.Tensor,
        sites_only: bool = False,
        field: torch.Tensor | None = None,
    ) -> Sequence[torch.Tensor]:
        """Gradients in sites, radii, cover and width of the sum of gradient * V; ``sites_only``: the others may be zero.

        Of an atom with a cover of exactly 0 the gradient in it may leave out where no other atom is.
        ``field`` is what :meth:`forward` filled for these atoms; it is not changed.
        """
        ...

    def to_cell(self, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Values at the points on the whole cell, (..., n1, n2, n3), into ``out`` where it is given."""
        ...

    def from_cell(self, gradient: torch.Tensor) -> torch.Tensor:
        """The transpose of :meth:`to_cell`."""
        ...


class HardMask(Protocol):
    """The hard mask of one job: psi(x) = max [phi(y) - |x - y|] over the y in the ball with phi(y) >= 0.

    phi(y) is the distance from the nearest sphere, at most ``top``; at points with ``low`` < phi < 0 where no such y is
    found psi is ``low``, and elsewhere it is phi.
    """

    def psi(
        self, sites: torch.Tensor, radii: torch.Tensor, low: float, top: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """psi at the engine's points, and the number of the fine point that decides it."""
        ...

    def pull_back(
        self, gradient: torch.Tensor, source: torch.Tensor, sites: torch.Tensor, radii: torch.Tensor, top: float
    ) -> Sequence[torch.Tensor]:
        """Gradients in sites and radii of the sum of gradient * psi."""
        ...

    def to_cell(self, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor: ...

    def from_cell(self, gradient: torch.Tensor) -> torch.Tensor: ...


class UnitTransform(Protocol):
    """F(h) = V/N sum_g map(g) exp(2 pi i h.x_g) of a map given at one point of each orbit."""

    def forward(self, values: np.ndarray) -> np.ndarray:
        """(n,) complex F of all the reflections, of a map (n_points,)."""
        ...

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        """(n_points,) dT/d(map) from dT/dF (n,)."""
        ...


class Engine(Protocol):
    """What carries out jobs on a device.

    Attributes
    ----------
    name : str
    slack : float
        Multiplies the truncation that the error model allows for, by how the engine cuts its Gaussians.
    batched : bool
        Whether a :class:`DensityJob` or :class:`MaskJob` may hold several models.
    largest : int
        Grid points of all the models of a job.
    """

    name: str
    slack: float
    batched: bool
    largest: int

    def density(self, job: DensityJob) -> torch.Tensor:
        """The density on the grid, (..., n_p, n_q, n_s), electrons a grid point times n_points / volume.

        rho(r) = sum_k w alpha_k pi^(3/2) det(M_k)^(-1/2) exp(-pi^2 r M_k^-1 r), M_k = 2 pi^2 U* + e_k G* / s_max^2,
        divided by the number of grid points, of the asymmetric unit's atoms alone.
        """
        ...

    def density_pull_back(self, grid: torch.Tensor, job: DensityJob) -> DensityGradients:
        """Gradients of sum(grid * density)."""
        ...

    def structure_factors(self, job: DensityJob) -> torch.Tensor:
        """(..., n) complex: the density's transform, read by all operators, with the blur divided out."""
        ...

    def density_gradients(self, seed: torch.Tensor, job: DensityJob) -> DensityGradients:
        """Gradients from dT/dF (..., n) of what :meth:`structure_factors` gives."""
        ...

    def direct_sum(self, job: DirectJob) -> torch.Tensor:
        """E on the plan's unique indices, (n_models, n_unique) complex."""
        ...

    def direct_sum_gradients(
        self, job: DirectJob, grad: torch.Tensor, wanted: tuple[bool, bool, bool]
    ) -> Sequence[torch.Tensor | None]:
        """Gradients in (sites, u, weights), each where it is wanted, from dT/dE."""
        ...

    def mask_points(self, grid: MaskGrid) -> int:
        """Points at which this engine knows a mask: one of each orbit, or all of the cell's."""
        ...

    def soft_mask(self, job: MaskJob) -> SoftMask: ...

    def hard_mask(self, job: MaskJob) -> HardMask: ...

    def unit_transform(self, job: MaskJob, plan: Columns) -> UnitTransform | None:
        """The transform of maps on the points of :meth:`soft_mask`, or None where only that of the cell can be had."""
        ...


@runtime_checkable
class AtomsEngine(Protocol):
    """An engine that takes atoms as they are given, and does everything on its device: the host waits for nothing.

    What is wrong with the atoms makes their model's results NaN and is written down by :mod:`.deferred`.
    """

    slack: float
    largest: int

    def structure_factors_of_atoms(self, job: AtomsJob, dtype: torch.dtype) -> torch.Tensor:
        """(n_models, n) in this complex dtype."""
        ...

    def gradients_of_atoms(
        self, seed: torch.Tensor, job: AtomsJob, wanted: tuple[bool, ...]
    ) -> list[torch.Tensor | None]:
        """Gradients in the job's parameters, each where it is wanted, from dT/dF (n_models, n)."""
        ...

    def masks_of_atoms(self, job: SpheresJob, out: torch.Tensor, volumes: torch.Tensor, field: torch.Tensor) -> None:
        """Masks into ``out`` (n_models, n_points); V and E into tensors that are not empty."""
        ...

    def mask_gradients_of_atoms(
        self,
        gradient: torch.Tensor,
        job: SpheresJob,
        volumes: torch.Tensor,
        field: torch.Tensor,
        results: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    ) -> None:
        """Gradients by sites_cart and, where there are tensors for them, occupancies and radii, from dT/d(mask)."""
        ...

    def map_factors(self, maps: torch.Tensor, where: MapReflections) -> torch.Tensor:
        """F (n_models, n) of maps (n_models, n1, n2, n3)."""
        ...

    def map_factors_transposed(self, f: torch.Tensor, where: MapReflections) -> torch.Tensor:
        """dT/d(map) from dT/dF."""
        ...

    def amplitude_target(
        self, f: torch.Tensor, table: torch.Tensor, likelihood: bool, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """T (...,) in this dtype and dT/dF (..., n) of structure factors (..., n), or of amplitudes.

        ``table`` (n, 6) float64 holds F_obs, alpha, 1 / v, c, w and q of each reflection: T is the sum of w q (F_obs - m)^2 / v,
        m = alpha |F|.  Of a ``likelihood`` c is added to each term and ln of exp(-y) I0(y), or where q is 1/2 of
        exp(-y / 2) cosh(y / 2), subtracted, y = 2 F_obs m / v; terms of w = 0 or F = 0 are left out.
        """
        ...


# For tests: the engine on every device.
_forced: str | None = None


@contextlib.contextmanager
def everywhere(name: str) -> Iterator[None]:
    """For tests: the engine of this name is the first answer for every device in this block, where it can be used at all."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def usable(device: torch.device | str) -> tuple[str, ...]:
    """Names of the engines that can be used on a device, the fastest first."""
    kind = torch.device(device).type
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    found = {
        "cpu": kind == "cpu" and HAVE_NUMBA,
        "triton": HAVE_TRITON and (kind == "cuda" or interpreted),
        "torch": True,
    }
    names = [name for name, yes in found.items() if yes]
    return tuple(sorted(names, key=lambda name: name != _forced))


def engine(device: torch.device | str, name: str | None = None) -> Engine:
    """The engine for a device: the fastest there is, or the one of that name.

    Parameters
    ----------
    device : torch.device or str
    name : {"cpu", "triton", "torch"}, optional
        Kernels compiled by numba; for a GPU by Triton; or torch operations alone, on any device.

    Raises
    ------
    ValueError
        An engine that cannot be used on this device, or here.

    Examples
    --------
    >>> engine("cpu", "torch").name
    'torch'
    """
    names = usable(device)
    if name is None:
        name = names[0]
    if name not in names:
        raise ValueError(
            f"engine={name!r} cannot be used here: choose 'torch', 'cpu' for tensors on the CPU with numba "
            "installed, or 'triton' for tensors on a GPU with Triton installed."
        )
    return _loaded(name)


_takes_atoms: dict[type, bool] = {}


def of_atoms(engine: Engine) -> AtomsEngine | None:
    """The engine, where it takes atoms as they are.

    Examples
    --------
    >>> of_atoms(engine("cpu", "torch")) is None
    True
    """
    kind = type(engine)
    if kind not in _takes_atoms:  # which takes a while to find out
        _takes_atoms[kind] = isinstance(engine, AtomsEngine)
    if not _takes_atoms[kind]:
        return None
    found: Any = engine
    return found  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=3)
def _loaded(name: str) -> Engine:
    # Compilers are loaded by whoever uses them.
    module = {"cpu": ".cpu.engine", "triton": ".cuda.engine", "torch": ".reference.engine"}[name]
    found: Engine = importlib.import_module(module, __package__).ENGINE
    return found
