"""F_calc for cctbx: the calculation object that ``cctbx.xray.structure_factors.from_scatterers`` hands out."""

from __future__ import annotations

from typing import Any

import torch

from cctbx import miller
from cctbx.array_family import flex
from cctbx.xray.structure_factors.manager import managed_calculation_base
from libtbx.utils import Sorry

from ..structure_factors import structure_factors
from .conversion import as_flex_complex, atoms_of, miller_tensor
from .settings import Settings, usable_device
from .usage import count_call


class from_scatterers_sfdiff(managed_calculation_base):
    """Structure factors of a ``cctbx.xray.structure``.

    Parameters
    ----------
    manager : cctbx.xray.structure_factors.manager or None
        Its grid parameters are not used: the grid follows from ``extra.sfdiff.accuracy``.
    xray_structure : cctbx.xray.structure
    miller_set : cctbx.miller.set
    algorithm : str
        The name under which cctbx asked for it.
    extra_params : libtbx.phil.scope_extract, optional
        mmtbx's ``extra`` scope, see :data:`~mmtbx_sfdiff.cctbx_backend.settings.STRUCTURE_FACTOR_PHIL`.
    settings : Settings, optional
        Instead of ``extra_params``.
    """

    def __init__(
        self,
        manager: Any,
        xray_structure: Any,
        miller_set: Any,
        algorithm: str = "sfdiff",
        extra_params: Any = None,
        settings: Any = None,
    ) -> None:
        managed_calculation_base.__init__(self, manager, xray_structure, miller_set, algorithm=algorithm)
        count_call("F_calc")
        settings = settings or Settings.from_phil(extra_params)
        device = usable_device(settings.device)
        if xray_structure.scatterers().size() == 0:
            # cctbx computes with no atoms, too.
            self._f_calc_data = flex.complex_double(miller_set.indices().size(), 0)
            return
        atoms = atoms_of(xray_structure, settings.dtype, device)
        with torch.no_grad():
            try:
                f_calc = structure_factors(
                    atoms,
                    atoms.crystal,
                    miller_tensor(miller_set, device),
                    method=settings.method,
                    accuracy=settings.accuracy,
                    memory=settings.memory,
                )
            except ValueError as error:
                raise Sorry(str(error)) from error
        self._f_calc_data = as_flex_complex(f_calc)

    def f_calc(self) -> Any:
        """``miller.array`` of complex amplitudes."""
        return miller.array(self.miller_set(), self._f_calc_data)
