"""Rules on columns, flags and rows: what is an observation, what is a test set, what takes part."""

import dataclasses

from mmtbx_sfdiff.rules import Column, free_flags, rows
from mmtbx_sfdiff.rules import columns as rules

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

RNG = np.random.default_rng(3)
F = 10 + 90 * RNG.random(2000)
ONES = np.ones(2000)


def mtz(**typed):
    """Columns of an MTZ file: name = (type, values)."""
    return [
        Column(name.replace("__", "-"), np.asarray(values, dtype=float), type_)
        for name, (type_, values) in typed.items()
    ]


def cif(block="r9xyzsf", **tags):
    columns = []
    for tag, values in tags.items():
        values = np.asarray(values)
        columns.append(Column(f"_refln.{tag}", values if values.dtype.kind == "U" else values.astype(float), "", block))
    return columns


def whole(*parts):
    """Whole numbers in random order: (value, count) pairs."""
    values = np.concatenate([np.full(n, value) for value, n in parts])
    return np.random.default_rng(0).permutation(values)


# observations


@pytest.mark.parametrize(
    "name",
    "FC FCALC FC_ALL F-model F_model FWT DELFWT 2FOFCWT 2mFoDFc F_mask FBULK FPART1 FOM F_calc(+) FC_ALL_LS".split(),
)
def test_calculated_columns_are_never_observations(name):
    columns = [Column(name, F, "F"), Column("F", 2 * F, "F"), Column("SIGF", ONES, "Q")]
    assert rules.choose_observation(columns)[0].labels == "F,SIGF"
    with pytest.raises(ValueError, match=r"no observed.*\(calculated\)"):
        rules.choose_observation(columns[:1])
    said = rules.choose_observation(columns, name)[1]
    assert said == [f"{name} was calculated, by its name: taken because it was asked for"]


@pytest.mark.parametrize(
    "calculated, measured",
    [
        ("F_squared_calc", "F_squared_meas"),
        ("pdbx_F_calc_with_solvent", "F_meas_au"),
        ("F_calc_au", "F_meas"),
        ("intensity_calc", "intensity_meas"),
    ],
)
def test_calculated_items_are_never_observations(calculated, measured):
    columns = cif(**{calculated: F, measured: 2 * F})
    assert rules.choose_observation(columns)[0].value.short == measured
    with pytest.raises(ValueError, match="no observed amplitudes"):
        rules.choose_observation(columns[:1])


def test_constant_columns_are_no_observations_and_the_reason_is_said():
    columns = mtz(F_unique=("F", 10 * ONES), SIGF_unique=("Q", ONES), IMEAN=("J", F), SIGIMEAN=("Q", ONES))
    taken, said = rules.choose_observation(columns)
    assert taken.labels == "IMEAN,SIGIMEAN"
    assert "no observations, because their values are all the same: F_unique (all 10)" in said
    with pytest.raises(ValueError, match=r"F_unique \(all 10\)"):
        rules.choose_observation(columns[:2], where="x.mtz")
    with pytest.raises(ValueError, match="same value everywhere"):
        rules.choose_observation(columns, "F_unique")


def test_map_coefficients_are_no_observations():
    columns = mtz(
        **{"parrot.F_phi.F": ("F", F), "parrot.F_phi.phi": ("P", F), "FP": ("F", 2 * F), "SIGFP": ("Q", ONES)}
    )
    assert rules.choose_observation(columns)[0].labels == "FP,SIGFP"


def test_amplitudes_are_preferred_and_the_others_are_listed():
    columns = mtz(I=("J", F), SIGI=("Q", ONES), FP=("F", F), SIGFP=("Q", ONES))
    taken, said = rules.choose_observation(columns)
    assert taken.labels == "FP,SIGFP" and said == ["observations: took FP,SIGFP; also present: I,SIGI"]
    assert rules.choose_observation(columns, prefer="intensities")[0].labels == "I,SIGI"


