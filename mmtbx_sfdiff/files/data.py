"""Reading observed data: amplitudes (or intensities, turned into amplitudes) and R-free flags.

The arrays go through ``iotbx.extract_xtal_data.run``, as they do in ``mmtbx.model_vs_data`` and
``DataManager.get_fmodel``: mapping to the asymmetric unit, systematic absences, French and Wilson's
amplitudes for intensities, merging of Bijvoet mates, the test set, the common set of data and flags.
"""

import contextlib
import io
import math
import os
import struct
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import iotbx.cif
import iotbx.cif.builders
import iotbx.mtz
from cctbx import crystal, miller
from iotbx import extract_xtal_data, reflection_file_utils
from iotbx.mtz import crystal_symmetry_from_mtz
from iotbx.reflection_file_reader import any_reflection_file
from libtbx.utils import Sorry, null_out

from .arrays import choose_flags, choose_observations, label_string
from .content import read_content
from .entry_id import entry_id_in_data
from .symmetry import reconcile

_FINER_THAN_DATA = 0.99  # a limit asked for may be this much finer than the data: headers are rounded


@dataclass(frozen=True)
class Data:
    """Observations of one crystal.

    Attributes
    ----------
    path : pathlib.Path
    f_obs : cctbx.miller.array
        Amplitudes, in the asymmetric unit; with sigmas where the file has them.
    r_free_flags : cctbx.miller.array of bool or None
        True for the test set; same indices as ``f_obs``.
    labels : str
        Columns that were taken.
    r_free_labels : str or None
    test_flag_value : int or None
        Value in the file that marks the test set.
    kind : str
        ``amplitudes``, ``intensities (French-Wilson)`` or ``intensities (square root)``.
    entry_id : str or None
        What the file says it belongs to.
    wavelength : float or None
        Å.
    simulated : bool
        Whether the file says that its amplitudes were calculated, not measured.
    messages : tuple of str
        What was taken, and what could not be found.
    """

    path: Path
    f_obs: object
    r_free_flags: object
    labels: str
    r_free_labels: str = None
    test_flag_value: int = None
    kind: str = "amplitudes"
    entry_id: str = None
    wavelength: float = None
    simulated: bool = False
    messages: tuple = field(default_factory=tuple)


@dataclass(frozen=True)
class _Source:
    """An opened reflection file."""

    arrays_in: object  # callable: crystal symmetry -> list of miller arrays
    symmetry: object  # from the file, or None
    entry_id: str
    title: str
    is_cif: bool


def read_data(
    path,
    crystal_symmetry=None,
    labels=None,
    r_free_labels=None,
    test_flag_value=None,
    d_min=None,
    d_max=None,
    anomalous=False,
    prefer="amplitudes",
):
    """Read observed data from an MTZ file, a structure-factor CIF, or another format that cctbx knows.

    Parameters
    ----------
    path : path
        Plain or compressed with gzip.
    crystal_symmetry : cctbx.crystal.symmetry, optional
        The model's; it takes priority over the file's, which must be compatible.
    labels, r_free_labels : str or sequence of str, optional
        Columns to take; ``r_free_labels="none"`` to read no flags.
    test_flag_value : int, optional
    d_min, d_max : float, optional
        Resolution limits, Å.
    anomalous : bool
        Keep Bijvoet mates apart.
    prefer : str
        ``amplitudes`` or ``intensities``, where a file holds both.

    Returns
    -------
    Data

    Raises
    ------
    libtbx.utils.Sorry
        In one sentence that names the file: unreadable, no observations, another crystal, unusable flags,
        no reflections within the limits.
    """
    if prefer not in ("amplitudes", "intensities"):
        raise Sorry(f"prefer={prefer!r} is not a choice: amplitudes or intensities.")
    content = read_content(path, "data")
    path = content.path
    with _quietly() as warned, tempfile.TemporaryDirectory() as folder:
        source = _open(content, folder)
        symmetry, change_of_basis, messages = reconcile(source.symmetry, crystal_symmetry, path)
        arrays = _arrays(source, symmetry, path)
        observed, more = choose_observations(arrays, path, labels, anomalous, prefer)
        messages += more
        flags, more = choose_flags(arrays, observed, path, r_free_labels, test_flag_value, strict=not source.is_cif)
        messages += more
        messages += _symmetry_messages(source.symmetry, crystal_symmetry)
        chosen = [_cleaned(observed, messages)] + ([flags] if flags is not None else [])
        if change_of_basis is not None:
            chosen = [_reindexed(array, change_of_basis, crystal_symmetry) for array in chosen]
        result = _extract(
            chosen,
            path,
            symmetry if change_of_basis is None else crystal_symmetry,
            test_flag_value,
            d_min,
            d_max,
            anomalous,
        )
    messages += dict.fromkeys(" ".join(str(warning.message).split()) for warning in warned)
    return _as_data(result, path, source, observed, flags, messages)


