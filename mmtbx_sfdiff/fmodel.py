"""FModel: a model, its data, and the scales between them, as a torch module.

    F_model = k_isotropic_exp k_isotropic k_anisotropic [F_calc + k_mask F_mask + F_hydrogens]

The coordinates are what is differentiated; scales, alpha and beta are constants that
:meth:`FModel.update_scales` sets, once for each macro-cycle of a refinement.

Reference: ``mmtbx.f_model.manager``.
"""

from __future__ import annotations

import dataclasses

import torch

from .bulk_solvent import solvent_structure_factors
from .likelihood import targets
from .likelihood.alpha_beta import AlphaBeta, estimate_alpha_beta
from .scaling import Scales, update_all_scales
from .structure_factors import structure_factors

TARGETS = ("least_squares", "maximum_likelihood")


class FModel(torch.nn.Module):
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

    Attributes
    ----------
    atoms : Atoms
    reflections : Reflections
        As given: all of them, on the scale of the data.
    scales : Scales or None
        None until :meth:`update_scales`.

    Notes
    -----
    ``state_dict()`` holds the parameters of the atoms, the mask's options, the scales, alpha and beta; ``load_state_dict``
    puts them into an FModel of the same atoms and reflections.

    Raises
    ------
    ValueError
        Atoms of another crystal than the reflections.
    """

    def __init__(self, atoms, reflections, method="auto", accuracy=1e-4, mask=None):
        super().__init__()
        if not atoms.crystal.is_same_as(reflections.crystal):
            raise ValueError(f"The atoms belong to {atoms.crystal!r}, but the reflections to {reflections.crystal!r}.")
        self.atoms, self.reflections = atoms, reflections
        self.method, self.accuracy, self.mask_options = method, accuracy, dict(mask or {})
        self.scales = None
        self._alpha_beta = self._source = None

    # Construction and conversion: the work is in cctbx_backend.fmodel, which needs mmtbx.

    @classmethod
    def from_files(
        cls,
        model,
        data,
        dtype=torch.float64,
        device="cpu",
        scattering_table="n_gaussian",
        read=None,
        **options,
    ):
        """Read a model file and a data file.

        Parameters
        ----------
        model, data : path
            PDB or mmCIF; MTZ, mmCIF or CNS.
        dtype, device
            Of the tensors.
        scattering_table : str
        read : dict, optional
            Further arguments of :func:`~mmtbx_sfdiff.files.load_entry`, such as labels or ``d_min``.
        **options
            Of :class:`FModel`.

        Raises
        ------
        libtbx.utils.Sorry
            In one sentence, for what is wrong with the files.
        """
        from .cctbx_backend.fmodel import fmodel_from_files

        return fmodel_from_files(cls, model, data, dtype, device, scattering_table, read or {}, options)

    @classmethod
    def from_cctbx(cls, manager, dtype=torch.float64, device="cpu", **options):
        """Take atoms and reflections from an ``mmtbx.f_model.manager``; its scales are not taken.

        Raises
        ------
        ValueError
            A manager of twinned data, or without an xray_structure.
        """
        from .cctbx_backend.fmodel import fmodel_from_cctbx

        return fmodel_from_cctbx(cls, manager, dtype, device, options)

    def to_cctbx(self):
        """An ``mmtbx.f_model.manager`` with these structure factors, scales and selected reflections."""
        from .cctbx_backend.fmodel import fmodel_to_cctbx

        return fmodel_to_cctbx(self)

    def write_map_coefficients(self, path):
        """Write 2mFo-DFc, mFo-DFc, F_model, the data used and the free flags as an MTZ file for Coot."""
        from .cctbx_backend.fmodel import write_map_coefficients

        write_map_coefficients(self, path)

    def write_model(self, path):
        """Write the model with its present coordinates as PDB or mmCIF (``.cif``).

        Raises
        ------
        libtbx.utils.Sorry
            When the model did not come from a file.
        """
        from .cctbx_backend.fmodel import write_model

        write_model(self, path)

    # Structure factors

    def replace(self, **parameters):
        """Set new parameters of the atoms, such as ``sites_cart``; the scales stay."""
        self.atoms = self.atoms.replace(**parameters)

    def f_calc(self, sites_cart=None):
        """F of the atoms, (..., n) complex, unscaled."""
        return structure_factors(
            self._atoms(sites_cart),
            self.reflections.crystal,
            self.reflections.miller_indices,
            method=self.method,
            accuracy=self.accuracy,
        )

    def f_mask(self, sites_cart=None):
        """F of the solvent mask, (..., n) complex, unscaled."""
        return solvent_structure_factors(
            self._atoms(sites_cart), self.reflections.crystal, self.reflections.miller_indices, **self.mask_options
        )

    def f_model(self, sites_cart=None, f_mask=None):
        """Scaled structure factors of all reflections.

        Parameters
        ----------
        sites_cart : torch.Tensor, optional
            (..., n_atoms, 3) Å; by default the atoms' own.
        f_mask : torch.Tensor, optional
            (n,) to use instead of the mask of these sites, e.g. to keep it for some steps.

        Returns
        -------
        torch.Tensor
            (..., n) complex, on the scale of ``reflections.f_obs / scales.f_obs_scale``.
        """
        scales = self._known_scales()
        return scales.f_model(self.f_calc(sites_cart), self.f_mask(sites_cart) if f_mask is None else f_mask)

    forward = f_model

    def _atoms(self, sites_cart):
        return self.atoms if sites_cart is None else self.atoms.replace(sites_cart=sites_cart)

    # Scales and targets

    def update_scales(self, **options):
        """Determine scales and outliers; afterwards alpha and beta are estimated anew when they are needed.

        Parameters
        ----------
        **options
            Of :func:`~mmtbx_sfdiff.scaling.update_all_scales`: ``remove_outliers``, ``model``, ...

        Returns
        -------
        Scales
        """
        with torch.no_grad():
            f_calc, f_mask = self.f_calc(), self.f_mask()
            if options.get("model", "mmtbx") == "mmtbx":
                options = self.riding_hydrogens() | options
            self.scales = update_all_scales(self.reflections, f_calc, f_mask, **options)
        self._alpha_beta = None
        return self.scales

    def optimize_mask(self, **options):
        """Learn the mask's radii and softness from the data, use them from now on, and determine the scales.

        Parameters
        ----------
        **options
            Of :func:`~mmtbx_sfdiff.scaling.mask_lengths.optimize_mask`.

        Returns
        -------
        OptimizedMask
        """
        from .scaling.mask_lengths import optimize_mask

        with torch.no_grad():
            f_calc = self.f_calc()
        found = optimize_mask(self.atoms, self.reflections, f_calc, **options)
        self.mask_options = self.mask_options | {"method": "probe_shrink"} | found.options
        self.update_scales()
        return found

    def riding_hydrogens(self):
        """What :func:`~mmtbx_sfdiff.scaling.update_all_scales` needs of hydrogens kept at zero occupancy.

        Returns
        -------
        dict
            ``f_hydrogen`` and ``b_mean``, the mean B of the other atoms; empty where there are no such hydrogens.
        """
        atoms = self.atoms
        hydrogens = torch.tensor([e.strip().upper() in ("H", "D") for e in atoms.elements], device=atoms.device)
        if not bool(hydrogens.any()) or bool((atoms.occupancies[hydrogens] != 0).any()) or _is_neutron(atoms):
            return {}
        riding = atoms.select(hydrogens)
        riding = riding.replace(
            occupancies=torch.ones_like(riding.occupancies),
            u_iso=torch.zeros_like(riding.u_iso),
            u_star=torch.zeros_like(riding.u_star),
        )
        others = atoms.select(~hydrogens)
        metric = others.crystal.orthogonalization.to(atoms.u_star)
        u = others.u_star
        tensor = torch.stack([u[:, i] for i in (0, 3, 4, 3, 1, 5, 4, 5, 2)], -1).reshape(-1, 3, 3)
        u_equivalent = torch.einsum("ij,njk,ik->n", metric, tensor, metric) / 3
        u = torch.where(others.use_u_iso, others.u_iso, 0) + torch.where(others.use_u_aniso, u_equivalent, 0)
        f_hydrogen = structure_factors(
            riding,
            self.reflections.crystal,
            self.reflections.miller_indices,
            method=self.method,
            accuracy=self.accuracy,
        )
        return {"f_hydrogen": f_hydrogen, "b_mean": float(u.mean()) * 8 * torch.pi**2}

    def r_factors(self):
        """(R-work, R-free) of the present model with the present scales, floats."""
        with torch.no_grad():
            r_work, r_free = targets.r_factors(self.reflections, self.f_model(), **self._used())
        return float(r_work), float(r_free)

    def r_work(self):
        """R-work of the present model with the present scales."""
        return self.r_factors()[0]

    def r_free(self):
        """R-free, likewise; over all reflections where none are free."""
        return self.r_factors()[1]

    def target(self, name="maximum_likelihood", sites_cart=None, f_mask=None, f_model=None):
        """What a refinement minimises.

        Parameters
        ----------
        name : {"maximum_likelihood", "least_squares"}
        sites_cart, f_mask
            See :meth:`f_model`.
        f_model : torch.Tensor, optional
            (..., n) that :meth:`f_model` gave, where it is known already.

        Returns
        -------
        torch.Tensor
            (...,), differentiable in the coordinates and the other parameters of the atoms.
        """
        if name not in TARGETS:
            raise ValueError(f"Unknown target {name!r}: choose from {', '.join(TARGETS)}.")
        if f_model is None:
            f_model = self.f_model(sites_cart, f_mask)
        if name == "least_squares":
            return targets.least_squares(self.reflections, f_model, **self._used())
        return targets.maximum_likelihood(self.reflections, f_model, self.alpha_beta(), **self._used())

    def alpha_beta(self):
        """alpha and beta of the model as it was at the first use after :meth:`update_scales`."""
        if self._alpha_beta is None:
            with torch.no_grad():
                self._alpha_beta = estimate_alpha_beta(self.reflections, self.f_model(), **self._used())
        return self._alpha_beta

    def _used(self):
        scales = self._known_scales()
        return {"selection": scales.selection, "f_obs_scale": scales.f_obs_scale}

    def _known_scales(self):
        if self.scales is None:
            raise RuntimeError("The scales are not known yet: call update_scales() first.")
        return self.scales

    def to(self, *target, dtype=None, device=None):
        """The same in another precision or on another device; scales have to be determined again.

        Parameters
        ----------
        *target : torch.dtype, torch.device or str
            As of ``torch.nn.Module.to``; but this returns another FModel, and leaves the one it was called on.
        dtype, device
            The same by name.
        """
        for value in target:
            if isinstance(value, torch.dtype):
                dtype = value
            else:
                device = torch.device(value)
        result = type(self)(
            self.atoms.to(dtype=dtype, device=device),
            self.reflections.to(dtype=dtype, device=device),
            self.method,
            self.accuracy,
            self.mask_options,
        )
        result._source = self._source
        return result

    # What state_dict and load_state_dict take: the model's parameters, scales, alpha and beta, not what came from files.

    def get_extra_state(self):
        return {
            "atoms": self.atoms.state(),
            "mask": self.mask_options,
            "scales": None if self.scales is None else _as_dict(self.scales),
            "alpha_beta": None if self._alpha_beta is None else _as_dict(self._alpha_beta),
        }

    def set_extra_state(self, state):
        scales, alpha_beta = state["scales"], state["alpha_beta"]
        if scales is not None and len(scales["selection"]) != len(self.reflections):
            raise ValueError(
                f"The scales of the state are for {len(scales['selection'])} reflections, and there are "
                f"{len(self.reflections)}: give the data that the state was made with."
            )
        self.atoms = self.atoms.with_state(state["atoms"])
        self.mask_options = dict(state["mask"])
        self.scales = None if scales is None else Scales(**scales)
        self._alpha_beta = None if alpha_beta is None else AlphaBeta(**alpha_beta)

    def extra_repr(self):
        state = "no scales" if self.scales is None else f"R {self.scales.r_work:.4f}/{self.scales.r_free:.4f}"
        return f"{self.atoms.n_atoms} atoms, {len(self.reflections)} reflections, {state}"


def _as_dict(value):
    """The fields of a dataclass, not copied."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _is_neutron(atoms):
    return str(getattr(atoms.form_factors, "table", "")).startswith("neutron")


def selected(reflections, scales):
    """The reflections that the scales are for, on their scale."""
    chosen = reflections.select(scales.selection)
    sigmas = None if chosen.sigmas is None else chosen.sigmas / scales.f_obs_scale
    return dataclasses.replace(chosen, f_obs=chosen.f_obs / scales.f_obs_scale, sigmas=sigmas)
