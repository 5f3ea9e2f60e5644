"""The numbers of a record by name: what the audit judges, the report sorts by, and two runs are compared in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number of an entry.

    Attributes
    ----------
    name : str
    what : str
        In words.
    of : callable
        Of a record whose status is "ok"; None where the entry does not have it.
    best : str
        "low", "high", or "same" for numbers that are neither good nor bad, but may move.
    """

    name: str
    what: str
    of: Callable
    best: str = "low"


def _number(part, *path):
    def of(record):
        value = record[part]
        for name in path:
            if value is None:
                return None
            value = value[name]
        return value

    return of


def _result(*path):
    return _number("result", *path)


def _contract(*path):
    return _number("contracts", *path)


def _difference(one, other):
    def of(record):
        values = one(record), other(record)
        return None if None in values else values[0] - values[1]

    return of


def _largest_difference(pairs):
    """Of several pairs of numbers, the largest |one - other|; None where there is none."""

    def of(record):
        differences = [abs(d) for d in (_difference(*pair)(record) for pair in pairs) if d is not None]
        return max(differences, default=None)

    return of


def _relative_to_request(path):
    def of(record):
        value = _result(*path)(record)
        return None if value is None else value / record["result"]["settings"]["accuracy"]

    return of


def _ratio(one, other):
    def of(record):
        values = one(record), other(record)
        return None if None in values or not values[1] else values[0] / values[1]

    return of


def on_fine_grid(record):
    """Whether the masks of an entry were compared with mmtbx's on the grid of the contract."""
    return record["result"]["f_mask"]["reference"] == "mmtbx at 0.15 Å"


def _hard_mask(value):
    """Of the mask with a hard edge at mmtbx's radii, over all reflections to 3 Å."""

    def of(record):
        part = record["result"]["f_mask"]["equal_radii"]
        if part is None or not on_fine_grid(record):
            return None
        return value(part["complete"])

    return of


def _worst_shell(part):
    return min((shell["cc"] for shell in part["shells"] if shell["cc"] is not None), default=None)


def _r(model, kind, scaling=None):
    return _result(*(["r_factors"] + ([scaling] if scaling else []) + [model, kind]))


def _largest_gradient(record):
    return max(record["contracts"]["direct"]["gradients"].values())


def _mask_gradient(record):
    part = record["contracts"]["mask_gradient"]
    return None if part is None else max(part["relative_l2"])


def _scaling_with_ties(record):
    return (record["contracts"].get("scaling") or {}).get("with_ties")


_SCALED = "sfdiff_scaling"
_SAME_F = [
    (_r(model, kind, _SCALED), _r(model, kind)) for model in ("sfdiff", "mmtbx") for kind in ("r_work", "r_free")
]
_F = ("f_protein", "relative_l2_vs_direct")
_G = ("gradients", "relative_l2_vs_direct")
_FFT_F, _FFT_G = (("f_protein", "mmtbx_fft_relative_l2_vs_direct"), ("gradients", "mmtbx_fft_relative_l2_vs_direct"))

MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            "direct_float64",
            "direct summation in float64 against cctbx's, relative L2",
            _contract("direct", "relative_l2_float64"),
        ),
        Measure(
            "direct_float32",
            "direct summation in float32 against cctbx's, relative L2",
            _contract("direct", "relative_l2_float32"),
        ),
        Measure(
            "direct_gradients",
            "gradients of direct summation against cctbx's, relative L2, the largest of all parameters",
            _largest_gradient,
        ),
        Measure(
            "f_accuracy",
            "relative error of F_protein as a multiple of the accuracy asked for",
            _relative_to_request(_F),
        ),
        Measure(
            "gradient_accuracy",
            "relative error of the gradients as a multiple of the accuracy asked for",
            _relative_to_request(_G),
        ),
        Measure(
            "f_to_mmtbx_fft", "error of F_protein over that of cctbx's FFT", _ratio(_result(*_F), _result(*_FFT_F))
        ),
        Measure(
            "gradient_to_mmtbx_fft",
            "error of the gradients over that of cctbx's FFT",
            _ratio(_result(*_G), _result(*_FFT_G)),
        ),
        Measure(
            "binary_mask",
            "F_mask of the binary mask against mmtbx's, relative L2",
            _contract("binary_mask", "relative_l2"),
        ),
        Measure(
            "hard_mask_l2",
            "F_mask of the hard edge at mmtbx's radii against mmtbx at 0.15 Å, all reflections to 3 Å, relative L2",
            _hard_mask(lambda part: part["relative_l2"]),
        ),
        Measure(
            "hard_mask_worst_shell",
            "the same, correlation of amplitudes in the worst shell",
            _hard_mask(_worst_shell),
            "high",
        ),
        Measure(
            "mask_gradient",
            "gradient of the mask against finite differences over 0.001 to 0.02 Å, relative, the largest",
            _mask_gradient,
        ),
        Measure(
            "r_work_change",
            "R-work with this package's mask less R-work of mmtbx, both by mmtbx's scaling",
            _difference(_r("sfdiff", "r_work"), _r("mmtbx", "r_work")),
        ),
        Measure(
            "r_free_change",
            "R-free with this package's mask less R-free of mmtbx, both by mmtbx's scaling",
            _difference(_r("sfdiff", "r_free"), _r("mmtbx", "r_free")),
        ),
        Measure(
            "own_r_work_change",
            "R-work of this package alone (F, mask and scales) less R-work of mmtbx",
            _difference(_r("sfdiff", "r_work", _SCALED), _r("mmtbx", "r_work")),
        ),
        Measure(
            "own_r_free_change",
            "R-free of this package alone (F, mask and scales) less R-free of mmtbx",
            _difference(_r("sfdiff", "r_free", _SCALED), _r("mmtbx", "r_free")),
        ),
        Measure(
            "scaling_r",
            "R of this package's scaling less R of mmtbx's, same F_protein and F_mask, the largest of work and free",
            _largest_difference(_SAME_F),
        ),
        Measure(
            "scaling_with_ties",
            "the same, where they differ, from mmtbx with neighbouring bins that are equal but for "
            "rounding taken for equal",
            _scaling_with_ties,
        ),
        Measure("peak_gib", "memory of the worker, GiB", lambda record: record["peak_bytes"] / 2**30),
        Measure("mmtbx_r_work", "R-work of mmtbx", _r("mmtbx", "r_work"), "same"),
        Measure("mmtbx_r_free", "R-free of mmtbx", _r("mmtbx", "r_free"), "same"),
        Measure("sfdiff_r_work", "R-work with this package's mask, by mmtbx's scaling", _r("sfdiff", "r_work"), "same"),
        Measure("sfdiff_r_free", "R-free with this package's mask, by mmtbx's scaling", _r("sfdiff", "r_free"), "same"),
        Measure(
            "f_mask_cc",
            "correlation of |F_mask|, this package's default mask, against mmtbx on a fine grid",
            _result("f_mask", "cc"),
            "high",
        ),
        Measure(
            "f_mask_cc_mmtbx",
            "correlation of |F_mask|, mmtbx's default mask, against mmtbx on a fine grid",
            _result("f_mask", "mmtbx_default", "cc"),
            "same",
        ),
        Measure(
            "solvent_fraction",
            "solvent fraction of mmtbx's mask",
            _result("mask_map", "solvent_fraction_mmtbx"),
            "same",
        ),
        Measure("n_reflections", "reflections", _result("n_reflections"), "same"),
    )
}


def values(records, name):
    """{entry: number} of the entries that were computed and have it."""
    found = {entry: MEASURES[name].of(record) for entry, record in records.items() if record["status"] == "ok"}
    return {entry: value for entry, value in found.items() if value is not None}
