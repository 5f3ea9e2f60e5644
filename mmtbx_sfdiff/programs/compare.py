"""``mmtbx_sfdiff.compare``: one entry, this package and mmtbx side by side."""
from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from libtbx.program_template import ProgramTemplate
from libtbx.utils import Sorry

from .. import __version__
from ..bulk_solvent import MASKS
from ..comparison import Settings, measure, output, table
from ..files import SCATTERING_TABLES, SERVERS, find_entry, load_entry
from ..files.demo import demo_entry
from ..structure_factors import METHODS


def _choices(names, default):
    return " ".join("*" + name if name == default else name for name in names)


_PHIL = f"""
compare {{
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
  free_flag_labels = None
    .type = str
    .short_caption = Free flag labels
    .help = "Column of the free flags; found automatically by default."
  read_free_flags = True
    .type = bool
    .short_caption = Read free flags
    .help = "False takes all reflections as the working set, and gives no R-free."
  test_flag_value = None
    .type = int
    .short_caption = Test flag value
    .help = "Value that marks the free set; found automatically by default."
  d_min = None
    .type = float
    .short_caption = High resolution limit
    .help = "Reflections with smaller d-spacings (Å) are left out."
  d_max = None
    .type = float
    .short_caption = Low resolution limit
    .help = "Reflections with larger d-spacings (Å) are left out."
  scattering_table = {_choices(SCATTERING_TABLES, "n_gaussian")}
    .type = choice
    .short_caption = Scattering table
    .help = "Form factors, used by both sides."
  allow_other_entry = False
    .type = bool
    .short_caption = Data of another entry
    .help = "Accept data that say they belong to another PDB entry than the model."
  method = {_choices(("auto", *METHODS), "auto")}
    .type = choice
    .short_caption = Structure factor method
    .help = "How this package computes F_protein. auto: the fastest method that meets the accuracy."
  accuracy = 1e-4
    .type = float
    .short_caption = Accuracy
    .help = "Largest relative error of F_protein asked for."
  mask = {_choices(MASKS, Settings.mask)}
    .type = choice
    .short_caption = Mask method
    .help = "This package's bulk-solvent mask."
  grid_step = 0.6
    .type = float
    .short_caption = Mask grid step
    .help = "Of this package's mask, Å. mmtbx keeps its own, 0.6."
  reference_step = 0.15
    .type = float
    .short_caption = Reference grid step
    .help = "Of the mmtbx mask that masks are compared with, Å; coarser where the unit cell is too large. \
            0.6 compares with mmtbx's default itself."
  direct_terms = 1e9
    .type = float
    .short_caption = Terms of direct summation
    .help = "cctbx's direct summation, the exact reference, takes about 36 ns for each atom, reflection and operator. Where \
            there are more of these terms, it is done on a random part of the reflections. None: always on all."
  device = cpu
    .type = str
    .short_caption = Device
    .help = "Where this package computes: cpu, cuda, cuda:1, ..."
  dtype = float32 *float64
    .type = choice
    .short_caption = Precision
    .help = "In which this package computes."
  n_timing = 3
    .type = int
    .short_caption = Timing repeats
    .help = "A time is the median of so many calls, both sides in turns; what takes long is called once."
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
}}
output {{
  directory = .
    .type = str
    .short_caption = Output folder
    .help = "Where <prefix>_compare.json, .png, .pdf and .html are written."
  figure = True
    .type = bool
    .short_caption = Write figure
    .help = "Write the figure as PNG and PDF."
  html = True
    .type = bool
    .short_caption = Write page
    .help = "Write the page, one self-contained HTML file."
}}
"""


