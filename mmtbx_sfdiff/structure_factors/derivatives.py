"""Derivatives of equation 4 along directions, of any order, summed term by term.

A term of E(h) is w a exp(l) with a = f(h) + f' (or f'') and l = 2πi h.x - 2π² h U h linear in sites and displacements.
Along a direction (x', U', w', a') the exponential is multiplied by P = 2πi h.x' - 2π² h U' h, and the factors w and a may
be differentiated once each.  So the derivative along k directions is exp(l) (N00 w a + N10 a + N01 w + N11), where each
direction makes of N00, N10 (w is used up), N01 (a is), N11 (both are), which begin as 1, 0, 0, 0,

    N11 P + N10 a' + N01 w',   N10 P + N00 w',   N01 P + N00 a',   N00 P.

Everything is double precision, in blocks of atoms and reflections that keep to a memory bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from ..kernels.threads import over
from ..numerics.symmetric import PAIRS
from ..plans import Plan
from ..plans.miller import MillerPlan
from .operators import operators_transposed, sum_over_operators
from .scatterers import Gradients, Scatterers, packed_metric

Direction = tuple[torch.Tensor, ...]
# Elements of a block of one thread: what stays in a core's share of the cache.
_ELEMENTS, _ATOMS = 2**14, 512
# Bytes an element of a block takes, and more for each direction.
_BYTES, _BYTES_EACH = 200, 32


def values(scatterers: Scatterers, plan: Plan, memory: int, directions: Sequence[Direction]) -> torch.Tensor:
    """D^k F along k directions in (sites, u_iso, u_star, weights, fp, fdp): (n_models, n) complex."""
    s, miller = scatterers, plan.miller()
    result = None
    for part in ("fp", "fdp"):
        if part == "fdp" and not _takes_part(s, directions):
            continue
        e = torch.zeros((s.n_models, len(miller.indices)), dtype=torch.complex128, device=s.device)

        def block(first: int, after: int, part: str = part, e: torch.Tensor = e) -> None:
            for model in range(s.n_models):
                for b in _blocks(s, miller, part, model, directions, first, after, memory):
                    e[model, b.reflections] += (b.psi * b.amplitude).sum(0)

        _over(s.device, len(miller.indices), block)
        f = sum_over_operators(miller, e)
        result = f if result is None else result + 1j * f
    assert result is not None
    return result.to(s.complex_dtype)


def gradients(
    scatterers: Scatterers, plan: Plan, memory: int, directions: Sequence[Direction], grad: torch.Tensor
) -> Gradients:
    """Gradients of Re <grad, D^k F> in (sites, u_iso, u_star, weights, fp, fdp), float64."""
    s, miller = scatterers, plan.miller()
    shape = s.n_models, s.n_atoms
    sites, u_star, weights, fp, fdp = (
        torch.zeros((*shape, *tail), dtype=torch.float64, device=s.device) for tail in ((3,), (6,), (), (), ())
    )
    u_iso = torch.zeros_like(weights)
    metric = packed_metric(s.crystal, weights)
    for part, of_factor in (("fp", fp), ("fdp", fdp)):
        seed = operators_transposed(miller, grad if part == "fp" else -1j * grad).conj().resolve_conj()

        def block(
            first: int, after: int, part: str = part, of_factor: torch.Tensor = of_factor, seed: torch.Tensor = seed
        ) -> list[tuple[int, slice, tuple[torch.Tensor, ...]]]:
            found: list[tuple[int, slice, tuple[torch.Tensor, ...]]] = []
            for model in range(s.n_models):
                for b in _blocks(s, miller, part, model, directions, first, after, memory):
                    moved = seed[model, b.reflections] * b.psi
                    all_of_it = moved * b.amplitude
                    found.append(
                        (
                            model,
                            b.atoms,
                            (
                                -2 * math.pi * (all_of_it.imag @ b.h),
                                -2 * math.pi**2 * (all_of_it.real @ b.hh),
                                (moved * b.by_weight).real.sum(1),
                                (moved * b.by_factor).real.sum(1),
                            ),
                        )
                    )
            return found

        for share in _over(s.device, len(miller.indices), block):
            for model, atoms, (by_sites, by_u, by_weights, by_factor) in share:
                sites[model, atoms] += by_sites
                u_star[model, atoms] += by_u
                u_iso[model, atoms] += by_u @ metric
                weights[model, atoms] += by_weights
                of_factor[model, atoms] += by_factor
    return [sites, u_iso, u_star, weights, fp, fdp]


def _takes_part(s: Scatterers, directions: Sequence[Direction]) -> bool:
    """Whether f'' does, or a direction in it."""
    return bool((s.fdp != 0).any()) or any(bool((d[5] != 0).any()) for d in directions)


class _Block:
    """Atoms and reflections: the exponential psi, and what it is multiplied by, (n_atoms, n_reflections).

    ``amplitude`` for the derivative itself, ``by_weight`` and ``by_factor`` for its derivatives in w and in a; ``h`` and
    ``hh`` (n, 3) and (n, 6), the factors of sites and displacements in the exponent.
    """

    def __init__(
        self,
        s: Scatterers,
        miller: MillerPlan,
        part: str,
        model: int,
        directions: Sequence[Direction],
        atoms: slice,
        reflections: slice,
    ) -> None:
        self.atoms, self.reflections = atoms, reflections
        h = miller.indices[reflections].to(torch.float64)
        products = [h[:, i] * h[:, j] for i, j in PAIRS]
        self.h = h
        self.hh = torch.stack([*products[:3], *(2 * x for x in products[3:])], -1)
        metric = packed_metric(s.crystal, h)
        u = s.u_star[model, atoms].to(torch.float64) + s.u_iso[model, atoms, None].to(torch.float64) * metric
        turns = s.sites[model, atoms] @ h.T
        self.psi = torch.polar(torch.exp(-2 * math.pi**2 * (u @ self.hh.T)), 2 * math.pi * (turns - turns.round()))
        w = s.weights[model, atoms, None].to(torch.float64)
        a = getattr(s, part)[model, atoms, None].to(torch.float64)
        if part == "fp":
            table = s.form_factors(miller.d_star_sq[reflections])
            a = a + table[s.type_index[atoms]]
        n00 = torch.ones((), dtype=torch.complex128, device=h.device)
        n10 = n01 = n11 = torch.zeros_like(n00)
        for direction in directions:
            by_sites, by_u_iso, by_u_star, by_weight, by_fp, by_fdp = (x[model, atoms] for x in direction)
            by_u = by_u_star + by_u_iso[:, None] * metric
            p = torch.complex(-2 * math.pi**2 * (by_u @ self.hh.T), 2 * math.pi * (by_sites @ h.T))
            w1 = by_weight[:, None]
            a1 = (by_fp if part == "fp" else by_fdp)[:, None]
            n00, n10, n01, n11 = n00 * p, n10 * p + n00 * w1, n01 * p + n00 * a1, n11 * p + n10 * a1 + n01 * w1
        self.by_weight, self.by_factor = n00 * a + n01, n00 * w + n10
        self.amplitude = self.by_weight * w + n10 * a + n11


def _blocks(
    s: Scatterers,
    miller: MillerPlan,
    part: str,
    model: int,
    directions: Sequence[Direction],
    first: int,
    after: int,
    memory: int,
) -> Iterator[_Block]:
    elements = min(_ELEMENTS if s.device.type == "cpu" else 2**30, memory // (_BYTES + _BYTES_EACH * len(directions)))
    n_atoms = max(1, min(s.n_atoms, _ATOMS if s.device.type == "cpu" else s.n_atoms, elements))
    size = max(1, elements // n_atoms)
    for a in range(0, s.n_atoms, n_atoms):
        for b in range(first, after, size):
            atoms, reflections = slice(a, min(a + n_atoms, s.n_atoms)), slice(b, min(b + size, after))
            yield _Block(s, miller, part, model, directions, atoms, reflections)


def _over(device: torch.device, n: int, block):  # type: ignore[no-untyped-def]
    return over(n, block) if device.type == "cpu" else [block(0, n)]
