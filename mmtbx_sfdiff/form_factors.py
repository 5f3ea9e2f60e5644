"""Gaussian form factors, from this package's tables or from a cctbx scattering type registry.

f0(s) = sum_k a_k exp(-b_k d*^2 / 4) + c, one row per scattering type.  The coefficients are always those of the
structure's own registry: which table is used, and with how many terms, is the structure's business (``n_gaussian``
hands out 2 terms at 1 Å, 3 at 0.5 Å and 6 without a limit).

Reference: ``cctbx.eltbx.xray_scattering.gaussian``, ``cctbx.xray.scattering_type_registry``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch

import numpy as np

from .kernels.opaque import Held
from .tables.gaussians import gaussian


@dataclasses.dataclass(frozen=True, eq=False)
class FormFactors(Held):
    """Coefficients of n_types form factors, padded with zero terms to the same length.

    Attributes
    ----------
    types : tuple of str
        Scattering types ("C", "O1-", "Fe3+", ...).
    a, b : torch.Tensor
        (n_types, n_terms) float64; electrons (X-ray; fm for neutrons, Å for electrons) and Å^2.
    c : torch.Tensor
        (n_types,) float64.
    table : str
        The registry's name for where they came from; empty when not known.
    """

    types: tuple[str, ...]
    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    table: str = ""

    @classmethod
    def from_registry(cls, registry: Any, device: torch.device | str = "cpu") -> FormFactors:
        """Read a ``cctbx.xray.ext.scattering_type_registry``.

        Raises
        ------
        ValueError
            When a scattering type has no form factor.
        """
        unassigned = list(registry.unassigned_types())
        if unassigned:
            raise ValueError(
                f"No form factor for scattering type {', '.join(map(repr, sorted(unassigned)))}: "
                "assign one with xray_structure.scattering_type_registry(custom_dict={...})."
            )
        pairs = registry.type_index_pairs_as_dict()
        types = tuple(sorted(pairs, key=pairs.get))
        gaussians = [registry.gaussian_not_optional(t) for t in types]
        return _form_factors(
            types,
            tuple((g.array_of_a(), g.array_of_b(), g.c() if g.use_c() else 0.0) for g in gaussians),
            registry.last_table(),
            str(device),
        )

    @classmethod
    def from_table(
        cls, types: Sequence[str], table: str = "n_gaussian", d_min: float = 0.0, device: torch.device | str = "cpu"
    ) -> FormFactors:
        """Look scattering types up in a table; see :func:`.tables.gaussians.gaussian`.

        Raises
        ------
        ValueError
            An unknown table, a type that it does not have, or a resolution beyond it.

        Examples
        --------
        >>> from mmtbx_sfdiff.form_factors import FormFactors
        >>> FormFactors.from_table(("C", "Fe3+"), "it1992").a.shape
        torch.Size([2, 4])
        """
        return _form_factors(tuple(types), tuple(gaussian(t, table, d_min) for t in types), table, str(device))

    def to(self, device: torch.device | str) -> FormFactors:
        """The same coefficients on another device."""
        return dataclasses.replace(self, a=self.a.to(device), b=self.b.to(device), c=self.c.to(device))

    def __call__(self, d_star_sq: torch.Tensor) -> torch.Tensor:
        """Form factors at d*^2 (n,), Å^-2: (n_types, n) float64."""
        stol_sq = d_star_sq.to(torch.float64) / 4
        result = self.c[:, None].expand(-1, stol_sq.shape[0]).clone()
        for k in range(self.a.shape[1]):
            result += self.a[:, k, None] * torch.exp(-self.b[:, k, None] * stol_sq)
        return result


# The engines keep what they make of form factors with the object, so the same coefficients give the same object.
@functools.lru_cache(maxsize=32)
def _form_factors(types: tuple[str, ...], coefficients: tuple[Any, ...], table: str, device: str) -> FormFactors:
    n_terms = max((len(a) for a, _, _ in coefficients), default=0)
    a, b = np.zeros((len(types), n_terms)), np.zeros((len(types), n_terms))
    for row, (own_a, own_b, _) in enumerate(coefficients):
        a[row, : len(own_a)], b[row, : len(own_b)] = own_a, own_b
    c = np.array([c for _, _, c in coefficients])
    return FormFactors(
        types=types,
        a=torch.tensor(a, device=device),
        b=torch.tensor(b, device=device),
        c=torch.tensor(c, device=device),
        table=table,
    )