class Program(ProgramTemplate):
    program_name = "mmtbx_sfdiff.compare"
    version = __version__
    input_scope = "compare"
    datatypes = ["phil"]
    description = """
Structure factors, bulk-solvent mask, gradients and R factors of one entry, computed by mmtbx_sfdiff and by
mmtbx, with times. Writes <prefix>_compare.json, .png, .pdf and .html.

  mmtbx_sfdiff.compare 3tsv
  mmtbx_sfdiff.compare model.pdb data.mtz d_min=2.5
  mmtbx_sfdiff.compare 3tsv method=direct mask=density_cutoff device=cuda
  mmtbx_sfdiff.compare demo

The exit code is 0 only if everything was computed and written.
"""
    epilog = ""
    master_phil_str = _PHIL

    def validate(self):
        """Everything that can be wrong with the parameters, before any work."""
        params = self.params.compare
        given = [bool(params.entry_id), bool(params.model_file or params.data_file), params.demo]
        if sum(given) != 1:
            raise Sorry(f"Give {'only ' if any(given) else ''}one of: a PDB entry, a model and a data file, "
                        "or the word demo.")
        if given[1] and not (params.model_file and params.data_file):
            missing = "data" if params.model_file else "model"
            raise Sorry(f"The {missing} file is missing: give both a model and a data file.")
        for name in ("d_min", "d_max", "accuracy", "grid_step", "reference_step", "direct_terms"):
            value = getattr(params, name)
            if value is None and name in ("d_min", "d_max", "direct_terms"):
                continue
            if value is None or not 0 < value < float("inf"):
                raise Sorry(f"{name}={value} is not possible: give a positive number.")
        if params.accuracy >= 1:
            raise Sorry(f"accuracy={params.accuracy:g} is not possible: give a relative error below 1, "
                        "such as 1e-4.")
        if params.d_min and params.d_max and params.d_min >= params.d_max:
            raise Sorry(f"No reflection is between d_min={params.d_min:g} and d_max={params.d_max:g} Å: "
                        "d_min is the smaller.")
        for name in ("grid_step", "reference_step"):
            if not 0.1 <= getattr(params, name) <= 1:
                raise Sorry(f"{name}={getattr(params, name):g} is not possible: give 0.1 to 1 Å.")
        if params.n_timing is None or not 1 <= params.n_timing <= 1000:
            raise Sorry(f"n_timing={params.n_timing} is not possible: give 1 to 1000.")
        unknown = [name for name in params.mirrors or () if name not in SERVERS]
        if unknown or not params.mirrors:
            raise Sorry(f"mirrors={' '.join(unknown)} is not possible: choose from {', '.join(SERVERS)}.")
        self._check_device(params.device)
        self._paths = self._output_paths()
        output.check_writable(list(self._paths.values()))

    @staticmethod
    def _check_device(name):
        try:
            device = torch.device(name)
        except (RuntimeError, TypeError):
            raise Sorry(f"device={name} is not a device: use cpu or cuda.") from None
        if device.type == "cuda":
            n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if not n_devices:
                raise Sorry(f"device={name} needs an NVIDIA GPU and a CUDA build of PyTorch, and this "
                            "machine lacks one of them: use device=cpu.")
            if (device.index or 0) >= n_devices:
                raise Sorry(f"device={name} does not exist: this machine has cuda:0 to cuda:{n_devices - 1}.")
        elif device.type != "cpu":
            raise Sorry(f"device={name} is not supported: use cpu or cuda.")

    def _output_paths(self):
        params, out = self.params.compare, self.params.output
        prefix = out.prefix or ("demo" if params.demo else params.entry_id)
        prefix = prefix or Path(params.model_file).name.split(".")[0]
        if "/" in prefix or "\\" in prefix:
            raise Sorry(f"output.prefix={prefix} holds a folder: name the folder with output.directory.")
        kinds = ["json"] + ["png", "pdf"] * bool(out.figure) + ["html"] * bool(out.html)
        return output.paths(out.directory or ".", prefix, kinds)

    def run(self):
        params = self.params.compare
        settings = Settings(**{name: getattr(params, name) for name in (
            "method", "accuracy", "mask", "grid_step", "reference_step", "device", "dtype", "n_timing",
            "direct_terms")})
        with tempfile.TemporaryDirectory() as folder, self._progress() as report:
            comparison = measure(self._entry(folder, report), settings, report)
            report("figure and page", None)
            contents = self._contents(comparison)
            output.write_all({self._paths[kind]: content for kind, content in contents.items()})
        self.result = comparison.result
        print(table.render(self.result, terminal=self._on_terminal(sys.stdout)), file=self.logger)
        print("\nWritten: " + ", ".join(map(str, self._paths.values())), file=self.logger)

    def _entry(self, folder, report):
        params = self.params.compare
        if params.demo:
            report("simulated data", None)
            files = demo_entry(folder)
            model, data = files.model, files.data
        elif params.entry_id:
            report("model and data", None)
            files = find_entry(
                params.entry_id, download=params.download, mirrors=params.mirrors, cache_dir=params.cache_dir,
                log=self.logger,
                progress=lambda name, done, total: report(f"download of {name}", total and done / total))
            model, data = files.model, files.data
        else:
            model, data = params.model_file, params.data_file
        report("reading", None)
        return load_entry(model, data, scattering_table=params.scattering_table, labels=params.labels,
                          r_free_labels=params.free_flag_labels if params.read_free_flags else "none",
                          test_flag_value=params.test_flag_value,
                          d_min=params.d_min, d_max=params.d_max, allow_other_entry=params.allow_other_entry)

    def _contents(self, comparison):
        # matplotlib takes half a second to import: not for --help.
        from ..comparison import figure, page
        out = self.params.output
        kinds = ["png", "pdf"] * bool(out.figure) + ["svg"] * bool(out.html)
        contents = figure.render(comparison, kinds) if kinds else {}
        self._json = output.json_text(comparison.result)
        contents["json"] = self._json.encode()
        if out.html:
            contents["html"] = page.render(comparison.result, contents.pop("svg")).encode()
        return contents

    def _on_terminal(self, stream):
        """Whether output goes to a person at a terminal, and --quiet was not given."""
        return stream.isatty() and any(f is sys.stdout for f in getattr(self.logger, "file_objects", ()))

    @contextlib.contextmanager
    def _progress(self):
        """A function that shows what is being done: on a terminal only."""
        if not self._on_terminal(sys.stderr):
            yield lambda step, fraction=None: None
            return
        with Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
                      console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("starting", total=None)

            def report(step, fraction=None):
                progress.update(task, description=step, completed=fraction or 0,
                                total=None if fraction is None else 1.0)
            yield report

    def get_results(self):
        return getattr(self, "result", None)

    def get_results_as_JSON(self):
        return self._json