def test_sigmas_are_found_by_name_or_by_place():
    columns = mtz(FP=("F", F), FREE=("I", ONES), SIGFP=("Q", ONES), Fx=("F", F), whatever=("Q", 2 * ONES))
    assert rules.sigma_of(columns[0], columns).name == "SIGFP"
    assert rules.sigma_of(columns[3], columns).name == "whatever"
    assert rules.sigma_of(columns[0], columns[:2]) is None
    tags = cif(
        F_meas_au=F,
        F_meas_sigma_au=ONES,
        intensity_meas=F,
        intensity_sigma=ONES,
        F_squared_meas=F,
        F_squared_sigma=ONES,
    )
    assert [rules.sigma_of(column, tags).short for column in tags[::2]] == [
        "F_meas_sigma_au",
        "intensity_sigma",
        "F_squared_sigma",
    ]


def test_bijvoet_mates_are_one_observation():
    columns = mtz(**{"F(+)": ("G", F), "SIGF(+)": ("L", ONES), "F(-)": ("G", F), "SIGF(-)": ("L", ONES)})
    taken, _ = rules.choose_observation(columns)
    assert taken.labels == "F(+),SIGF(+),F(-),SIGF(-)" and taken.is_anomalous
    mean = mtz(F=("F", F), SIGF=("Q", ONES))
    assert rules.choose_observation(columns + mean)[0].labels == "F,SIGF"
    assert rules.choose_observation(columns + mean, anomalous=True)[0].is_anomalous
    tags = cif(pdbx_I_plus=F, pdbx_I_plus_sigma=ONES, pdbx_I_minus=F, pdbx_I_minus_sigma=ONES)
    assert rules.choose_observation(tags)[0].minus_sigma.short == "pdbx_I_minus_sigma"


def test_labels_that_name_nothing_or_no_observation():
    columns = mtz(FP=("F", F), SIGFP=("Q", ONES), PHI=("P", F))
    with pytest.raises(ValueError, match="x.mtz has no array labelled NIX for the data: choose among FP,SIGFP; PHI"):
        rules.choose_observation(columns, "NIX", where="x.mtz")
    with pytest.raises(ValueError, match="neither amplitudes nor intensities: choose among FP,SIGFP"):
        rules.choose_observation(columns, "PHI")
    two = cif("a", F_meas_au=F) + cif("b", F_meas_au=F)
    with pytest.raises(ValueError, match="several arrays"):
        rules.choose_observation(two, "F_meas_au")
    assert rules.choose_observation(two, "b,F_meas_au")[0].value is two[1]


NAMES = st.text("FIPOCSGMEANobscalmeanfree-_()+0123456789", min_size=1, max_size=12)


@given(st.lists(st.tuples(NAMES, st.sampled_from("FJGKQLMDPWABYIRE"), st.booleans()), max_size=8), st.randoms())
@settings(max_examples=150, deadline=None)
def test_any_set_of_columns_gives_observations_or_a_sentence(described, random):
    """What is taken has an observation's type, or its name and that of any number; it is not calculated, not constant, and does not depend on other columns."""
    columns = [
        Column(name, np.full(50, 3.0) if constant else 1 + F[:50] * (number + 1), type_)
        for number, (name, type_, constant) in enumerate(described)
    ]
    try:
        taken, said = rules.choose_observation(columns)
    except ValueError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
        assert not rules.observations(columns)[0]
        return
    named = taken.value.type == "R" and rules.kind_of(dataclasses.replace(taken.value, type="")) == taken.kind
    assert (
        (taken.value.type in "FGJK" or named)
        and not rules.is_calculated(taken.value)
        and not rules.is_constant(taken.value.values)
    )
    assert taken.sigma is None or taken.sigma.type in "QLMR"
    if not any(column.type == "P" for column in columns):  # a phase makes a map of the column before it
        random.shuffle(columns)
    kinds = {one.kind for one in rules.observations(columns)[0]}
    assert taken.kind in kinds
    assert free_flags.choose_flags(columns, strict=False)[0] is None or any(map(free_flags.is_flag_column, columns))


# flags

