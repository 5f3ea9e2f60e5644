"""``mmtbx_sfdiff.latent``: from a predicted model and data to a refined model, in the latent space of a
Boltzmann generator."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from iotbx.phil import parse
from libtbx import Auto
from libtbx.utils import Sorry

from ..files import check_writable, find_entry, find_predicted_model
from ..latent.refinement.baselines import BASELINES
from ..latent.refinement.objective import OBJECTIVES
from ..latent.refinement.optimise import Settings
from ..latent.refinement.problem import B_SOURCES
from ..latent.workdir import OF_GENERATORS, STAGES, WorkDir, prior_of
from .common import (
    COMPUTING,
    D_MIN,
    DOWNLOAD,
    FORCE_FIELD_WEIGHT,
    INPUTS,
    LIBRARY,
    RANDOM_SEED,
    EntryProgram,
    choices,
)

_DEFAULTS = Settings()
FLOWS = ("linear", "realnvp", "spline")
PRIORS = ("auto", "elastic", "generator")

_PHIL = f"""
latent {{
  stage = {" ".join(STAGES)}
    .type = choice
    .short_caption = Stage
    .help = "What to do; the first word of the command line."
  workdir = None
    .type = str
    .short_caption = Working folder
    .help = "Where everything is kept; the second word of the command line."
  restart = False
    .type = bool
    .short_caption = Start anew
    .help = "Remove what this stage left when it ran with other settings or inputs."
  {RANDOM_SEED}
  {INPUTS}
  prep {{
    uniprot_id = None
      .type = str
      .short_caption = UniProt accession
      .help = "Take the predicted model of this protein from the AlphaFold database; in place of a model file."
    superpose_on = None
      .type = path
      .short_caption = Placed model
      .help = "A model that is in its place in the crystal (from molecular replacement, say). The predicted model is superposed \
              on each of its protein chains and trimmed to the residues there. Without it the model has to be in place."
    oligomer = None
      .type = strings
      .short_caption = Symmetry mates
      .help = "Symmetry operators, such as -x,-y,z, whose copies of the model take part in the dynamics."
  }}
  md {{
    duration = 1000
      .type = float
      .short_caption = Duration
      .help = "Of the molecular dynamics, ps. A longer one goes on from what is there."
    frame_interval = 0.2
      .type = float
      .short_caption = Frame interval
      .help = "ps between the frames that are kept."
    temperature = 300
      .type = float
      .short_caption = Temperature
      .help = "K."
    solvent_interval = 2
      .type = int
      .short_caption = Solvent interval
      .help = "Time steps between two computations of solvent forces."
    restraint = 0.5
      .type = float
      .short_caption = Restraint
      .help = "Force constant that holds CA atoms at the start, kJ/mol/Å^2; 0 for none."
    restrain_by_plddt = False
      .type = bool
      .short_caption = Restrain by pLDDT
      .help = "Hold confident residues only: the force constant grows with the pLDDT in the model's B column."
    platform = *CPU Reference CUDA OpenCL
      .type = choice
      .short_caption = Platform
      .help = "Of OpenMM."
    threads = 1
      .type = int
      .short_caption = Threads
      .help = "Of the CPU platform."
  }}
  train {{
    flow = {choices(FLOWS, "linear")}
      .type = choice
      .short_caption = Flow
      .help = "linear: a normal distribution with full covariance. realnvp, spline: trained on top of it."
    shrink = 0.3
      .type = float
      .short_caption = Shrinkage
      .help = "How far correlations are moved to zero, 0 to 1."
    ml_steps = 0
      .type = int
      .short_caption = Steps of likelihood
      .help = "Of training a flow that is not linear by maximum likelihood."
    kl_steps = 400
      .type = int
      .short_caption = Steps with energies
      .help = "Of training it by likelihood and energy."
    samples = 12
      .type = int
      .short_caption = Samples
      .help = "Structures whose energy is computed in each of these steps."
    star_weight = 0.0
      .type = float
      .short_caption = Weight of the start
      .help = "Of the term that makes the model's own latent vector a typical one."
    skip = 4
      .type = float
      .short_caption = Equilibration
      .help = "ps at the beginning of the dynamics that are not used."
  }}
  refine {{
    {D_MIN}
    prior = {choices(PRIORS, "auto")}
      .type = choice
      .short_caption = Prior
      .help = "elastic: the model's elastic network, without dynamics, then restraints of a monomer library. generator: that of the \
              stage train, then the force field. auto: elastic in a folder in which neither md nor train has run."
    prior_rms = 1.0
      .type = float
      .short_caption = Width of the prior
      .help = "Of prior=elastic: Å, root mean square, that the main chain may be wrong by."
    {LIBRARY}
    rebuild = True
      .type = bool
      .short_caption = Rebuild
      .help = "Of prior=elastic, with data to 2.5 Å or better: build side chains, ends and loops that the density does not show anew."
    objective = {choices(OBJECTIVES, _DEFAULTS.objective)}
      .type = choice
      .short_caption = Objective
      .help = "What the data say of a model: a Gaussian of the model's own error with a floor, equation 9, or maximum likelihood."
    starts = 4
      .type = int
      .short_caption = Starts
      .help = "Latent vectors to begin with: that of the model, scaled ones, the origin, ones with noise; 1 to 8."
    steps = {_DEFAULTS.steps}
      .type = int
      .short_caption = Steps
      .help = "Of each start."
    rigid_steps = {_DEFAULTS.rigid_steps}
      .type = int
      .short_caption = Rigid-body steps
      .help = "Of each start, before the other ones."
    first_d_min = {_DEFAULTS.first_d_min}
      .type = float
      .short_caption = First resolution limit
      .help = "Where refinement begins, Å."
    learning_rate = {_DEFAULTS.learning_rate}
      .type = float
      .short_caption = Learning rate
      .help = "Of latent variables, in standard deviations a step."
    prior_weight = 1.0
      .type = float
      .short_caption = Prior weight
      .help = "Of |z|^2 / 2."
    b_source = *auto {" ".join(B_SOURCES)}
      .type = choice
      .short_caption = Starting B factors
      .help = "auto: pLDDT for a model from the AlphaFold database, else one overall B from the data."
    polish_steps = 200
      .type = int
      .short_caption = Polishing steps
      .help = "Of sites with the force field, at the end; 0 for none."
    {FORCE_FIELD_WEIGHT}
    turn_side_chains = True
      .type = bool
      .short_caption = Turn side chains
      .help = "While polishing, also of baselines, try side chains in other rotamers."
    baselines = {" ".join(BASELINES)}
      .type = choice(multi=True)
      .short_caption = Baselines
      .help = "Refinements of sites to compare with, each with as many steps as all starts together."
    benchmark = None
      .type = path
      .short_caption = Reference model
      .help = "A model (the deposited one) whose R factors are to be shown beside; it is used for nothing else."
  }}
  {COMPUTING}
  {DOWNLOAD}
}}
output {{
  figures = True
    .type = bool
    .short_caption = Write figures
    .help = "As PNG, in the stage report."
}}
"""


def stage_arguments(arguments: Sequence[str]) -> list[str]:
    """The first two words of the command line, a stage and a folder, as parameters."""
    words = [a for a in arguments[:2] if "=" not in a and not a.startswith("-")]
    if not words:
        return list(arguments)
    if words[0] not in STAGES:
        raise Sorry(f"{words[0]} is not a stage: the first word is one of {', '.join(STAGES)}, the second a folder.")
    if len(words) < 2:
        raise Sorry(f"The working folder is missing: mmtbx_sfdiff.latent {words[0]} WORKDIR.")
    folder = words[1].replace("\\", "\\\\").replace('"', '\\"')
    return [f"latent.stage={words[0]}", f'latent.workdir="{folder}"', *arguments[2:]]


class Program(EntryProgram):
    program_name = "mmtbx_sfdiff.latent"
    input_scope = "latent"
    description = """
