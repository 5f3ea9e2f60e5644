"""``mmtbx_sfdiff.fmodel``: structure factors of a model, with or without data."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from cctbx.array_family import flex
from libtbx.utils import Sorry

from ..atoms import Atoms
from ..bulk_solvent import solvent_structure_factors
from ..files import check_writable, read_model, write_all
from ..files.disagreement import disagreement_messages
from ..files.managers import MAPS, map_coefficients
from ..files.mtz import MTZ, miller_array
from ..fmodel import FModel
from ..likelihood.targets import r_factors
from ..reflections import Reflections, resolution_shells
from ..scaling.given import given_scales
from ..structure_factors import structure_factors
from ..versions import versions
from .common import RECORDED, EntryProgram
from .fmodel_parameters import PHIL
from .fmodel_table import render


@dataclasses.dataclass
class _Parts:
    """What F_model is made of, (n,) tensors."""

    reflections: Reflections
    f_calc: torch.Tensor
    f_mask: torch.Tensor
    k_total: torch.Tensor
    k_mask: torch.Tensor
    f_model: torch.Tensor
    # Of scales from data only:
    fmodel: FModel | None = None
    selection: torch.Tensor | None = None


class Program(EntryProgram):
    program_name = "mmtbx_sfdiff.fmodel"
    input_scope = "fmodel"
    strict_flags = False
    makes_flags = True
    description = """
Structure factors of a model: amplitudes, phases and scales, as an MTZ file.

  F_model = k_total (F_calc + k_mask F_mask)

With data, the scales are determined from them, R factors are printed, free flags are carried over, and map
coefficients are added. Without, scale, k_sol, b_sol and b_cart are what you give.

  mmtbx_sfdiff.fmodel model.pdb data.mtz
  mmtbx_sfdiff.fmodel model.pdb high_resolution=1.5
  mmtbx_sfdiff.fmodel model.pdb high_resolution=1.5 k_sol=0.35 b_sol=50 b_cart="1 2 -3 0 0 0" scale=2
  mmtbx_sfdiff.fmodel model.pdb high_resolution=2 type=amplitudes label=FOBS add_sigmas=True r_free_flags.fraction=0.05

