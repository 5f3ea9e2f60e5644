"""``SFcalculator`` itself: structure factors of atoms and solvent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

import gemmi
import numpy as np

from ...atoms import Atoms
from ...bulk_solvent import mask_structure_factors, solvent_mask, solvent_structure_factors
from ...structure_factors import structure_factors
from .io import PDBParser
from .report import Report
from .symmetry import generate_reciprocal_asu
from .utils import try_gpu

__all__ = ["SFcalculator"]


class SFcalculator(Report):
    """Structure factors, solvent, scales and R factors of a model, under SFcalculator's names.

    Parameters
    ----------
    pdbmodel : path, gemmi.Structure or PDBParser
        A parser given here is changed, as there: its cell and group become those of the data.
    mtzdata : path, gemmi.Mtz or reciprocalspaceship.DataSet, optional
        Without it ``dmin`` decides which reflections there are.
    n_bins : int
        Bins of resolution.
    dmin : float, optional
        Å.
    anomalous : bool
        f' and f'' of Cromer and Liberman at ``wavelength``; Friedel mates apart.
    wavelength : float, optional
        Å; by default the data's.
    set_experiment : bool
        Whether to take amplitudes, flags and outliers from the data.
    expcolumns : sequence of str
        Labels of the amplitudes and their errors.
    freeflag : str or None
        Label of the test set; None (or "None") where there is none.
    testset_value : int
        Its value.
    device : torch.device
    mode : {"xray", "cryoem"}
        X-ray or electron form factors.
    accuracy : float
        Relative error of F_protein and its gradients; not in SFcalculator.

    Raises
    ------
    ValueError
        Files that cannot be read, labels that are not there, flags that are no test set, neither data nor ``dmin``.
    TypeError
        A model or data of another type.

    Examples
    --------
    >>> from mmtbx_sfdiff.interop.sfcalculator import SFcalculator
    >>> fmodel.write_map_coefficients("data.mtz")
    >>> sfc = SFcalculator(structure, "data.mtz", expcolumns=["F-obs-filtered", "SIGF-obs-filtered"], freeflag="R-free-flags",
    ...                    testset_value=1)
    >>> sfc.inspect_data(); sfc.calc_fprotein(); sfc.calc_fsolvent(); sfc.get_scales_adam()
    >>> loss = (sfc.calc_ftotal().abs() - sfc.Fo).abs().sum()
    """

    def __init__(
        self,
        pdbmodel: str | os.PathLike[str] | gemmi.Structure | PDBParser,
        mtzdata: Any = None,
        n_bins: int = 10,
        dmin: float | None = None,
        anomalous: bool = False,
        wavelength: float | None = None,
        set_experiment: bool = True,
        expcolumns: Sequence[str] = ("FP", "SIGFP"),
        freeflag: str | None = "FreeR_flag",
        testset_value: int = 0,
        device: torch.device | str | None = None,
        mode: str = "xray",
        accuracy: float = 1e-5,
    ) -> None:
        if mode not in ("xray", "cryoem"):
            raise ValueError(f"mode is 'xray' or 'cryoem', not {mode!r}.")
        if anomalous and mode != "xray":
            raise ValueError("Anomalous scattering is of X-rays: give mode='xray' with anomalous=True.")
        self.mode, self.anomalous, self.wavelength, self.accuracy = mode, anomalous, wavelength, accuracy
        self._init_model(pdbmodel, torch.device(try_gpu() if device is None else device))
        self.inspected = False
        self._calculated: tuple[torch.Tensor, int] | None = None
        if mtzdata is None:
            if not dmin:
                raise ValueError("Without data, give dmin: the resolution to which there shall be reflections, Å.")
            self._init_symmetry()
            self.dmin, self.HKL_array = dmin, None
            self.Hasu_array = generate_reciprocal_asu(self.unit_cell, self.space_group, dmin, anomalous)
            self.dHasu = self.unit_cell.calculate_d_array(self.Hasu_array).astype("float32")
        else:
            self._init_data(mtzdata, dmin, tuple(expcolumns))
        if anomalous and self.wavelength is None:
            raise ValueError("anomalous=True needs the wavelength, and the data do not say it: give wavelength (Å).")
        self.dr2asu_array = self.unit_cell.calculate_1_d2_array(self.Hasu_array)
        self._indices = torch.as_tensor(self.Hasu_array, dtype=torch.int64, device=self.device)
        self.assign_resolution_bins(n_bins)
        if mtzdata is not None and set_experiment:
            self._set_experiment(freeflag, testset_value)

    # The form factors, which nothing here reads

    @property
    def full_atomic_sf_asu(self) -> dict[str, np.ndarray]:
        """Form factors on the asymmetric unit by element, with f' + i f'' when anomalous."""
        atoms = self._atoms()
        table = atoms.form_factors(torch.as_tensor(self.dr2asu_array, device=self.device))
        rows = dict(zip(self.atom_name, zip(atoms.type_index.tolist(), atoms.fp.tolist(), atoms.fdp.tolist())))
        extra = {e: fp + 1j * fdp if self.anomalous else 0.0 for e, (_, fp, fdp) in rows.items()}
        return {element: table[row].cpu().numpy() + extra[element] for element, (row, *_) in rows.items()}

    @property
    def fullsf_tensor(self) -> torch.Tensor:
        """(n_atoms, n) of the same: made when it is asked for, for it takes atoms times reflections of memory."""
        table = self.full_atomic_sf_asu
        dtype = torch.complex64 if self.anomalous else torch.float32
        return torch.tensor(np.stack([table[name] for name in self.atom_name]), dtype=dtype, device=self.device)

    # Atoms

    def inspect_data(self, verbose: bool = False, spacing: float = 4.5) -> None:
        """Set ``solventpct``, the share of the cell in the solvent by this package's mask, and ``gridsize``."""
        mask = solvent_mask(self._atoms(), self._crystal, grid_step=min(max(float(self.dmin) / 3, 0.6), 1.0))
        self.solventpct = mask.mean().detach().to(torch.float32)
        mtz = gemmi.Mtz(with_base=True)
        mtz.cell, mtz.spacegroup = self.unit_cell, self.space_group
        mtz.set_data(np.asarray(self._used_indices, np.float32))
        self.gridsize = mtz.get_size_for_hkl(sample_rate=3.0)
        self.inspected = True
        if verbose:
            print("Solvent Percentage:", self.solventpct)
            print("Grid size:", self.gridsize)

    def calc_fprotein(
        self,
        atoms_position_tensor: torch.Tensor | None = None,
        atoms_biso_tensor: torch.Tensor | None = None,
        atoms_aniso_uw_tensor: torch.Tensor | None = None,
        atoms_occ_tensor: torch.Tensor | None = None,
        Return: bool = False,
    ) -> torch.Tensor | None:
        """F of the atoms into ``Fprotein_asu`` and ``Fprotein_HKL``; what is given replaces the atoms' own, and stays.

        Returns
        -------
        torch.Tensor or None
            (n,) complex64 with ``Return``: in the order of the data, or of ``Hasu_array`` without data.
        """
        for name, value in (
            ("atom_pos_orth", atoms_position_tensor),
            ("atom_aniso_uw", atoms_aniso_uw_tensor),
            ("atom_b_iso", atoms_biso_tensor),
            ("atom_occ", atoms_occ_tensor),
        ):
            if value is not None:
                setattr(self, name, value)
        self.Fprotein_asu = self._f_protein(self._atoms())
        self._calculated = self.Fprotein_asu, self.Fprotein_asu._version
        if self._has_data:
            self.Fprotein_HKL = self.Fprotein_asu[self.asu2HKL_index]
        setattr(self, f"Fmask_{self._kind}", torch.zeros_like(getattr(self, f"Fprotein_{self._kind}")))
        return getattr(self, f"Fprotein_{self._kind}") if Return else None

    def _f_protein(self, atoms: Atoms) -> torch.Tensor:
        return structure_factors(atoms, self._crystal, self._indices, accuracy=self.accuracy)

    def calc_fprotein_batch(
        self,
        atoms_position_batch: torch.Tensor,
        Return: bool = False,
        PARTITION: int = 20,
    ) -> torch.Tensor | None:
        """F of several models, (batch, n_atoms, 3) Å; memory is bounded whatever ``PARTITION`` is."""
        self._batch = atoms_position_batch
        self.Fprotein_asu_batch = self._f_protein(self._atoms(atoms_position_batch))
        if self._has_data:
            self.Fprotein_HKL_batch = self.Fprotein_asu_batch[:, self.asu2HKL_index]
        found = getattr(self, f"Fprotein_{self._kind}_batch")
        setattr(self, f"Fmask_{self._kind}_batch", torch.zeros_like(found))
        return found if Return else None

    # Solvent

    def calc_fsolvent(
        self,
        solventpct: Any = None,
        gridsize: Sequence[int] | None = None,
        dmin_mask: float = 5.0,
        dmin_nonzero: float = 3.0,
        exponent: float = 10.0,
        Return: bool = False,
    ) -> torch.Tensor | None:
        """F of the solvent into ``Fmask_HKL`` (or ``Fmask_asu``), differentiable in the atoms.

        The mask is this package's, of the atoms; ``solventpct``, ``dmin_mask`` and ``exponent`` belong to the mask cut from
        a density map.  That one is made where the density has been changed since :meth:`calc_fprotein`, as programs do
        that add another chain to ``Fprotein_asu``: the atoms do not know of it.
        """
        if self._edited():
            self._once(
                "Fprotein_asu was changed after calc_fprotein: the mask is cut from its density, with solventpct, since "
                "the atoms alone do not tell where the added part is."
            )
            mask = self._mask_of_density(solventpct, gridsize)
            indices = torch.as_tensor(self._used_indices, dtype=torch.int64, device=self.device)
            found = mask_structure_factors(mask, self._crystal, indices, d_min=dmin_nonzero)
        else:
            if solventpct is not None:
                self._once("solventpct has no effect: the mask is that of the atoms.")
            found = self._f_mask(self._atoms(), dmin_nonzero)
        setattr(self, f"Fmask_{self._kind}", found)
        return found if Return else None

    def _edited(self) -> bool:
        if not hasattr(self, "Fprotein_asu"):
            raise ValueError("There is no Fprotein_asu yet: call calc_fprotein() first.")
        if self._calculated is None:
            return True  # assigned from outside
        tensor, version = self._calculated
        return self.Fprotein_asu is not tensor or tensor._version != version

    def _f_mask(self, atoms: Atoms, d_min: float) -> torch.Tensor:
        indices = torch.as_tensor(self._used_indices, dtype=torch.int64, device=self.device)
        return solvent_structure_factors(atoms, self._crystal, indices, d_min=d_min, full_occupancy=0.0)

    def _mask_of_density(self, solventpct: Any, gridsize: Sequence[int] | None) -> torch.Tensor:
        if not self.inspected and (solventpct is None or gridsize is None):
            raise ValueError("Run inspect_data() first, or give solventpct and gridsize.")
        solventpct = self.solventpct if solventpct is None else solventpct
        gridsize = self.gridsize if gridsize is None else gridsize
        return solvent_mask(
            self._atoms(),
            self._crystal,
            method="density_cutoff",
            n_real=tuple(gridsize),
            f_protein=(self._indices, self.Fprotein_asu),
            solvent_fraction=float(solventpct),
        )

    @property
    def real_grid_mask(self) -> torch.Tensor:
        """The mask on ``gridsize``, (n1, n2, n3) float32: 1 in the solvent."""
        if not self.inspected:
            raise ValueError("Run inspect_data() first: it sets gridsize.")
        if self._edited():
            return self._mask_of_density(None, None)
        return solvent_mask(self._atoms(), self._crystal, n_real=tuple(self.gridsize), full_occupancy=0.0)

    def calc_fsolvent_batch(
        self,
        solventpct: Any = None,
        gridsize: Sequence[int] | None = None,
        dmin_mask: float = 5,
        dmin_nonzero: float = 3.0,
        exponent: float = 10.0,
        Return: bool = False,
        PARTITION: int = 10,
    ) -> torch.Tensor | None:
        """F of the solvent of each model of :meth:`calc_fprotein_batch`, whatever the others are."""
        if getattr(self, "_batch", None) is None:
            raise ValueError("There is no batch yet: call calc_fprotein_batch() first.")
        found = self._f_mask(self._atoms(self._batch), dmin_nonzero)
        setattr(self, f"Fmask_{self._kind}_batch", found)
        return found if Return else None
