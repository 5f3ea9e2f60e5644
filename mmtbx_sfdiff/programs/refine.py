"""``mmtbx_sfdiff.refine``: sites and displacement parameters of a model, refined against its data."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import tempfile
from pathlib import Path

import torch

from libtbx import Auto
from libtbx.utils import Sorry

from ..atoms import Atoms
from ..files import check_writable, write_all
from ..files.managers import map_file, model_file
from ..files.twinning import twin_messages
from ..fmodel import FModel
from ..latent.generator.requirements import require
from ..refinement import Settings, refine, state
from ..refinement.minimise import MINIMISERS
from ..refinement.run import ANISOTROPIC, MASK_UPDATES, check_settings
from ..refinement.weight import choose_weight
from ..reflections import Reflections
from ..versions import versions
from .common import COMPUTING, DOWNLOAD, INPUTS, LIMITS, EntryProgram, choices
from .refine_restraints import PHIL, biased_flags, hold
from .refine_table import cycle_line, heading, render

_DEFAULTS = Settings()
_TRIAL_CYCLES = 3  # of a trial of a weight

_PHIL = f"""
refine {{
  {INPUTS}
  {LIMITS}
  {PHIL}
  target = *maximum_likelihood least_squares
    .type = choice
    .short_caption = Target
    .help = "What is minimised over the work set: -log likelihood of the amplitudes, or ((F_obs - |F_model|) / sigma)^2."
  minimiser = {choices(MINIMISERS, _DEFAULTS.minimiser)}
    .type = choice
    .short_caption = Minimiser
    .help = "L-BFGS with a strong Wolfe line search, or Adam."
  sites = True
    .type = bool
    .short_caption = Refine sites
    .help = "Hydrogens ride on the atom that they are bonded to; special positions are kept."
  adp = True
    .type = bool
    .short_caption = Refine displacement parameters
    .help = "Isotropic or anisotropic, as each atom is in the model. Occupancies stay."
  anisotropic = {choices(ANISOTROPIC, _DEFAULTS.anisotropic)}
    .type = choice
    .short_caption = Anisotropic atoms
    .help = "free: six variables each. scaled: the shape of the tensor stays, its size is refined. auto: free where the data reach \
            1.55 Å and are at least 1.8 times as many as the variables."
  cycles = {_DEFAULTS.cycles}
    .type = int
    .short_caption = Macro-cycles
    .help = "At most; each determines scales (and the mask) anew."
  steps = {_DEFAULTS.steps}
    .type = int
    .short_caption = Steps
    .help = "Of the minimiser in each macro-cycle, at most."
  first_d_min = {_DEFAULTS.first_d_min}
    .type = float
    .short_caption = First resolution limit
    .help = "Of the first macro-cycle, Å (as far as there are enough reflections)."
  resolution_cycles = {_DEFAULTS.resolution_cycles}
    .type = int
    .short_caption = Resolution cycles
    .help = "In how many macro-cycles the limit reaches that of the data; 1 takes all data at once."
  adp_from_cycle = {_DEFAULTS.adp_from_cycle}
    .type = int
    .short_caption = First cycle of displacement parameters
    .help = "Macro-cycle in which displacement parameters are first refined."
  least_squares_cycles = {_DEFAULTS.least_squares_cycles}
    .type = int
    .short_caption = Cycles of least squares
    .help = "How many macro-cycles at the end are by least squares."
  mask_update = {choices(MASK_UPDATES, _DEFAULTS.mask_update)}
    .type = choice
    .short_caption = Mask update
    .help = "step: the mask follows every step and its gradient counts. cycle: it is held fixed within a macro-cycle. \
            auto: step, for masks that have a gradient."
  damping = Auto
    .type = float
    .short_caption = Damping
    .help = "Springs that hold shifts back within a macro-cycle, as a share of the curvature of the data. \
            Auto: 0 with restraints of the geometry, 0.5 without."
  learning_rate = {_DEFAULTS.learning_rate:g}
    .type = float
    .short_caption = Learning rate
    .help = "Of Adam, Å."
  tolerance = {_DEFAULTS.tolerance:g}
    .type = float
    .short_caption = Tolerance
    .help = "Refinement ends when a macro-cycle lowers the target of the work set by less: natural logarithms for each \
            reflection, or a fraction of the sum of squares. The free set does not count."
  force_field_weight = Auto
    .type = float
    .short_caption = Force field weight
    .help = "With restraints=force_field: of U / kT of ff14SB with implicit solvent. Auto: the best of several, by \
            cross-validation inside the work set. Needs the libraries of pip install mmtbx_sfdiff[latent]."
  remove_outliers = True
    .type = bool
    .short_caption = Outlier rejection
    .help = "Leave outliers out, by mmtbx's criteria."
  shake = None
    .type = float
    .short_caption = Random shifts
    .help = "Shift sites at random before refinement, by so many Å (root mean square), to try what is recovered."
  random_seed = 0
    .type = int
    .short_caption = Random seed
    .help = "Of the random shifts."
  resume = True
    .type = bool
    .short_caption = Resume
    .help = "Go on from the last macro-cycle of the same refinement, if it was interrupted."
  {COMPUTING}
  {DOWNLOAD}
}}
output {{
  directory = .
    .type = str
    .short_caption = Output folder
    .help = "Where <prefix>_refined.pdb or .cif, .mtz, .json and .png are written."
  model_format = *auto pdb mmcif
    .type = choice
    .short_caption = Model format
    .help = "auto: that of the model given, or mmCIF where PDB cannot hold it."
  figure = True
    .type = bool
    .short_caption = Write figure
    .help = "Write R factors and target against the step as PNG."
}}
"""


class Program(EntryProgram):
    program_name = "mmtbx_sfdiff.refine"
    input_scope = "refine"
    description = """
