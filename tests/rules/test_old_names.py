"""Items and columns under the names of thirty years, and of many programs."""

from mmtbx_sfdiff.rules import (
    Column,
    b_is_residual,
    choose_flags,
    choose_observation,
    excluded,
    index_places,
    kind_of,
    radiation_messages,
    read_tag,
    usable,
)

import numpy as np
import pytest

RNG = np.random.default_rng(5)
N = 600
F = 10 + 90 * RNG.random(N)
FREE = (np.arange(N) % 12 == 0).astype(float)
LETTERS = np.where(FREE == 1, "f", "o")


def cif(**tags):
    return [Column(f"_refln.{tag}", np.asarray(values), block="x") for tag, values in tags.items()]


@pytest.mark.parametrize(
    "value, sigma, kind",
    [
        ("F_meas", "F_sigma", "amplitudes"),
        ("F_meas_au", "F_sigma", "amplitudes"),
        ("F_meas_au", "F_meas_au_sigma", "amplitudes"),
        ("F_obs_au", "F_obs_sigma_au", "amplitudes"),
        ("pdbx_F_meas", "pdbx_F_meas_sigma", "amplitudes"),
        ("I_meas_au", "I_meas_sigma_au", "intensities"),
        ("intensity", "intensity_sigm", "intensities"),
        ("intensity_meas", "intensity_meas_sigma_au", "intensities"),
        ("F_squared_meas", "F_squared_meas_sigma", "intensities"),
    ],
)
def test_an_old_item_is_measured_and_has_its_sigma(value, sigma, kind):
    columns = cif(F_calc_au=F, Fc_au=F, **{value: F + 1, sigma: 0.1 * F}, dfano=F)
    taken, _ = choose_observation(columns)
    assert (taken.kind, taken.value.short, taken.sigma.short) == (kind, value, sigma)


@pytest.mark.parametrize(
    "plus",
    ["ccp4_SAD_F_meas_plus_au", "pdbx_F_meas_plus", "F+_meas_au", "ccp4_I_plus", "pdbx_I_plus", "pdbx_F_plus"],
)
def test_mates_of_old_items_are_found_with_their_sigmas(plus):
    minus = plus.replace("plus", "minus").replace("+", "-")
    suffix = lambda name: name.replace("_au", "_sigma_au") if name.endswith("_au") else f"{name}_sigma"  # noqa: E731
    columns = cif(**{plus: F, suffix(plus): 0.1 * F, minus: F + 1, suffix(minus): 0.2 * F})
    taken, _ = choose_observation(columns)
    assert [column.short for column in taken.columns] == [plus, suffix(plus), minus, suffix(minus)]
    assert taken.is_anomalous


@pytest.mark.parametrize(
    "tag", "F_calc F_part_au fiber_F_meas_au pdbx_anom_difference I_ano_meas phase_meas F fom".split()
)
def test_other_items_are_nothing_measured(tag):
    assert read_tag(tag) is None


@pytest.mark.parametrize(
    "name", "FCAL FCTOT FTOT F_est F_exp FEM Fprot F_PHI FPHI FSIM FCXPLOR F_THEO F000 F_calc_all".split()
)
def test_amplitudes_that_a_program_made_are_not_taken_for_observed_ones(name):
    made = Column(name, F, "F")
    others = [Column("I", F**2, "J"), Column("SIGI", F, "Q")]
    assert choose_observation([made, *others])[0].labels == "I,SIGI"
    with pytest.raises(ValueError, match=r"\(calculated\)"):
        choose_observation([made])


def test_amplitudes_without_sigmas_do_not_hide_intensities_with_them():
    columns = [Column("FX", F, "F"), Column("I", F**2, "J"), Column("SIGI", F, "Q")]
    taken, said = choose_observation(columns)
    assert taken.labels == "I,SIGI" and "also present: FX" in said[0]


def test_sigmas_are_no_observations_whatever_their_type():
    columns = [Column("SIGFP", 0.1 * F, "F"), Column("FP", F, "F")]
    assert choose_observation(columns)[0].labels == "FP,SIGFP"
    assert kind_of(columns[0]) is None


def test_known_names_count_where_the_type_says_nothing():
    assert choose_observation([Column("FP", F, "R"), Column("SIGFP", 0.1 * F, "R")])[0].labels == "FP,SIGFP"
    assert kind_of(Column("PKRATIO", F, "R")) is None


@pytest.mark.parametrize("name, type_, taken", [("IMEAN", "F", "amplitudes"), ("FP", "J", "intensities")])
def test_a_type_that_the_name_contradicts_is_said(name, type_, taken):
    columns = [Column(name, F, type_), Column("SIG", 0.1 * F, "Q")]
    for labels in (None, name):
        found, said = choose_observation(columns, labels)
        assert found.kind == taken and f"{name} has the name of" in said[-1]


