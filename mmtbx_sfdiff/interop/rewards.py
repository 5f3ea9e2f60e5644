"""A reward for guided sampling: how badly an ensemble explains measured amplitudes, as a scalar to be minimized.

It follows the protocol of sampleworks: ``prepare`` once with the inputs of a run, then calls with coordinates (b, n, 3) Å,
elements, B factors and occupancies.  Coordinates of all members belong to one crystal; occupancies are 1/b each there.

    F = sum_k sum_j occupancy_kj f_j exp(...)          one structure factor of all members together
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

import gemmi

from ..atom_arrays import EIGHT_PI_SQ
from ..atoms import Atoms
from ..crystal import Crystal
from ..ensemble import ensemble_f_mask, weighted_sum
from ..files.errors import Sorry
from ..files.observations import read_observations
from ..geometry import GeometryRestraints
from ..likelihood.alpha_beta import AlphaBeta, estimate_alpha_beta
from ..likelihood.gain import llg, sigma_a
from ..likelihood.targets import least_squares, maximum_likelihood
from ..plans import plan_of
from ..reflections import Reflections
from ..rules import which_cell
from ..scaling import Scales, update_all_scales
from ..structure_factors import structure_factors

TARGETS = ("llg", "maximum_likelihood", "least_squares")
SOLVENTS = ("combined", "per_conformer", "off")
Term = tuple[float, Callable[[torch.Tensor], torch.Tensor]]


class StructureFactorReward:
    """Disagreement of an ensemble with the work reflections of a data set; lower is better.

    Parameters
    ----------
    data : path or Reflections
        MTZ or SF-CIF; the only source of cell and space group.
    labels, free, test_value
        Of :meth:`mmtbx_sfdiff.Reflections.from_gemmi`, for a path.
    d_min : float, optional
        Å.
    target : {"llg", "maximum_likelihood", "least_squares"} or callable
        Minus the log-likelihood gain over Wilson's distribution for each work reflection (nats; the default; its gradient
        takes sigma-A and the normalization of F_model for constants), or one of
        :mod:`mmtbx_sfdiff.targets`, or ``f(|F_model|, F_obs) -> scalar`` over the work reflections in use.
    solvent : {"combined", "per_conformer", "off"}
        One mask of all members, each one's, or none.  Its gradient is live.
    refresh_scales : int
        Scales, outliers, sigma-A, alpha and beta are determined at the first call and then every so many calls, without a
        graph; 0: at the first call only.
    hydrogens : {"absent", "include"}
        Generative models place hydrogens idly: by default they do not scatter.
    missing : {"refuse", "absent"}
        What is done with an atom whose coordinates are NaN: an error that names it, or it does not scatter and has no
        gradient.
    geometry : "library" or GeometryRestraints, optional
        The members' geometry as a further term: by the monomer library, made in :meth:`prepare` of a gemmi.Structure, or as
        given, for the atoms in their order.
    geometry_weight : float
        Times the mean over members of half the energy, divided by the work reflections in use: at 1, with "llg", the
        reward is minus the logarithm of a posterior, in nats for each reflection.
    terms : iterable of (weight, callable)
        Further terms: weight times f(coordinates).
    accuracy : float
        Of structure factors.

    Attributes
    ----------
    scales : Scales or None
        Of the last refresh, with ``r_work`` and ``r_free``.

    Raises
    ------
    ValueError
        Data that cannot be read or hold no amplitudes; an unknown option.

    Examples
    --------
    >>> reward = StructureFactorReward(data)                       # or "data.mtz"
    >>> reward.prepare(structure)                                  # gemmi's, or an AtomArray
    >>> elements = [a.atom.element.name for a in structure[0].all()]
    >>> coordinates = torch.tensor([[a.atom.pos.tolist() for a in structure[0].all()]], requires_grad=True)
    >>> loss = reward(coordinates, elements, torch.full((1, 10), 15.0), torch.ones(1, 10))
    >>> loss.backward()
    >>> coordinates.grad.shape
    torch.Size([1, 10, 3])
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Reflections,
        *,
        labels: str | None = None,
        free: str | bool | None = None,
        test_value: int | str | None = None,
        d_min: float | None = None,
        target: str | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = "llg",
        solvent: str = "combined",
        refresh_scales: int = 10,
        hydrogens: str = "absent",
        missing: str = "refuse",
        geometry: str | GeometryRestraints | None = None,
        geometry_weight: float = 1.0,
        terms: Iterable[Term] = (),
        accuracy: float = 1e-4,
    ) -> None:
        for name, value, known in (
            ("target", target, TARGETS),
            ("solvent", solvent, SOLVENTS),
            ("hydrogens", hydrogens, ("absent", "include")),
            ("missing", missing, ("refuse", "absent")),
        ):
            if not callable(value) and value not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {value!r}.")
        if not (geometry is None or geometry == "library" or isinstance(geometry, GeometryRestraints)):
            raise ValueError(f"geometry is 'library', a GeometryRestraints or None, not {geometry!r}.")
        if not 0 <= geometry_weight < math.inf:
            raise ValueError(f"geometry_weight is a number from 0 on, not {geometry_weight!r}.")
        if refresh_scales < 0:
            raise ValueError(f"refresh_scales is a number of calls, or 0, not {refresh_scales}.")
        given = data if isinstance(data, Reflections) else _read(data, labels, free, test_value)
        if d_min is not None:
            given = given.select(given.d_spacings >= d_min)
            if not len(given):
                raise ValueError(f"There is no reflection to d_min = {d_min} Å.")
        self._given, self.target, self.solvent, self.accuracy = given, target, solvent, accuracy
        self.refresh_scales, self.hydrogens, self.missing, self.terms = refresh_scales, hydrogens, missing, tuple(terms)
        self._restraints, self.geometry_weight = geometry, geometry_weight
        self.geometry: GeometryRestraints | None = None
        self._atoms: Atoms | None = None
        self.scales: Scales | None = None

    @property
    def data(self) -> Reflections:
        """The reflections, once prepared on its device."""
        return self._given

    def prepare(self, inputs: Any, *, device: torch.device | str = "cpu") -> None:
        """Bind the reward to the atoms whose coordinates will come; may be called again for others.

        Parameters
        ----------
        inputs : gemmi.Structure, biotite.structure.AtomArray, or an object with ``to_atom_array()``
            What it says of elements, charges and B is the reference; it is not changed.
        device : torch.device or str

        Raises
        ------
        TypeError
            Something else.
        ValueError
            Atoms that cannot be read, named.
        """
        self._given = self._given.to(device=device)
        crystal = self._given.crystal
        if hasattr(inputs, "to_atom_array"):
            inputs = inputs.to_atom_array()
        if isinstance(inputs, gemmi.Structure):
            self._say_other_cell(inputs)
            atoms = Atoms.from_gemmi(inputs, crystal=crystal, device=device)
        elif hasattr(inputs, "coord") and hasattr(inputs, "element"):
            atoms = _from_atom_array(inputs, crystal, device)
        else:
            raise TypeError(
                "prepare() takes a gemmi.Structure, a biotite AtomArray, or an object with to_atom_array(), not "
                f"{type(inputs).__name__}."
            )
        self.geometry = self._geometry_of(inputs, atoms)
        self._atoms, self.scales, self._calls = atoms, None, 0
        self._sigma_a: torch.Tensor | None = None
        self._alpha_beta: AlphaBeta | None = None

    def _say_other_cell(self, structure: gemmi.Structure) -> None:
        """The cell is the data's; a structure of another crystal is told from one without a cell."""
        theirs, ours = structure.cell, self._given.crystal.unit_cell
        if theirs.is_crystal() and which_cell([theirs.parameters], ours) is None:
            warnings.warn(
                f"{structure.name}: the cell is that of the data ({' '.join(f'{x:g}' for x in ours)}), not the structure's "
                f"({' '.join(f'{x:g}' for x in theirs.parameters)}), which is another crystal's.",
                stacklevel=3,
            )

    def _geometry_of(self, inputs: Any, atoms: Atoms) -> GeometryRestraints | None:
        restraints = self._restraints
        if restraints is None:
            return None
        if isinstance(restraints, str):
            if not isinstance(inputs, gemmi.Structure):
                raise ValueError(
                    "geometry='library' needs a gemmi.Structure in prepare(): of other inputs give a GeometryRestraints, "
                    "or None."
                )
            restraints = GeometryRestraints.from_gemmi(inputs)
        if restraints.n_atoms != atoms.n_atoms:
            raise ValueError(f"geometry is of {restraints.n_atoms} atoms, and prepare() was given {atoms.n_atoms}.")
        return restraints.to(device=atoms.device, dtype=atoms.dtype)

    def __call__(
        self,
        coordinates: torch.Tensor,
        elements: torch.Tensor | None = None,
        b_factors: torch.Tensor | None = None,
        occupancies: torch.Tensor | None = None,
        unique_combinations: torch.Tensor | None = None,
        inverse_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The reward, a 0-d tensor in the coordinates' precision.

        Parameters
        ----------
        coordinates : torch.Tensor
            (b, n, 3) or (n, 3) Å.
        elements : torch.Tensor, optional
            Not read: the atoms are those of :meth:`prepare`.
        b_factors : torch.Tensor, optional
            (b, n) Å^2, of every atom, also where :meth:`prepare` was given tensors; by default what it was given.
        occupancies : torch.Tensor, optional
            (b, n); by default 1/b.
        unique_combinations, inverse_indices
            Not read.

        Raises
        ------
        RuntimeError
            Before :meth:`prepare`.
        ValueError
            Another number of atoms; coordinates that are not finite, by atom.
        """
        atoms = self._placed(coordinates, b_factors, occupancies)
        f_calc, f_mask = self._structure_factors(atoms)
        due = self.scales is None or (self.refresh_scales and self._calls % self.refresh_scales == 0)
        if due:
            self._refresh(f_calc.detach(), f_mask.detach())
        self._calls += 1
        assert self.scales is not None
        value = self._value(self.scales.f_model(f_calc, f_mask))
        if self.geometry is not None:
            n_work = int((self.scales.selection & self._given.work).sum())
            value = value + self.geometry_weight * self.geometry(atoms.sites_cart).mean() / (2 * n_work)
        for weight, term in self.terms:
            value = value + weight * term(coordinates).sum()
        return value.to(coordinates.dtype)

    def structure_factors(
        self,
        coordinates: torch.Tensor,
        b_factors: torch.Tensor | None = None,
        occupancies: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """F of the ensemble's atoms and of its solvent, (n_reflections,) complex, unscaled; arguments as of the call."""
        return self._structure_factors(self._placed(coordinates, b_factors, occupancies))

    def _structure_factors(self, atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
        weights = atoms.sites_cart.new_full((len(atoms.sites_cart),), 1 / len(atoms.sites_cart))
        crystal, indices = self._given.crystal, self._given.miller_indices
        f = weighted_sum(structure_factors(atoms, crystal, indices, accuracy=self.accuracy), weights)
        if self.solvent == "off":
            return f, torch.zeros_like(f)
        return f, ensemble_f_mask(atoms, plan_of(crystal, indices), weights, self.solvent, {})

    def _placed(
        self, coordinates: torch.Tensor, b_factors: torch.Tensor | None, occupancies: torch.Tensor | None
    ) -> Atoms:
        atoms = self._atoms
        if atoms is None:
            raise RuntimeError("The reward does not know its atoms yet: call prepare() first.")
        sites = coordinates if coordinates.ndim == 3 else coordinates.unsqueeze(0)
        if sites.ndim != 3 or tuple(sites.shape[1:]) != (atoms.n_atoms, 3):
            raise ValueError(
                f"coordinates must have the shape (b, {atoms.n_atoms}, 3), not {tuple(coordinates.shape)}: prepare() was "
                f"given {atoms.n_atoms} atoms."
            )
        n_models = len(sites)
        sites = sites.to(device=atoms.device, dtype=atoms.dtype)
        shape = (n_models, atoms.n_atoms)

        def each(values: torch.Tensor | None, default: torch.Tensor) -> torch.Tensor:
            values = default if values is None else values.to(default)
            return values.expand(shape)

        # The ensemble's weights are 1/b: occupancies count beside them.
        occupancy = n_models * each(occupancies, atoms.occupancies / n_models)
        absent = sites.detach().isnan().any(-1)
        if bool(absent.any()):
            if self.missing == "refuse":
                model, atom = absent.nonzero()[0].tolist()
                raise ValueError(
                    f"The coordinates of atom {atom} ({atoms.labels[atom]}) of member {model} are NaN: place it, or give "
                    "missing='absent'."
                )
            sites = torch.where(absent[..., None], atoms.sites_cart, sites)
            occupancy = torch.where(absent, 0.0, occupancy)
        if self.hydrogens == "absent":
            occupancy = torch.where(atoms.hydrogens, 0.0, occupancy)
        u_iso = each(None if b_factors is None else b_factors.to(atoms.dtype) / EIGHT_PI_SQ, atoms.u_iso)
        if b_factors is not None:
            # A number for each atom: the tensors of prepare() have no say beside it.
            isotropic = torch.ones_like(atoms.use_u_iso)
            atoms = dataclasses.replace(atoms, use_u_iso=isotropic, use_u_aniso=~isotropic)
        placed: Atoms = atoms.replace(sites_cart=sites, u_iso=u_iso, occupancies=occupancy)
        return placed

    def _refresh(self, f_calc: torch.Tensor, f_mask: torch.Tensor) -> None:
        self.scales = update_all_scales(self._given, f_calc, f_mask)
        f_model = self.scales.f_model(f_calc, f_mask)
        if self.target == "llg":
            self._sigma_a = sigma_a(self._given, f_model)
        elif self.target == "maximum_likelihood":
            self._alpha_beta = estimate_alpha_beta(self._given, f_model, **self._used())

    def _used(self) -> dict[str, Any]:
        assert self.scales is not None
        return {"selection": self.scales.selection, "f_obs_scale": self.scales.f_obs_scale}

    def _value(self, f_model: torch.Tensor) -> torch.Tensor:
        data, used = self._given, self._used()
        if callable(self.target):
            rows = used["selection"] & data.work
            return self.target(f_model[rows].abs(), data.f_obs[rows] / used["f_obs_scale"])
        if self.target == "llg":
            n = int((used["selection"] & data.work).sum())
            gain: torch.Tensor = llg(data, f_model, sigma_a=self._sigma_a, selection=used["selection"])
            return -gain / n
        if self.target == "least_squares":
            return least_squares(data, f_model, **used)
        assert self._alpha_beta is not None
        return maximum_likelihood(data, f_model, self._alpha_beta, **used)


def _read(path: Any, labels: str | None, free: str | bool | None, test_value: int | str | None) -> Reflections:
    try:
        found = read_observations(path, labels=labels, free="none" if free is False else free, test_value=test_value)
    except Sorry as error:
        raise ValueError(str(error)) from error
    symmetry = found.symmetry
    if symmetry.cell is None or symmetry.ops is None:
        raise ValueError(f"{path} lacks the unit cell or the space group, and they are taken from nowhere else.")
    crystal = Crystal(symmetry.cell, symmetry.ops)
    data = Reflections.from_arrays(crystal, found.indices, found.f_obs, found.sigmas, found.free)
    return dataclasses.replace(data, left_out=dict(found.left_out), messages=found.messages)


def _from_atom_array(array: Any, crystal: Crystal, device: torch.device | str) -> Atoms:
    """Atoms of a biotite AtomArray; B is 20 Å^2 where it has none."""
    annotations = set(array.get_annotation_categories())
    names = [
        f"{chain} {residue} {number} {atom}"
        for chain, residue, number, atom in zip(array.chain_id, array.res_name, array.res_id, array.atom_name)
    ]
    coordinates = torch.as_tensor(array.coord, dtype=torch.float64)
    # Where a reference is missing, the atom's own coordinates come with each call.
    coordinates = torch.where(coordinates.isnan(), 0.0, coordinates)
    return Atoms.from_arrays(
        crystal,
        [str(element) for element in array.element],
        coordinates,
        b_iso=array.b_factor if "b_factor" in annotations else 20.0,
        occupancies=array.occupancy if "occupancy" in annotations else 1.0,
        charges=array.charge.tolist() if "charge" in annotations else None,
        labels=names,
        device=device,
    )
