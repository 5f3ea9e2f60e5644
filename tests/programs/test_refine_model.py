"""``mmtbx_sfdiff.refine``: which parameters, hydrogens, waters, and what cannot be refined."""

import json

from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.command_line.refine import run

import gemmi
import numpy as np
import pytest

from tests.support.monomers import library_or_skip

FEW = ["cycles=2", "steps=5", "mask=binary", "figure=False", "report=False"]


@pytest.fixture(scope="module")
def files_1yjp(pdb_dir):
    return [str(pdb_dir / "1yjp" / name) for name in ("1yjp.pdb.gz", "1yjp-sf.cif.gz")]


def refined(files, folder, *words):
    library_or_skip()
    assert run([*files, *FEW, *words, f"directory={folder}"]) == 0
    result = json.loads((folder / "1yjp_refined.json").read_text())
    return result, gemmi.read_structure(str(folder / "1yjp_refined.pdb"))


def test_what_is_refined_is_said_in_a_line(files_1yjp, tmp_path, capsys):
    result, _ = refined(files_1yjp, tmp_path)
    line = next(m for m in result["messages"] if m.startswith("Refined: "))
    assert line in capsys.readouterr().out
    assert "a site for each atom" in line and "a displacement parameter for each atom" in line
    assert "work reflections for each atom" in line


@pytest.mark.parametrize(
    "words, check",
    [
        (
            ["adp_model=grouped"],
            lambda s: len({round(a.b_iso, 2) for a in s[0][0][1] if a.name in ("N", "CA", "C", "O")}) == 1,
        ),
        (
            ["adp_model=anisotropic"],
            lambda s: all(c.atom.aniso.nonzero() == (c.residue.name != "HOH") for c in s[0].all()),
        ),
        (["adp_model=tls"], lambda s: all(c.atom.aniso.nonzero() == (c.residue.name != "HOH") for c in s[0].all())),
        (["occupancies=all"], lambda s: min(c.atom.occ for c in s[0].all() if c.residue.name == "HOH") < 1),
    ],
)
def test_parameters_that_are_asked_for(words, check, files_1yjp, tmp_path):
    result, structure = refined(files_1yjp, tmp_path, *words)
    assert check(structure)
    assert result["final"]["r_work"] < result["start"]["r_work"] + 0.02
    assert result["geometry"]["final"]["bond"] < 0.03


@pytest.mark.parametrize("kind", ["pdb", "mmcif"])
def test_tls_groups_are_in_every_file_and_counted_once(kind, files_1yjp, tmp_path):
    """R of the file that was written, read again, is the refinement's."""
    library_or_skip()
    words = ["adp_model=tls", f"model_format={kind}", f"directory={tmp_path}"]
    assert run([*files_1yjp, *FEW, *words]) == 0
    result = json.loads((tmp_path / "1yjp_refined.json").read_text())
    (group,) = result["tls"]
    assert group["selection"] == "chain A and resseq 1:7" and group["T"] == result["cycles"][-1]["tls"][0]["T"]
    path = next(p for p in tmp_path.glob("1yjp_refined.*") if p.suffix in (".pdb", ".cif"))
    again = FModel.from_files(path, files_1yjp[1], mask={"method": "binary"})
    again.update_scales()
    assert again.r_factors()[0] == pytest.approx(result["final"]["r_work"], abs=2e-3)
    (read,) = gemmi.read_structure(str(path)).meta.refinement[0].tls_groups
    for name in "TLS":
        assert np.allclose(
            np.array(getattr(read, name).tolist() if name == "S" else getattr(read, name).as_mat33().tolist()),
            group[name],
            atol=1e-4,
        )


def test_hydrogens_are_added_ride_and_are_written(files_1yjp, tmp_path):
    result, structure = refined(files_1yjp, tmp_path, "hydrogens=add")
    hydrogens = [c for c in structure[0].all() if c.atom.is_hydrogen()]
    assert len(hydrogens) > 30 and any(f"{len(hydrogens)} hydrogens placed" in m for m in result["messages"])
    for cra in hydrogens:
        assert 0.75 < min(a.pos.dist(cra.atom.pos) for a in cra.residue if not a.is_hydrogen()) < 1.2


def test_hydrogens_are_taken_off(files_1yjp, tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    refined(files_1yjp, first, "hydrogens=add", "cycles=1", "steps=1")
    again = tmp_path / "again"
    again.mkdir()
    library_or_skip()
    files = [str(first / "1yjp_refined.pdb"), files_1yjp[1]]
    assert run([*files, *FEW, "hydrogens=none", "cycles=1", "steps=1", f"directory={again}"]) == 0
    made = gemmi.read_structure(str(again / "1yjp_refined_refined.pdb"))
    assert not any(c.atom.is_hydrogen() for c in made[0].all())


def test_waters_are_added_and_the_table_begins_with_the_model_given(files_1yjp, tmp_path):
    structure = gemmi.read_structure(files_1yjp[0])
    structure.remove_waters()
    dry = tmp_path / "1yjp.pdb"
    structure.write_pdb(str(dry))
    result, made = refined([str(dry), files_1yjp[1]], tmp_path, "waters=True", "cycles=3")
    words = [m for m in result["messages"] if m.startswith("waters, ")]
    assert words and "added" in words[0]
    n = sum(c.residue.name == "HOH" for c in made[0].all())
    assert n >= 1 and made[0].count_atom_sites() == structure[0].count_atom_sites() + n
    assert [c["cycle"] for c in result["cycles"]] == list(range(1, len(result["cycles"]) + 1)) and len(
        result["cycles"]
    ) > 3
    assert result["final"]["r_work"] < result["start"]["r_work"]
    without, _ = refined([str(dry), files_1yjp[1]], tmp_path, "overwrite=True", "cycles=1", "steps=1")
    assert without["start"] == result["start"] and without["geometry"]["start"] == result["geometry"]["start"]


@pytest.mark.parametrize(
    "words, needle",
    [
        (["hydrogens=add", "library=/nowhere"], "no monomer library"),
        (["waters=True", "d_min=4"], "show no single waters"),
        (["library=/nowhere"], "no monomer library"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words, needle, files_1yjp, tmp_path, capsys):
    library_or_skip()
    assert run([*files_1yjp, *FEW, *words, f"directory={tmp_path}"]) != 0
    said = "".join(capsys.readouterr())
    assert needle in said and "Traceback" not in said
    assert not list(tmp_path.glob("*_refined*"))
