"""``mmtbx_sfdiff.refine``: sites and displacement parameters of a model, refined against its data."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from libtbx import Auto
from libtbx.utils import Sorry

from ..atoms import Atoms
from ..files import check_writable, write_all
from ..files.disagreement import ABSURD, disagreement_messages
from ..files.entry import Entry
from ..files.new_flags import new_flags
from ..files.twinning import twin_messages
from ..fmodel import FModel
from ..latent.generator.requirements import require
from ..refinement import History, Settings, refine, state
from ..refinement.parameters import Parameters
from ..refinement.settings import check_settings, joined
from ..refinement.weight import choose_weight
from ..reflections import Reflections
from . import refine_anomalous, refine_model, refine_output
from .common import EntryProgram
from .refine_model import shaken
from .refine_parameters import MASTER_PHIL
from .refine_restraints import Held, biased_flags, hold
from .refine_table import cycle_line, heading, render

_TRIAL_CYCLES = 3  # of a trial of a weight
_WATER_CYCLES = 3  # after waters were added and removed


class Program(EntryProgram):
    program_name = "mmtbx_sfdiff.refine"
    input_scope = "refine"
    description = """
Sites and displacement parameters of a model, refined against its data by maximum likelihood or least squares, and held to
known geometry by a monomer library (restraints=library, cctbx, force_field or none). Writes
<prefix>_refined.pdb (or .cif), .mtz (map coefficients for Coot), .html (a report), .json (every step) and .png.


  mmtbx_sfdiff.refine model.pdb data.mtz
  mmtbx_sfdiff.refine 1cbs target=least_squares cycles=5 d_min=2
  mmtbx_sfdiff.refine model.pdb data.mtz minimiser=adam steps=100 sites=False
  mmtbx_sfdiff.refine model.pdb data.mtz r_free_flags.generate=True

