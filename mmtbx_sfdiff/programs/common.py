"""What the programs that take an entry have in common: parameters, checks, progress."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from libtbx import Auto
from libtbx.program_template import ProgramTemplate
from libtbx.utils import Sorry
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..bulk_solvent import DEFAULT_MASK, MASKS
from ..files import SCATTERING_TABLES, SERVERS, find_entry, load_entry
from ..files.demo import demo_entry
from ..files.entry import Entry
from ..kernels import compilation
from ..plans.twin import parse_law
from ..structure_factors import METHODS
from ..versions import __version__


def choices(names: Iterable[str], default: str) -> str:
    """A PHIL choice among names, with its default marked."""
    return " ".join("*" + name if name == default else name for name in names)


# PHIL of the scope that takes files and entry ids; see also runner.inputs_from_arguments.
INPUTS = f"""
  entry_id = None
    .type = str
    .short_caption = PDB entry
    .help = "Identifier of a PDB entry; found on this machine, or downloaded. May stand alone."
  model_file = None
    .type = path
    .short_caption = Model file
    .help = "Model in PDB or mmCIF format. May stand alone."
  data_file = None
    .type = path
    .short_caption = Data file
    .help = "Data as MTZ or structure-factor CIF. May stand alone."
  demo = False
    .type = bool
    .short_caption = Demonstration
    .help = "A model shipped with cctbx with SIMULATED amplitudes; needs no network. May stand alone."
  labels = None
    .type = str
    .short_caption = Data labels
    .help = "Columns of the amplitudes or intensities, for example FP,SIGFP."
  r_free_flags
    .short_caption = R-free flags
  {{
    label = None
      .type = str
      .short_caption = Label
      .help = "Column of the free flags; found automatically by default. none: all reflections are work reflections, and \
              there is no R-free."
    test_flag_value = None
      .type = int
      .short_caption = Test flag value
      .help = "Value that marks the free set; found automatically by default."
    generate = False
      .type = bool
      .short_caption = Generate
      .help = "Make new flags, where there are none."
    fraction = None
      .type = float
      .short_caption = Fraction
      .help = "Share of the reflections that new flags mark, with generate; 0.05 by default."
    file_name = None
      .type = path
      .short_caption = Flag file
      .help = "Another file that holds the flags."
  }}
  free_flag_labels = None
    .type = str
    .expert_level = 3
    .short_caption = Free flag labels
    .help = "Older name of r_free_flags.label."
  read_free_flags = True
    .type = bool
    .expert_level = 3
    .short_caption = Read free flags
    .help = "Older way to say r_free_flags.label=none: False."
  test_flag_value = None
    .type = int
    .expert_level = 3
    .short_caption = Older test flag value
    .help = "Older name of r_free_flags.test_flag_value."
  scattering_table = {choices(SCATTERING_TABLES, "n_gaussian")}
    .type = choice
    .short_caption = Scattering table
    .help = "Form factors."
  allow_other_entry = False
    .type = bool
    .short_caption = Data of another entry
    .help = "Accept data that say they belong to another PDB entry than the model."
  reindex = None
    .type = str
    .short_caption = Reindexing operator
    .help = "Applied to the indices of the data, for example k,h,-l."
  space_group = None
    .type = str
    .short_caption = Space group
    .help = "Of model and data, instead of that in the files."
  unit_cell = None
    .type = floats(size=6)
    .short_caption = Unit cell
    .help = "Of model and data, instead of that in the files; coordinates (Å) stay what they are."
  model_shift = None
    .type = floats(size=3)
    .short_caption = Shift of the model
    .help = "Fractions of the cell by which the model is moved before anything else."
"""
LIBRARY = """
  library = None
    .type = path
    .short_caption = Monomer library
    .help = "Folder in CCP4's layout; by default that of CLIBD_MON or MMTBX_CCP4_MONOMER_LIB, else the one that pip install \\
            mmtbx_sfdiff[refine] brings."
"""
D_MIN = """
  d_min = None
    .type = float
    .short_caption = High resolution limit
    .help = "Reflections with smaller d-spacings (Å) are left out."
