"""What is right for the files that are known by name: a table of patterns, and of calls of each api.py.

An entry says what the doors to files (``read_data``, ``read_model``, ``from_files``, rewards for data) must find: numbers, a pattern
among what is said, or the sentence of a refusal.  A file that no pattern names is judged by :mod:`.cases` alone.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch

_DOORS = ("read_data", "read_model", "from_files", "rewards")
_F, _I = "amplitudes", "intensities"

KNOWN = {
    "integer_columns/*": {"n": 2323, "free": None, "r_work": 0.05},
    "friedel_flags/[ab]_*": {"n": 2323, "free": 220, "said": "unlike R-free flags, taken as free: 180"},
    "friedel_flags/[cdgh]_*": {"n": 2323, "free": 157},
    "friedel_flags/e_*": {"n": 2323, "free": 112},
    "friedel_flags/f_*": {"n": 2323, "free": 102, "said": "without an R-free flag, used as work reflections: 775"},
    "friedel_flags/i_*": {"n": 2323, "free": None, "said": r"f \(3\).*no test set"},
    "two_blocks_labels/[abd]_*": {"n": 2323, "free": 157, "r_work": 0.05, "model": True},
    "two_blocks_labels/b_*": {"labels": "r9xyzAsf,"},
    "two_blocks_labels/c_*": {"n": 2323, "free": None, "r_work": 0.05},
    "shelx_hkl/[bde]_*": {"n": 2323, "r_work": 0.05, "labels": "meas"},
    "shelx_hkl/a_*": {"refused": "add =hklf4 or =hklf3"},
    "text_data_cell/[bce]_*": {"refused": "differs from the model's"},
    "text_data_cell/d_*": {"n": 2321, "r_work": 0.05},
    "text_data_cell/f_*": {"n": 2321, "said": "reindexed with", "model": True},
    "missing_sigmas/[abc]_*": {"n": 2299, "sigmas": True, "said": "no usable sigma: 24"},
    "missing_sigmas/[de]_*": {"n": 2323, "sigmas": False, "said": "ignored"},
    "missing_sigmas/f_*": {"n": 2323, "sigmas": True},
    "missing_sigmas/g_*": {"n": 2299, "said": "no value: 24"},
    "missing_sigmas/h_*": {"said": "no usable sigma: 24", "kind": _I, "sigmas": True},
    "missing_sigmas/i_*": {"n": 2209, "said": "negative ones left out: 114"},
    "scale_records/*": {"mean_f": 43.648},
    "scale_records/[bc]_*": {"said": "frame of their own"},
    "cif_columns/[abcdghiklno]_*": {"n_atoms": 89, "mean_f": 74.009},
    "cif_columns/[bcdgh]_*": {"said": "missing|without"},
    "cif_columns/[ef]_*": {"refused": "B_iso_or_equiv"},
    "cif_columns/m_*": {"refused": "space group"},
    "cif_columns/q_*": {"refused": "_atom_site.Cartn_x"},
    "not_a_number/a_*": {"refused": r"CA\s+SER A\s+2"},
    "not_a_number/f_*": {"refused": "CA SER A 2"},
    "not_a_number/i_*": {"refused": "A SER 2 CA"},
    "hydrogen_parents/a_*": {"n_atoms": 98},
    "hydrogen_parents/b_*": {"n_atoms": 140, "said": "2 models"},
    "electron_header/*": {"said": "header says (electron|neutron)"},
    "mtrix/*": {"n_atoms": 126, "mean_f": 87.279},
    "mtrix/[bc]_*": {"said": "lack the identity"},
    "french_wilson/a_*": {"n": 1176, "said": "left out.*378"},
    "french_wilson/b_*": {"n": 990, "said": "564"},
    "french_wilson/c_*": {"refused": "no intensity in I,SIGI"},
    "french_wilson/d_*": {"refused": r"I \(all -7\)"},
    "small_test_set/*": {"n": 2323, "free": None, "said": r"\(12\).*no test set"},
    "tiny_free_refine/*": {"n": 60, "free": 2},
    "text_as_mtz/*": {"refused": "is no MTZ file"},
    "negative_u/a_*": {"refused": "impossible B factor -16"},
    "negative_u/[cd]_*": {"n_atoms": 89, "n_aniso": 1, "said": "not positive definite: 1"},
    "empty_model/b_*": {"n_atoms": 14},
    "empty_model/d_*": {"refused": "contains no atoms"},
    "empty_model/e_*": {"n_atoms": 89, "said": "occupancy 0, which do not scatter: 53"},
    "index_columns/*": {"n": 900, "free": 69, "r_work": 0.05},
    "dummy_amplitudes/a_*": {"n": 1162, "r_work": 0.045, "labels": "F,SIGF"},
    "dummy_amplitudes/b_*": {"n": 1162, "r_work": 0.045, "labels": "IMEAN,SIGIMEAN"},
    "dummy_amplitudes/d_*": {"n": 775, "r_work": 0.05, "labels": "intensity_meas"},
    "dummy_amplitudes/[abd]_*": {"said": "all 10"},
    "dummy_amplitudes/c_*": {"refused": r"F_unique \(all 10\)"},
    "tls_residual/[ab]_*": {"n_aniso": 77, "r_work": 0.07, "said": "TLS part of the header's groups was added"},
    "tls_residual/c_*": {"n_aniso": 77, "r_work": 0.07},
    "aniso_rows/a_*": {"n_aniso": 2, "said": "incomplete, taken as isotropic: 1"},
    "aniso_rows/b_*": {"n_aniso": 2, "said": "U = B / 8"},
    "aniso_rows/c_*": {"n_aniso": 0, "mean_f": 17.248, "said": "B = 8 pi"},
    "aniso_rows/d_*": {"n_aniso": 2, "said": "aniso_U: 2"},
    "repeated_rows/[ab]_*": {"n": 775, "free": 55, "r_work": 0.05, "said": r"status x \(unreliable\): 155"},
    "repeated_rows/c_*": {"n": 581, "free": 47, "said": "taken as free: 47"},
    "repeated_rows/d_*": {"n": 581, "said": "merged into 581"},
    "reindexed/a_primitive.mtz": {"n": 260, "r_work": 0.05, "unsaid": "more than 0.1 %"},
}


def known_faults(name, doors):
    """{door: what is not as the table says}; nothing for a file that it does not name."""
    faults = {}
    for pattern, right in KNOWN.items():
        if fnmatch(name, pattern):
            for door in _DOORS:
                one = doors.get(door)
                if (
                    one is not None
                    and "other crystal" not in one
                    and not (door == "rewards" and _not_its_own(one, right))
                ):
                    fault = _unlike(door, one, right)
                    if fault:
                        faults[door] = fault
    return faults


def _not_its_own(one, right):
    """Rewards reads models by gemmi alone, data without a model's cell ("model"), and refuses flags that mark no test set."""
    return "reward" in one or "model" in right or "refused" in one or "refused" in right or "labels" in right


