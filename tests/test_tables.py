"""The numbers that are kept as data are cctbx's, to the last bit."""

import random

from mmtbx_sfdiff.tables import gaussians, read

import pytest

cctbx = pytest.importorskip("cctbx")

from cctbx.eltbx import e_scattering, neutron, van_der_waals_radii, xray_scattering  # noqa: E402

RESOLUTIONS = (
    0.0,
    0.08,
    0.1,
    0.2,
    0.25,
    0.3,
    0.4,
    0.5,
    0.51,
    0.6,
    0.8,
    0.9,
    1.0,
    1.1,
    1.5,
    2.0,
    2.5,
    3.0,
    4.0,
    6.0,
    10.0,
)


def as_tuple(gaussian):
    return tuple(gaussian.array_of_a()), tuple(gaussian.array_of_b()), gaussian.c() if gaussian.use_c() else 0.0


@pytest.mark.parametrize("table", ["it1992", "wk1995"])
def test_analytical_tables_are_those_of_cctbx(table):
    labels = [entry.label() for entry in getattr(xray_scattering, f"{table}_iterator")()]
    assert set(labels) | {"D", "T"} == set(read(table)) and len(labels) > 200
    for label in read(table):
        expected = getattr(xray_scattering, table)(label, True).fetch()
        assert gaussians.gaussian(label, table) == as_tuple(expected), label


def test_n_gaussian_has_the_same_terms_at_every_resolution():
    for label in read("n_gaussian"):
        for d_min in RESOLUTIONS:
            try:
                expected = as_tuple(xray_scattering.n_gaussian_table_entry(label, d_min, 0.0).gaussian())
            except RuntimeError:
                with pytest.raises(ValueError, match="does not hold to"):
                    gaussians.gaussian(label, "n_gaussian", d_min)
            else:
                assert gaussians.gaussian(label, "n_gaussian", d_min) == expected, (label, d_min)


def test_electron_and_neutron_tables_are_those_of_cctbx():
    labels = e_scattering.ito_vol_c_2011_table_4_3_2_2_elements()
    assert labels == list(read("electron"))
    for label in labels:
        expected = e_scattering.ito_vol_c_2011_table_4_3_2_2_entry_as_gaussian(label=label, exact=True)
        assert gaussians.gaussian(label, "electron") == as_tuple(expected)
    entries = list(neutron.neutron_news_1992_table_iterator())
    assert [entry.label() for entry in entries] == list(read("neutron"))
    for entry in entries:
        assert gaussians.gaussian(entry.label(), "neutron") == ((), (), entry.bound_coh_scatt_length().real)


def test_van_der_waals_radii_are_those_of_cctbx():
    assert read("van_der_waals_radii") == dict(van_der_waals_radii.vdw.table)


def test_scattering_types_are_understood_as_in_cctbx():
    texts = [*read("wk1995"), *read("neutron"), "X", "", "N1+", "Fe+2", "C1", "Zn5+", "const"]
    generator = random.Random(0)
    for label in list(texts):
        texts += [
            label.lower(),
            label.upper(),
            f" {label}",
            f"{label} ",
            label + generator.choice(["+", "-", "2+", "1-"]),
        ]
    for text in texts:
        if text.strip()[:-1] in ("T", "D"):
            continue  # cctbx knows a tritium anion, but has no numbers for it
        if text.strip().lower() in ("hiso", "cval", "sival", "const") and text.strip() not in (
            "Hiso",
            "Cval",
            "Sival",
            "const",
        ):
            continue  # capital letters of those are nobody's
        found = xray_scattering.get_standard_label(label=text, exact=True, optional=True)
        assert gaussians.standard_label(text) == found, text
        element = xray_scattering.get_element_and_charge_symbols(text)[0]
        assert gaussians.element_of(text) == element, text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("C", "it1991"), "There is no table 'it1991'"),
        (("Xx", "it1992"), "No form factor for scattering type 'Xx' in the table it1992"),
        (("Fe2+", "electron"), "No form factor for scattering type 'Fe2\\+' in the table electron"),
        (("C", "it1992", 0.2), "The table it1992 holds to 0.25 Å"),
        (("C", "n_gaussian", 0.01), "does not hold to 0.01 Å for C"),
    ],
)
def test_what_is_not_in_a_table_is_said(arguments, said):
    with pytest.raises(ValueError, match=said):
        gaussians.gaussian(*arguments)