"""
LIMITS = f"""
  {D_MIN}
  d_max = None
    .type = float
    .short_caption = Low resolution limit
    .help = "Reflections with larger d-spacings (Å) are left out."
"""
WAVELENGTH = """
  wavelength = None
    .type = float
    .short_caption = Wavelength
    .help = "In Å: gives all atoms f' and f'' of the Sasaki tables, and keeps the mates of Bijvoet pairs apart, where the data have \
            them. Without it they are taken together."
"""
REMOVE_OUTLIERS = """
  remove_outliers = True
    .type = bool
    .short_caption = Outlier rejection
    .help = "Leave outliers, by mmtbx's criteria, out of scales, targets and maps; in files of data they stay."
"""
RANDOM_SEED = """
  random_seed = 0
    .type = int
    .short_caption = Random seed
    .help = "Of all that is random: errors, shifts (shake), new free flags; hydrogens, velocities, training and noise of a latent model."
"""
FORCE_FIELD_WEIGHT = """
  force_field_weight = Auto
    .type = float
    .short_caption = Force field weight
    .help = "Of U / kT of ff14SB with implicit solvent, where it is what restrains. Auto: the best of several, by \
            cross-validation inside the work set. Needs the libraries of pip install mmtbx_sfdiff[latent]."
"""
TWIN_LAW = """
  twin_law = Auto
    .type = str
    .short_caption = Twin law
    .help = "Indices of the twin mate, such as h,-k,-l. Auto: a law of the lattice by which the data look twinned, if there is one. \
            none: a single crystal."
"""
TWINS = (
    TWIN_LAW
    + """
  twin_fraction = None
    .type = float
    .short_caption = Twin fraction
    .help = "Of the second domain; determined with the scales by default."
"""
)
DOWNLOAD = f"""
  download = True
    .type = bool
    .short_caption = Download
    .help = "Use the network for entries that are not on this machine."
  mirrors = {" ".join(SERVERS)}
    .type = strings
    .short_caption = Mirrors
    .help = "Sites of the wwPDB to download from, in this order."
  cache_dir = None
    .type = str
    .short_caption = Cache folder
    .help = "Where downloads are kept; by default MMTBX_SFDIFF_CACHE_DIR, or the user's cache folder."
"""
#: Parameters that a result in JSON names, of every program that computes F_model.
RECORDED = ("method", "accuracy", "mask", "grid_step", "device", "dtype", "scattering_table", "wavelength")
COMPUTING = f"""
  method = {choices(("auto", *METHODS), "auto")}
    .type = choice
    .short_caption = Structure factor method
    .help = "How F_protein is computed. auto: the fastest method that meets the accuracy."
  accuracy = 1e-4
    .type = float
    .short_caption = Accuracy
    .help = "Largest relative error of F_protein asked for."
  mask = {choices(MASKS, DEFAULT_MASK)}
    .type = choice
    .short_caption = Mask method
    .help = "How the bulk-solvent mask is made."
  grid_step = 0.6
    .type = float
    .short_caption = Mask grid step
    .help = "Of the mask, Å; mmtbx's default is the same."
  device = cpu
    .type = str
    .short_caption = Device
    .help = "Where to compute: cpu, cuda, cuda:1, ..."
  dtype = float32 *float64
    .type = choice
    .short_caption = Precision
    .help = "In which to compute."
