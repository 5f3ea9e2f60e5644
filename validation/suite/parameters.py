"""What is computed for every entry of a run, and what a worker is told."""

from __future__ import annotations

import dataclasses


def _field(default, help):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Everything that results depend on; two results of one run folder never differ in them.

    Most are those of :class:`mmtbx_sfdiff.comparison.Settings`.  The defaults are the smallest samples on
    which every contract can still be judged: an entry of 40,000 reflections takes one to two minutes on one
    thread.
    """

    method: str = _field("fft", "how F_protein is computed: auto, direct or fft; direct summation is checked apart")
    accuracy: float = _field(1e-4, "largest relative error of F_protein asked for")
    mask: str = _field("probe_shrink", "solvent mask: probe_shrink, density_cutoff or binary")
    grid_step: float = _field(0.6, "grid step of masks, Å")
    reference_step: float = _field(0.15, "grid step of the mmtbx mask that masks are compared with, Å")
    direct_terms: float = _field(
        5e7,
        "terms (atom x reflection x operator) of cctbx's direct summation of F_protein; "
        "where there are more it is done on a random part of the reflections",
    )
    gradient_terms: float = _field(3e7, "the same for the check of the gradients")
    contract_terms: float = _field(1e7, "the same for the check of this package's own direct summation")
    mask_gradient_volume: float = _field(
        4e5, "unit cells of at most so many Å^3 get the finite differences of the mask"
    )
    n_timing: int = _field(1, "calls of which a time is the median")
    device: str = _field("cpu", "where this package computes: cpu or cuda")
    dtype: str = _field("float64", "precision: float32 or float64")
    threads: int = _field(1, "threads of a worker")
    scattering_table: str = _field("n_gaussian", "form factors")

    def settings(self):
        """Those of the comparison, as :class:`mmtbx_sfdiff.comparison.Settings`."""
        from mmtbx_sfdiff.comparison import Settings

        names = {field.name for field in dataclasses.fields(Settings)} & {
            field.name for field in dataclasses.fields(self)
        }
        return Settings(**{name: getattr(self, name) for name in names})


def add_options(parser):
    """One option for each parameter."""
    group = parser.add_argument_group("what is computed", "A run folder holds results of one set of these.")
    for field in dataclasses.fields(Parameters):
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            type=type(field.default),
            default=field.default,
            metavar=type(field.default).__name__.upper(),
            help=field.metadata["help"] + " (default: %(default)s)",
        )


def from_options(options):
    """The parameters that a parsed command line holds."""
    return Parameters(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Parameters)})
