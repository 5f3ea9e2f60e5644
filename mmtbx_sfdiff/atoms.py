"""Atoms: a model as tensors, read from and written to ``cctbx.xray.structure``.

The tensors (sites, displacement parameters, occupancies, f', f'') carry values and gradients; everything else that a
cctbx structure holds (labels, scatterer flags, site symmetries, the scattering type registry) travels with them in a
private copy of that structure, so that nothing is lost on the way back.

Reference: ``cctbx.xray.structure``, ``cctbx.xray.scatterer``.
"""

from __future__ import annotations

import dataclasses
import math
import weakref

import torch

import numpy as np

from ._cctbx_loading import require_cctbx
from .crystal import Crystal
from .form_factors import FormFactors


def _element(scattering_type):
    from cctbx.eltbx import xray_scattering

    return xray_scattering.get_element_and_charge_symbols(scattering_type, exact=False)[0]


# Fields that a user may replace, with the number of trailing dimensions beyond the atoms.
_PARAMETERS = {"sites_cart": (3,), "u_iso": (), "u_star": (6,), "occupancies": (), "fp": (), "fdp": ()}


@dataclasses.dataclass(frozen=True, eq=False)
class Atoms:
    """The scatterers of the asymmetric unit.  Make one with :meth:`from_cctbx`.

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
    _structure: object = dataclasses.field(repr=False)

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
        from cctbx.array_family import flex

        structure = self._structure.deep_copy_scatterers()
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
        return 8 * math.pi**2 * self.u_equivalent

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
        elements = [_element(t) for t in self.form_factors.types]
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
        from cctbx.eltbx import van_der_waals_radii

        table = van_der_waals_radii.vdw.table
        radii = self.from_types(lambda t: table.get(_element(t), float("nan")), torch.float64)
        radii = radii if rows is None else radii[rows]
        if bool(radii.isnan().any()):
            chosen = self.elements if rows is None else (self.elements[i] for i in rows.tolist())
            unknown = sorted(set(chosen) - set(table))
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
        from cctbx.array_family import flex

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


def _numpy(values):
    """A flex array as numpy: vectors and tensors by rows, everything else flat."""
    from cctbx.array_family import flex

    for kind, length in ((flex.vec3_double, 3), (flex.sym_mat3_double, 6)):
        if isinstance(values, kind):
            return values.as_double().as_numpy_array().reshape(-1, length)
    return values.as_numpy_array()


# Structures found free of anharmonic terms, which smtbx sets when it makes one: asking every scatterer is what takes
# time when the same structure is read at each step of a refinement.
_HARMONIC = weakref.WeakKeyDictionary()


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