Sites and displacement parameters of a model, refined against its data by maximum likelihood or least squares, and held to
known geometry by a monomer library (restraints=library, cctbx, force_field or none). Writes
<prefix>_refined.pdb (or .cif), .mtz (map coefficients for Coot), .json (every step) and .png.


  mmtbx_sfdiff.refine model.pdb data.mtz
  mmtbx_sfdiff.refine 1cbs target=least_squares cycles=5 d_min=2
  mmtbx_sfdiff.refine model.pdb data.mtz minimiser=adam steps=100 sites=False

A refinement that was interrupted goes on where it was when the same command is given again. The exit code is 0 only if
everything was computed and written.
"""
    master_phil_str = _PHIL
    interrupted = "Interrupted: no results were written; the same command goes on after the last complete macro-cycle."

    def validate(self):
        """Everything that can be wrong with the parameters, before any work."""
        params, out = self.inputs, self.params.output
        self.check_inputs()
        positive = (0, math.inf, False)
        limits = {
            "force_field_weight": positive,
            "geometry_weight": positive,
            "bond_rms": (0, 1, False),
            "adp_weight": (-1e-300, math.inf, False),
            "damping": (-1e-300, math.inf, False),
        }
        chosen = {name: limit for name, limit in limits.items() if getattr(params, name) is not Auto}
        self.check_numbers(
            {
                "d_min": (0, math.inf, True),
                "d_max": (0, math.inf, True),
                "cycles": (1, 1000, False),
                "steps": (1, 100000, False),
                "first_d_min": positive,
                "resolution_cycles": (1, 1000, False),
                "adp_from_cycle": (1, 1000, False),
                "least_squares_cycles": (-0.5, 1000, False),
                "learning_rate": positive,
                "tolerance": positive,
                "shake": (0, 10, True),
            }
            | chosen
        )
        if params.restraints == "force_field":
            try:
                for name in ("openmm", "pdbfixer"):
                    require(name)
            except ImportError as error:
                raise Sorry(str(error)) from None
        if params.d_min and params.d_max and params.d_min >= params.d_max:
            raise Sorry(
                f"No reflection is between d_min={params.d_min:g} and d_max={params.d_max:g} Å: d_min is the smaller."
            )
        values = {field.name: getattr(params, field.name) for field in dataclasses.fields(Settings)}
        self._settings = Settings(**{name: None if value is Auto and name == "damping" else value
                                     for name, value in values.items()})  # fmt: skip
        try:
            check_settings(self._settings)
        except ValueError as error:
            raise Sorry(str(error)) from None
        self.check_computing()
        folder, prefix = Path(out.directory or ".").expanduser(), self.prefix()
        suffixes = [self._model_suffix(), ".mtz", ".json"] + [".png"] * bool(out.figure)
        self._paths = {suffix: folder / f"{prefix}_refined{suffix}" for suffix in suffixes}
        self._state = folder / f"{prefix}_refine_state.npz"
        check_writable([*self._paths.values()], overwrite=out.overwrite)

    def _model_suffix(self):
        """Known before the model is read, so that nothing is refined that cannot be written."""
        kind = self.params.output.model_format
        if kind != "auto":
            return ".pdb" if kind == "pdb" else ".cif"
        name = Path(self.inputs.model_file or "x.cif" if not self.inputs.demo else "x.pdb").name
        return ".pdb" if name.lower().removesuffix(".gz").endswith((".pdb", ".ent")) else ".cif"

    def run(self):
        terminal = self.on_terminal(sys.stdout)
        with tempfile.TemporaryDirectory() as folder, self.progress() as report:
            files = self.find_files(folder, report)
            report("reading", None)
            fmodel = self._read(*files)
            report("scales", None)
            self._twins = self._find_twins(fmodel)
            start, history = self._start(fmodel, files)
            print(heading(self._header(fmodel)), file=self.logger)

            def on_cycle(model, history):
                state.save(self._state, model, history, self._fingerprint)
                if not terminal:
                    print(cycle_line(history.cycles[-1]), file=self.logger)
                    self.logger.flush()

            try:
                restraint = self._restraint(report)
                parents = self._held.parents
                refined, history = refine(start, self._settings, history, on_cycle, report, restraint, parents)
                report("writing", None)
                self._describe(fmodel, refined, history)
                contents = self._contents(refined)
            except (ValueError, IndexError) as error:
                raise Sorry(f"{files[0]} cannot be refined against {files[1]}: {error}") from None
            except torch.cuda.OutOfMemoryError:
                raise Sorry(f"The device {self.inputs.device} has too little free memory: use device=cpu.") from None
            write_all({self._paths[suffix]: content for suffix, content in contents.items()})
        with contextlib.suppress(OSError):
            self._state.unlink()
        print(render(self.result, terminal, None if terminal else 80), file=self.logger)
        print("\nWritten: " + ", ".join(map(str, self._paths.values())), file=self.logger)

    def _read(self, model, data):
        params = self.inputs
        entry = self._entry = self.load(model, data, params.d_min, params.d_max)
        options = {"dtype": getattr(torch, params.dtype), "device": params.device}
        try:
            atoms = Atoms.from_cctbx(entry.model.xray_structure, **options)
            reflections = Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags, **options)
        except ValueError as error:
            raise Sorry(f"{model}: {error}") from None
        fmodel = FModel(
            atoms,
            reflections,
            method=params.method,
            accuracy=params.accuracy,
            mask={"method": params.mask, "grid_step": params.grid_step},
            source=entry,
        )
        suffix = self._model_suffix()
        if suffix == ".pdb" and not entry.model.manager.can_be_output_as_pdb():
            raise Sorry(
                f"{model} does not fit into the PDB format (too many atoms, or long names): set "
                "output.model_format=mmcif."
            )
        least_squares = params.target == "least_squares" or params.least_squares_cycles
        if least_squares and reflections.sigmas is None:
            raise Sorry(
                f"{data} has no standard deviations of the amplitudes, which least squares needs: set "
                "target=maximum_likelihood and least_squares_cycles=0."
            )
        return fmodel

    def _find_twins(self, fmodel):
        """What there is to say about twinning, said at once."""
        try:
            fmodel.update_scales(remove_outliers=self._settings.remove_outliers)
        except (ValueError, IndexError):
            return []  # the refinement says why
        messages = twin_messages(fmodel)
        for message in messages:
            print(message, file=self.logger)
        return messages

    def _restraint(self, report):
        """What holds the model, said at once."""
        report("restraints", None)
        held = self._held = hold(self.inputs, self._entry, self._first.reflections, self.inputs.device)
        self._messages, self._weight = held.messages, None
        for message in held.messages:
            print(message[0].upper() + message[1:], file=self.logger)
        if self.inputs.restraints != "force_field":
            if held.restraint is not None:
                self._weight = {"restraints": self.inputs.restraints, "bond_rms_target": held.restraint.target,
                                "adp_weight": held.restraint.adp_weight}  # fmt: skip
            return held.restraint
        report("force field", None)
        from ..latent.refinement.restraint import ForceFieldRestraint

        manager = self._entry.model.manager
        weight = self.inputs.force_field_weight
        restraint = ForceFieldRestraint(manager.get_hierarchy(), 1.0 if weight is Auto else weight)
        self._weight = {"force_field_weight": weight}
        if weight is Auto:
            self._weight = self._choose_weight(restraint, report)
        self._messages = [
            f"Restrained by a force field (ff14SB, implicit solvent): {restraint.n_restrained} of "
            f"{manager.size()} atoms; others, and contacts with symmetry mates, are not."
        ]
        print(self._messages[0], file=self.logger)
        return restraint

    def _choose_weight(self, restraint, report):
        """The restraint's weight, by short refinements of the model that this one begins with."""
        settings = dataclasses.replace(self._settings, cycles=_TRIAL_CYCLES, least_squares_cycles=0)
        first = self._first

        def trial(reflections, weight):
            report(f"force field weight {weight:g}", None)
            restraint.weight = weight
            part = first.with_(reflections=reflections)
            return float(refine(part, settings, restraint=restraint)[0].r_free())

        base = restraint.base
        choice = choose_weight(first.reflections, trial)
        restraint.weight, restraint.base = choice.weight, base
        tests = ", ".join(f"{weight:g}: {r:.4f}" for weight, r in choice.tests.items())
        print(f"Force field weight {choice.weight:g}, by R of a tenth of the work set ({tests}).", file=self.logger)
        return {"force_field_weight": choice.weight, "tests": {f"{w:g}": r for w, r in choice.tests.items()}}

    def _start(self, fmodel, files):
        """(the model to refine, history): as read, shifted at random, or as it was when it was interrupted."""
        params = self.inputs
        names = (
            "scattering_table",
            "labels",
            "free_flag_labels",
            "read_free_flags",
            "test_flag_value",
            "d_min",
            "d_max",
            "method",
            "accuracy",
            "mask",
            "grid_step",
            "dtype",
            "shake",
            "random_seed",
            "force_field_weight",
            "restraints",
            "geometry_weight",
            "bond_rms",
            "adp_weight",
        )
        decisive = {name: getattr(params, name) for name in names} | dataclasses.asdict(self._settings)
        decisive |= {name: "Auto" for name, value in decisive.items() if value is Auto}
        decisive["library"] = str(params.library)
        files = [*files, *(path for path in params.ligands or [] if path)]
        # More macro-cycles may be asked for when a refinement goes on.
        decisive.pop("cycles") if not params.least_squares_cycles else None
        self._fingerprint = state.fingerprint(files, decisive)
        start = fmodel.with_()
        if params.shake:
            start.replace(sites_cart=shaken(fmodel.atoms, params.shake, params.random_seed))
        self._shaken = start.atoms
        self._first = start.with_()
        known = state.load(self._state, fmodel.atoms, self._fingerprint) if params.resume else None
        if known is None:
            return start, None
        start.atoms, history = known
        print(f"Going on after macro-cycle {len(history.cycles)} of an interrupted refinement.", file=self.logger)
        return start, history

    # Results

    def _header(self, fmodel):
        entry, reflections = self._entry, fmodel.reflections
        d = reflections.d_spacings
        return {
            "entry": entry.name,
            "simulated": bool(entry.data.simulated),
            "space_group": reflections.crystal.space_group_symbol,
            "unit_cell": list(reflections.crystal.unit_cell),
            "d_max": float(d.max()),
            "d_min": float(d.min()),
            "n_atoms": fmodel.atoms.n_atoms,
            "n_reflections": len(reflections),
            "n_free": None if reflections.r_free_flags is None else int(reflections.r_free_flags.sum()),
        }

    def _describe(self, fmodel, refined, history):
        first = fmodel.with_(atoms=self._shaken)
        first.update_scales(remove_outliers=self._settings.remove_outliers)
        moved = (refined.atoms.sites_cart - self._shaken.sites_cart).square().sum(-1).sqrt()
        settings = dataclasses.asdict(self._settings)
        settings |= {
            name: getattr(self.inputs, name)
            for name in (
                "method",
                "accuracy",
                "mask",
                "grid_step",
                "device",
                "dtype",
                "scattering_table",
                "shake",
                "random_seed",
            )
        }
        start, final = _r(first), _r(refined)
        self._messages += biased_flags(start["r_work"], start["r_free"])
        self.result = self._header(fmodel) | {
            "start": start,
            "final": final,
            "geometry": {"start": self._held.rms(self._shaken), "final": self._held.rms(refined.atoms)},
            "cycles": history.cycles,
            "steps": history.steps,
            "shift_rms": float(moved.square().mean().sqrt()),
            "shift_max": float(moved.max()),
            "geometry_restraints": self._weight,
            "settings": settings,
            "files": {
                "model": self._entry.model.path.name,
                "data": self._entry.data.path.name,
                "labels": self._entry.data.labels,
            },
            "messages": [*self._twins, *self._messages, *self._entry.messages],
            "versions": versions(),
        }
        self._json = json.dumps(self.result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def _contents(self, refined):
        # matplotlib takes half a second to import: not for --help.
        from ..refinement import figure

        suffix = self._model_suffix()
        contents = {
            suffix: model_file(refined.source, refined.atoms, suffix),
            ".mtz": map_file(refined.to_cctbx(), refined.reflections.r_free_flags is not None),
            ".json": self._json.encode(),
        }
        if self.params.output.figure:
            contents[".png"] = figure.png(self.result)
        return contents


def shaken(atoms, rms, seed):
    """Sites shifted at random: normally distributed, of that root mean square length (Å); same for the same seed."""
    generator = torch.Generator().manual_seed(int(seed or 0))
    shifts = torch.randn(atoms.sites_cart.shape, generator=generator, dtype=torch.float64)
    shifts *= rms / shifts.square().sum(-1).mean().sqrt()
    return atoms.sites_cart + shifts.to(atoms.sites_cart)


def _r(fmodel):
    r_work, r_free = fmodel.r_factors()
    return {"r_work": r_work, "r_free": r_free}