def _unlike(door, one, right):
    if "refused" in right:
        found = one.get("refused", "")
        if "needs cctbx" in found or re.search(right["refused"], found):
            return ""
        return f"not refused with {right['refused']!r}: {found or 'it was read'}"
    if "refused" in one:
        return "" if "needs cctbx" in one["refused"] else f"refused: {one['refused']}"
    said = " | ".join(one.get("said", []))
    for key, value in right.items():
        if key == "said":
            ok = bool(re.search(value, said))
        elif key == "unsaid":
            ok = value not in said
        elif (
            key not in one or key == "model" or (key == "mean_f" and door == "from_files")
        ):  # form factors of the data's resolution
            continue
        elif key == "r_work":
            ok = one[key] <= value
        elif key in ("labels", "kind"):
            ok = value in one[key]
        elif key == "mean_f":
            ok = abs(one[key] - value) < 0.002 * value
        else:
            ok = one[key] == value
        if not ok:
            return f"{key} is {one.get(key, said)!r}, not {value!r}"
    return ""


def _below(limit):
    return lambda text: "refused" in text or float(text.split()[-1]) < limit


def _refused_or_finite(text):
    return text.startswith(("refused", "finite", "nan in"))


_CALLS = ("direct", "fft", "soft", "hard", "density_cutoff", "binary", "fmodel")
_NUMBERS = ("float32", "float16", "int64", "tensor")
API = {
    "not_a_number/api.py": {
        **{("sites_cart", v, c): _refused_or_finite for v in ("nan", "inf", "1e30") for c in _CALLS},
        **{
            (f, v, c): _refused_or_finite
            for f in ("u_iso", "occupancies", "fp")
            for v in ("nan", "1e30")
            for c in ("direct", "fft", "soft", "fmodel")
        },
    },
    "empty_model/api.py": {(w, c): None for w in ("models", "atoms", "reflections") for c in (*_CALLS, "solvent")},
    "negative_u/api.py": {(u,): _below(1e-4) for u in ("-0.4", "-0.6", "-0.8", "-1")},
    "api_values/api.py": {
        **{("d_min", k): lambda text: text == "729" for k in _NUMBERS},
        **{("d_max", k): lambda text: text == "1595" for k in _NUMBERS},
        **{("read_model", k): lambda text: text == "89" for k in _NUMBERS},
        **{("accuracy", k): _below(1e-3) for k in ("float32", "float16", "tensor")},
        **{("flags", k): lambda text: text.startswith("(") for k in ("anomalous", "merged", "P1")},
        ("flags", "other_cell"): None,
    },
}
