"""The faster method for given atoms: direct summation, which is exact, unless an FFT is expected to be faster."""

from __future__ import annotations

from typing import Any

import torch

from ..atoms import Atoms
from ..crystal import Crystal
from ..kernels.jobs import FFTUnsuitable
from ..plans import Plan
from . import direct, fft
from .methods import DEFAULT_MEMORY, Machine, register
from .operation import compute
from .population import Population, population
from .scatterers import Gradients, Scatterers
from .setting import LEAST_ACCURACY, choose_grid
from .tables import tables_of

# Measured on one core, ns: a term of direct summation as a matrix product, a term that does not separate, and
# what direct summation and an FFT cost before the first atom.
_PRODUCT_TERM, _EXPONENTIAL_TERM, _DIRECT_START, _FFT_START = 1.5, 3.0, 1.5e6, 0.8e6
# Direct summation is exact: it is given up for a gain only, and its gradients cost more than the FFT's.
_GAIN = 1.2
# A sum that takes less, ns, is done exactly, and without compiling anything.
_SMALL = 5e6


def values(scatterers: Scatterers, plan: Plan, accuracy: float, memory: int) -> torch.Tensor:
    """F, (n_models, n) complex, by the faster method."""
    found = _if_faster(scatterers, plan, accuracy, memory)
    if found is not None:
        try:
            return fft.values(scatterers, plan, accuracy, memory, found)
        except FFTUnsuitable:
            pass
    return direct.values(scatterers, plan, accuracy, memory)


def gradients(
    scatterers: Scatterers, plan: Plan, accuracy: float, memory: int, grad: torch.Tensor, wanted: tuple[bool, ...]
) -> Gradients:
    """Gradients in (sites, u_iso, u_star, weights, fp, fdp), by the method that is faster for F."""
    if _if_faster(scatterers, plan, accuracy, memory) is not None:
        try:
            return fft.gradients(scatterers, plan, accuracy, memory, grad, wanted)
        except FFTUnsuitable:
            pass
    return direct.gradients(scatterers, plan, accuracy, memory, grad, wanted)


def _if_faster(s: Scatterers, plan: Plan, accuracy: float, memory: int) -> Population | None:
    """The atoms' population where the FFT is expected to be faster, else None."""
    if accuracy < LEAST_ACCURACY or fft.only_origin(plan):
        return None
    miller = plan.miller()
    n_aniso = int(s.use_u_aniso.sum())
    n_iso = s.n_atoms - n_aniso
    term = _PRODUCT_TERM if miller.separable else _EXPONENTIAL_TERM
    direct_time = _DIRECT_START + s.n_models * len(miller.indices) * (n_iso * term + n_aniso * _EXPONENTIAL_TERM)
    if direct_time < _SMALL:
        return None
    tables = tables_of(plan, s.form_factors)
    found = population(s, tables)
    try:
        _, _, cost = choose_grid(tables, found, s.n_models, accuracy, memory, (0,))
    except FFTUnsuitable:
        return None
    time = s.n_models * cost * (2 if found.histogram[-1].any() else 1)
    return found if _GAIN * (time + _FFT_START) < direct_time else None


register("auto", Machine(values, gradients))


def choose_method(
    atoms: Atoms, plan: Plan | Crystal, miller_indices: Any = None, accuracy: float = 1e-4, memory: int = DEFAULT_MEMORY
) -> torch.Tensor:
    """Structure factors by the faster method: see :func:`~.direct.sum_directly` and :func:`~.fft.transform_density`.

    Which it is follows from the values of the atoms alone, so that F and its gradient are by the same one.
    """
    return compute("auto", atoms, plan, miller_indices, accuracy, memory)
