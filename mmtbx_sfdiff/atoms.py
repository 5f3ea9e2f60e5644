"""Atoms: a model as tensors, from arrays, gemmi or cctbx.

The tensors (sites, displacement parameters, occupancies, f', f'') carry values and gradients.  Where they came from a cctbx
structure, everything else that it holds (scatterer flags, site symmetries, the scattering type registry) travels with them
in a private copy, so that nothing is lost on the way back.

Reference: ``cctbx.xray.structure``, ``cctbx.xray.scatterer``.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch

import gemmi
import numpy as np

from ._cctbx_loading import require_cctbx
from .atom_arrays import (
    EIGHT_PI_SQ,
    PACKED,
    AtomArrays,
    arrays_of_gemmi,
    as_array,
    check_finite,
    fractional,
    placed,
    types_of,
)
from .crystal import Crystal
from .displacements import packed, u_cart_as_u_star, u_star_as_u_cart
from .form_factors import FormFactors
from .symmetry.sites import MIN_DISTANCE
from .tables.gaussians import element_of, van_der_waals_radius

# Fields that a user may replace, with the number of trailing dimensions beyond the atoms.
_PARAMETERS = {"sites_cart": (3,), "u_iso": (), "u_star": (6,), "occupancies": (), "fp": (), "fdp": ()}


@dataclasses.dataclass(frozen=True, eq=False)
class Atoms:
    """The scatterers of the asymmetric unit, made by :meth:`from_arrays`, :meth:`from_gemmi` or :meth:`from_cctbx`.

    Parameters may carry leading batch dimensions: ``atoms.replace(sites_cart=t)`` with ``t`` of shape
    (n_models, n_atoms, 3) is a batch of models that share what was not replaced.

    Attributes
    ----------
    crystal : Crystal
    sites_cart : torch.Tensor
        (..., n_atoms, 3), Å.
    u_iso : torch.Tensor
        (..., n_atoms), Å^2; used where ``use_u_iso``.
    u_star : torch.Tensor
        (..., n_atoms, 6), fractional U* as 11, 22, 33, 12, 13, 23; used where ``use_u_aniso``.  An atom may use both.
    occupancies, fp, fdp : torch.Tensor
        (..., n_atoms).
    use_u_iso, use_u_aniso : torch.Tensor
        (n_atoms,) bool.
    site_weights : torch.Tensor
        (n_atoms,) float64; site multiplicity / number of symmetry operators, 1 on a general position, as the structure
        has them.
    type_index : torch.Tensor
        (n_atoms,) int64; row of ``form_factors``.
    form_factors : FormFactors
    """

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

    @classmethod
    def from_arrays(
        cls,
        crystal: Crystal,
        elements: Sequence[str],
        sites_cart: Any,
        b_iso: Any = None,
        occupancies: Any = None,
        u_cart: Any = None,
        charges: Sequence[int] | None = None,
        table: str = "n_gaussian",
        d_min: float = 0.0,
        labels: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Atoms:
        """Atoms of an asymmetric unit from arrays, which are copied; tensors keep their gradients.

        Sites of occupancy 1 closer than 0.5 Å to an image of theirs are moved onto the symmetry element and weighted by
        their multiplicity; at another occupancy they stay, as iotbx has it: files divide it by the multiplicity.

        Parameters
        ----------
        crystal : Crystal
        elements : sequence of str
            n_atoms element symbols, or scattering types ("Fe3+").
        sites_cart : array-like
            (n_atoms, 3) Å.
        b_iso : array-like, optional
            (n_atoms,) or one number, Å^2; may be left out where every atom has ``u_cart``.
        occupancies : array-like, optional
            (n_atoms,) or one number; by default 1.
        u_cart : array-like, optional
            (n_atoms, 6) Å^2 as 11, 22, 33, 12, 13, 23, or (n_atoms, 3, 3); NaN for isotropic atoms.
        charges : sequence of int, optional
            Formal charges; where the table has no such ion the neutral atom is taken, with a warning.
        table : {"n_gaussian", "it1992", "wk1995", "electron", "neutron"}
        d_min : float
            Å; of ``n_gaussian``: as few terms as hold to there, 0 for all.
        labels : sequence of str, optional
            Names of the atoms, for messages.
        dtype, device

        Raises
        ------
        ValueError
            Other shapes; numbers that are not finite; an element without a form factor; atoms without displacements.

        Examples
        --------
        >>> import mmtbx_sfdiff as sfdiff
        >>> crystal = sfdiff.Crystal((20, 25, 30, 90, 90, 90), "P 21 21 21")
        >>> atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "O"], [[1.0, 2.0, 3.0], [2.0, 2.5, 3.0]], b_iso=20.0)
        >>> sfdiff.structure_factors(atoms, crystal, crystal.build_miller_indices(5.0)).shape
        torch.Size([33])
        """
        _check_dtype(dtype)
        sites = as_array(sites_cart)
        n = len(elements)
        if sites.shape != (n, 3):
            raise ValueError(f"sites_cart must have the shape ({n}, 3), one row for each element, not {sites.shape}.")
        u = None if u_cart is None else as_array(u_cart)
        if u is not None and u.shape == (n, 3, 3):
            u = np.stack([u[:, i, j] for i, j in PACKED], -1)
        if u is not None and u.shape != (n, 6):
            raise ValueError(f"u_cart must have the shape ({n}, 6) or ({n}, 3, 3), not {u.shape}.")
        b = None if b_iso is None else _one_each("b_iso", b_iso, n)
        isotropic = np.ones(n, bool) if u is None else np.isnan(u).any(1)
        if b is None and isotropic.any():
            raise ValueError(
                f"{int(isotropic.sum())} atoms have no displacements, atom {int(np.flatnonzero(isotropic)[0])} first: give "
                "b_iso (Å^2), or u_cart."
            )
        occupancy = _one_each("occupancies", 1.0 if occupancies is None else occupancies, n)
        names = tuple(labels) if labels is not None else ()
        for name, values in (("sites_cart", sites), ("occupancies", occupancy)):
            check_finite(name, values, names or None)
        if b is not None:
            check_finite("b_iso", np.where(isotropic, b, 0.0), names or None)
        types = types_of(elements, charges, table, d_min)
        arrays = placed(crystal, types, names, fractional(crystal, sites), b, u, occupancy)
        atoms = cls._from_placed(arrays, crystal, table, d_min, dtype, device)
        return atoms._carrying(sites_cart=sites_cart, b_iso=b_iso, occupancies=occupancies, u_cart=u_cart)

    def _carrying(self, **given: Any) -> Atoms:
        """The same values, with gradients to those of the given tensors that want them."""
        wanting = {
            name: value.to(dtype=self.dtype, device=self.device)
            for name, value in given.items()
            if isinstance(value, torch.Tensor) and value.requires_grad
        }
        if "b_iso" in wanting:
            wanting["u_iso"] = torch.where(self.use_u_iso, wanting.pop("b_iso") / EIGHT_PI_SQ, self.u_iso)
        if "u_cart" in wanting:
            u_star = u_cart_as_u_star(packed(wanting.pop("u_cart")), self.crystal)
            wanting["u_star"] = torch.where(self.use_u_aniso[:, None], u_star, self.u_star)
        return self.replace(
            **{
                name: value.expand_as(getattr(self, name)) + (getattr(self, name) - value).detach()
                for name, value in wanting.items()
            }
        )

    @classmethod
    def from_gemmi(
        cls,
        structure: gemmi.Structure,
        table: str = "n_gaussian",
        d_min: float = 0.0,
        crystal: Crystal | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Atoms:
        """Read the atoms of a ``gemmi.Structure``: all its models and conformations, in its order.

        As :meth:`from_cctbx` of the structure that iotbx makes of the same file, to the same bits where the order is the
        same.  Coordinates in a frame of their own (SCALEn records) are brought to the standard one.

        Parameters
        ----------
        structure : gemmi.Structure
        table, d_min
            Of :meth:`from_arrays`.
        crystal : Crystal, optional
            By default the structure's own.
        dtype, device

        Raises
        ------
        ValueError
            No atoms, cell or space group; an element without a form factor; coordinates that are not finite, by atom.

        Examples
        --------
        >>> import gemmi, mmtbx_sfdiff as sfdiff
        >>> atoms = sfdiff.Atoms.from_gemmi(gemmi.read_structure("model.cif"))  # doctest: +SKIP
        """
        _check_dtype(dtype)
        crystal = Crystal.from_gemmi(structure, device=device) if crystal is None else crystal
        found = arrays_of_gemmi(structure, crystal)
        for name in ("sites_frac", "b_iso", "occupancies"):
            check_finite(name, found[name], found["labels"])
        types = types_of(found["elements"], found["charges"], table, d_min)
        arrays = placed(
            crystal, types, found["labels"], found["sites_frac"], found["b_iso"], found["u_cart"], found["occupancies"]
        )
        return cls._from_placed(arrays, crystal, table, d_min, dtype, device)

    @classmethod
    def _from_placed(
        cls,
        arrays: AtomArrays,
        crystal: Crystal,
        table: str,
        d_min: float,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Atoms:
        crystal = crystal.to(device)
        types = tuple(dict.fromkeys(arrays.scattering_types))
        rows = {name: row for row, name in enumerate(types)}

        def tensor(values: Any, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.as_tensor(values).to(dtype=dtype, device=device)

        sites_frac = tensor(arrays.sites_frac, torch.float64)
        to_cart = np.ascontiguousarray(crystal.orthogonalization.cpu().numpy().T)
        sites_cart = tensor(arrays.sites_frac @ to_cart)
        zeros = torch.zeros(len(sites_cart), dtype=dtype, device=device)
        return cls(
            crystal=crystal,
            sites_cart=sites_cart,
            u_iso=tensor(arrays.u_iso),
            u_star=tensor(arrays.u_star),
            occupancies=tensor(arrays.occupancies),
            fp=zeros,
            fdp=zeros.clone(),
            use_u_iso=tensor(~arrays.anisotropic, torch.bool),
            use_u_aniso=tensor(arrays.anisotropic, torch.bool),
            site_weights=tensor(arrays.site_weights, torch.float64),
            type_index=tensor([rows[t] for t in arrays.scattering_types], torch.int64),
            form_factors=FormFactors.from_table(types, table, d_min, device),
            _frac_residual=sites_frac - sites_cart.to(torch.float64) @ crystal.fractionalization.T,
            _labels=arrays.labels,
        )

    @classmethod
    def from_cctbx(cls, xray_structure, dtype=torch.float64, device="cpu", crystal=None, lasting=True):
        """Read a ``cctbx.xray.structure``.

        The form factors are those of ``xray_structure.scattering_type_registry()`` as it stands.

        Parameters
        ----------
        xray_structure : cctbx.xray.structure
        dtype : torch.dtype
            float32 or float64.
        device : torch.device or str
        crystal : Crystal, optional
            The structure's crystal on that device, where it is known already.
        lasting : bool
            Without it only what a calculation reads is read, to the rounding of float64, and no copy of the structure is
            kept: such atoms are good until somebody changes it, and have no way back to cctbx.

        Raises
        ------
        ValueError
            No scatterers; anharmonic displacement parameters; a scattering type without a form factor.
        TypeError
            When ``dtype`` is not float32 or float64.
        """
        require_cctbx("Atoms.from_cctbx")
        _check_dtype(dtype)
        scatterers = xray_structure.scatterers()
        if scatterers.size() == 0:
            raise ValueError("The structure has no atoms.")
        if _has_anharmonic(xray_structure):
            raise ValueError(
                "Anharmonic displacement parameters (Gram-Charlier terms) are not supported: "
                "use cctbx's own direct summation for this structure."
            )
        registry = xray_structure.scattering_type_registry()
        structure = xray_structure.deep_copy_scatterers() if lasting else xray_structure
        crystal = Crystal.from_cctbx(xray_structure, device=device) if crystal is None else crystal

        def tensor(values, dtype=dtype):
            return torch.from_numpy(values).to(dtype=dtype, device=device)

        use_u_aniso = _numpy(scatterers.extract_use_u_aniso())
        if lasting or use_u_aniso.any():
            u_star = _numpy(scatterers.extract_u_star())
        else:
            u_star = np.zeros((len(use_u_aniso), 6))
        sites_frac = _numpy(scatterers.extract_sites())
        # numpy's product takes a fifth of torch's time for matrices as slim as these.
        to_cart = np.ascontiguousarray(crystal.orthogonalization.cpu().numpy().T)
        sites_cart, sites_frac = tensor(sites_frac @ to_cart), tensor(sites_frac, torch.float64)
        if lasting or dtype != torch.float64:
            frac_residual = sites_frac - sites_cart.to(torch.float64) @ crystal.fractionalization.T
        else:
            frac_residual = torch.zeros_like(sites_frac)
        site_weights = np.ones(scatterers.size())
        for i in xray_structure.site_symmetry_table().special_position_indices():
            # Not by way of the table: asymmetric_unit_in_p1() leaves it that of another space group.
            site_weights[i] = scatterers[i].weight_without_occupancy()
        return cls(
            crystal=crystal,
            sites_cart=sites_cart,
            u_iso=tensor(_numpy(scatterers.extract_u_iso())),
            u_star=tensor(u_star),
            occupancies=tensor(_numpy(scatterers.extract_occupancies())),
            fp=tensor(_numpy(scatterers.extract_fps())),
            fdp=tensor(_numpy(scatterers.extract_fdps())),
            use_u_iso=tensor(_numpy(scatterers.extract_use_u_iso()), torch.bool),
            use_u_aniso=tensor(use_u_aniso, torch.bool),
            site_weights=tensor(site_weights, torch.float64),
            type_index=tensor(_numpy(registry.unique_indices(scatterers)).astype(np.int64), torch.int64),
            form_factors=FormFactors.from_registry(registry, device=device),
            _frac_residual=frac_residual,
            _structure=structure,
        )

    def to_cctbx(self):
        """The same model as a new ``cctbx.xray.structure``.

        Raises
        ------
        ValueError
            For a batch of models: write them one at a time, ``atoms.model(i).to_cctbx()``.
        """
        if self.batch_shape:
            raise ValueError(
                f"A batch of models of shape {tuple(self.batch_shape)} is not one structure: "
                "use atoms.model(i).to_cctbx()."
            )
        require_cctbx("Atoms.to_cctbx")
        from cctbx.array_family import flex

        structure = _new_structure(self) if self._structure is None else self._structure.deep_copy_scatterers()
        scatterers = structure.scatterers()

        def flat(name):
            return flex.double(
                np.ascontiguousarray(getattr(self, name).detach().cpu().to(torch.float64).numpy()).ravel()
            )

        scatterers.set_sites(flex.vec3_double(flat("sites_frac")))
        # Isotropic ones first: cctbx spreads them over the tensors of atoms that have both.
        scatterers.set_u_iso(flat("u_iso"), scatterers.extract_use_u_iso(), structure.unit_cell())
        scatterers.set_u_star(flex.sym_mat3_double(flat("u_star")))
        scatterers.set_occupancies(flat("occupancies"))
        scatterers.set_fps(flat("fp"))
        scatterers.set_fdps(flat("fdp"))
        return structure

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
                    for name, tail in _PARAMETERS.items()
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
        return torch.tensor([function(t) for t in self.form_factors.types], dtype=dtype, device=self.device)[
            self.type_index
        ]

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
            if name not in _PARAMETERS:
                raise TypeError(f"Atoms has no parameter {name!r}; choose from {', '.join(_PARAMETERS)}.")
            changes[name] = _check_tensor(name, value, (self.n_atoms, *_PARAMETERS[name]), self.dtype, self.device)
        return dataclasses.replace(self, **changes)

    def state(self):
        """The parameters by name, detached, with what rounding took from the sites; see :meth:`with_state`."""
        return {name: getattr(self, name).detach() for name in (*_PARAMETERS, "_frac_residual")}

    def with_state(self, state):
        """A copy with the parameters that :meth:`state` gave, in this dtype and on this device.

        Raises
        ------
        ValueError
            Of another number of atoms.
        """
        here = {
            name: value.to(dtype=self.dtype, device=self.device) for name, value in state.items() if name in _PARAMETERS
        }
        residual = state["_frac_residual"].to(self._frac_residual)
        return dataclasses.replace(self.replace(**here), _frac_residual=residual)

    def to(self, dtype=None, device=None):
        """The same atoms in another dtype (float32 or float64) or on another device."""
        dtype, device = dtype or self.dtype, device or self.device
        _check_dtype(dtype)
        changes = {name: getattr(self, name).to(dtype=dtype, device=device) for name in _PARAMETERS}
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
            for name, tail in _PARAMETERS.items()
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
        for name, tail in _PARAMETERS.items():
            value = getattr(self, name)
            changes[name] = value.expand(*self.batch_shape, *value.shape[value.ndim - 1 - len(tail) :])[index]
        residual = self._frac_residual
        changes["_frac_residual"] = residual.expand(*self.batch_shape, *residual.shape[-2:])[index]
        return dataclasses.replace(self, **changes)

    def __repr__(self):
        batch = f", batch {tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"Atoms({self.n_atoms} atoms{batch}, {self.crystal.space_group_symbol}, {self.dtype}, {self.device})"


def _one_each(name: str, values: Any, n: int) -> np.ndarray:
    values = as_array(values)
    if values.ndim == 0:
        return np.full(n, float(values))
    if values.shape != (n,):
        raise ValueError(f"{name} must have the shape ({n},), or be one number, not {values.shape}.")
    return values


def _new_structure(atoms: Atoms) -> Any:
    """A ``cctbx.xray.structure`` of atoms that did not come from one, with their form factors."""
    from cctbx import crystal as cctbx_crystal
    from cctbx import xray
    from cctbx.array_family import flex
    from cctbx.eltbx import xray_scattering

    settings = cctbx_crystal.special_position_settings(atoms.crystal.to_cctbx(), min_distance_sym_equiv=MIN_DISTANCE)
    structure = xray.structure(special_position_settings=settings)
    columns = (atoms.sites_frac, atoms.u_iso, atoms.u_star, atoms.use_u_iso, atoms.use_u_aniso, atoms.site_weights)
    rows = zip(atoms.labels, atoms.scattering_types, *(column.detach().cpu().tolist() for column in columns))
    scatterers = flex.xray_scatterer()
    for label, kind, site, u_iso, u_star, use_iso, use_aniso, weight in rows:
        scatterer = xray.scatterer(label=label, scattering_type=kind, site=site, u=u_iso)
        if use_aniso:
            scatterer.u_star = u_star
        scatterer.flags.set_use_u(iso=use_iso, aniso=use_aniso)
        scatterer.occupancy = 1 if weight < 1 else 0  # which sites are special; the occupancies come later
        scatterers.append(scatterer)
    structure.add_scatterers(scatterers, non_unit_occupancy_implies_min_distance_sym_equiv_zero=True)
    table = atoms.form_factors
    custom = {}
    for kind, a, b, c in zip(table.types, table.a.tolist(), table.b.tolist(), table.c.tolist()):
        terms = [i for i, value in enumerate(a) if value != 0]
        custom[kind] = xray_scattering.gaussian([a[i] for i in terms], [b[i] for i in terms], c)
    structure.scattering_type_registry(custom_dict=custom).set_last_table(table.table)
    return structure


def _numpy(values):
    """A flex array as numpy: vectors and tensors by rows, everything else flat."""
    from cctbx.array_family import flex

    for kind, length in ((flex.vec3_double, 3), (flex.sym_mat3_double, 6)):
        if isinstance(values, kind):
            return values.as_double().as_numpy_array().reshape(-1, length)
    return values.as_numpy_array()


# Structures found free of anharmonic terms, which smtbx sets when it makes one: asking every scatterer is what takes
# time when the same structure is read at each step of a refinement.
_HARMONIC: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _has_anharmonic(xray_structure):
    scatterers = xray_structure.scatterers()
    if _HARMONIC.get(xray_structure) == scatterers.size():
        return False
    if any(scatterer.is_anharmonic_adp() for scatterer in scatterers):
        return True
    _HARMONIC[xray_structure] = scatterers.size()
    return False


def _check_dtype(dtype):
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
