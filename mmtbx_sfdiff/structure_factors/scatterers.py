"""The numbers of a batch of models as equation 4 reads them, and the way back from their gradients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch

from ..atoms import Atoms
from ..crystal import Crystal
from ..form_factors import FormFactors
from ..numerics.symmetric import PAIRS, full, least_eigenvalue

#: What structure factors can be differentiated by, in the order of everything here.
PARAMETERS = ("sites_cart", "u_iso", "u_star", "occupancies", "fp", "fdp")
#: One of each, where it is wanted.
Gradients = list[torch.Tensor | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Scatterers:
    """Atoms of n_models models, of which only parameters differ.

    Attributes
    ----------
    crystal : Crystal
    sites : torch.Tensor
        (n_models, n_atoms, 3) fractional, float64.
    u_iso : torch.Tensor
        (n_models, n_atoms) Å^2; zero where it is not used.
    u_star : torch.Tensor
        (n_models, n_atoms, 6) fractional; zero where it is not used.
    weights : torch.Tensor
        (n_models, n_atoms) occupancies times the weights of the sites.
    fp, fdp : torch.Tensor
        (n_models, n_atoms).
    use_u_iso, use_u_aniso : torch.Tensor
        (n_atoms,) bool.
    site_weights : torch.Tensor
        (n_atoms,) float64.
    type_index : torch.Tensor
        (n_atoms,) int64.
    form_factors : FormFactors
    dtype : torch.dtype
        float32 or float64, of the parameters and of what is asked for.
    """

    crystal: Crystal
    sites: torch.Tensor
    u_iso: torch.Tensor
    u_star: torch.Tensor
    weights: torch.Tensor
    fp: torch.Tensor
    fdp: torch.Tensor
    use_u_iso: torch.Tensor
    use_u_aniso: torch.Tensor
    site_weights: torch.Tensor
    type_index: torch.Tensor
    form_factors: FormFactors
    dtype: torch.dtype

    @classmethod
    def make(
        cls,
        parameters: Sequence[torch.Tensor],
        residual: torch.Tensor,
        shared: Sequence[torch.Tensor],
        crystal: Crystal,
        form_factors: FormFactors,
    ) -> Scatterers:
        """From (n_models, n_atoms, ...) parameters as in :data:`PARAMETERS`.

        ``residual`` is what rounding took from the fractional sites; ``shared`` are use_u_iso, use_u_aniso, site_weights
        and type_index.
        """
        sites_cart, u_iso, u_star, occupancies, fp, fdp = parameters
        use_u_iso, use_u_aniso, site_weights, type_index = shared
        dtype = sites_cart.dtype
        return cls(
            crystal=crystal,
            sites=_product(sites_cart.to(torch.float64), crystal.fractionalization.T) + residual,
            u_iso=_where(use_u_iso, u_iso, 0),
            u_star=_where(use_u_aniso, u_star, 1),
            weights=occupancies * site_weights.to(dtype),
            fp=fp,
            fdp=fdp,
            use_u_iso=use_u_iso,
            use_u_aniso=use_u_aniso,
            site_weights=site_weights,
            type_index=type_index,
            form_factors=form_factors,
            dtype=dtype,
        )

    @classmethod
    def of(cls, atoms: Atoms) -> Scatterers:
        """Those of one model's atoms."""
        shared = atoms.use_u_iso, atoms.use_u_aniso, atoms.site_weights, atoms.type_index
        parameters = [getattr(atoms, name).detach()[None] for name in PARAMETERS]
        return cls.make(parameters, atoms._frac_residual[None], shared, atoms.crystal, atoms.form_factors)

    @functools.cached_property
    def has_u_aniso(self) -> bool:
        """Whether any atom is anisotropic."""
        return _any(self.use_u_aniso)

    @functools.cached_property
    def has_fp(self) -> bool:
        """Whether any f' is not zero."""
        return _any(self.fp)

    @functools.cached_property
    def has_fdp(self) -> bool:
        """Whether any f'' is not zero."""
        return _any(self.fdp)

    @property
    def n_models(self) -> int:
        return self.weights.shape[0]

    @property
    def n_atoms(self) -> int:
        return self.weights.shape[1]

    @property
    def device(self) -> torch.device:
        return self.weights.device

    @property
    def complex_dtype(self) -> torch.dtype:
        return torch.complex64 if self.dtype == torch.float32 else torch.complex128

    def models(self, part: slice) -> Scatterers:
        """Some of the models."""
        own = {name: getattr(self, name)[part] for name in ("sites", "u_iso", "u_star", "weights", "fp", "fdp")}
        return dataclasses.replace(self, **own)

    def to_parameters(self, gradients: Gradients) -> Gradients:
        """Gradients in :data:`PARAMETERS` from those in (sites, u_iso, u_star, weights, fp, fdp)."""
        sites, u_iso, u_star, weights, fp, fdp = gradients
        return [
            None if sites is None else _product(sites.to(torch.float64), self.crystal.fractionalization).to(self.dtype),
            None if u_iso is None else torch.where(self.use_u_iso, u_iso.to(self.dtype), 0.0),
            None if u_star is None else torch.where(self.use_u_aniso[:, None], u_star.to(self.dtype), 0.0),
            None if weights is None else weights.to(self.dtype) * self.site_weights.to(self.dtype),
            None if fp is None else fp.to(self.dtype),
            None if fdp is None else fdp.to(self.dtype),
        ]

    def direction(self, directions: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The direction in (sites, u_iso, u_star, weights, fp, fdp), float64, of one in :data:`PARAMETERS`."""
        sites, u_iso, u_star, occupancies, fp, fdp = (x.to(torch.float64) for x in directions)
        return (
            _product(sites, self.crystal.fractionalization.T),
            torch.where(self.use_u_iso, u_iso, 0.0),
            torch.where(self.use_u_aniso[:, None], u_star, 0.0),
            occupancies * self.site_weights,
            fp,
            fdp,
        )


def packed_metric(crystal: Crystal, like: torch.Tensor) -> torch.Tensor:
    """(6,) reciprocal metric: an isotropic U is that times it, packed as 11, 22, 33, 12, 13, 23."""
    g = crystal.reciprocal_metric.to(like)
    return torch.stack([g[i, j] for i, j in PAIRS])


def least_u(scatterers: Scatterers) -> torch.Tensor:
    """Smallest eigenvalue of U_cart of the anisotropic atoms, Å^2, zero for the others: (n_models, n_atoms) float64."""
    s = scatterers
    result = torch.zeros(s.weights.shape, dtype=torch.float64, device=s.device)
    chosen = s.use_u_aniso
    if not s.has_u_aniso:
        return result
    metric = s.crystal.orthogonalization
    result[:, chosen] = least_eigenvalue(metric @ full(s.u_star[:, chosen].to(torch.float64)) @ metric.T)
    return result


def _any(values: torch.Tensor) -> bool:
    """Whether any is not zero."""
    if values.device.type == "cpu":
        return bool(values.numpy().any())  # a third of the time of torch's
    return bool((values != 0).any())


def _where(chosen: torch.Tensor, values: torch.Tensor, tail: int) -> torch.Tensor:
    """Values of the chosen atoms, (n_models, n_atoms) and as many dimensions more as ``tail``, and zero for others."""
    if chosen.device.type == "cpu":
        flags = chosen.numpy()
        if flags.all():
            return values
        if not flags.any():
            return values.new_zeros(()).expand(values.shape)
    return torch.where(chosen[:, None] if tail else chosen, values, 0.0)


def _product(vectors: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return vectors @ matrix