NOT_FLAGS = "N BIN CENTRIC EPSILON FLAG MULT ISYM BATCH pdbx_redundancy symmetry_epsilon symmetry_multiplicity".split()


@pytest.mark.parametrize("name", NOT_FLAGS)
def test_whole_numbers_are_no_flags_by_their_values(name):
    column = Column(name, whole((0, 1800), (1, 200)).astype(float), "I")
    flags, said = free_flags.choose_flags([column])
    assert flags is None and "no R-free flags" in said[0]


@pytest.mark.parametrize(
    "parts, expected",
    [
        (((0, 2166), (1, 157)), 1),  # CNS, Phenix
        (((0, 157), (1, 2166)), 0),  # CCP4 with two values
        (((-1, 157), (1, 2166)), -1),  # SHELX
        (((-1, 100), (0, 2000), (1, 150)), 1),  # CNS, with -1 for no flag
        (((0, 1082), (1, 157), (2, 1084)), 1),  # CNS, 2 for rejected
        (((0, 100), (1, 1800), (2, 100)), 0),
        (tuple((i, 100) for i in range(20)), 0),  # CCP4
        (tuple((i, 100) for i in range(1, 21)), 1),
        (tuple((i, 100 if i < 20 else 7) for i in range(21)), 0),
        (tuple((i, 400) for i in range(5)), 0),
    ],
)
def test_test_value_by_convention(parts, expected):
    assert free_flags.find_test_value(whole(*parts)) == expected


@pytest.mark.parametrize(
    "parts, said",
    [
        (((0, 2000),), "are all 0"),
        (((0, 1000), (1, 1000)), r"have the values 0 \(1000\), 1 \(1000\)"),
        (((0, 700), (1, 1300)), r"1 \(1300\), 0 \(700\)"),
        (((0, 2311), (1, 12)), r"0 \(2311\), 1 \(12\)"),
        (((0, 50), (1, 50), (7, 1900)), r"7 \(1900\)"),
        (((0, 500), (1, 500), (2, 500)), r"0 \(500\)"),
        ((), "have no values"),
    ],
)
def test_flags_that_cannot_be_a_test_set_are_refused_with_counts(parts, said):
    values = whole(*parts) if parts else np.zeros(0)
    with pytest.raises(free_flags.UnusableFlags, match=said):
        free_flags.find_test_value(values)
    flags, messages = free_flags.choose_flags([Column("FREE", values.astype(float), "I")], strict=False)
    assert flags is None and "no R-free" in messages[0]


def test_a_given_value_is_taken_for_a_small_set_but_not_for_most_of_the_data():
    column = Column("FreeR_flag", whole((0, 2311), (1, 12)).astype(float), "I")
    assert free_flags.choose_flags([column], test_value=1)[0].free.sum() == 12
    with pytest.raises(free_flags.UnusableFlags, match="mark 99% of the reflections with 0"):
        free_flags.choose_flags([column], test_value=0)
    with pytest.raises(free_flags.UnusableFlags, match="mark 0% of the reflections with 5"):
        free_flags.choose_flags([column], test_value=5)
    with pytest.raises(ValueError, match="not a whole number"):
        free_flags.choose_flags([column], test_value=0.5)


def test_reflections_without_a_flag_are_work_reflections():
    values = np.concatenate([np.full(775, np.nan), np.zeros(102), np.ones(1446)])
    flags, said = free_flags.choose_flags(cif(pdbx_r_free_flag=values))
    assert flags.test_value == 0 and flags.free.sum() == 102 and flags.known.sum() == 1548
    assert said == ["reflections without an R-free flag, used as work reflections: 775"]


def test_status_marks_the_test_set_with_f():
    status = np.array(["o"] * 900 + ["f"] * 90 + ["x"] * 10)
    flags, said = free_flags.choose_flags(cif(F_meas_au=F[:1000], status=status))
    assert (flags.test_value, flags.free.sum(), said) == ("f", 90, [])
    none, said = free_flags.choose_flags(cif(status=np.array(["o"] * 1000)))
    assert none is None and "no R-free flags" in said[0]
    few, said = free_flags.choose_flags(cif(status=np.array(["o"] * 2320 + ["f"] * 3)))
    assert few is None and "f (3), others (2320): no test set, so there is no R-free" in said[0]
    numeric, _ = free_flags.choose_flags(cif(status=np.array(["0"] * 900 + ["1"] * 100)))
    assert numeric.test_value == 1 and numeric.free.sum() == 100


