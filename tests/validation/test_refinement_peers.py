"""Starts of the study beside servalcat."""

import gemmi
import numpy as np
import pytest

from tests.support.monomers import shipped_structure
from validation.studies import refinement_peers_report as reporting
from validation.studies.refinement_peers import cut_to_alanine
from validation.studies.refinement_peers import test_set as new_test_set


def test_side_chains_are_cut_to_alanine_and_nothing_else_goes():
    structure = shipped_structure()
    structure.remove_hydrogens()
    before = {(str(r.seqid), r.name): [(a.name, a.altloc, a.pos.tolist()) for a in r] for c in structure[0] for r in c}
    cut = structure.clone()
    cut_to_alanine(cut)
    kept = {"N", "CA", "C", "O", "OXT", "CB"}
    after = {str(r.seqid): r for c in cut[0] for r in c}
    assert len(after) == len(before)
    n = 0
    for (number, name), atoms in before.items():
        residue = after[number]
        if gemmi.find_tabulated_residue(name).is_amino_acid() and name not in ("GLY", "PRO"):
            assert residue.name == "ALA"
            atoms = [atom for atom in atoms if atom[0] in kept]
            n += 1
        else:
            assert residue.name == name
        assert [(a.name, a.altloc, a.pos.tolist()) for a in residue] == atoms
    assert n > 20 and not len(cut.connections)


def test_each_reflection_is_free_in_one_of_the_test_sets_drawn_anew():
    flex = pytest.importorskip("cctbx.array_family.flex")
    from cctbx import crystal, miller

    symmetry = crystal.symmetry((20, 21, 22, 90, 90, 90), "P 21 21 21")
    indices = miller.build_set(symmetry, anomalous_flag=False, d_min=2.5)
    flags = indices.array(data=flex.bool((np.arange(indices.size()) % 10 == 0).tolist()))
    sets = [new_test_set(flags, number).data().as_numpy_array() for number in range(10)]
    assert all(abs(int(s.sum()) - indices.size() / 10) <= 1 for s in sets)
    np.testing.assert_array_equal(np.sum(sets, axis=0), 1)


def row(entry, program, r_work, r_free, **more):
    common = {"start": "deposited", "bond": 0.01, "angle": 1.5, "d_min": 2.0, "n_free": 500, "seconds": {"cpu": 1.0}}
    return {"entry": entry, "program": program, "r_work": r_work, "r_free": r_free} | common | more


def test_a_table_for_docs_marks_entries_and_counts_what_is_above():
    rows = [row(e, "start", 0.20, 0.25, deposited_r_free=0.252) for e in ("1aaa", "1bbb", "1ccc")]
    rows += [row(e, "peer", 0.19, 0.24) for e in ("1aaa", "1bbb", "1ccc")]
    rows += [row("1aaa", "ours", 0.18, 0.23), row("1bbb", "ours", 0.19, 0.235), row("1ccc", "ours", 0.2, 0.2601)]
    text = reporting.as_rst(rows, ["peer", "ours"], ("1bbb",))
    assert "1bbb* 2.00" in text and "1aaa  2.00" in text
    assert (
        "ours, 3 entries: R-free -0.0050 against peer's in the median, below it in 2, above by more than allowed in 1ccc"
        in text
    )
    # 0.0101 up, allowed 2 * 0.25 / sqrt(1000) = 0.0158.
    assert (
        "the 3 with credible flags: R-free -0.0150 against the start in the median, lower in 2, up by more than" in text
    )
    assert text.rstrip().endswith("in none.")
    rows[0]["deposited_r_free"] = 0.20
    assert "the other 1: above peer's R-free in 0" in reporting.as_rst(rows, ["peer", "ours"], ())
