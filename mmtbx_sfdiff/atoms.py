"""Atoms: a model as tensors, from arrays, gemmi or cctbx.

The tensors (sites, displacement parameters, occupancies, f', f'') carry values and gradients.  Where they came from a cctbx
structure, everything else that it holds (scatterer flags, site symmetries, the scattering type registry) travels with them
in a private copy, so that nothing is lost on the way back.

Reference: ``cctbx.xray.structure``, ``cctbx.xray.scatterer``.
"""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch

import gemmi
import numpy as np

from ._cctbx_loading import require_cctbx
from .atom_arrays import (
    EIGHT_PI_SQ,
    AtomArrays,
    arrays_of_gemmi,
    as_array,
    check_finite,
    fractional,
    methods_of_gemmi,
    placed,
    types_of,
)
from .atom_tensors import AtomTensors, check_dtype
from .crystal import Crystal
from .displacements import packed, u_cart_as_u_star
from .form_factors import FormFactors
from .numerics.symmetric import PAIRS
from .numerics.tensors import tensor_of
from .rules import radiation_messages
from .symmetry.sites import MIN_DISTANCE


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Atoms(AtomTensors):
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

    Examples
    --------
    >>> atoms.n_atoms, atoms.labels[:2], atoms.elements[:3], atoms.batch_shape, int(atoms.hydrogens.sum())
    (40, ('C0', 'N1'), ('C', 'N', 'O'), torch.Size([]), 0)
    >>> atoms.b_iso[0].round(decimals=6), bool((atoms.b_iso == 8 * torch.pi**2 * atoms.u_equivalent).all())
    (tensor(15., dtype=torch.float64), True)
    >>> two = atoms.replace(sites_frac=torch.stack([atoms.sites_frac, atoms.sites_frac + 0.1]))
    >>> atoms.with_state(two.model(1).state()), two.select(atoms.type_index == 0).n_atoms, atoms.to(dtype=torch.float32).dtype
    (Atoms(40 atoms, P 21 21 21, torch.float64, cpu), 20, torch.float32)
    >>> masses = atoms.from_types(lambda kind: {"C": 12.0, "N": 14.0, "O": 16.0}[kind], torch.float64)
    >>> atoms.scattering_types[1], float(masses[1]), float(atoms.vdw_radii()[1]), tuple(atoms.u_cart.shape), atoms.device
    ('N', 14.0, 1.5, (40, 6), device(type='cpu'))
    """

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
        torch.Size([84])
        """
        check_dtype(dtype)
        sites = as_array(sites_cart)
        n = len(elements)
        if sites.shape != (n, 3):
            raise ValueError(f"sites_cart must have the shape ({n}, 3), one row for each element, not {sites.shape}.")
        u = None if u_cart is None else as_array(u_cart)
        if u is not None and u.shape == (n, 3, 3):
            u = np.stack([u[:, i, j] for i, j in PAIRS], -1)
        if u is not None and u.shape != (n, 6):
            raise ValueError(f"u_cart must have the shape ({n}, 6) or ({n}, 3, 3), not {u.shape}.")
        b = None if b_iso is None else _one_each("b_iso", b_iso, n)
        isotropic = np.ones(n, bool) if u is None else np.isnan(u).all(1)
        if b is None and isotropic.any():
            raise ValueError(
                f"{int(isotropic.sum())} atoms have no displacements, atom {int(np.flatnonzero(isotropic)[0])} first: give "
                "b_iso (Å^2), or u_cart."
            )
        occupancy = _one_each("occupancies", 1.0 if occupancies is None else occupancies, n)
        names = tuple(labels) if labels is not None else ()
        given = {"sites_cart": sites, "occupancies": occupancy}
        given |= {} if b is None else {"b_iso": np.where(isotropic, b, 0.0)}
        given |= {} if u is None else {"u_cart": np.where(isotropic[:, None], 0.0, u)}
        for name, values in given.items():
            check_finite(name, values, names or None)
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
        check_dtype(dtype)
        crystal = Crystal.from_gemmi(structure, device=device) if crystal is None else crystal
        found = arrays_of_gemmi(structure, crystal)
        for message in radiation_messages(methods_of_gemmi(structure), table):
            warnings.warn(f"{structure.name}: {message.replace('scattering_table', 'table')}.", stacklevel=2)
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
            return tensor_of(values, dtype, device)

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

        Examples
        --------
        >>> sfdiff.Atoms.from_cctbx(atoms.to_cctbx())
        Atoms(40 atoms, P 21 21 21, torch.float64, cpu)
        """
        require_cctbx("Atoms.from_cctbx")
        check_dtype(dtype)
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
