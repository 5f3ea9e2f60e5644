"""Reflections: measured amplitudes, their errors and the free set as tensors, and resolution shells.

Reference: ``cctbx.miller.array``; free flags are the boolean arrays that ``mmtbx.f_model`` takes (True = free).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

import numpy as np

from ._cctbx_loading import require_cctbx
from .crystal import Crystal, as_flex_miller_index, as_miller_tensor
from .numerics.tensors import tensor_of
from .reflection_columns import Observed, columns_of_dataset, columns_of_gemmi, observed, refuse
from .reflection_mates import flags_of_cctbx, has_mates, mate_keys
from .rules import free_of_equivalents
from .symmetry.miller_sets import refuse_large


@dataclasses.dataclass(frozen=True, eq=False)
class Reflections:
    """Observed amplitudes of one data set.

    Made by :meth:`from_arrays`, :meth:`from_gemmi`, :meth:`from_dataset`, :meth:`from_cctbx`.

    Attributes
    ----------
    crystal : Crystal
    miller_indices : torch.Tensor
        (n, 3) int64, in the order of the array they came from.
    f_obs : torch.Tensor
        (n,) amplitudes.
    sigmas : torch.Tensor or None
        (n,) their standard deviations.
    r_free_flags : torch.Tensor or None
        (n,) bool, True for the free set; None when the data have no flags.
    anomalous : bool
        True when Friedel mates are separate observations.
    left_out : dict of str to int
        Rows of the data that are not among the reflections, by reason.
    messages : tuple of str
        What was chosen among several columns, and what was ignored.

    Examples
    --------
    >>> strong = data.select(data.f_obs > 3 * data.sigmas).to(dtype=torch.float32)
    >>> int(data.work.sum()), round(data.d_min, 2), round(float(data.d_spacings.max()), 2), strong.f_obs.dtype
    (704, 2.2, 19.21, torch.float32)
    """

    crystal: Crystal
    miller_indices: torch.Tensor
    f_obs: torch.Tensor
    sigmas: torch.Tensor | None
    r_free_flags: torch.Tensor | None
    anomalous: bool
    left_out: dict[str, int] = dataclasses.field(repr=False, default_factory=dict)
    messages: tuple[str, ...] = dataclasses.field(repr=False, default=())
    # Label, source, observation type and wavelength of the array, for the way back.
    _info: object = dataclasses.field(repr=False, default=None)
    _observation_type: object = dataclasses.field(repr=False, default=None)
    # (selection, f_obs_scale) of the scales that an FModel has found for them: what targets take unless told otherwise.
    _in_use: tuple | None = dataclasses.field(repr=False, default=None)

    @classmethod
    def from_arrays(
        cls,
        crystal: Crystal,
        miller_indices: Any,
        f_obs: Any,
        sigmas: Any = None,
        free: Any = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Reflections:
        """Take amplitudes as they are.

        Parameters
        ----------
        crystal : Crystal
        miller_indices : array-like
            (n, 3) integers, each reflection once: no two of them equivalent, unless Friedel mates stand apart.
        f_obs : array-like
            (n,) amplitudes, not negative.
        sigmas : array-like, optional
            (n,) positive.
        free : array-like, optional
            (n,) bool, True for the test set.
        dtype : torch.dtype
            float32 or float64.
        device : torch.device or str

        Raises
        ------
        ValueError
            Other shapes; amplitudes that are negative or not finite; sigmas that are not positive; a reflection that
            is there twice, by symmetry too.
        TypeError
            Indices that are not integers; flags that are not boolean; another dtype.

        Examples
        --------
        >>> import mmtbx_sfdiff as sfdiff
        >>> crystal = sfdiff.Crystal((20, 25, 30, 90, 90, 90), "P 21 21 21")
        >>> data = sfdiff.Reflections.from_arrays(crystal, [[1, 2, 3], [0, 2, 4]], [10.0, 12.0], free=[True, False])
        >>> len(data), int(data.work.sum())
        (2, 1)
        """
        crystal = crystal.to(device)
        indices = as_miller_tensor(miller_indices, device=device)
        refuse_large(indices.cpu().numpy())
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be torch.float32 or torch.float64, not {dtype}.")
        values = tensor_of(f_obs, dtype, device).detach()
        errors = None if sigmas is None else tensor_of(sigmas, dtype, device).detach()
        flags = None if free is None else tensor_of(free, device=device)
        for name, tensor in (("f_obs", values), ("sigmas", errors), ("free", flags)):
            if tensor is not None and tuple(tensor.shape) != (len(indices),):
                raise ValueError(f"{name} must have the shape ({len(indices)},), not {tuple(tensor.shape)}.")
        if flags is not None and flags.dtype != torch.bool:
            raise TypeError(
                f"free must be boolean, True for the test set, not {flags.dtype}: compare the flags with the test value."
            )
        refuse(
            ~((values >= 0) & (values <= 1e15)),
            indices,
            "f_obs must be amplitudes, not negative and at most 1e15",
            values,
        )
        if errors is not None:
            refuse(~(errors > 0) | ~errors.isfinite(), indices, "sigmas must be positive and finite", errors)
        anomalous = has_mates(crystal, indices)
        return cls(crystal, indices, values, errors, flags, anomalous)

    @classmethod
    def from_gemmi(
        cls,
        data: Any,
        labels: str | Sequence[str] | None = None,
        free: str | bool | None = None,
        test_value: int | str | None = None,
        anomalous: bool = False,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Reflections:
        """Read the amplitudes of a ``gemmi.Mtz`` or a ``gemmi.ReflnBlock``, in its order.

        Parameters
        ----------
        data : gemmi.Mtz or gemmi.ReflnBlock
        labels : str or sequence of str, optional
            ``"F,SIGF"``; by default by the rules of docs/files.rst.
        free : str or False, optional
            Column of the test set; by default by the rules; False: none.
        test_value : int or str, optional
            The value that marks it; by default by convention.
        anomalous : bool
            Take Friedel mates apart where the data have both.
        dtype : torch.dtype
        device : torch.device or str

        Raises
        ------
        ValueError
            No observed amplitudes, or intensities; columns that are not there; named flags that cannot be a test set;
            no cell or space group; reflections that are not merged.

        Examples
        --------
        >>> import gemmi, mmtbx_sfdiff as sfdiff
        >>> fmodel.write_map_coefficients("data.mtz")
        >>> sfdiff.Reflections.from_gemmi(gemmi.read_mtz_file("data.mtz"), "F-obs-filtered,SIGF-obs-filtered")
        Reflections(881 amplitudes to 2.20 Å, 177 free, P 21 21 21)
        """
        crystal = Crystal.from_gemmi(data, device=device)
        indices, columns = columns_of_gemmi(data)
        found = observed(indices, columns, labels, free, test_value, anomalous, f"the {type(data).__name__}")
        return cls._from_observed(crystal, found, dtype, device)

    @classmethod
    def from_dataset(
        cls,
        data: Any,
        labels: str | Sequence[str] | None = None,
        free: str | bool | None = None,
        test_value: int | str | None = None,
        anomalous: bool = False,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Reflections:
        """Read the amplitudes of a ``reciprocalspaceship.DataSet``, in its order; arguments as of :meth:`from_gemmi`.

        Raises
        ------
        ValueError
            As :meth:`from_gemmi`.

        Examples
        --------
        >>> import reciprocalspaceship as rs
        >>> fmodel.write_map_coefficients("data.mtz")
        >>> sfdiff.Reflections.from_dataset(rs.read_mtz("data.mtz"), "F-obs-filtered,SIGF-obs-filtered")
        Reflections(881 amplitudes to 2.20 Å, 177 free, P 21 21 21)
        """
        if data.cell is None or data.spacegroup is None:
            raise ValueError("The DataSet has no cell or no space group: set data.cell and data.spacegroup first.")
        crystal = Crystal(tuple(data.cell.parameters), data.spacegroup, device=device)
        indices, columns = columns_of_dataset(data)
        found = observed(indices, columns, labels, free, test_value, anomalous, "the DataSet")
        return cls._from_observed(crystal, found, dtype, device)

    @classmethod
    def _from_observed(
        cls, crystal: Crystal, found: Observed, dtype: torch.dtype, device: torch.device | str
    ) -> Reflections:
        absent = _absent(crystal, tensor_of(found.indices, device=device)).cpu().numpy()
        left_out = found.left_out | ({"systematically absent": int(absent.sum())} if absent.any() else {})
        keep = ~absent
        free, messages = found.free, found.messages
        if free is not None:  # the mate of a free reflection tells of it
            group = torch.unique(mate_keys(crystal, tensor_of(found.indices, device=device)), return_inverse=True)[1]
            together, n_mixed = free_of_equivalents(group.cpu().numpy(), free)
            free = together[group.cpu().numpy()]
            if n_mixed:
                messages = (
                    *messages,
                    f"reflections whose Friedel mates have unlike R-free flags, taken as free: {n_mixed}",
                )
        data = cls.from_arrays(
            crystal,
            found.indices[keep],
            found.values[keep],
            None if found.sigmas is None else found.sigmas[keep],
            None if free is None else free[keep],
            dtype,
            device,
        )
        return dataclasses.replace(
            data, anomalous=data.anomalous or found.anomalous, left_out=left_out, messages=messages
        )

    @classmethod
    def from_cctbx(cls, f_obs, r_free_flags=None, dtype=torch.float64, device="cpu"):
        """Read amplitudes, and flags of the same reflections.

        Parameters
        ----------
        f_obs : cctbx.miller.array
            Real amplitudes, with or without sigmas.
        r_free_flags : cctbx.miller.array, optional
            Booleans, True = free; any order, every reflection of ``f_obs`` present.  Where one is merged and the other has both
            Friedel mates, or all symmetry mates, they are matched by the unique reflection.

        Raises
        ------
        ValueError
            Intensities or complex data; flags that are not boolean, miss reflections, are of another crystal, or differ between
            symmetry mates.

        Examples
        --------
        >>> sfdiff.Reflections.from_cctbx(*data.to_cctbx()).miller_set().size()
        881
        """
        if not f_obs.is_real_array() or f_obs.is_xray_intensity_array():
            raise ValueError(
                "f_obs must be real amplitudes; convert intensities first, e.g. with "
                "cctbx.french_wilson, or array.f_sq_as_f()."
            )
        crystal = Crystal.from_cctbx(f_obs, device=device)
        flags, messages = None, ()
        if r_free_flags is not None:
            if not r_free_flags.is_bool_array():
                raise ValueError(
                    "r_free_flags must be a boolean array, True for the free set; make one with "
                    "r_free_flags.customized_copy(data=r_free_flags.data() == test_flag_value)."
                )
            flags, messages = flags_of_cctbx(r_free_flags, f_obs, crystal)
        sigmas = f_obs.sigmas()
        return cls(
            crystal=crystal,
            miller_indices=as_miller_tensor(f_obs, device=device),
            f_obs=torch.tensor(f_obs.data().as_numpy_array(), dtype=dtype, device=device),
            sigmas=None if sigmas is None else torch.tensor(sigmas.as_numpy_array(), dtype=dtype, device=device),
            r_free_flags=flags,
            anomalous=bool(f_obs.anomalous_flag()),
            messages=messages,
            _info=f_obs.info(),
            _observation_type=f_obs.observation_type(),
        )

    def to_cctbx(self):
        """(f_obs, r_free_flags) as miller arrays; the flags are None where there are none."""
        miller_set = self.miller_set()
        from cctbx.array_family import flex

        sigmas = None if self.sigmas is None else _flex_double(self.sigmas)
        f_obs = miller_set.array(data=_flex_double(self.f_obs), sigmas=sigmas)
        f_obs.set_info(self._info)
        if self._observation_type is None:
            f_obs.set_observation_type_xray_amplitude()
        else:
            f_obs.set_observation_type(self._observation_type)
        flags = None
        if self.r_free_flags is not None:
            flags = miller_set.array(data=flex.bool(self.r_free_flags.cpu().numpy()))
        return f_obs, flags

    def miller_set(self):
        """The indices as a ``cctbx.miller.set``."""
        require_cctbx("Reflections.miller_set")
        from cctbx import miller

        return miller.set(
            crystal_symmetry=self.crystal.to_cctbx(),
            anomalous_flag=self.anomalous,
            indices=as_flex_miller_index(self.miller_indices),
        )

    def __len__(self):
        return self.miller_indices.shape[0]

    @property
    def d_spacings(self):
        """Resolution of each reflection, Å, (n,) float64."""
        return self.crystal.d_spacings(self.miller_indices)

    @property
    def d_min(self):
        """Highest resolution, Å (float)."""
        return float(self.d_spacings.min())

    @property
    def work(self):
        """(n,) bool selection of the working set: everything where there are no flags."""
        if self.r_free_flags is None:
            return torch.ones(len(self), dtype=torch.bool, device=self.f_obs.device)
        return ~self.r_free_flags

    def select(self, selection):
        """The selected reflections: (n,) bool, or indices."""
        chosen = {
            name: None if getattr(self, name) is None else getattr(self, name)[selection]
            for name in ("miller_indices", "f_obs", "sigmas", "r_free_flags")
        }
        return dataclasses.replace(self, _in_use=None, **chosen)

    def to(self, dtype=None, device=None):
        """The same reflections in another dtype or on another device."""
        dtype, device = dtype or self.f_obs.dtype, device or self.f_obs.device
        return dataclasses.replace(
            self,
            crystal=self.crystal.to(device),
            miller_indices=self.miller_indices.to(device),
            f_obs=self.f_obs.to(dtype=dtype, device=device),
            sigmas=None if self.sigmas is None else self.sigmas.to(dtype=dtype, device=device),
            r_free_flags=None if self.r_free_flags is None else self.r_free_flags.to(device),
        )

    def __repr__(self):
        flags = "no free flags" if self.r_free_flags is None else f"{int(self.r_free_flags.sum())} free"
        return f"Reflections({len(self)} amplitudes to {self.d_min:.2f} Å, {flags}, {self.crystal.space_group_symbol})"


def _absent(crystal: Crystal, indices: torch.Tensor) -> torch.Tensor:
    """(n,) bool: forbidden by the space group."""
    equivalent, shifts = crystal.equivalent_indices(indices)
    fixed = (equivalent == indices).all(-1)
    off = (shifts - shifts.round()).abs() > 1e-3
    return (fixed & off).any(0) | (crystal.centring_factor(indices) == 0)


def resolution_shells(d_spacings, n_shells=None, d_max_edges=None):
    """Shells of equal reciprocal volume, hence of about equal numbers of reflections.

    Parameters
    ----------
    d_spacings : torch.Tensor
        (n,) Å.
    n_shells : int, optional
        By default one shell for every 100 reflections, at least 1 and at most 20.
    d_max_edges : sequence of float, optional
        Instead, edges in Å from low to high resolution (the first may be ``inf``).

    Returns
    -------
    list of (float, float, torch.Tensor)
        (d_max, d_min, indices of the reflections with d_min <= d < d_max), low resolution first; the first shell
        includes its upper edge.  Empty shells are left out.
    """
    d = d_spacings.to(torch.float64)
    if d_max_edges is None:
        n_shells = n_shells or max(1, min(20, len(d) // 100))
        inverse = torch.linspace(
            float(d.max()) ** -3, float(d.min()) ** -3, n_shells + 1, dtype=torch.float64, device="cpu"
        )
        edges = (inverse ** (-1 / 3)).tolist()
        edges[0], edges[-1] = float(d.max()), float(d.min())
    else:
        edges = list(d_max_edges)
    result = []
    for number, (upper, lower) in enumerate(zip(edges[:-1], edges[1:])):
        inside = (d >= lower) & ((d < upper) | ((number == 0) & (d <= upper)))
        chosen = inside.nonzero()[:, 0]
        if len(chosen):
            result.append((upper, lower, chosen))
    return result


def _flex_double(values):
    from cctbx.array_family import flex

    return flex.double(np.ascontiguousarray(values.detach().cpu().numpy(), dtype=np.float64))