def test_flags_that_disagree_are_said():
    number = np.array([1.0] * 157 + [0.0] * 2000)
    status = np.array(["f"] * 137 + ["o"] * 2020)
    flags, said = free_flags.choose_flags(cif(pdbx_r_free_flag=number, status=status))
    assert flags.column.short == "pdbx_r_free_flag"
    assert "equally suitable: r9xyzsf,_refln.status (20 reflections are marked otherwise)" in said[0]


@given(st.lists(st.tuples(st.integers(-2, 25), st.integers(0, 300)), max_size=6), st.randoms())
@settings(max_examples=200, deadline=None)
def test_a_test_set_is_never_large_and_does_not_depend_on_the_order(parts, random):
    values = np.concatenate([np.full(n, value) for value, n in parts] + [np.zeros(0, dtype=int)])
    shuffled = values.copy()
    np.random.default_rng(random.randint(0, 99)).shuffle(shuffled)
    try:
        value = free_flags.find_test_value(values)
    except free_flags.UnusableFlags:
        with pytest.raises(free_flags.UnusableFlags):
            free_flags.find_test_value(shuffled)
        return
    assert value == free_flags.find_test_value(shuffled)
    assert 0 < (values == value).mean() <= free_flags.MOST


# rows


def test_rows_of_a_status_that_is_neither_o_nor_f_take_no_part():
    status = Column("_refln.status", np.array(["o", "f", "x", "<", "h", "l", "-", "?", "1", "x"]))
    out, reasons = rows.excluded(status, 10)
    assert out.tolist() == [False, False, True, True, True, True, True, False, False, True]
    assert sum(reasons.values()) == 6 and reasons["status x (unreliable)"] == 2


def test_sigmas_that_are_missing_take_their_reflections_with_them_and_no_others():
    sigmas = ONES.copy()
    sigmas[:20], sigmas[20:25] = np.nan, 0
    keep, kept, left_out, said = rows.usable(F, sigmas)
    assert keep.sum() == 1975 and kept is not None and left_out == {"no usable sigma": 25} and said == []
    for bad in (0 * ONES, np.nan * ONES):
        keep, kept, left_out, said = rows.usable(F, bad)
        assert keep.all() and kept is None and left_out == {} and "sigmas" in said[0]


@given(
    st.lists(st.sampled_from([1.0, 0.0, -1.0, np.nan, np.inf, -np.inf, 1e31]), min_size=1, max_size=30),
    st.lists(st.sampled_from([1.0, 0.0, -1.0, np.nan, np.inf]), min_size=30, max_size=30),
    st.sampled_from(["amplitudes", "intensities"]),
)
@settings(max_examples=200, deadline=None)
def test_every_row_is_used_or_counted(values, sigmas, kind):
    values = np.array(values)
    keep, kept, left_out, _ = rows.usable(values, np.array(sigmas[: len(values)]), kind)
    assert keep.sum() + sum(left_out.values()) == len(values)
    assert np.isfinite(values[keep]).all() and (kind == "intensities" or (values[keep] >= 0).all())
    assert kept is None or (kept[keep] > 0).all()


def test_a_merged_reflection_is_free_if_any_row_is():
    group = np.array([0, 0, 1, 1, 2])
    free, mixed = rows.free_of_equivalents(group, np.array([True, False, False, False, True]))
    assert free.tolist() == [True, False, True] and mixed == 1


def test_the_cell_of_the_model_chooses_the_block():
    native, derivative = (28, 31, 36, 90, 90, 90), (29, 31, 36, 90, 90, 90)
    assert rows.which_cell([derivative, None, native], native) == 2
    assert rows.which_cell([derivative], native) is None and rows.which_cell([native], None) is None
