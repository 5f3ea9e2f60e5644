"""What belongs to a plan and a table of form factors, whatever the atoms: terms, grids, error models, choices of grids."""

from __future__ import annotations

import dataclasses
import functools

import torch

import numpy as np

from ..crystal import Crystal
from ..form_factors import FormFactors
from ..plans import Plan
from ..plans.cache import Kept
from ..plans.cell import cell_of
from ..plans.grid import GridPlan, make_grid_plan
from ..plans.miller import MillerPlan
from .accuracy import ErrorModel, multiplicities


@dataclasses.dataclass(frozen=True, eq=False)
class TermTable:
    """Form factors as terms alpha exp(-exponent tau), with the constant terms apart; numpy, for one s_max."""

    alphas: np.ndarray
    exponents: np.ndarray
    constants: np.ndarray

    @classmethod
    def from_form_factors(cls, form_factors: FormFactors, s_sq: float) -> TermTable:
        a, b, c = (x.cpu().numpy() for x in (form_factors.a, form_factors.b, form_factors.c))
        # Terms of similar width share a pass over the grid.
        order = np.argsort(np.where(a == 0, np.inf, b), axis=1)
        a, b = np.take_along_axis(a, order, 1), np.take_along_axis(b, order, 1)
        return cls(np.ascontiguousarray(a), np.ascontiguousarray(b * s_sq / 4), c)

    @functools.cached_property
    def has_constants(self) -> bool:
        """Whether any constant term is not zero."""
        return bool(self.constants.any())

    @functools.cached_property
    def largest(self) -> float:
        """Largest |alpha| or constant."""
        return max(float(np.abs(x).max(initial=0.0)) for x in (self.alphas, self.constants))

    @functools.cached_property
    def widest(self) -> float:
        """Largest exponent of a term."""
        return max(float(self.exponents[self.alphas != 0].max(initial=0.0)), 0.0)

    @functools.cached_property
    def typical_factor(self) -> float:
        """Size of a form factor in the middle of the band."""
        alphas, exponents = self.with_constants()
        return float(np.sqrt((((alphas * np.exp(-0.6 * exponents)).sum(1)) ** 2).mean()))

    def with_constants(self) -> tuple[np.ndarray, np.ndarray]:
        return (
            np.hstack([self.alphas, self.constants[:, None]]),
            np.hstack([self.exponents, np.zeros((len(self.constants), 1))]),
        )


class Tables:
    """What a :class:`Plan` keeps for the FFT of one table of form factors; a bounded number of each.

    Attributes
    ----------
    indices, d_star_sq : numpy.ndarray
        (n_unique, 3) and (n_unique,).
    s_sq : float
        s_max^2, Å^-2.
    terms : TermTable
    basis : numpy.ndarray
        (3, 3), rows a*, b*, c* in Å^-1.
    lengths : list of float
        Of these.
    cell : Cell
    choices : Kept
        (grid, dtype, cost) by what :func:`~.setting.choose_grid` looks at.
    """

    def __init__(self, plan: MillerPlan, crystal: Crystal, form_factors: FormFactors) -> None:
        self.plan = plan
        self.indices, self.d_star_sq = plan.indices.cpu().numpy(), plan.d_star_sq.cpu().numpy()
        self.multiplicities = multiplicities(plan)
        self.s_sq = float(self.d_star_sq.max())
        self.terms = TermTable.from_form_factors(form_factors, self.s_sq)
        self.basis = crystal.fractionalization.cpu().numpy()
        self.lengths: list[float] = np.linalg.norm(self.basis, axis=1).tolist()
        self.cell = cell_of(crystal)
        self.choices = Kept(64)
        self._models, self._grids, self._factors, self._phases = Kept(16), Kept(16), Kept(16), Kept(2)

    def model(self, dims: tuple[int, int, int]) -> ErrorModel:
        """The error model of a grid along the plan's axes."""

        def make() -> ErrorModel:
            grid = [0, 0, 0]
            for axis, n in zip(self.plan.axes, dims):
                grid[axis] = n
            return ErrorModel(
                self.indices, self.d_star_sq, self.multiplicities, self.basis, grid, *self.terms.with_constants()
            )

        return self._models.get(dims, make)

    def grid(self, dims: tuple[int, int, int]) -> GridPlan:
        return self._grids.get(dims, lambda: make_grid_plan(self.plan, dims))

    def factor(self, sharpening: float, dtype: torch.dtype) -> torch.Tensor:
        """(n,) q of each reflection."""

        def make() -> torch.Tensor:
            unique = torch.exp(-sharpening * self.plan.d_star_sq / self.s_sq)
            # Every equivalent of a reflection has the same d*^2.
            return unique[self.plan.gather[0]].to(dtype)

        return self._factors.get((sharpening, dtype), make)

    def phase(self, dtype: torch.dtype) -> torch.Tensor:
        """(n_primitive, n) in the complex dtype of a real one."""
        return self._phases.get(dtype, lambda: self.plan.phase.to(complex_of(dtype)).contiguous())


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """The complex dtype of a real one."""
    return torch.complex64 if dtype == torch.float32 else torch.complex128


def tables_of(plan: Plan, form_factors: FormFactors) -> Tables:
    """The :class:`Tables` that the plan keeps."""
    return plan.part(("fft", form_factors.handle), lambda: Tables(plan.miller(), plan.crystal, form_factors))
