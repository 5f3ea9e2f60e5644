"""``mmtbx_sfdiff.compare``: one entry, this package and mmtbx side by side."""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from libtbx.utils import Sorry

from ..comparison import Settings, measure, output, table
from ..comparison.settings import Comparison, kernels_for
from ..kernels import compilation
from .common import COMPUTING, DOWNLOAD, INPUTS, LIMITS, TWIN_LAW, EntryProgram

_PHIL = f"""
compare {{
  {INPUTS}
  {LIMITS}
  {TWIN_LAW}
  {COMPUTING}
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
  n_timing = 3
    .type = int
    .short_caption = Timing repeats
    .help = "A time is the median of so many calls, both sides in turns; what takes long is called once."
  {DOWNLOAD}
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


class Program(EntryProgram):
    program_name = "mmtbx_sfdiff.compare"
    input_scope = "compare"
    strict_flags = False
    description = """
Structure factors, bulk-solvent mask, gradients and R factors of one entry, computed by mmtbx_sfdiff and by
mmtbx, with times. Writes <prefix>_compare.json, .png, .pdf and .html.

  mmtbx_sfdiff.compare 3tsv
  mmtbx_sfdiff.compare model.pdb data.mtz d_min=2.5
  mmtbx_sfdiff.compare 3tsv method=direct mask=density_cutoff device=cuda
  mmtbx_sfdiff.compare demo

The exit code is 0 only if everything was computed and written.
"""
    master_phil_str = _PHIL

    def validate(self) -> None:
        """Everything that can be wrong with the parameters, before any work."""
        params = self.params.compare
        self.check_inputs()
        self.check_numbers(
            {
                "d_min": (0, math.inf, True),
                "d_max": (0, math.inf, True),
                "reference_step": (0.1, 1, False),
                "direct_terms": (0, math.inf, True),
                "n_timing": (1, 1000, False),
            }
        )
        if params.d_min and params.d_max and params.d_min >= params.d_max:
            raise Sorry(
                f"No reflection is between d_min={params.d_min:g} and d_max={params.d_max:g} Å: d_min is the smaller."
            )
        self.check_computing()
        self.check_twins()
        out = self.params.output
        kinds = ["json"] + ["png", "pdf"] * bool(out.figure) + ["html"] * bool(out.html)
        self._paths = output.paths(out.directory or ".", self.prefix(), kinds)
        output.check_writable(list(self._paths.values()))

    def run(self) -> None:
        params = self.params.compare
        settings = Settings(
            **{
                name: getattr(params, name)
                for name in (
                    "method",
                    "accuracy",
                    "mask",
                    "grid_step",
                    "reference_step",
                    "device",
                    "dtype",
                    "n_timing",
                    "direct_terms",
                )
            },
            twin_law=self.twin_options().get("twin_law"),
        )
        # Before there is a progress bar, which is a thread: only a process without others can share this work.
        compiling = compilation.start(kernels_for(settings))
        with tempfile.TemporaryDirectory() as folder, self.progress() as report:
            self._load_painters()
            if params.demo:  # whose data are made with a mask of ours
                step = "compiling kernels (the first time)"
                compiling.wait(lambda done, n: report(step, done / n), groups=("masks",))
            model, data = self.find_files(folder, report)
            report("reading", None)
            entry = self.load(model, data, params.d_min, params.d_max)
            comparison = measure(entry, settings, report, compiling)
            report("figure and page", None)
            contents = self._contents(comparison)
            written = {self._paths[kind]: content for kind, content in contents.items()}
            if params.demo:
                place = Path(self.params.output.directory or ".") / f"{self.prefix()}_files"
                place.mkdir(parents=True, exist_ok=True)
                own = [(place / Path(path).name, Path(path).read_bytes()) for path in (model, data)]
                written.update(own)
            output.write_all(written)
        self.result = comparison.result
        print(table.render(self.result, terminal=self.on_terminal(sys.stdout)), file=self.logger)
        print("\nWritten: " + ", ".join(map(str, self._paths.values())), file=self.logger)
        if params.demo:
            names = " ".join(str(path) for path, _ in own)
            print(f"The model and the simulated data: {names}", file=self.logger)
            print(f"Go on with them as with your own: mmtbx_sfdiff.fmodel {names}", file=self.logger)

    def _load_painters(self) -> None:
        """matplotlib takes half a second to import, which a first run has while kernels are compiled; not for --help."""
        from ..comparison import figure, page

        self._figure, self._page = figure, page

    def _contents(self, comparison: Comparison) -> dict[str, Any]:
        out = self.params.output
        kinds = ["png", "pdf"] * bool(out.figure) + ["svg"] * bool(out.html)
        contents = self._figure.render(comparison, kinds) if kinds else {}
        self._json = output.json_text(comparison.result)
        contents["json"] = self._json.encode()
        if out.html:
            contents["html"] = self._page.render(comparison.result, contents.pop("svg")).encode()
        return contents
