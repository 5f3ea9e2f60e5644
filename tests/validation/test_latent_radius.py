"""The study of the radius of convergence: starts as wrong as asked and of good geometry, curves that find the half-way point."""

import functools
import json

import torch
from mmtbx_sfdiff.geometry import find_library

import gemmi
import numpy as np
import pytest

from tests.support.peptide import peptide
from validation.studies.latent_radius.curves import bootstrap, fit
from validation.studies.latent_radius.starts import main_chain, rms, sites_of, stripped, with_sites, wrong_start

SEQUENCE = ("ALA", "SER", "ALA", "CYS", "ALA", "SER", "ALA", "SER", "ALA", "ALA", "SER", "ALA", "SER", "ALA")


@pytest.fixture(scope="module")
def library():
    try:
        return str(find_library().path)
    except ValueError:
        pytest.skip("no monomer library")


@pytest.mark.parametrize("kind", ["bend", "loop", "rotamers"])
def test_starts_are_as_wrong_as_asked_and_sane(kind, library):
    deposited = stripped(peptide(SEQUENCE))
    sites, facts = wrong_start(deposited, kind, 1.0, 0, library)
    truth, main = sites_of(deposited), main_chain(deposited)
    assert 0.8 <= facts["rms_main"] <= 1.2 and facts["rms_main"] == pytest.approx(rms(sites, truth, main))
    assert facts["bond_rms"] < 0.02 and facts["angle_rms"] < 4
    # In its place: superposed, as molecular replacement would put it.
    assert float((sites - truth)[main].mean(0).norm()) < 1e-6
    again, _ = wrong_start(deposited, kind, 1.0, 0, library)
    torch.testing.assert_close(again, sites, rtol=0, atol=0.01)
    other, _ = wrong_start(deposited, kind, 1.0, 3, library)
    assert not torch.allclose(other, sites, atol=0.1)
    if kind == "rotamers":
        assert 0 < facts["turned"] <= facts["rotamers_wrong"][1]


def test_waters_conformers_and_hydrogens_go():
    structure = peptide(("ALA", "SER", "ALA"))
    n = structure[0].count_atom_sites()
    water = gemmi.Residue()
    water.name, water.seqid = "HOH", gemmi.SeqId("90")
    atom = gemmi.Atom()
    atom.name, atom.element = "O", gemmi.Element("O")
    water.add_atom(atom)
    chain = gemmi.Chain("W")
    chain.add_residue(water)
    structure[0].add_chain(chain)
    hydrogen = gemmi.Atom()
    hydrogen.name, hydrogen.element, hydrogen.pos = "HA", gemmi.Element("H"), gemmi.Position(1, 2, 3)
    structure[0]["A"][1].add_atom(hydrogen)
    result = stripped(structure)
    assert result[0].count_atom_sites() == n and structure[0].count_atom_sites() == n + 2
    moved = with_sites(result, sites_of(result) + 1.0, 33.0)
    assert {cra.atom.b_iso for cra in moved[0].all()} == {33.0}


def test_the_half_way_point_is_found_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 3.5, 400)
    success = rng.random(400) < 1 / (1 + np.exp(4 * (x - 1.8)))
    curve = fit(x, success)
    assert curve.half == pytest.approx(1.8, abs=0.15) and curve.slope == pytest.approx(4, rel=0.35)
    near = {k: (x[k], success[k]) for k in range(60)}
    far = {k: (x[k], rng.random() < 1 / (1 + np.exp(4 * (x[k] - 2.8)))) for k in range(60)}
    halves = bootstrap({"near": near, "far": far}, n=60)
    low, high = np.quantile(halves["far"] - halves["near"], (0.025, 0.975))
    assert 0 < low < 1.0 < high < 2
    # Where everything succeeds there is no half-way point within: it is beyond what was tried.
    assert fit([1.0, 2.0, 3.0], [True] * 3).half > 3.0 and fit([1.0, 2.0, 3.0], [False] * 3).half < 1.0


def test_the_report_compares_the_starts_that_all_have_run(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from validation.studies.latent_radius import report

    monkeypatch.setattr(report, "bootstrap", functools.partial(report.bootstrap, n=20))
    folder = tmp_path / "runs" / "1abc"
    folder.mkdir(parents=True)
    (folder / "deposited.json").write_text(json.dumps({"r_work": 0.2, "r_free": 0.25}))
    for target in (1.0, 2.0, 3.0):
        start = {
            "kind": "bend",
            "seed": 0,
            "target_rms": target,
            "rms_main": target,
            "rms_all": target + 0.5,
            "r": [0.5, 0.5],
        }
        for method, limit in (("latent_elastic", 2.5), ("rigid_refine", 1.5)):
            good = target < limit
            record = {
                "entry": "1abc",
                "method": method,
                "start": start,
                "r_work": 0.2,
                "r_free": 0.26 if good or method == "latent_elastic" else 0.5,
                "rms_main": 0.2 if good else target,
                # Where the ends alone are wrong, they are not counted.
                "rms_ordered": 0.2,
                "rms_all": 1.0,
                "rms_main_before_polish": 1.0,
                "r_before_polish": [0.3, 0.3],
                "seconds": {"method": 1.0, "polish": 1.0},
                "version": "x",
            }
            (folder / f"{target}_0_{method}.json").write_text(json.dumps(record))
    start = start | {"seed": 1}
    lone = {"entry": "1abc", "method": "latent_elastic", "start": start, "failed": "Traceback\nValueError: no"}
    (folder / "3.0_1_latent_elastic.json").write_text(json.dumps(lone))
    text = report.write(tmp_path, tmp_path)
    assert "3 starts that every method has run" in text
    assert "latent, elastic network     2 of  3" in text and "rigid bodies, refine        1 of  3" in text
    whole, ordered = text.split("of ordered residues")
    assert "latent, elastic network     3 of  3" in ordered and "rigid bodies, refine        1 of  3" in ordered
    assert "2 (3) of 3" in (tmp_path / "latent_radius.inc").read_text()
    assert (tmp_path / "latent_radius.png").stat().st_size > 5000
    rows = (tmp_path / "latent_radius.csv").read_text().splitlines()
    assert len(rows) == 8 and sum(row.split(",")[-4] == "True" for row in rows[1:]) == 3
    assert "failed: ValueError: no" in report.line(lone)