Refinement in the latent space of an elastic network, or of a Boltzmann generator, in stages that share a folder:

  mmtbx_sfdiff.latent prep   WORKDIR model.pdb data.mtz     strip, complete, protonate
  mmtbx_sfdiff.latent md     WORKDIR duration=1000          for a generator: molecular dynamics from the model
  mmtbx_sfdiff.latent train  WORKDIR                        for a generator: training
  mmtbx_sfdiff.latent refine WORKDIR d_min=2                the latent vector against the data, then polishing
  mmtbx_sfdiff.latent report WORKDIR                        tables and figures

Without md and train the prior is the model's elastic network, which needs no dynamics.

The model is a predicted one in its place in the crystal; or one of the AlphaFold database, uniprot_id=Q07157, put there with
superpose_on=placed.pdb. A stage that was interrupted goes on when the same command is given again, one that is finished is not
repeated. Needs the libraries of pip install "mmtbx_sfdiff[latent]".
"""
    master_phil_str = _PHIL
    interrupted = "Interrupted: the same command goes on where it was."

    def validate(self) -> None:
        """Everything that can be wrong with the parameters, before any work."""
        params = self.inputs
        if not params.stage or not params.workdir:
            raise Sorry(
                f"Give a stage ({', '.join(STAGES)}) and a folder: mmtbx_sfdiff.latent prep WORKDIR model.pdb data.mtz."
            )
        if params.stage != "prep":
            given = [n for n in ("entry_id", "model_file", "data_file") if getattr(params, n)] + ["demo"] * bool(
                params.demo
            )
            if given:
                raise Sorry(f"The stage {params.stage} takes model and data from the stage prep: leave out {given[0]}.")
        else:
            self._check_prep()
        self._check_numbers()
        self.check_computing()
        from ..latent.generator.requirements import require

        try:
            for name in ("openmm", "pdbfixer"):
                require(name)
        except ImportError as error:
            raise Sorry(str(error)) from None
        self.work = WorkDir(params.workdir)
        if self.work.path.exists() and not self.work.path.is_dir():
            raise Sorry(f"{self.work.path} is a file: name a folder.")
        before = STAGES[max(0, STAGES.index(params.stage) - 1)]
        if params.stage == "refine":
            self._check_prior()
            before = "prep" if self._elastic() else before
        if params.stage != "prep":
            try:
                self.work.need(before)
            except ValueError as error:
                raise Sorry(str(error)) from None
        check_writable([self.work.path / params.stage / "stage.json"])

    def _elastic(self) -> bool:
        return prior_of(self.work, self.inputs.refine.prior) == "elastic"

    def _check_prior(self) -> None:
        """No word that the prior in use would not heed."""
        params = self.inputs.refine
        usual = parse(_PHIL).extract().latent.refine
        words, other = (
            ((*OF_GENERATORS, "force_field_weight", "baselines"), "generator")
            if self._elastic()
            else (("prior_rms", "library", "rebuild"), "elastic")
        )
        given = [name for name in words if getattr(params, name) != getattr(usual, name)]
        if given:
            raise Sorry(f"refine.{given[0]} is of prior={other}: leave it out, or name that prior.")

    def _check_prep(self) -> None:
        params = self.inputs
        if not params.prep.uniprot_id:
            self.check_inputs()
            return
        if params.model_file or params.demo:
            raise Sorry("Give a model file or uniprot_id, not both.")
        if bool(params.data_file) == bool(params.entry_id):
            raise Sorry("Give a data file, or the PDB entry whose data are to be used.")
        if not params.prep.superpose_on:
            raise Sorry(
                "A model of the AlphaFold database is not in its place in the crystal: give a placed model with "
                "superpose_on, for example from molecular replacement."
            )

    def _check_numbers(self) -> None:
        positive = (0, math.inf, False)
        limits = {
            "md": {
                "duration": positive,
                "frame_interval": positive,
                "temperature": positive,
                "restraint": (-1e-300, math.inf, False),
                "threads": (1, 1024, False),
                "solvent_interval": (1, 100, False),
            },
            "train": {
                "ml_steps": (-0.5, 10**7, False),
                "kl_steps": (-0.5, 10**7, False),
                "samples": (1, 10**5, False),
                "star_weight": (-1e-300, math.inf, False),
                "shrink": (-1e-300, 1, False),
                "skip": (-1e-300, math.inf, False),
            },
            "refine": {
                "d_min": (0, math.inf, True),
                "prior_rms": positive,
                "starts": (1, 8, False),
                "steps": (1, 10**6, False),
                "rigid_steps": (-0.5, 10**6, False),
                "first_d_min": positive,
                "learning_rate": positive,
                "prior_weight": (-1e-300, math.inf, False),
                "polish_steps": (-0.5, 10**6, False),
                "force_field_weight": (-1e-300, math.inf, False),
            },
        }
        for scope, numbers in limits.items():
            for name, (low, high, optional) in numbers.items():
                value = getattr(getattr(self.inputs, scope), name)
                if (value is None and optional) or (value is Auto and name == "force_field_weight"):
                    continue
                if value in (None, Auto) or not low <= value <= high or (low == 0 and value == 0):
                    raise Sorry(f"{scope}.{name}={value} is not possible: see mmtbx_sfdiff.latent --show-defaults.")

    def run(self) -> None:
        # Imports OpenMM's users: only when a stage runs.
        from ..latent import workflow

        inputs = self.inputs
        if inputs.refine.force_field_weight is Auto:
            inputs.refine.force_field_weight = None
        with self.progress() as report:
            context = workflow.Context(
                self.work, inputs, self.say, report, self.verbose, bool(self.params.output.figures)
            )
            try:
                stage = getattr(workflow, inputs.stage)
                self.result = (
                    stage(context, *self._model_and_data(report)) if inputs.stage == "prep" else stage(context)
                )
            except (ValueError, IndexError, ImportError) as error:
                raise Sorry(" ".join(str(error).split())) from None
            except torch.cuda.OutOfMemoryError:
                raise Sorry(f"The device {self.inputs.device} has too little free memory: use device=cpu.") from None
        self._json = json.dumps(self.result, indent=1, ensure_ascii=False) + "\n"

    def _model_and_data(self, report: Callable[..., None]) -> Any:
        """Paths of both; downloads what is asked for."""
        params = self.inputs
        report("model and data", None)
        if not params.prep.uniprot_id:
            if params.demo:
                raise Sorry("There is no demonstration of this program: give a model and a data file, or a PDB entry.")
            return self.find_files(self.work.path, report)
        data = params.data_file
        if not data:
            data = find_entry(
                params.entry_id,
                download=params.download,
                mirrors=params.mirrors,
                cache_dir=params.cache_dir,
                log=self.logger,
            ).data
        return (
            find_predicted_model(params.prep.uniprot_id, params.download, params.cache_dir, log=self.logger),
            data,
        )

    def say(self, *words: Any) -> None:
        print(*words, file=self.logger)
        if hasattr(self.logger, "flush"):
            self.logger.flush()

    @property
    def verbose(self) -> bool:
        """Whether lines of progress belong into the output: not where a bar shows it."""
        return not self.on_terminal(sys.stderr)