The exit code is 0 only if everything was computed and written.
"""
    master_phil_str = PHIL

    def validate(self) -> None:
        """Everything that can be wrong with the parameters, before any work."""
        params, out = self.inputs, self.params.output
        self.check_inputs(data_needed=False)
        infinity = math.inf
        self.check_numbers(
            {
                "high_resolution": (0, infinity, True),
                "low_resolution": (0, infinity, True),
                "wavelength": (0.1, 10, True),
                "scale": (0, infinity, False),
                "k_sol": (-10, 10, False),
                "b_sol": (-1000, 10000, False),
                "add_random_error_to_amplitudes_percent": (0, 100, True),
            }
        )
        if params.high_resolution and params.low_resolution and params.high_resolution >= params.low_resolution:
            raise Sorry(
                f"No reflection is between high_resolution={params.high_resolution:g} and "
                f"low_resolution={params.low_resolution:g} Å: high_resolution is the smaller."
            )
        if not self._with_data():
            if params.high_resolution is None:
                raise Sorry(
                    "Without data, give high_resolution: the limit (Å) to which structure factors are computed."
                )
            if params.scales not in ("auto", "given"):
                raise Sorry(f"scales={params.scales} needs data: give a data file, or scales=given.")
        if params.b_cart is None or not all(map(math.isfinite, params.b_cart)):
            raise Sorry("b_cart is not possible: give six numbers.")
        if params.wavelength is not None and params.scattering_table in ("neutron", "electron"):
            raise Sorry(f"wavelength has no meaning with scattering_table={params.scattering_table}: leave one out.")
        if out.type == "complex":
            for name in ("add_sigmas", "add_random_error_to_amplitudes_percent"):
                if getattr(params, name):
                    raise Sorry(f"{name} goes with output.type=amplitudes or intensities, not with phases.")
        label = out.label or ""
        if not label or len(label) > 26 or not label.replace("-", "").replace("_", "").isalnum():
            raise Sorry(f"output.label={label} is not possible: give up to 26 letters, digits, - and _.")
        self.check_computing()
        self.check_twins()
        self._path = Path(out.directory or ".").expanduser() / f"{self.prefix()}_fmodel.mtz"
        check_writable([self._path], overwrite=out.overwrite)

    def _with_data(self) -> bool:
        params = self.inputs
        return bool(params.data_file or params.demo or params.entry_id)

    def run(self) -> None:
        params = self.inputs
        with tempfile.TemporaryDirectory() as folder, self.progress() as report:
            model_name, data_name = self.find_files(folder, report)
            report("reading", None)
            self._read(model_name, data_name)
            self.wait_for_kernels(report, ("masks", "structure_factors"))
            report("structure factors", None)
            parts = self._compute()
            report("writing", None)
            content = self._content(parts)
            self._describe(parts)
            write_all({self._path: content})
        print(render(self.result, self.on_terminal(sys.stdout)), file=self.logger)
        print(f"\nWritten: {self._path}", file=self.logger)
        if params.add_random_error_to_amplitudes_percent:
            print(
                f"Random errors of {params.add_random_error_to_amplitudes_percent:g} % were put in.", file=self.logger
            )

    # Model and data

    def _read(self, model_name: str | Path, data_name: str | Path | None) -> None:
        params = self.inputs
        if data_name is None:
            self._entry = None
            model = read_model(
                model_name,
                params.scattering_table,
                d_min=params.high_resolution,
                space_group=params.space_group,
                unit_cell=params.unit_cell,
                shift=params.model_shift,
            )
            self._messages = list(model.messages)
        else:
            self._entry = self.load(
                model_name,
                data_name,
                params.high_resolution,
                params.low_resolution,
                anomalous=params.wavelength is not None,
            )
            model, self._messages = self._entry.model, list(self._entry.messages)
        structure = model.xray_structure
        if params.wavelength is not None:
            structure.set_inelastic_form_factors(photon=params.wavelength, table="sasaki")
        options = {"dtype": getattr(torch, params.dtype), "device": params.device}
        try:
            self._atoms = Atoms.from_cctbx(structure, **options)
        except ValueError as error:
            raise Sorry(f"{model.path}: {error}") from None
        if self._entry is not None:
            data = self._entry.data
            if params.r_free_flags_fraction and data.r_free_flags is not None:
                raise Sorry(
                    f"{data.path} has free flags already: leave r_free_flags.generate and fraction out, or set "
                    "r_free_flags.label=none."
                )
            self._reflections = Reflections.from_cctbx(data.f_obs, data.r_free_flags, **options)
        else:
            self._reflections = self._complete_set(structure, options)
        self._model = model

    def _complete_set(self, structure: Any, options: Any) -> Reflections:
        """All reflections between the limits, with amplitudes of zero."""
        params = self.inputs
        miller_set = structure.build_miller_set(
            d_min=params.high_resolution, anomalous_flag=structure.scatterers().count_anomalous() > 0
        )
        if params.low_resolution is not None:
            miller_set = miller_set.resolution_filter(d_max=params.low_resolution)
        if miller_set.size() == 0:
            raise Sorry(
                f"The crystal has no reflection to high_resolution={params.high_resolution:g} Å: give a smaller number."
            )
        blank = miller_set.array(data=flex.double(miller_set.size(), 0.0)).set_observation_type_xray_amplitude()
        return Reflections.from_cctbx(blank, **options)  # type: ignore[no-any-return]

    # Structure factors

    def _compute(self) -> _Parts:
        params = self.inputs
        if self._entry is None or params.scales == "given":
            return self._compute_given()
        model = "exponential" if params.scales == "exponential" else "mmtbx"
        try:
            fmodel = FModel(
                self._atoms,
                self._reflections,
                method=params.method,
                accuracy=params.accuracy,
                mask={"method": params.mask, "grid_step": params.grid_step},
                source=self._entry,
                **({} if params.scales == "exponential" else self.twin_options()),
            )
            with torch.no_grad():
                scales = fmodel.update_scales(model=model, remove_outliers=params.remove_outliers)
                f_calc, f_mask = fmodel.f_calc(), fmodel.f_mask()
                f_model = scales.f_model(f_calc, f_mask) if fmodel.twin_law is None else fmodel.f_model()
                f_model = f_model * scales.f_obs_scale
                self._messages += disagreement_messages(fmodel)
        except (ValueError, IndexError) as error:
            raise Sorry(
                f"The model cannot be scaled to {self._entry.data.path}: {error} Use more reflections, or scales=given."
            ) from None
        return _Parts(
            self._reflections,
            f_calc,
            f_mask,
            scales.k_total * scales.f_obs_scale,
            scales.k_masks[0],
            f_model,
            fmodel,
            scales.selection,
        )

    def _compute_given(self) -> _Parts:
        params = self.inputs
        crystal, indices = self._reflections.crystal, self._reflections.miller_indices
        try:
            k_total, k_mask = given_scales(crystal, indices, params.scale, params.k_sol, params.b_sol, params.b_cart)
        except ValueError as error:
            raise Sorry(str(error)) from None
        with torch.no_grad():
            f_calc = structure_factors(self._atoms, crystal, indices, method=params.method, accuracy=params.accuracy)
            f_mask = torch.zeros_like(f_calc)
            if params.k_sol or self.params.output.components:
                f_mask = solvent_structure_factors(
                    self._atoms, crystal, indices, method=params.mask, grid_step=params.grid_step
                ).to(f_calc.dtype)
        f_model = k_total.to(f_calc.real) * (f_calc + k_mask.to(f_calc.real) * f_mask)
        return _Parts(self._reflections, f_calc, f_mask, k_total, k_mask, f_model)

    # Output

    def _content(self, parts: _Parts) -> bytes:
        params, out = self.inputs, self.params.output
        reflections = parts.reflections
        miller_set = reflections.miller_set()
        flags = reflections.r_free_flags
        random.seed(params.random_seed)
        flex.set_random_seed(params.random_seed or 0)
        mtz = MTZ(f"mmtbx_sfdiff.fmodel: {self._model.path.name}", params.wavelength)
        self._add_f_model(mtz, miller_set, parts.f_model)
        if self._entry is not None:
            mtz.add(
                miller_array(miller_set, reflections.f_obs, reflections.sigmas).set_observation_type_xray_amplitude(),
                "FOBS",
            )
        if flags is not None:
            mtz.add(miller_array(miller_set, flags), "R-free-flags")
        elif params.r_free_flags_fraction:
            new = miller_set.generate_r_free_flags(
                fraction=params.r_free_flags_fraction, max_free=None, use_lattice_symmetry=False
            )
            mtz.add(new.array(data=new.data().as_int()), "R-free-flags")
        if out.components:
            mtz.add(miller_array(miller_set, parts.f_calc), "FCALC")
            mtz.add(miller_array(miller_set, parts.f_mask), "FMASK")
            for label, values in (("KMASK", parts.k_mask), ("KTOTAL", parts.k_total)):
                mtz.add(miller_array(miller_set, values), label, column_types="R")
        if out.maps and parts.fmodel is not None:
            for label, coefficients in self._maps(parts, parts.fmodel):
                scaled = coefficients.data() * parts.fmodel.scales.f_obs_scale  # type: ignore[union-attr]
                mtz.add(coefficients.customized_copy(data=scaled), label, is_map=True)
        return mtz.as_bytes()

    @staticmethod
    def _maps(parts: _Parts, fmodel: FModel) -> list[tuple[str, Any]]:
        """(label, miller array) of each map; of a twin by this package, of detwinned data."""
        if fmodel.twin_law is None:
            return map_coefficients(fmodel.to_cctbx(parts.f_calc, parts.f_mask))
        used = fmodel.reflections.select(parts.selection).miller_set()
        found = fmodel.map_coefficients()
        return [(label, miller_array(used, found[kind])) for kind, label in MAPS]

    def _add_f_model(self, mtz: Any, miller_set: Any, f_model: Any) -> None:
        params, out = self.inputs, self.params.output
        if out.type == "complex":
            mtz.add(miller_array(miller_set, f_model), out.label)
            return
        amplitudes = f_model.abs()
        percent = params.add_random_error_to_amplitudes_percent
        if percent:
            signs = torch.tensor([2 * random.randint(0, 1) - 1 for _ in range(len(amplitudes))])
            amplitudes = amplitudes * (1 + signs.to(amplitudes) * percent / 100)
        sigmas = torch.ones_like(amplitudes) if params.add_sigmas else None
        array = miller_array(miller_set, amplitudes, sigmas).set_observation_type_xray_amplitude()
        if out.type == "intensities":
            array = array.f_as_f_sq().set_observation_type_xray_intensity()
        mtz.add(array, out.label)

    def _describe(self, parts: _Parts) -> None:
        params, reflections = self.inputs, parts.reflections
        d = reflections.d_spacings
        scales = None if parts.fmodel is None else parts.fmodel.scales
        k1 = scales.f_obs_scale if scales else 1.0
        r_work = r_free = None
        if self._entry is not None:
            values = r_factors(reflections, parts.f_model / k1, parts.selection, k1)
            r_work = float(values[0])
            r_free = float(values[1]) if reflections.r_free_flags is not None else None
        exponential = (
            scales.exponential
            if scales
            else {"k_total": params.scale, "k_sol": params.k_sol, "b_sol": params.b_sol, "b_cart": list(params.b_cart)}
        )
        self.result = {
            "entry": self._entry.name if self._entry else self._model.path.name.split(".")[0],
            "simulated": bool(self._entry is not None and self._entry.data.simulated),
            "space_group": reflections.crystal.space_group_symbol,
            "unit_cell": list(reflections.crystal.unit_cell),
            "d_max": float(d.max()),
            "d_min": float(d.min()),
            "n_atoms": self._atoms.n_atoms,
            "n_reflections": len(reflections),
            "anomalous": reflections.anomalous,
            "reflections": self._entry.data.reflections if self._entry else None,
            "n_used": len(reflections) if parts.selection is None else int(parts.selection.sum()),
            "r_work": r_work,
            "r_free": r_free,
            "twin": None
            if parts.fmodel is None or scales is None or parts.fmodel.twin_law is None
            else {"law": parts.fmodel.twin_law, "fraction": scales.twin_fraction},
            "scales": "given" if scales is None else "mmtbx" if scales.exponential is None else "exponential",
            "exponential": exponential
            and {name: exponential[name] for name in ("k_total", "k_sol", "b_sol", "b_cart")},
            "shells": self._shells(parts),
            "files": {
                "model": self._model.path.name,
                "data": self._entry.data.path.name if self._entry else None,
                "mtz": str(self._path),
            },
            "settings": {name: getattr(params, name) for name in RECORDED},
            "messages": list(self._messages),
            "versions": versions(),
        }
        self._json = json.dumps(self.result, indent=1, ensure_ascii=False) + "\n"

    def _shells(self, parts: _Parts) -> list[dict[str, Any]]:
        reflections = parts.reflections
        used = torch.ones_like(reflections.work) if parts.selection is None else parts.selection
        shells = []
        for d_max, d_min, chosen in resolution_shells(
            reflections.d_spacings, n_shells=10 if len(used) >= 500 else None
        ):
            work = chosen[used[chosen] & reflections.work[chosen]]
            amplitudes, f_obs = parts.f_model[work].abs(), reflections.f_obs[work]
            known = self._entry is not None and len(work) and float(f_obs.sum()) > 0
            shells.append(
                {
                    "d_max": d_max,
                    "d_min": d_min,
                    "n": len(chosen),
                    "r_work": float((f_obs - amplitudes).abs().sum() / f_obs.sum()) if known else None,
                    "f_model": float(parts.f_model[chosen].abs().mean()),
                    "k_mask": float(parts.k_mask[chosen].mean()),
                    "k_total": float(parts.k_total[chosen].mean()),
                }
            )
        return shells
