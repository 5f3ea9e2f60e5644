"""Choosing, among the arrays of a reflection file, the observations and the R-free flags.

The scores are cctbx's (``iotbx.reflection_file_utils.get_xray_data_scores`` and ``get_r_free_flags_scores``).
Where cctbx would stop because several arrays score the same, the first in the file is taken and the choice is
reported; columns that are typed as amplitudes but cannot be observations (figures of merit, anomalous
differences, calculated amplitudes) are left aside.
"""

import re

from iotbx import reflection_file_utils
from libtbx.utils import Sorry

_CALCULATED = re.compile(r"f_?calc|fc$|fc_all|f-?model|fmodel|fwt|2?m?fofc|fom$|f_?part|f-?bulk", re.IGNORECASE)
_BOOKKEEPING = re.compile(r"(wavelength_id|crystal_id|scale_group_code|batch|_id)$", re.IGNORECASE)


def label_string(array):
    """The array's column names, joined by commas."""
    return array.info().label_string()


def short_labels(array):
    """Column names without the CIF block and category."""
    labels = list(array.info().labels or [])
    if len(labels) > 1 and labels[1].startswith("_refln"):
        labels = labels[1:]
    return [re.sub(r"^_refln[._]", "", label) for label in labels]


def _block(array):
    labels = list(array.info().labels or [])
    return labels[0] if len(labels) > 1 and labels[1].startswith("_refln") else ""


def _listing(arrays):
    return "; ".join(label_string(array) for array in arrays) or "none"


def named(arrays, labels, path, what):
    """The array that a user's ``labels`` mean.

    Parameters
    ----------
    arrays : list of cctbx.miller.array
    labels : str or sequence of str
        ``"FP,SIGFP"``, ``"FP"``, ``["FP", "SIGFP"]``; in a CIF with or without ``_refln.``.
    path : path
    what : str
        For messages.

    Raises
    ------
    libtbx.utils.Sorry
        If no array, or more than one, has these labels.
    """
    wanted = labels.split(",") if isinstance(labels, str) else list(labels)
    wanted = [re.sub(r"^_refln[._]", "", label.strip()).lower() for label in wanted if label.strip()]
    full = [a for a in arrays if label_string(a).lower().split(",") == wanted]
    same = full or [a for a in arrays if [s.lower() for s in short_labels(a)] == wanted]
    some = same or [a for a in arrays if wanted and set(wanted) <= {s.lower() for s in short_labels(a)}]
    if len(some) == 1:
        return some[0]
    asked = ",".join(labels.split(",") if isinstance(labels, str) else labels)
    problem = "no array" if not some else "several arrays"
    raise Sorry(f"{path} has {problem} labelled {asked} for {what}: choose among {_listing(some or arrays)}.")


def _may_be_observed(array):
    if not array.is_real_array() or array.size() == 0 or array.data().all_eq(0):
        return False
    if array.is_xray_intensity_array():
        return True
    if not array.is_xray_amplitude_array() or _CALCULATED.match(short_labels(array)[0]):
        return False
    return (array.data() < 0).count(True) <= 0.1 * array.size()  # more: anomalous differences


def choose_observations(arrays, path, labels=None, anomalous=False, prefer="amplitudes"):
    """The observed amplitudes or intensities.

    Parameters
    ----------
    arrays : list of cctbx.miller.array
    path : path
    labels : str or sequence of str, optional
    anomalous : bool
        Prefer separate Bijvoet mates to their mean.
    prefer : str
        ``amplitudes`` or ``intensities``, where a file holds both.

    Returns
    -------
    array : cctbx.miller.array
    messages : list of str

    Raises
    ------
    libtbx.utils.Sorry
        If there are no observations, or ``labels`` are not observations.
    """
    if labels:
        array = named(arrays, labels, path, "the data")
        observed = array.is_xray_amplitude_array() or array.is_xray_intensity_array()
        if not (observed and array.is_real_array()):
            raise Sorry(
                f"{label_string(array)} in {path} are neither amplitudes nor intensities: choose "
                f"among {_listing([a for a in arrays if _may_be_observed(a)])}."
            )
        return array, []
    candidates = [array for array in arrays if _may_be_observed(array)]
    if not candidates:
        raise Sorry(
            f"{path} contains no observed amplitudes or intensities (it contains "
            f"{_listing(arrays)}): give the file with the observations, or name a column."
        )
    scores = reflection_file_utils.get_xray_data_scores(
        miller_arrays=candidates,
        ignore_all_zeros=True,
        prefer_anomalous=anomalous,
        prefer_amplitudes=prefer == "amplitudes",
    )
    wants_amplitudes = prefer == "amplitudes"
    best = max(
        zip(scores, candidates), key=lambda pair: (pair[0], pair[1].is_xray_amplitude_array() == wants_amplitudes)
    )[1]  # the first of equals
    messages = []
    if len(candidates) > 1:
        others = [array for array in candidates if array is not best]
        messages.append(f"observations: took {label_string(best)}; also present: {_listing(others)}")
    return best, messages


