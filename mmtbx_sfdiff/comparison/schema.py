"""The form of ``<prefix>_compare.json``, as a JSON Schema."""

from __future__ import annotations

from typing import Any

import jsonschema

SCHEMA_VERSION = 1


def _object(properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties)}


_TEXT = {"type": "string"}
_BOOLEAN = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_OPTIONAL_COUNT = {"type": ["integer", "null"], "minimum": 0}
_FRACTION = {"type": "number", "minimum": 0, "maximum": 1}
_OPTIONAL_FRACTION = {"type": ["number", "null"], "minimum": 0}
_ERROR = {"type": ["number", "null"], "minimum": 0}
_CC = {"type": ["number", "null"], "minimum": -1, "maximum": 1}
_SECONDS = {"type": ["number", "null"], "minimum": 0}

_SHELL = _object({"d_max": _POSITIVE, "d_min": _POSITIVE, "n": _COUNT, "cc": _CC})
_SHELLS = {"type": "array", "items": _SHELL}
_AGREEMENT = {"cc": _CC, "relative_l2": _ERROR, "shells": _SHELLS}
_MASK_AGREEMENT = _AGREEMENT | {"complete": _object(_AGREEMENT)}
_R = {"r_work": _OPTIONAL_FRACTION, "r_free": _OPTIONAL_FRACTION}
_R_COMPUTED = _object({"r_work": _FRACTION, "r_free": _OPTIONAL_FRACTION, "n_used": _COUNT})
_TIMES = {"sfdiff": _SECONDS, "mmtbx": _SECONDS}

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "mmtbx_sfdiff.compare: one entry, side by side with mmtbx",
} | _object(
    {
        "schema_version": {"const": SCHEMA_VERSION},
        "entry": _TEXT,
        "simulated": _BOOLEAN,
        "space_group": _TEXT,
        "unit_cell": {"type": "array", "items": _POSITIVE, "minItems": 6, "maxItems": 6},
        "d_max": _POSITIVE,
        "d_min": _POSITIVE,
        "n_atoms": _COUNT,
        "n_reflections": _COUNT,
        "n_free": _OPTIONAL_COUNT,
        "reflections": _object(
            {
                "read": _COUNT,
                "used": _COUNT,
                "free": _OPTIONAL_COUNT,
                "left_out": {"type": "object", "additionalProperties": _COUNT},
            }
        ),
        "files": _object({"model": _TEXT, "data": _TEXT, "labels": _TEXT}),
        "scattering_table": _TEXT,
        "messages": {"type": "array", "items": _TEXT},
        "settings": {"type": "object"},
        "versions": {"type": "object"},
        "date": _TEXT,
        "f_protein": _object(
            {
                "method": _TEXT,
                "reference": _TEXT,
                "n_reflections": _COUNT,
                "relative_l2_vs_direct": _ERROR,
                "mmtbx_fft_relative_l2_vs_direct": _ERROR,
                "cc": _CC,
                "shells": _SHELLS,
                "mmtbx_fft": _object({"cc": _CC, "shells": _SHELLS}),
            }
        ),
        "f_mask": _object(
            {
                "method": _TEXT,
                "reference": _TEXT,
                "d_min": _POSITIVE,
                **_MASK_AGREEMENT,
                "density_cutoff": _object(_MASK_AGREEMENT),
                "mmtbx_default": _object(_MASK_AGREEMENT | {"grid_step": _POSITIVE}),
                "equal_radii": _object(_MASK_AGREEMENT | {"r_probe": _POSITIVE, "r_shrink": _POSITIVE})
                | {"type": ["object", "null"]},
            }
        ),
        "mask_map": _object(
            {
                "cc": _CC,
                "grid": {"type": "array", "items": _COUNT, "minItems": 3, "maxItems": 3},
                "grid_step": _POSITIVE,
                "solvent_fraction": _FRACTION,
                "solvent_fraction_mmtbx": _FRACTION,
            }
        ),
        "gradients": _object(
            {
                "parameters": _TEXT,
                "n_reflections": _COUNT,
                "relative_l2_vs_direct": _ERROR,
                "mmtbx_fft_relative_l2_vs_direct": _ERROR,
            }
        ),
        "r_factors": _object(
            {
                "scaling": _TEXT,
                "sfdiff": _R_COMPUTED,
                "mmtbx": _R_COMPUTED,
                "mmtbx_direct": _R_COMPUTED | {"type": ["object", "null"]},
                "density_cutoff": _R_COMPUTED,
                "deposited": _object(_R),
                "sfdiff_scaling": _object({"sfdiff": _R_COMPUTED, "mmtbx": _R_COMPUTED}),
            }
        ),
        "timing_s": _object(
            {
                "f_protein": _object(_TIMES | {"mmtbx_direct": _SECONDS}),
                "f_mask": _object(_TIMES),
                "gradients": _object(_TIMES),
                "scaling": _object(_TIMES),
                "conditions": _object(
                    {
                        "device": _TEXT,
                        "device_name": _TEXT,
                        "threads_sfdiff": _COUNT,
                        "threads_mmtbx": _COUNT,
                        "repeats": _COUNT,
                        "statistic": _TEXT,
                    }
                ),
            }
        ),
    }
)


_TWIN_PART = _object({"fraction": _FRACTION, "r_work": _OPTIONAL_FRACTION, "r_free": _OPTIONAL_FRACTION})
# Not required: older files are without.
SCHEMA["properties"]["r_factors"]["properties"]["twin"] = _object(
    {"law": _TEXT, "sfdiff": _TWIN_PART, "mmtbx": _TWIN_PART | {"type": ["object", "null"]}}
) | {"type": ["object", "null"]}


def errors(result: dict[str, Any]) -> list[str]:
    """What is wrong with a result, one sentence for each fault with its place; empty when it conforms."""
    return [
        f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(result)
    ]