@contextlib.contextmanager
def _quietly():
    """Keep what cctbx prints to itself and collect its warnings."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("always", UserWarning)
        yield warned


def _open(content, folder):
    if content.kind == "cif":
        return _open_cif(content)
    text = content.text if content.kind == "text" else ""
    if any(line.startswith(("ATOM  ", "HETATM", "CRYST1")) for line in text[: 2**20].splitlines()):
        raise Sorry(f"{content.path} holds atoms, not reflections: give the data file here and this one as model.")
    file_name = str(content.path.resolve())
    if content.path.suffix.lower() == ".gz":
        file_name = os.path.join(folder, content.path.stem)
        try:
            Path(file_name).write_bytes(content.raw)
        except OSError as error:
            raise Sorry(
                f"Cannot unpack {content.path} ({error.strerror}): make room in {tempfile.gettempdir()} or set TMPDIR."
            ) from None
    if content.kind == "mtz":
        return _open_mtz(content, file_name)
    reader = any_reflection_file(file_name)
    if reader.file_type() is None:
        raise Sorry(
            f"{content.path} is not a reflection file that cctbx knows: give an MTZ or structure-factor CIF file."
        )
    return _Source(_arrays_of(reader, content.path), None, None, "", False)


def _open_cif(content):
    text = content.text
    if "_refln" not in text:
        what = "atoms" if "_atom_site" in text else "no reflections"
        raise Sorry(f"{content.path} holds {what}: give the structure-factor file of the entry as data.")
    try:
        reader = iotbx.cif.reader(input_string=text)
        symmetry = None
        for block in reader.model().values():
            if "_refln.index_h" in block or "_refln_index_h" in block:
                symmetry = iotbx.cif.builders.crystal_symmetry_builder(block).crystal_symmetry
                break
    except (Sorry, RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise Sorry(
            f"{content.path} is not a readable CIF file ({' '.join(str(error).split())[:160]}): download or correct it."
        ) from None
    return _Source(_arrays_of(reader, content.path), symmetry, entry_id_in_data(text[: 2**20]), "", True)


def _open_mtz(content, file_name):
    # the header is at the end, so a file cut short is recognised before CCP4's library complains on its own
    whole = len(content.raw) >= 80
    if whole:
        order = "<" if content.raw[9] >> 4 == 4 else ">"
        start = 4 * (struct.unpack(order + "i", content.raw[4:8])[0] - 1)
        whole = start < 0 or content.raw[start : start + 4] == b"VERS"
    try:
        mtz = iotbx.mtz.object(file_name=file_name) if whole else None
    except (RuntimeError, Sorry):
        mtz = None
    if mtz is None:
        raise Sorry(f"{content.path} is cut short or damaged (its MTZ header is missing): download or copy it again.")
    try:
        symmetry = crystal_symmetry_from_mtz.extract_from(file_name)
    except (RuntimeError, ValueError, AssertionError, Sorry):
        symmetry = None
    return _Source(_arrays_of(mtz, content.path), symmetry, None, mtz.title(), False)


def _arrays_of(reader, path):
    def arrays_in(symmetry):
        return reader.as_miller_arrays(
            crystal_symmetry=symmetry, force_symmetry=True, base_array_info=miller.array_info(source=str(path))
        )

    return arrays_in


def _arrays(source, symmetry, path):
    try:
        arrays = source.arrays_in(symmetry)
    except (Sorry, RuntimeError, ValueError, AssertionError, KeyError, IndexError) as error:
        raise Sorry(
            f"cctbx cannot read the reflections in {path} ({' '.join(str(error).split())[:160]}): correct the file."
        ) from None
    if not arrays:
        raise Sorry(f"{path} contains no reflections: give the file with the observations.")
    return arrays


def _symmetry_messages(own, model):
    if own is None or model is None or own.unit_cell() is None:
        return []
    if own.unit_cell().is_similar_to(model.unit_cell(), 0.001, 0.1):
        return []
    return ["the cells of the data and the model differ by more than 0.1 %: the model's is used"]


def _cleaned(array, messages):
    """Without values that are no measurement: not finite, negative amplitudes, zero with zero sigma."""
    data, sigmas = array.data(), array.sigmas()
    if sigmas is not None and not array.sigmas_are_sensible():
        messages.append(f"the sigmas of {label_string(array)} are mostly zero and were ignored")
        sigmas = None
    keep = (data > -1e30) & (data < 1e30)  # NaN fails both
    if array.is_xray_amplitude_array():
        keep &= data >= 0
    if sigmas is not None:
        keep &= (sigmas > 0) & (sigmas < 1e30)
    dropped = keep.count(False)
    if dropped:
        messages.append(f"reflections without a usable value or sigma, left out: {dropped}")
    absent = array.sys_absent_flags().data() & keep
    if absent.count(True):
        messages.append(f"systematic absences, left out: {absent.count(True)}")
        keep &= ~absent
    info = array.info()
    clean = array.customized_copy(data=data, sigmas=sigmas).set_observation_type(array).select(keep)
    return clean.set_observation_type(array).set_info(info)


def _reindexed(array, change_of_basis, symmetry):
    info = array.info()
    changed = array.change_basis(change_of_basis)
    changed = changed.customized_copy(crystal_symmetry=symmetry).set_observation_type(array).map_to_asu()
    return changed.set_observation_type(array).set_info(info)


def _extract(arrays, path, symmetry, test_flag_value, d_min, d_max, anomalous):
    observed = arrays[0]
    if observed.size() == 0:
        raise Sorry(f"{path} has no usable observations in {label_string(observed)}: name another column.")
    finest = observed.d_min()
    if d_min is not None and not (math.isfinite(d_min) and d_min > 0):
        raise Sorry(f"The high-resolution limit {d_min} Å is impossible: give a positive number.")
    if d_min is not None and d_min < _FINER_THAN_DATA * finest:
        raise Sorry(
            f"The data in {path} end at {finest:.2f} Å, short of the limit of {d_min:g} Å: choose "
            f"{finest:.2f} Å or coarser."
        )
    params = extract_xtal_data.data_and_flags_master_params().extract()
    params.high_resolution, params.low_resolution = d_min, d_max
    params.force_anomalous_flag_to_be_equal_to = bool(anomalous)
    params.r_free_flags.test_flag_value = test_flag_value
    server = reflection_file_utils.reflection_file_server(
        crystal_symmetry=symmetry, force_symmetry=True, miller_arrays=arrays, err=null_out()
    )
    try:
        result = extract_xtal_data.run(
            reflection_file_server=server,
            parameters=params,
            keep_going=True,
            extract_r_free_flags=len(arrays) > 1,
            extract_experimental_phases=False,
            allow_mismatch_flags=True,
        )
    except AttributeError:  # cctbx continues with None where the limits leave nothing
        result = None
    except (Sorry, RuntimeError, AssertionError) as error:
        raise Sorry(
            f"cctbx cannot use the data in {path} ({' '.join(str(error).split())[:160]}): correct "
            "the file or name other columns."
        ) from None
    if result is None or result.f_obs is None or result.f_obs.size() == 0:
        limits = f" between {d_max or 'infinity'} and {d_min or finest} Å" if d_min or d_max else ""
        raise Sorry(
            f"{path} has no reflections{limits} that go with the symmetry {crystal_name(symmetry)}: "
            "choose other limits or correct the symmetry."
        )
    return result


def crystal_name(symmetry):
    """Space group and cell on one line."""
    cell = " ".join(f"{value:g}" for value in symmetry.unit_cell().parameters())
    return f"{symmetry.space_group_info()} ({cell})"


def _as_data(result, path, source, observed, flags, messages):
    f_obs, r_free_flags = result.f_obs, result.r_free_flags
    n_before = result.raw_data_truncated.size()
    if observed.is_xray_intensity_array():
        failed = "Using alternative Iobs->Fobs conversion" in result.log.getvalue()
        kind = "intensities (square root)" if failed else "intensities (French-Wilson)"
        if failed:
            messages.append("French and Wilson's method failed on these intensities: negative ones were left out")
    else:
        kind = "amplitudes"
    if r_free_flags is not None:
        n_free = r_free_flags.data().count(True)
        if n_free == 0:
            messages.append(f"no reflection of the test set of {label_string(flags)} is within the limits")
            r_free_flags = None
        elif n_free > f_obs.size() / 2:
            raise Sorry(
                f"R-free flags {label_string(flags)} in {path} mark {n_free} of {f_obs.size()} "
                f"reflections with {result.test_flag_value}, more than half: give the right test "
                "value or other flags."
            )
        elif not observed.anomalous_flag() and kind == "amplitudes" and f_obs.size() < n_before:
            messages.append(f"reflections without an R-free flag, left out: {n_before - f_obs.size()}")
    elif flags is not None:
        messages.append(f"R-free flags {label_string(flags)} could not be used")
    if f_obs.sigmas() is None:
        messages.append(f"{label_string(observed)} come without sigmas")
    wavelength = getattr(observed.info(), "wavelength", None)
    used = r_free_flags is not None
    return Data(
        path=path,
        f_obs=f_obs,
        r_free_flags=r_free_flags,
        labels=label_string(observed),
        r_free_labels=label_string(flags) if used else None,
        test_flag_value=int(result.test_flag_value) if used else None,
        kind=kind,
        entry_id=source.entry_id,
        wavelength=wavelength or None,
        simulated="simulated" in (source.title + label_string(observed)).lower(),
        messages=tuple(messages),
    )


def data_symmetry(path):
    """The symmetry that a data file states, or None.

    Parameters
    ----------
    path : path

    Returns
    -------
    cctbx.crystal.symmetry or None
        Its cell or space group may be None.

    Raises
    ------
    libtbx.utils.Sorry
        If the file cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        symmetry = _open(read_content(path, "data"), folder).symmetry
    return symmetry if isinstance(symmetry, crystal.symmetry) else None