def _is_flag_like(array):
    return array.is_integer_array() or array.is_bool_array() or array.is_string_array()


def _looks_like_flags(array):
    """By its name; the status column of a CIF has uses of its own and does not count."""
    name = short_labels(array)[-1].lower()
    return any(word in name for word in ("free", "test", "cross", "flag")) and "status" not in name


def choose_flags(arrays, observations, path, labels=None, test_flag_value=None, strict=True):
    """The R-free flags.

    Parameters
    ----------
    arrays : list of cctbx.miller.array
    observations : cctbx.miller.array
        The chosen data; flags of the same CIF block are preferred.
    path : path
    labels : str or sequence of str, optional
        ``"none"`` to do without flags.
    test_flag_value : int, optional
        The value that marks the test set; found by cctbx's rules if not given.
    strict : bool
        Whether unusable flags are an error, or only reported.

    Returns
    -------
    array : cctbx.miller.array or None
    messages : list of str

    Raises
    ------
    libtbx.utils.Sorry
        If flags are there but cannot mark a test set.
    """
    if isinstance(labels, str) and labels.lower() == "none":
        return None, ["R-free flags were not read, as asked"]
    flags = [array for array in arrays if _is_flag_like(array) and array is not observations]
    if labels:
        chosen = named(flags, labels, path, "the R-free flags")
        if _scores([chosen], test_flag_value)[0] == 0:
            raise Sorry(_unusable(chosen, path, test_flag_value))
        return chosen, []
    flags = [array for array in flags if not _BOOKKEEPING.search(short_labels(array)[-1])]
    scores = _scores(flags, test_flag_value) if flags else []
    usable = [array for array, score in zip(flags, scores) if score > 0]
    if usable:

        def rank(array):
            return (scores[flags.index(array)], _block(array) == _block(observations))

        best = max(usable, key=rank)  # the first of equals
        equals = [array for array in usable if array is not best and rank(array) == rank(best)]
        if equals:
            return best, [f"R-free flags: took {label_string(best)}; equally suitable: {_listing(equals)}"]
        return best, []
    broken = [array for array in flags if _looks_like_flags(array)]
    if broken and strict:
        raise Sorry(_unusable(broken[0], path, test_flag_value))
    if broken:
        return None, [f"R-free flags {label_string(broken[0])} do not mark a test set and were not used"]
    return None, ["no R-free flags in the data file: all reflections are used, and there is no R-free"]


def _scores(arrays, test_flag_value):
    return reflection_file_utils.get_r_free_flags_scores(arrays, test_flag_value).scores


def _unusable(array, path, test_flag_value):
    values = {}
    for value in array.data():
        values[value] = values.get(value, 0) + 1
    if len(values) == 1:
        reason = f"are all {next(iter(values))}"
    elif test_flag_value is not None:
        share = values.get(test_flag_value, 0) / array.size()
        reason = f"mark {share:.0%} of the reflections with {test_flag_value}"
    else:
        common = sorted(values.items(), key=lambda item: -item[1])[:3]
        reason = "have the values " + ", ".join(f"{value} ({n})" for value, n in common)
    return (
        f"R-free flags {label_string(array)} in {path} {reason}, which cannot be a test set: name other "
        "flags or their test value, or go without them with the label none."
    )
