"""FModel: a model, its data, and the scales between them, as a torch module.

    F_model = k_isotropic_exp k_isotropic k_anisotropic [F_calc + k_mask F_mask + F_hydrogens]

What is differentiated are the parameters of the atoms; scales, alpha and beta are constants that
:meth:`FModel.update_scales` sets, once for each macro-cycle of a refinement.

Reference: ``mmtbx.f_model.manager``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from .atoms import Atoms
from .atoms_module import AtomsModule
from .bulk_solvent import solvent_structure_factors
from .ensemble import checked_weights, ensemble_f_mask, weighted_sum
from .fmodel_io import FModelIO, indices_digest, refuse_other_data
from .fmodel_targets import TARGETS, FModelTargets
from .fmodel_twin import FModelTwin
from .kernels import checks, opaque
from .likelihood.alpha_beta import AlphaBeta
from .numerics.precision import full_precision, widened
from .plans import Plan, plan_of
from .reflections import Reflections
from .scaling import Scales, refit, update_all_scales
from .scaling.mask_lengths import OptimizedMask, optimize_mask
from .scaling.refit import Solved, solve
from .structure_factors import structure_factors

__all__ = ["TARGETS", "FModel"]


class FModel(FModelTargets, FModelIO, FModelTwin, AtomsModule):
    """Scaled structure factors of a model, and how well they agree with the data.

    Make one with :meth:`from_files`, :meth:`from_cctbx`, or from an ``Atoms`` and a ``Reflections``.

    Parameters
    ----------
    atoms : Atoms
    reflections : Reflections
        Of the same crystal.
    method, accuracy
        Of :func:`~mmtbx_sfdiff.structure_factors`.
    mask : dict, optional
        Arguments of :func:`~mmtbx_sfdiff.solvent_mask`, such as ``{"method": "binary"}``.
    refine : sequence of str
        Fields of the atoms that are ``parameters()`` of this module, under their own names: sites_cart, u_iso, u_star,
        occupancies, fp, fdp.
    source : Entry, optional
        The files that the atoms came from; :meth:`write_model` writes into a copy of its model.
    ensemble : torch.Tensor, optional
        (n_conformers,) weights of conformers, which are then the last batch dimension of the atoms: F is their weighted sum.
        ``refine`` may name "weights", too.
    solvent : {"combined", "per_conformer"}
        Of an ensemble: one mask of all conformers (:mod:`mmtbx_sfdiff.bulk_solvent.ensemble`), or the weighted sum of each
        one's.
    f_partial : torch.Tensor, optional
        (n,) complex, added to F of the atoms: what does not move.
    refresh_scales : int, optional
        Determine the scales again, without a graph, at every so many calls of :meth:`f_model`; by default only
        :meth:`update_scales` does.
    follow_scales : bool
        Solve for the overall scale and k_mask of each resolution bin again in every call, on the graph: they follow F_calc and
        F_mask from where :meth:`update_scales` left them (:mod:`mmtbx_sfdiff.scaling.refit`), rather than stay constant.
    twin_law : str, optional
        Indices of the twin mate, such as ``h,-k,-l``; "auto": that of the lattice by which the data look twinned, if there is one.
    twin_fraction : float, optional
        Of the second domain; by default :meth:`update_scales` determines it (``scales.twin_fraction``).

    Attributes
    ----------
    atoms : Atoms
        With the present parameters in it.  What is assigned is copied into them.
    reflections : Reflections
        As given: all of them, on the scale of the data.
    scales : Scales or None
        None until :meth:`update_scales`.
    mask_options : dict
        The mask's arguments.
    source : Entry or None

    Notes
    -----
    ``.to()``, ``.cuda()``, ``.double()`` and ``.float()``, also of a module that holds this one, move everything, scales
    included, in place; ``state_dict()`` holds the parameters of the atoms, the mask's options, the scales, alpha and beta, and
    ``load_state_dict`` puts them into an FModel of the same atoms and reflections.

    Raises
    ------
    ValueError
        Atoms of another crystal than the reflections; an unknown name in ``refine``.

    Examples
    --------
    >>> fmodel = sfdiff.FModel(atoms, data, refine=("sites_cart", "u_iso"))
    >>> scales = fmodel.update_scales()
    >>> optimizer = torch.optim.SGD(fmodel.parameters(), lr=1e-3)
    >>> fmodel.target("maximum_likelihood").backward()
    >>> optimizer.step()
    >>> other = fmodel.with_(mask={"method": "binary"}, refine=())
    >>> other.ensemble, other.riding_hydrogens(), sorted(other.optimize_mask().options)
    (None, {}, ['r_probe', 'r_shrink', 'radii', 'softness'])
    """

    _reflections: Reflections
    _reflections_for: Scales | None
    _plan: Plan

    def __init__(
        self,
        atoms: Atoms,
        reflections: Reflections,
        method: str = "auto",
        accuracy: float = 1e-4,
        mask: dict[str, Any] | None = None,
        refine: Iterable[str] = (),
        source: Any = None,
        ensemble: torch.Tensor | None = None,
        solvent: str = "combined",
        f_partial: torch.Tensor | None = None,
        refresh_scales: int | None = None,
        follow_scales: bool = False,
        twin_law: str | None = None,
        twin_fraction: float | None = None,
    ) -> None:
        refine = (refine,) if isinstance(refine, str) else tuple(refine)
        super().__init__(atoms, [name for name in refine if name != "weights"])
        if not atoms.crystal.is_same_as(reflections.crystal):
            raise ValueError(f"The atoms belong to {atoms.crystal!r}, but the reflections to {reflections.crystal!r}.")
        self.method, self.accuracy, self.mask_options = method, accuracy, dict(mask or {})
        self.source = source
        self.solvent = solvent
        self._weights: torch.Tensor | None = None
        if ensemble is not None:
            weights = checked_weights(ensemble, atoms, solvent)
            if "weights" in refine:
                self.weights = torch.nn.Parameter(weights.detach().clone())
            else:
                self._weights = weights
        elif "weights" in refine:
            raise ValueError("refine='weights' is for ensembles: give the weights to start from as ensemble=.")
        self.f_partial = None if f_partial is None else self._partial(f_partial, reflections)
        if refresh_scales is not None and not refresh_scales >= 1:
            raise ValueError(f"refresh_scales must be at least 1 call, not {refresh_scales!r}.")
        self.refresh_scales, self.follow_scales, self._calls = refresh_scales, follow_scales, 0
        self.scales: Scales | None = None
        self._constants = {}
        # Of the structure factors that the scales were determined from; what follows, follows from there.
        self._solved: Solved | None = None
        self.reflections = reflections
        self._set_twin(twin_law, twin_fraction)
        self._alpha_beta: AlphaBeta | None = None

    def with_(self, atoms: Atoms | None = None, reflections: Reflections | None = None, **options: Any) -> FModel:
        """The same but for what is given; without scales, which belong to one model and its data.

        Parameters
        ----------
        atoms, reflections
            Instead of these.
        **options
            Of :class:`FModel`.
        """
        own = self._options()
        unknown = sorted(set(options) - set(own))
        if unknown:
            raise TypeError(f"FModel has no option {', '.join(unknown)}; it has {', '.join(own)}.")
        return type(self)(
            self._up_to_date() if atoms is None else atoms,
            self.reflections if reflections is None else reflections,
            **(own | options),
        )

    def _options(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "accuracy": self.accuracy,
            "mask": self.mask_options,
            "refine": [*self.refine, *(["weights"] if "weights" in self._parameters else [])],
            "source": self.source,
            "ensemble": None if self.ensemble is None else self.ensemble.detach(),
            "solvent": self.solvent,
            "f_partial": self.f_partial,
            "refresh_scales": self.refresh_scales,
            "follow_scales": self.follow_scales,
            "twin_law": "auto" if self._twin_auto else self.twin_law,
            "twin_fraction": self.twin_fraction,
        }

    @property
    def ensemble(self) -> torch.Tensor | None:
        """(n_conformers,) weights, or None for one model."""
        return self._parameters.get("weights", self._weights)

    @staticmethod
    def _partial(f_partial: torch.Tensor, reflections: Reflections) -> torch.Tensor:
        if not f_partial.is_complex() or tuple(f_partial.shape) != (len(reflections),):
            raise ValueError(
                f"f_partial must be complex with one value for each of the {len(reflections)} reflections, not "
                f"{f_partial.dtype} of shape {tuple(f_partial.shape)}."
            )
        return f_partial.to(dtype=reflections.f_obs.dtype.to_complex(), device=reflections.f_obs.device)

    @property
    def reflections(self) -> Reflections:
        """As given; once there are scales, functions of :mod:`mmtbx_sfdiff.targets` take selection and scale from them."""
        if self._reflections_for is not self.scales:
            used = None if self.scales is None else (self.scales.selection, self.scales.f_obs_scale)
            self._reflections = dataclasses.replace(self._reflections, _in_use=used)
            self._reflections_for = self.scales
        return self._reflections

    @reflections.setter
    def reflections(self, reflections: Reflections) -> None:
        self._reflections = dataclasses.replace(reflections, _in_use=None)
        self._reflections_for = None
        self._plan = plan_of(reflections.crystal, reflections.miller_indices)

    # Structure factors

    @full_precision
    def f_calc(self, sites_cart: torch.Tensor | None = None, mates: bool = False) -> torch.Tensor:
        """F of the atoms, (..., n) complex, unscaled; with ``mates`` followed by those of twin mates that were not measured."""
        atoms, weights = self._atoms(sites_cart), self.ensemble
        f = self._structure_factors(atoms, self._indices(mates))
        f = f if weights is None else weighted_sum(f, weights)
        return f if self.f_partial is None else f + self.f_partial

    @full_precision
    def f_mask(self, sites_cart: torch.Tensor | None = None, mates: bool = False) -> torch.Tensor:
        """F of the solvent mask, (..., n) complex, unscaled; with ``mates`` as :meth:`f_calc`."""
        atoms, weights = self._atoms(sites_cart), self.ensemble
        place = self._place(self._indices(mates)) if mates else self._plan
        if weights is not None:
            return ensemble_f_mask(atoms, place, weights, self.solvent, self.mask_options)
        return solvent_structure_factors(atoms, place, **self.mask_options)

    @full_precision
    def f_model(
        self, sites_cart: torch.Tensor | None = None, f_mask: torch.Tensor | None = None, twinned: bool = True
    ) -> torch.Tensor:
        """Scaled structure factors of all reflections.

        Parameters
        ----------
        sites_cart : torch.Tensor, optional
            (..., n_atoms, 3) Å; by default the atoms' own.  Of lower precision than the atoms (such as bfloat16) it is
            converted, and its gradient comes back in its own: of float16 it may overflow, which a warning says.
        f_mask : torch.Tensor, optional
            (n,) to use instead of the mask of these sites, e.g. to keep it for some steps; of a twin ``f_mask(mates=True)``.
        twinned : bool
            Of a twin: its amplitudes, with the phases of the first domain; False: the first domain alone.

        Returns
        -------
        torch.Tensor
            (..., n) complex, on the scale of ``reflections.f_obs / scales.f_obs_scale``.

        Raises
        ------
        RuntimeError, ValueError
            Before :meth:`update_scales`; sites of another shape than the atoms'.
        """
        if self.scales is None:
            self._atoms(sites_cart)  # what is wrong with the sites is said first
        scales = self.known_scales()
        sites_cart = None if sites_cart is None else widened(sites_cart, self._base.dtype)
        f_calc = self.f_calc(sites_cart, mates=True)
        f_mask = self.f_mask(sites_cart, mates=True) if f_mask is None else self._checked_mask(f_mask)
        if self.refresh_scales is not None:
            self._calls += 1
            if self._calls % self.refresh_scales == 0:
                scales = self._determine_scales(f_calc.detach(), f_mask.detach(), {})
        if self.follow_scales:
            return refit(scales, self.reflections, f_calc, f_mask, reference=self._solved)
        if self.twin_law is not None:
            return self._twinned(scales, f_calc, f_mask, twinned)
        model: torch.Tensor = scales.f_model(f_calc, f_mask)
        return model

    forward = f_model

    def _atoms(self, sites_cart: torch.Tensor | None) -> Atoms:
        if sites_cart is None:
            return self.atoms
        moved: Atoms = self.atoms.replace(sites_cart=widened(sites_cart, self._base.dtype))
        return moved

    def _structure_factors(self, atoms: Atoms, indices: torch.Tensor | None = None) -> torch.Tensor:
        return structure_factors(atoms, self._place(indices), method=self.method, accuracy=self.accuracy)

    def _place(self, indices: torch.Tensor | None) -> Plan:
        """The plan of these reflections, or of other indices."""
        reflections = self._reflections
        if indices is None or indices is reflections.miller_indices:
            return self._plan
        return plan_of(reflections.crystal, indices)

    def check(self) -> None:
        """Wait for the device, and raise for what a call found wrong there since this was last asked.

        On a GPU :func:`~mmtbx_sfdiff.structure_factors` does not wait to see whether its numbers can be computed with: of a
        model with a bad one it gives NaN, and the error is raised here, by :meth:`update_scales` or :meth:`r_factors`, or by the
        first later call that finds it there.  On the CPU the call itself raises, and there is nothing left to say here.

        Raises
        ------
        BadAtom
            A ValueError that names the first bad atom, its parameter and its model.
        """
        with checks.naming(lambda: self._base.labels):
            checks.raise_pending(self.reflections.f_obs.device)

    # Scales and targets

    @full_precision
    def update_scales(self, **options: Any) -> Scales:
        """Determine scales and outliers; afterwards alpha and beta are estimated anew when they are needed.

        Parameters
        ----------
        **options
            Of :func:`~mmtbx_sfdiff.scaling.update_all_scales`: ``remove_outliers``, ``model``, ...
        """
        with opaque.outlasting():
            f_calc, f_mask = self.f_calc(mates=True), self.f_mask(mates=True)
            self._scaling = options
            if self._twin_auto:
                self._determine_scales(f_calc, f_mask, options)
                self._recognise_twin()
                f_calc, f_mask = self.f_calc(mates=True), self.f_mask(mates=True)
        return self._determine_scales(f_calc, f_mask, options)

    def _determine_scales(self, f_calc: torch.Tensor, f_mask: torch.Tensor, options: dict[str, Any]) -> Scales:
        if f_calc.ndim != 1 or f_mask.ndim != 1:
            raise ValueError(
                f"Scales are determined for one model, or one ensemble, not for a batch of shape {tuple(f_calc.shape[:-1])}: "
                "give update_scales() and refresh_scales one at a time."
            )
        self.check()
        options = getattr(self, "_scaling", {}) | options
        if options.get("model", "mmtbx") == "mmtbx" and self.twin_law is None:
            options = self.riding_hydrogens() | options
        with opaque.outlasting():
            determine = update_all_scales if self.twin_law is None else self._twin_scales
            scales: Scales = determine(self.reflections, f_calc, f_mask, **options)
            self._solved = solve(scales, self.reflections, f_calc, f_mask) if self.follow_scales else None
        self.scales = scales
        self._alpha_beta = None
        return scales

    def optimize_mask(self, **options: Any) -> OptimizedMask:
        """Learn the mask's radii and softness from the data, use them from now on, and determine the scales.

        Parameters
        ----------
        **options
            Of :func:`~mmtbx_sfdiff.scaling.mask_lengths.optimize_mask`.
        """
        if self.ensemble is not None:
            raise ValueError(
                "The mask of an ensemble is not optimised: optimise that of one conformer, and give its options."
            )
        with torch.no_grad():
            f_calc = self.f_calc()
        found: OptimizedMask = optimize_mask(self._up_to_date(), self.reflections, f_calc, **options)
        self.mask_options = self.mask_options | {"method": "probe_shrink"} | found.options
        self.update_scales()
        return found

    def riding_hydrogens(self) -> dict[str, Any]:
        """What :func:`~mmtbx_sfdiff.scaling.update_all_scales` needs of hydrogens kept at zero occupancy.

        Returns
        -------
        dict
            ``f_hydrogen`` and ``b_mean``, the mean B of the other atoms; empty where there are no such hydrogens.
        """
        atoms = self._up_to_date()
        hydrogens = atoms.hydrogens
        if not bool(hydrogens.any()) or bool((atoms.occupancies[..., hydrogens] != 0).any()) or _is_neutron(atoms):
            return {}
        riding = atoms.select(hydrogens)
        riding = riding.replace(
            occupancies=torch.ones_like(riding.occupancies),
            u_iso=torch.zeros_like(riding.u_iso),
            u_star=torch.zeros_like(riding.u_star),
        )
        b_mean = float(atoms.select(~hydrogens).b_iso.mean())
        with torch.no_grad():
            weights = self.ensemble
            f_hydrogen = self._structure_factors(riding)
            f_hydrogen = f_hydrogen if weights is None else weighted_sum(f_hydrogen, weights)
        return {"f_hydrogen": f_hydrogen, "b_mean": b_mean}

    # What torch moves, saves and loads beside the atoms: see AtomsModule.

    def _move(self, dtype: torch.dtype, device: torch.device) -> None:
        self.reflections = self.reflections.to(dtype=dtype, device=device)
        self.scales = None if self.scales is None else self.scales.to(dtype, device)
        self._solved = None if self._solved is None else self._solved.to(dtype, device)
        self._alpha_beta = None if self._alpha_beta is None else self._alpha_beta.to(dtype, device)
        self._weights = None if self._weights is None else self._weights.to(dtype=dtype, device=device)
        self.f_partial = None if self.f_partial is None else self._partial(self.f_partial.to(device), self.reflections)
        self.mask_options = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in self.mask_options.items()
        }

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {
            "mask": self.mask_options,
            "reflections": indices_digest(self.reflections),
            "scales": None if self.scales is None else _as_dict(self.scales),
            "alpha_beta": None if self._alpha_beta is None else _as_dict(self._alpha_beta),
            "solved": None if self._solved is None else _as_dict(self._solved),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        scales, alpha_beta, solved = state["scales"], state["alpha_beta"], state.get("solved")
        if scales is not None:
            refuse_other_data(self.reflections, len(scales["selection"]), state.get("reflections"))
        super().set_extra_state(state)
        here = self.reflections.f_obs.dtype, self.reflections.f_obs.device
        self.mask_options = dict(state["mask"])
        self.scales = None if scales is None else Scales(**scales).to(*here)
        self._alpha_beta = None if alpha_beta is None else AlphaBeta(**alpha_beta).to(*here)
        self._solved = None if solved is None else Solved(**solved).to(*here)

    def extra_repr(self) -> str:
        state = "no scales" if self.scales is None else f"R {self.scales.r_work:.4f}/{self.scales.r_free:.4f}"
        return f"{self.atoms.n_atoms} atoms, {len(self.reflections)} reflections, {state}"


def _as_dict(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, not copied."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _is_neutron(atoms: Atoms) -> bool:
    return str(getattr(atoms.form_factors, "table", "")).startswith("neutron")