"""


class EntryProgram(ProgramTemplate):
    """Base of programs whose ``input_scope`` holds :data:`INPUTS`, :data:`DOWNLOAD` and :data:`COMPUTING`."""

    version = __version__
    datatypes = ["phil"]
    epilog = ""

    @property
    def inputs(self) -> Any:
        """The extracted scope of that name."""
        return getattr(self.params, self.input_scope)

    #: Whether a program stops at flags that cannot mark a test set; others go on without R-free, and say so.
    strict_flags = True
    #: Whether a program can make new flags (r_free_flags.generate).
    makes_flags = False

    def check_inputs(self, data_needed: bool = True) -> None:
        """One entry, or a model and (unless not needed) data, or the demonstration."""
        params = self.inputs
        self._join_flag_names()
        given = [bool(params.entry_id), bool(params.model_file or params.data_file), bool(params.demo)]
        what = "a model and a data file" if data_needed else "a model with or without a data file"
        if sum(given) != 1:
            raise Sorry(f"Give {'only ' if any(given) else ''}one of: a PDB entry, {what}, or the word demo.")
        if given[1] and not (params.model_file and (params.data_file or not data_needed)):
            missing = "data" if params.model_file else "model"
            both = "give both a model and a data file" if data_needed else "give a model"
            raise Sorry(f"The {missing} file is missing: {both}.")
        unknown = [name for name in params.mirrors or () if name not in SERVERS]
        if unknown or not params.mirrors:
            raise Sorry(f"mirrors={' '.join(unknown)} is not possible: choose from {', '.join(SERVERS)}.")

    def _join_flag_names(self) -> None:
        """r_free_flags { } and its older names say the same from here on."""
        params, scope = self.inputs, self.inputs.r_free_flags
        if not params.read_free_flags:
            params.free_flag_labels = "none"
        old = [("label", "free_flag_labels"), ("test_flag_value", "test_flag_value")]
        old += [("fraction", "r_free_flags_fraction")] * hasattr(params, "r_free_flags_fraction")
        for name, older in old:
            values = {getattr(scope, name), getattr(params, older)} - {None}
            if len(values) > 1:
                raise Sorry(f"r_free_flags.{name} and {older} are two names of one thing and differ: give one.")
            value = next(iter(values), None)
            setattr(scope, name, value)
            setattr(params, older, value)
        params.read_free_flags = str(scope.label).lower() != "none" or scope.label is None
        if scope.generate and scope.fraction is None:
            scope.fraction = 0.05
        if scope.fraction is not None and not 0 < scope.fraction <= 0.5:
            name = "r_free_flags_fraction" if hasattr(params, "r_free_flags_fraction") else "r_free_flags.fraction"
            raise Sorry(f"{name}={scope.fraction:g} is not possible: give more than 0 and up to 0.5.")
        if scope.generate and not self.makes_flags:
            raise Sorry(
                f"{self.program_name} makes no R-free flags: R-free of a model that was refined against all data says "
                "nothing; leave r_free_flags.generate out."
            )
        if hasattr(params, "r_free_flags_fraction"):
            params.r_free_flags_fraction = scope.fraction
        if scope.file_name and not (params.data_file or params.entry_id or params.demo):
            raise Sorry("r_free_flags.file_name goes with data: give a data file.")

    def check_numbers(self, limits: Any) -> None:
        """Parameters of the input scope against ``{name: (lowest, highest, whether None is allowed)}``.

        The lowest value itself is allowed unless it is 0.
        """
        for name, (low, high, optional) in limits.items():
            value = getattr(self.inputs, name)
            if value is None and optional:
                continue
            if value is None or not (low <= value <= high) or (low == 0 and value == 0):
                remedy = "a positive number" if low == 0 and math.isinf(high) else f"{low:g} to {high:g}"
                raise Sorry(f"{name}={value} is not possible: give {remedy}.")

    def check_twins(self) -> None:
        """Twin law and fraction, as far as they can be checked before there is a crystal."""
        params = self.inputs
        try:
            law = self.twin_options().get("twin_law")
            if law not in (None, "auto"):
                parse_law(law)
        except ValueError as error:
            raise Sorry(f"twin_law: {error}") from None
        if not hasattr(params, "twin_fraction"):
            return
        self.check_numbers({"twin_fraction": (-1e-300, 1, True)})
        if params.twin_fraction is not None and law is None:
            raise Sorry("twin_fraction goes with twin_law: give a law, such as h,-k,-l, or auto.")

    def twin_options(self) -> dict[str, Any]:
        """What FModel takes of twin_law and twin_fraction."""
        law = self.inputs.twin_law
        word = "auto" if law is Auto else "none" if law is None else str(law).strip()
        if word.lower() == "none":
            return {}
        law = "auto" if word.lower() == "auto" else word.strip("\"'")
        return {"twin_law": law, "twin_fraction": getattr(self.inputs, "twin_fraction", None)}

    def check_computing(self) -> None:
        """Accuracy, mask grid and device."""
        params = self.inputs
        self.check_numbers({"accuracy": (0, math.inf, False), "grid_step": (0.1, 1, False)})
        if params.accuracy >= 1:
            raise Sorry(f"accuracy={params.accuracy:g} is not possible: give a relative error below 1, such as 1e-4.")
        check_device(params.device)

    def prefix(self) -> str:
        """What the names of written files begin with."""
        params = self.inputs
        prefix = self.params.output.prefix or ("demo" if params.demo else params.entry_id)
        prefix = prefix or Path(params.model_file).name.split(".")[0]
        if "/" in prefix or "\\" in prefix:
            raise Sorry(f"output.prefix={prefix} holds a folder: name the folder with output.directory.")
        return prefix

    def find_files(self, folder: str | Path, report: Callable[..., Any]) -> Any:
        """(model, data) as given, found, downloaded, or, in that folder, simulated; data may be None."""
        params = self.inputs
        if params.demo:
            report("simulated data", None)
            files = demo_entry(folder)
        elif params.entry_id:
            report("model and data", None)
            files = find_entry(
                params.entry_id,
                download=params.download,
                mirrors=params.mirrors,
                cache_dir=params.cache_dir,
                log=self.logger,
                progress=lambda name, done, total: report(f"download of {name}", total and done / total),
            )
        else:
            return params.model_file, params.data_file
        return files.model, files.data

    def load(
        self, model: str | Path, data: str | Path, d_min: float | None, d_max: float | None, **options: Any
    ) -> Entry:
        """Read a model and its data as the parameters say."""
        params = self.inputs
        return load_entry(  # type: ignore[no-any-return]
            model,
            data,
            scattering_table=params.scattering_table,
            labels=params.labels,
            free=params.free_flag_labels if params.read_free_flags else "none",
            test_value=params.test_flag_value,
            free_file=params.r_free_flags.file_name,
            strict=self.strict_flags,
            d_min=d_min,
            d_max=d_max,
            allow_other_entry=params.allow_other_entry,
            reindex=params.reindex,
            space_group=params.space_group,
            unit_cell=params.unit_cell,
            model_shift=params.model_shift,
            **options,
        )

    def on_terminal(self, stream: Any) -> bool:
        """Whether output goes to a person at a terminal, and --quiet was not given."""
        return stream.isatty() and any(f is sys.stdout for f in getattr(self.logger, "file_objects", ()))

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[..., None]]:
        """A function (what is being done, fraction or None) that shows it: on a terminal only."""
        if not self.on_terminal(sys.stderr):
            yield lambda step, fraction=None: None
            return
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as progress:
            task = progress.add_task("starting", total=None)

            def report(step: str, fraction: float | None = None) -> None:
                progress.update(
                    task, description=step, completed=fraction or 0, total=None if fraction is None else 1.0
                )

            yield report

    def wait_for_kernels(self, report: Callable[..., None], groups: Sequence[str] = compilation.USUAL) -> None:
        """Those that began to be compiled when the program started, after an installation."""
        step = "compiling kernels (the first time)"
        compilation.finish(lambda done, n: report(step, done / n), groups)

    def get_results(self) -> Any:
        return getattr(self, "result", None)

    def get_results_as_JSON(self) -> Any:
        return self._json


def check_device(name: str) -> None:
    """Refuse a device that this machine lacks."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise Sorry(f"device={name} is not a device: use cpu or cuda.") from None
    if device.type == "cuda":
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not n_devices:
            raise Sorry(
                f"device={name} needs an NVIDIA GPU and a CUDA build of PyTorch, and this "
                "machine lacks one of them: use device=cpu."
            )
        if (device.index or 0) >= n_devices:
            raise Sorry(f"device={name} does not exist: this machine has cuda:0 to cuda:{n_devices - 1}.")
    elif device.type != "cpu":
        raise Sorry(f"device={name} is not supported: use cpu or cuda.")
