"""What atoms are as tensors: parameters that may be replaced, and what follows from them.

:class:`mmtbx_sfdiff.Atoms` adds where they come from.

Reference: ``cctbx.xray.scatterer``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

import numpy as np

from .atom_arrays import EIGHT_PI_SQ
from .crystal import Crystal
from .displacements import u_star_as_u_cart
from .form_factors import FormFactors
from .tables.gaussians import element_of, van_der_waals_radius

# Fields that a user may replace, with the number of trailing dimensions beyond the atoms.
PARAMETERS = {"sites_cart": (3,), "u_iso": (), "u_star": (6,), "occupancies": (), "fp": (), "fdp": ()}


@dataclasses.dataclass(frozen=True, eq=False)
class AtomTensors:
    """The tensors of the scatterers of an asymmetric unit; its attributes are those of :class:`~mmtbx_sfdiff.Atoms`."""

    crystal: Crystal
    sites_cart: torch.Tensor
    u_iso: torch.Tensor
    u_star: torch.Tensor
    occupancies: torch.Tensor
    fp: torch.Tensor
    fdp: torch.Tensor
    use_u_iso: torch.Tensor
    use_u_aniso: torch.Tensor
    site_weights: torch.Tensor
    type_index: torch.Tensor
    form_factors: FormFactors
    # What rounding took from the fractional sites when they became Cartesian in this dtype.  Adding it back makes
    # float32 models exact (float32 alone costs 1e-5 in F for a 200 Å cell) and float64 round trips bit-identical.
    _frac_residual: torch.Tensor = dataclasses.field(repr=False)
    # The cctbx structure that they came from, for the way back; labels where there is none.
    _structure: Any = dataclasses.field(repr=False, default=None)
    _labels: tuple[str, ...] = dataclasses.field(repr=False, default=())

    @property
    def sites_frac(self):
        """Fractional coordinates (..., n_atoms, 3) in float64; gradients flow to ``sites_cart``."""
        return self.sites_cart.to(torch.float64) @ self.crystal.fractionalization.T + self._frac_residual

    @property
    def u_equivalent(self) -> torch.Tensor:
        """Isotropic equivalent of the displacement parameters in use, (..., n_atoms) Å^2: u_iso, or a third of U's trace.

        An atom that uses both has their sum, as in ``cctbx.xray.scatterer.u_iso_or_equiv``.
        """
        # The trace of A U* A^T is sum_ij (A^T A)_ij U*_ij.
        metric = self.crystal.orthogonalization.T @ self.crystal.orthogonalization
        thirds = metric[(0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)] / 3
        thirds[3:] *= 2
        u_equivalent = (self.u_star * thirds.to(self.u_star)).sum(-1)
        return torch.where(self.use_u_iso, self.u_iso, 0) + torch.where(self.use_u_aniso, u_equivalent, 0)

    @property
    def b_iso(self) -> torch.Tensor:
        """8 pi^2 :attr:`u_equivalent`, (..., n_atoms) Å^2."""
        return EIGHT_PI_SQ * self.u_equivalent

    @property
    def u_cart(self) -> torch.Tensor:
        """Cartesian U as 11, 22, 33, 12, 13, 23, (..., n_atoms, 6) Å^2: of isotropic atoms u_iso on the diagonal.

        An atom that uses both has their sum.
        """
        diagonal = torch.where(self.use_u_iso, self.u_iso, 0)[..., None] * self.u_star.new_tensor((1, 1, 1, 0, 0, 0))
        return diagonal + torch.where(self.use_u_aniso[:, None], u_star_as_u_cart(self.u_star, self.crystal), 0)

    @property
    def n_atoms(self):
        return self.site_weights.shape[0]

    @property
    def dtype(self):
        return self.sites_cart.dtype

    @property
    def device(self):
        return self.sites_cart.device

    @property
    def batch_shape(self):
        """Common leading shape of the parameters; empty for a single model."""
        # numpy's function: torch's imports sympy when it is first called, which takes half a second.
        return torch.Size(
            np.broadcast_shapes(
                *(
                    getattr(self, name).shape[: getattr(self, name).ndim - 1 - len(tail)]
                    for name, tail in PARAMETERS.items()
                )
            )
        )

    @property
    def labels(self):
        """Labels of the scatterers, tuple of str."""
        if self._structure is None:
            return self._labels or tuple(f"{t}{i}" for i, t in enumerate(self.scattering_types))
        return tuple(self._structure.scatterers().extract_labels())

    @property
    def scattering_types(self):
        """Scattering types of the scatterers, tuple of str."""
        types = self.form_factors.types
        return tuple(types[i] for i in self.type_index.tolist())

    @property
    def hydrogens(self):
        """(n_atoms,) bool: scattering type H or D."""
        return self.from_types(lambda t: t.strip() in ("H", "D"), torch.bool)

    @property
    def elements(self):
        """Element symbols of the scatterers as mmtbx reads them for masks, tuple of str ("C", "Fe", "H", "D")."""
        elements = [element_of(t) for t in self.form_factors.types]
        return tuple(elements[i] for i in self.type_index.tolist())

    def from_types(self, function, dtype):
        """A property that scattering types have, of each atom.

        Parameters
        ----------
        function : callable
            Scattering type (str) -> number.
        dtype : torch.dtype

        Returns
        -------
        torch.Tensor
            (n_atoms,).
        """
        of_type = torch.tensor([function(t) for t in self.form_factors.types], dtype=dtype, device=self.device)
        # Not by indexing: from 3,000 atoms on torch wakes its threads for that, which then spin beside ours.
        return of_type.index_select(0, self.type_index)

    def vdw_radii(self, rows=None):
        """Van der Waals radii in Å, float64, from cctbx's table, as mmtbx's mask uses them.

        Parameters
        ----------
        rows : torch.Tensor, optional
            (n,) int64, which atoms; by default all.

        Returns
        -------
        torch.Tensor
            (n_atoms,) or (n,).

        Raises
        ------
        ValueError
            When the table has no radius for the element of one of them.
        """
        found = [van_der_waals_radius(t) for t in self.form_factors.types]
        radii = torch.tensor([math.nan if r is None else r for r in found], dtype=torch.float64, device=self.device)
        radii = radii[self.type_index]
        radii = radii if rows is None else radii[rows]
        if bool(radii.isnan().any()):
            chosen = self.elements if rows is None else (self.elements[i] for i in rows.tolist())
            known = {element_of(t) for t, r in zip(self.form_factors.types, found) if r is not None}
            unknown = sorted(set(chosen) - known)
            raise ValueError(
                f"No van der Waals radius is known for element {', '.join(map(repr, unknown))}: "
                "give those atoms another scattering type, or leave them out of the mask."
            )
        return radii

    def replace(self, **parameters):
        """A copy with some parameters replaced; what is given carries its own gradient.

        Parameters
        ----------
        sites_cart, sites_frac, u_iso, u_star, occupancies, fp, fdp : torch.Tensor
            Shapes as in the class, leading batch dimensions allowed, dtype and device those of the atoms
            (``sites_frac`` may be float64 always).

        Raises
        ------
        TypeError
            An unknown name, a value that is not a tensor, or one of another dtype or device.
        ValueError
            A wrong shape.
        """
        changes = {}
        if "sites_frac" in parameters:
            if "sites_cart" in parameters:
                raise TypeError("Give sites_cart or sites_frac, not both.")
            sites_frac = _check_tensor("sites_frac", parameters.pop("sites_frac"), (self.n_atoms, 3), None, self.device)
            sites_frac = sites_frac.to(torch.float64)
            sites_cart = (sites_frac @ self.crystal.orthogonalization.T).to(self.dtype)
            changes["sites_cart"] = sites_cart
            changes["_frac_residual"] = (
                sites_frac - sites_cart.to(torch.float64) @ self.crystal.fractionalization.T
            ).detach()
        for name, value in parameters.items():
            if name not in PARAMETERS:
                raise TypeError(f"Atoms has no parameter {name!r}; choose from {', '.join(PARAMETERS)}.")
            changes[name] = _check_tensor(name, value, (self.n_atoms, *PARAMETERS[name]), self.dtype, self.device)
        return dataclasses.replace(self, **changes)

    def state(self):
        """The parameters by name, detached, with what rounding took from the sites; see :meth:`with_state`."""
        return {name: getattr(self, name).detach() for name in (*PARAMETERS, "_frac_residual")}

    def with_state(self, state):
        """A copy with the parameters that :meth:`state` gave, in this dtype and on this device.

        Raises
        ------
        ValueError
            Of another number of atoms.
        """
        here = {
            name: value.to(dtype=self.dtype, device=self.device) for name, value in state.items() if name in PARAMETERS
        }
        residual = state["_frac_residual"].to(self._frac_residual)
        return dataclasses.replace(self.replace(**here), _frac_residual=residual)

    def to(self, dtype=None, device=None):
        """The same atoms in another dtype (float32 or float64) or on another device."""
        dtype, device = dtype or self.dtype, device or self.device
        check_dtype(dtype)
        changes = {name: getattr(self, name).to(dtype=dtype, device=device) for name in PARAMETERS}
        changes |= {
            name: getattr(self, name).to(device)
            for name in ("use_u_iso", "use_u_aniso", "site_weights", "type_index", "form_factors", "crystal")
        }
        rounding = self.sites_cart.detach().to(torch.float64) - self.sites_cart.detach().to(dtype).to(torch.float64)
        changes["_frac_residual"] = (self._frac_residual + rounding @ self.crystal.fractionalization.T).to(device)
        return dataclasses.replace(self, **changes)

    def select(self, selection):
        """The selected atoms.

        Parameters
        ----------
        selection : torch.Tensor
            (n_atoms,) bool, or indices (n,) int64.
        """
        selection = torch.as_tensor(selection, device=self.device)
        if selection.dtype == torch.bool:
            selection = selection.nonzero()[:, 0]
        changes = {
            name: torch.index_select(getattr(self, name), -1 - len(tail), selection)
            for name, tail in PARAMETERS.items()
        }
        changes |= {
            name: getattr(self, name)[selection] for name in ("use_u_iso", "use_u_aniso", "site_weights", "type_index")
        }
        changes["_frac_residual"] = torch.index_select(self._frac_residual, -2, selection)
        if self._labels:
            changes["_labels"] = tuple(self._labels[i] for i in selection.tolist())
        if self._structure is not None:
            from cctbx.array_family import flex

            changes["_structure"] = self._structure.select(flex.size_t(selection.cpu().numpy().astype(np.uint64)))
        return dataclasses.replace(self, **changes)

    def model(self, *index):
        """One model of a batch: ``atoms.model(i)``, or ``atoms.model(i, j)`` for two batch dimensions."""
        changes = {}
        for name, tail in PARAMETERS.items():
            value = getattr(self, name)
            changes[name] = value.expand(*self.batch_shape, *value.shape[value.ndim - 1 - len(tail) :])[index]
        residual = self._frac_residual
        changes["_frac_residual"] = residual.expand(*self.batch_shape, *residual.shape[-2:])[index]
        return dataclasses.replace(self, **changes)

    def __repr__(self):
        batch = f", batch {tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"Atoms({self.n_atoms} atoms{batch}, {self.crystal.space_group_symbol}, {self.dtype}, {self.device})"


def check_dtype(dtype):
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, not {dtype}.")


def _check_tensor(name, value, tail, dtype, device):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}.")
    if value.ndim < len(tail) or tuple(value.shape[value.ndim - len(tail) :]) != tail:
        raise ValueError(f"{name} must have the shape (..., {', '.join(map(str, tail))}), not {tuple(value.shape)}.")
    if dtype is not None and value.dtype != dtype:
        raise TypeError(f"{name} is {value.dtype} but the atoms are {dtype}: convert one of them with .to().")
    if value.device != device:
        raise TypeError(f"{name} is on {value.device} but the atoms are on {device}: move one of them with .to().")
    return value