A refinement that was interrupted goes on where it was when the same command is given again. The exit code is 0 only if
everything was computed and written.
"""
    master_phil_str = MASTER_PHIL
    makes_flags = True
    _entry: Entry
    _parameters: Parameters
    _held: Held
    _shaken: Atoms
    result: dict[str, Any]
    interrupted = "Interrupted: no results were written; the same command goes on after the last complete macro-cycle."

    def validate(self) -> None:
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
        values["damping"] = None if values["damping"] is Auto else values["damping"]
        self._settings = Settings(**values)
        try:
            check_settings(self._settings)
        except ValueError as error:
            raise Sorry(str(error)) from None
        self.check_computing()
        self.check_twins()
        refine_anomalous.check(params)
        folder, prefix = Path(out.directory or ".").expanduser(), self.prefix()
        suffixes = [self._model_suffix(), ".mtz", ".json"] + [".html"] * bool(out.report) + [".png"] * bool(out.figure)
        self._paths = {suffix: folder / f"{prefix}_refined{suffix}" for suffix in suffixes}
        self._state = folder / f"{prefix}_refine_state.npz"
        check_writable([*self._paths.values()], overwrite=out.overwrite)
        self._flag_path = None
        if params.r_free_flags.generate:
            name = params.r_free_flags.file_name
            self._flag_path = Path(name).expanduser() if name else folder / f"{prefix}_free.mtz"
            params.r_free_flags.file_name = None  # it is written, not read
            check_writable([self._flag_path], overwrite=out.overwrite)

    def _model_suffix(self) -> str:
        """Known before the model is read, so that nothing is refined that cannot be written."""
        kind = self.params.output.model_format
        if kind != "auto":
            return ".pdb" if kind == "pdb" else ".cif"
        name = Path(self.inputs.model_file or "x.cif" if not self.inputs.demo else "x.pdb").name
        return ".pdb" if name.lower().removesuffix(".gz").endswith((".pdb", ".ent")) else ".cif"

    def run(self) -> None:
        terminal = self.on_terminal(sys.stdout)
        with tempfile.TemporaryDirectory() as folder, self.progress() as report:
            files = self.find_files(folder, report)
            report("reading", None)
            fmodel = self._read(*self._with_hydrogens(files, folder))
            self.wait_for_kernels(report)
            report("scales", None)
            self._twins = self._find_twins(fmodel)
            start, history = self._start(fmodel, files)
            print(heading(refine_output.header(self._entry, fmodel)), file=self.logger)
            print(self._parameters.words, file=self.logger)
            for message in self._flag_messages:
                print(message[0].upper() + message[1:] + ".", file=self.logger)

            def on_cycle(model: FModel, history: History) -> None:
                state.save(self._state, model, history, self._fingerprint)
                if not terminal:
                    print(cycle_line(history.cycles[-1]), file=self.logger)
                    self.logger.flush()

            try:
                refined, history = self._refine(start, history, on_cycle, report)
                if self.inputs.waters:
                    fmodel, refined, history = self._with_waters(fmodel, refined, history, folder, report)
                report("writing", None)
                contents = self._results(fmodel, refined, history)
            except (ValueError, IndexError) as error:
                raise Sorry(f"{files[0]} cannot be refined against {files[1]}: {error}") from None
            except torch.cuda.OutOfMemoryError:
                raise Sorry(f"The device {self.inputs.device} has too little free memory: use device=cpu.") from None
            write_all(contents)
        with contextlib.suppress(OSError):
            self._state.unlink()
        print(render(self.result, terminal, None if terminal else 80), file=self.logger)
        print("\nWritten: " + ", ".join(map(str, contents)), file=self.logger)

    def _with_hydrogens(self, files: Any, folder: str) -> list[Path]:
        path, self._model_messages = refine_model.model_with_hydrogens(self.inputs, files[0], folder)
        return [path, *files[1:]]

    def _refine(
        self,
        start: FModel,
        history: History | None,
        on_cycle: Callable[[FModel, History], None] | None,
        report: Callable[..., None],
        settings: Settings | None = None,
        earlier: History | None = None,
    ) -> tuple[FModel, History]:
        restraint = self._restraint(report)
        if earlier is not None and getattr(restraint, "follows", False):
            restraint.weight = earlier.cycles[-1]["next_weight"]
        place = refine_model.placer(self.inputs, self._entry)
        rest = restraint, self._held.parents, self._parameters, place
        return refine(start, settings or self._settings, history, on_cycle, report, *rest)

    def _with_waters(
        self, fmodel: FModel, refined: FModel, history: History, folder: str, report: Callable[..., None]
    ) -> tuple[FModel, FModel, History]:
        """(the model that this began with, as far as it is in the refined one; the refined one; history)"""
        started, held, begun = self._shaken, self._held, self._entry
        self._began = refine_output.r_factors(self._scaled(fmodel.with_(atoms=started))), held.rms(started)
        for number in (1, 2):
            report("waters", None)
            made = refine_model.with_waters(refined, folder, number)
            words = f"waters, {'first' if number == 1 else 'second'} time: {made.added} added, {made.removed} removed"
            print(words[0].upper() + words[1:], file=self.logger)
            self._model_messages.append(words)
            if not made.added + made.removed:
                break
            data = self._entry.data
            self._entry = dataclasses.replace(self._entry, model=self.load(made.path, data.path, None, None).model)
            refine_anomalous.give_inelastic(self.inputs, self._entry.model.xray_structure)
            like = refined.atoms
            atoms = Atoms.from_cctbx(self._entry.model.xray_structure, dtype=like.dtype, device=like.device)
            start = refined.with_(atoms=atoms, source=self._entry)
            self._choose(start)
            self._first = start = self._prepared(start)
            settings = dataclasses.replace(self._settings, cycles=_WATER_CYCLES, least_squares_cycles=0)
            refined, more = self._refine(start, None, None, report, settings, history)
            history = joined(history, more)
        ours, theirs = refine_model.same_atoms(begun, self._entry)
        sites = refined.atoms.sites_cart.clone()
        sites[torch.from_numpy(theirs)] = started.sites_cart[torch.from_numpy(ours)]
        self._shaken = refined.atoms.replace(sites_cart=sites)
        return refined.with_(), refined, history

    def _scaled(self, fmodel: FModel) -> FModel:
        fmodel.update_scales(remove_outliers=self._settings.remove_outliers)
        return fmodel

    def _choose(self, fmodel: FModel) -> None:
        """What is refined of this model."""
        self._parameters = refine_model.parameters(self.inputs, self._entry, fmodel.atoms, fmodel.reflections)

    def _prepared(self, fmodel: FModel) -> FModel:
        return fmodel.with_(atoms=self._parameters.prepared(fmodel.atoms))

    def _read(self, model: Path, data: Path) -> FModel:
        params = self.inputs
        apart = params.wavelength is not None
        entry = self._entry = self._with_flags(self.load(model, data, params.d_min, params.d_max, anomalous=apart))
        refine_anomalous.give_inelastic(params, entry.model.xray_structure)
        self._flag_messages += refine_anomalous.messages(params, entry.data)
        options = {"dtype": getattr(torch, params.dtype), "device": params.device}
        try:
            atoms = Atoms.from_cctbx(entry.model.xray_structure, **options)
            reflections = Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags, **options)
        except ValueError as error:
            raise Sorry(f"{model}: {error}") from None
        try:
            fmodel = FModel(
                atoms,
                reflections,
                method=params.method,
                accuracy=params.accuracy,
                mask={"method": params.mask, "grid_step": params.grid_step},
                source=entry,
                **self.twin_options(),
            )
        except ValueError as error:
            raise Sorry(str(error)) from None
        suffix = self._model_suffix()
        if suffix == ".pdb" and not entry.model.manager.can_be_output_as_pdb():
            raise Sorry(
                f"{model} does not fit into the PDB format (too many atoms, or long names): set "
                "output.model_format=mmcif."
            )
        least_squares = params.target != "maximum_likelihood" or params.least_squares_cycles
        if least_squares and reflections.sigmas is None:
            raise Sorry(
                f"{data} has no standard deviations of the amplitudes, which least squares needs: set "
                "target=maximum_likelihood and least_squares_cycles=0."
            )
        return fmodel

    @property
    def strict_flags(self) -> bool:  # type: ignore[override]
        """Flags that cannot mark a test set are an error, unless new ones are wanted."""
        return not self.inputs.r_free_flags.generate

    def _with_flags(self, entry: Entry) -> Entry:
        """The entry with new flags, where they are asked for."""
        scope, self._new_flags, self._flag_messages = self.inputs.r_free_flags, None, []
        if not scope.generate:
            if entry.data.r_free_flags is None:
                self._flag_messages = [
                    "no reflections are free, so there is no R-free; r_free_flags.generate=True makes a test set"
                ]
            return entry
        if entry.data.r_free_flags is not None:
            raise Sorry(
                f"{entry.data.path} has free flags ({entry.data.r_free_labels}), which the model was probably refined with: leave "
                "r_free_flags.generate out, or, for new ones all the same, set r_free_flags.label=none."
            )
        made = self._new_flags = new_flags(
            entry.data.f_obs, scope.fraction, self.inputs.random_seed, self.params.output.flag_style
        )
        n_free = made.flags.data().count(True)
        self._flag_messages = [
            f"new R-free flags: {n_free:,} of {made.flags.size():,} reflections, in {self._flag_path} ({made.label}, "
            f"{made.test_value} marks the test set); use that file from now on",
            "a model that was refined against all data remembers the reflections that are free now: R-free is biased, too low, "
            "until shifts of some 0.3 Å (shake=0.3) or rebuilding have made it forget them",
        ]
        counts = entry.data.reflections | {"free": n_free}
        data = dataclasses.replace(entry.data, r_free_flags=made.flags, reflections=counts)
        return dataclasses.replace(entry, data=data)

    def _find_twins(self, fmodel: FModel) -> list[str]:
        """What there is to say about twinning, said at once."""
        try:
            fmodel.update_scales(remove_outliers=self._settings.remove_outliers)
        except (ValueError, IndexError):
            return []  # the refinement says why
        # Models that are to be refined may be this bad; only an absurd R is worth the seconds that other readings of the files take.
        absurd = float(fmodel.known_scales().r_work) > ABSURD
        messages = disagreement_messages(fmodel) if absurd else twin_messages(fmodel)
        for message in messages:
            print(message, file=self.logger)
        return messages

    def _restraint(self, report: Callable[..., None]) -> Any:
        """What holds the model, said at once."""
        report("restraints", None)
        held = self._held = hold(self.inputs, self._entry, self._first.reflections, self.inputs.device)
        self._messages, self._weight = held.messages, None
        for message in held.messages:
            print(message[0].upper() + message[1:], file=self.logger)
        if self.inputs.restraints != "force_field":
            if held.restraint is not None:
                self._weight = {
                    "restraints": self.inputs.restraints,
                    "bond_rms_target": held.restraint.target,
                    "adp_weight": held.restraint.adp_weight,
                }
            return held.restraint
        report("force field", None)
        from ..latent.refinement.restraint import ForceFieldRestraint

        manager = self._entry.model.manager
        weight = self.inputs.force_field_weight
        restraint = ForceFieldRestraint(manager.get_hierarchy(), 1.0 if weight is Auto else weight)
        self._weight = {"restraints": "force_field", "force_field_weight": weight}
        if weight is Auto:
            self._weight = self._choose_weight(restraint, report)
        self._messages = [
            f"Restrained by a force field (ff14SB, implicit solvent): {restraint.n_restrained} of "
            f"{manager.size()} atoms; others, and contacts with symmetry mates, are not."
        ]
        print(self._messages[0], file=self.logger)
        return restraint

    def _choose_weight(self, restraint: Any, report: Callable[..., None]) -> dict[str, Any]:
        """The restraint's weight, by short refinements of the model that this one begins with."""
        settings = dataclasses.replace(self._settings, cycles=_TRIAL_CYCLES, least_squares_cycles=0)
        first = self._first

        def trial(reflections: Reflections, weight: float) -> float:
            report(f"force field weight {weight:g}", None)
            restraint.weight = weight
            part = first.with_(reflections=reflections)
            return float(refine(part, settings, restraint=restraint)[0].r_free())

        base = restraint.base
        choice = choose_weight(first.reflections, trial)
        restraint.weight, restraint.base = choice.weight, base
        tests = ", ".join(f"{weight:g}: {r:.4f}" for weight, r in choice.tests.items())
        print(f"Force field weight {choice.weight:g}, by R of a tenth of the work set ({tests}).", file=self.logger)
        return {
            "restraints": "force_field",
            "force_field_weight": choice.weight,
            "tests": {f"{w:g}": r for w, r in choice.tests.items()},
        }

    def _start(self, fmodel: FModel, files: Any) -> tuple[FModel, History | None]:
        """(the model to refine, history): as read, shifted at random, or as it was when it was interrupted."""
        params = self.inputs
        decisive = {name: getattr(params, name) for name in refine_model.DECISIVE} | dataclasses.asdict(self._settings)
        decisive |= {name: "Auto" for name, value in decisive.items() if value is Auto}
        decisive |= {name: str(getattr(params, name)) for name in ("twin_law", "twin_fraction")}
        decisive["library"] = str(params.library)
        decisive["new_flags"] = [
            params.r_free_flags.generate,
            params.r_free_flags.fraction,
            self.params.output.flag_style,
        ]
        files = [*files, *(path for path in [*(params.ligands or []), params.r_free_flags.file_name] if path)]
        # More macro-cycles may be asked for when a refinement goes on.
        decisive.pop("cycles") if not params.least_squares_cycles else None
        self._fingerprint = state.fingerprint(files, decisive)
        start = fmodel.with_()
        if params.shake:
            start.replace(sites_cart=shaken(fmodel.atoms, params.shake, params.random_seed))
        self._shaken = start.atoms
        self._choose(start)
        start = self._prepared(start)
        self._first = start.with_()
        known = state.load(self._state, start.atoms, self._fingerprint) if params.resume else None
        if known is None:
            return start, None
        start.atoms, history = known
        print(f"Going on after macro-cycle {len(history.cycles)} of an interrupted refinement.", file=self.logger)
        return start, history

    # Results

    def _results(self, fmodel: FModel, refined: FModel, history: History) -> dict[Path, bytes]:
        """{path: content} of all files; the result itself is kept."""
        known = self._shaken is fmodel.atoms and fmodel.scales is not None
        first = fmodel if known else self._scaled(fmodel.with_(atoms=self._shaken))
        self.result = refine_output.describe(
            self.inputs, self._settings, self._entry, self._held, first, refined, history, self._weight
        )
        if self.inputs.waters:
            self.result["start"], self.result["geometry"]["start"] = self._began
        start = self.result["start"]
        self._messages += biased_flags(start["r_work"], start["r_free"]) if self._new_flags is None else []
        self.result["messages"] = [
            self._parameters.words,
            *self._twins,
            *self._flag_messages,
            *self._model_messages,
            *self._messages,
            *self._entry.messages,
        ]
        self._json = refine_output.as_json(self.result)
        record = refine_output.record(self.result, None if self._new_flags is None else "RANDOM")
        made = refine_output.contents(self.result, refined, [*self._paths], self.params.output.mtz_labels, record)
        contents = {self._paths[suffix]: content for suffix, content in made.items()}
        if self._new_flags is not None and self._flag_path is not None:
            contents[self._flag_path] = self._new_flags.content
        return contents