@pytest.mark.parametrize(
    "tag, values",
    [
        ("status", np.char.upper(LETTERS)),
        ("statu", LETTERS),
        ("F_status", LETTERS),
        ("status_au", LETTERS),
        ("R_free_flag", LETTERS),
        ("status", np.where(FREE == 1, "free", "work")),
        ("phenix_R_free_flags", FREE),
    ],
)
def test_flags_in_any_letters_under_any_old_name(tag, values):
    flags, _ = choose_flags(cif(**{tag: values}))
    assert flags.free.sum() == FREE.sum()
    assert not excluded(cif(**{tag: values}) if "status" in tag else None, N)[0].any()


def test_the_strength_of_a_signal_is_no_status():
    columns = cif(pdbx_signal_status=np.where(np.arange(N) % 3, "o", "<"), status=LETTERS)
    flags, _ = choose_flags(columns)
    assert flags.column.short == "status" and flags.free.sum() == FREE.sum()


def test_every_status_column_can_reject():
    columns = cif(
        refinement_status=np.where(np.arange(N) % 9 == 4, "excl", "incl"),
        observed_status=np.where(np.arange(N) % 9 == 5, "x", "o"),
    )
    out, reasons = excluded(columns, N)
    assert sorted(reasons.values()) == [67, 67] and out.sum() == 134


def test_flags_of_the_two_mates_are_one_test_set():
    plus, minus = FREE.copy(), FREE.copy()
    plus[::3], minus[1::3] = np.nan, np.nan
    columns = [Column("R-free-flags(+)", plus, "I"), Column("R-free-flags(-)", minus, "I")]
    for labels in (None, "R-free-flags(+)"):
        flags, _ = choose_flags(columns, labels)
        assert flags.known.all() and np.array_equal(flags.free, FREE == 1)


def test_degrees_of_freedom_are_no_flags():
    assert choose_flags([Column("NFREEDOM", np.arange(N) % 20.0, "I")])[0] is None


@pytest.mark.parametrize("marker", [-1.0, -99.0, -999.0, -9999.0])
def test_one_negative_number_again_and_again_is_a_missing_value(marker):
    values = np.where(np.arange(N) % 8 == 1, marker, F)
    columns = cif(F_meas_au=values, F_meas_sigma_au=0.1 * F)
    taken, _ = choose_observation(columns)
    keep, _, left_out, _ = usable(values, 0.1 * F)
    assert taken.value.short == "F_meas_au" and keep.sum() == N - 75 and sum(left_out.values()) == 75


def test_a_marker_among_intensities_is_no_measurement():
    values = np.where(np.arange(N) % 8 == 1, -999.0, F)
    assert usable(values, np.full(N, 400.0), "intensities")[2] == {"no value": 75}
    assert usable(np.where(np.arange(N) < 2, -999.0, F), F, "intensities")[2] == {}  # twice may be measured


def test_index_columns_in_another_order_are_known_by_their_names():
    assert index_places(["L", "F", "K", "H"], ["H", "F", "H", "H"]) == [3, 2, 0]
    assert index_places(["H1", "K1", "L1"], ["H", "H", "H"]) == [0, 1, 2]


@pytest.mark.parametrize(
    "header, residual",
    [
        ("REMARK   3   U VALUES      : RESIDUAL ONLY", True),
        ("REMARK   3  ATOM RECORD CONTAINS RESIDUAL\nREMARK   3  B FACTORS ONLY", True),
        ("ISOTROPIC B-FACTORS ARE RESIDUAL B-FACTORS AFTER TLS REFINEMENT", True),
        ("REMARK   3   U VALUES      : WITH TLS ADDED", False),
        ("REMARK   3  ATOM RECORD CONTAINS SUM OF TLS AND RESIDUAL B FACTORS", False),
        ("U VALUES : RESIDUAL ONLY; ATOM RECORD CONTAINS SUM OF TLS AND RESIDUAL B FACTORS", False),
        ("U VALUES : REFINED INDIVIDUALLY; RMS DEVIATION OF RESIDUALS", False),
    ],
)
def test_words_for_residual_b_factors(header, residual):
    assert b_is_residual(header) is residual


def test_microscopy_is_electrons_too():
    assert "electron microscopy" in radiation_messages(["ELECTRON MICROSCOPY"], "n_gaussian")[0]
    assert radiation_messages(["ELECTRON MICROSCOPY"], "electron") == []
