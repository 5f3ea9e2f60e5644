"""``mmtbx_sfdiff.refine``: every fault is one sentence, or a default that is said."""

import json

from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.command_line.refine import run

import gemmi
import numpy as np
import pytest

from tests.support.monomers import library_or_skip

FEW = ["cycles=1", "steps=3", "mask=binary", "figure=False", "report=False"]


@pytest.fixture(scope="module")
def files(pdb_dir):
    library_or_skip()
    return [str(pdb_dir / "1yjp" / name) for name in ("1yjp.pdb.gz", "1yjp-sf.cif.gz")]


@pytest.fixture(scope="module")
def data(files, tmp_path_factory):
    """A function (share of free reflections, what to do with the amplitudes) -> an MTZ file of simulated amplitudes."""
    folder = tmp_path_factory.mktemp("data")
    structure = gemmi.read_structure(files[0])
    calculator = gemmi.DensityCalculatorX()
    calculator.d_min = 2.0
    calculator.set_refmac_compatible_blur(structure[0])
    calculator.grid.setup_from(structure)
    calculator.put_model_density_on_grid(structure[0])
    grid = gemmi.transform_map_to_f_phi(calculator.grid)
    found = grid.prepare_asu_data(dmin=2.0, mott_bethe=False)
    indices, f = found.miller_array, np.abs(found.value_array)

    def make(name, free=None, change=lambda f: f):
        mtz = gemmi.Mtz(with_base=True)
        mtz.spacegroup, mtz.cell = structure.find_spacegroup(), structure.cell
        mtz.add_dataset("x")
        mtz.add_column("F", "F")
        mtz.add_column("SIGF", "Q")
        columns = [*indices.T, change(f.astype(float).copy()), 0.03 * f + 0.1]
        if free is not None:
            mtz.add_column("FREE", "I")
            columns.append((np.arange(len(f)) % 20 >= round(20 * free)).astype(float))
        mtz.set_data(np.column_stack(columns))
        mtz.write_to_file(str(folder / name))
        return str(folder / name)

    return make


def result_of(arguments, folder):
    assert run([*arguments, *FEW, f"directory={folder}"]) == 0
    return json.loads(next(folder.glob("*_refined.json")).read_text())


def failure(arguments, folder, capsys):
    assert run([*arguments, *FEW, f"directory={folder}"]) != 0
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said and not list(folder.glob("*_refined*"))
    return said


def test_an_unknown_ligand_is_named_and_held(files, tmp_path):
    structure = gemmi.read_structure(files[0])
    residue = gemmi.Residue()
    residue.name, residue.seqid, residue.het_flag = "Q0Q", gemmi.SeqId(900, " "), "H"
    for name, element, place in (
        ("C1", "C", (2.0, 2.4, 8.0)),
        ("O1", "O", (2.0, 2.4, 9.3)),
        ("C2", "C", (2.0, 3.8, 7.5)),
    ):
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos, atom.b_iso = name, gemmi.Element(element), gemmi.Position(*place), 20
        residue.add_atom(atom)
    chain = gemmi.Chain("L")
    chain.add_residue(residue)
    structure[0].add_chain(chain)
    path = tmp_path / "1yjp.pdb"
    structure.write_pdb(str(path))
    result = result_of([str(path), files[1]], tmp_path)
    assert any("no monomer library knows Q0Q" in m and "ligands=" in m for m in result["messages"])


def test_without_free_reflections_nothing_is_called_r_free(files, data, tmp_path, capsys):
    result = result_of([files[0], data("none.mtz")], tmp_path)
    assert result["final"]["r_free"] is None and result["n_free"] is None
    assert "R-free 0" not in capsys.readouterr().out


def test_nineteen_of_twenty_free_is_said_or_refused(files, data, tmp_path, capsys):
    """Flags that mark more than a test set are asked about, never refined against the rest in silence."""
    said = failure([files[0], data("many.mtz", free=0.95), "test_flag_value=0"], tmp_path, capsys)
    assert "free" in said.lower() or "test set" in said.lower()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_amplitudes_that_are_no_numbers(value, files, data, tmp_path, capsys):
    """They are left out and counted, or refused in a sentence; no number comes out that is none."""

    def spoil(f):
        f[:5] = value
        return f

    code = run([files[0], data("spoilt.mtz", free=0.05, change=spoil), *FEW, f"directory={tmp_path}"])
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    if code == 0:
        result = json.loads((tmp_path / "1yjp_refined.json").read_text())
        assert 0 < result["final"]["r_work"] < 0.6 and result["n_reflections"] > 0
    else:
        assert not list(tmp_path.glob("*_refined*"))


def test_a_coordinate_that_is_no_number(files, tmp_path, capsys):
    text = gemmi.read_structure(files[0]).make_pdb_string().splitlines()
    row = next(i for i, line in enumerate(text) if line.startswith("ATOM"))
    text[row] = text[row][:30] + "     nan" + text[row][38:]
    path = tmp_path / "1yjp.pdb"
    path.write_text("\n".join(text) + "\n")
    failure([str(path), files[1]], tmp_path, capsys)


def test_atoms_on_one_another_on_a_special_position(files, tmp_path):
    """Two waters on the screw axis's neighborhood and on one another: finite, and both are written."""
    structure = gemmi.read_structure(files[0])
    chain = gemmi.Chain("W")
    for number in (1, 2):
        residue = gemmi.Residue()
        residue.name, residue.seqid, residue.het_flag = "HOH", gemmi.SeqId(number, " "), "H"
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos, atom.b_iso = "O", gemmi.Element("O"), gemmi.Position(0, 2.4, 0), 20
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure[0].add_chain(chain)
    path = tmp_path / "1yjp.pdb"
    structure.write_pdb(str(path))
    result = result_of([str(path), files[1]], tmp_path)
    made = gemmi.read_structure(str(tmp_path / "1yjp_refined.pdb"))
    assert made[0].count_atom_sites() == structure[0].count_atom_sites()
    assert all(np.isfinite(c.atom.pos.tolist()).all() for c in made[0].all()) and result["final"]["r_work"] < 0.6


def test_clashes_on_a_special_position(pdb_dir, tmp_path):
    """An atom on a four-fold axis with another, and that one's three copies, within 0.7 Å: it stays there, all is finite.

    (Where its occupancy is not 1, mmtbx's readers, and so this one, take it for a general position that holds its share.)
    """
    library_or_skip()
    structure = gemmi.read_structure(str(pdb_dir / "1aie" / "1aie.pdb.gz"))
    chain = gemmi.Chain("W")
    for number, place, occupancy in ((1, (0, 0, 5.0), 1.0), (2, (0.5, 0.2, 5.3), 1.0)):
        residue = gemmi.Residue()
        residue.name, residue.seqid, residue.het_flag = "HOH", gemmi.SeqId(number, " "), "H"
        atom = gemmi.Atom()
        atom.name, atom.element, atom.b_iso, atom.occ = "O", gemmi.Element("O"), 20, occupancy
        atom.pos = gemmi.Position(*place)
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure[0].add_chain(chain)
    path = tmp_path / "1aie.pdb"
    structure.write_pdb(str(path))
    result = result_of([str(path), str(pdb_dir / "1aie" / "1aie.mtz")], tmp_path)
    made = gemmi.read_structure(str(tmp_path / "1aie_refined.pdb"))
    assert made[0].count_atom_sites() == structure[0].count_atom_sites()
    assert all(np.isfinite([*c.atom.pos.tolist(), c.atom.b_iso, c.atom.occ]).all() for c in made[0].all())
    on_axis, beside = (next(r for c in made[0] if c.name == "W" for r in c if r.seqid.num == n)[0] for n in (1, 2))
    assert abs(on_axis.pos.x) < 2e-3 and abs(on_axis.pos.y) < 2e-3 and on_axis.occ == 1
    assert beside.pos.dist(gemmi.Position(0.5, 0.2, 5.3)) < 1.5
    assert result["final"]["r_work"] < 0.25 and result["geometry"]["final"]["bond"] < 0.03


# The three faults that this program once had.


@pytest.mark.parametrize("n_free, flat", [(2, False), (2, True), (0, False)])
def test_a_handful_of_reflections_ends(n_free, flat, files, data, tmp_path):
    """Sixty reflections, two free: alpha may be 0 everywhere. It ends, with numbers."""
    whole = gemmi.read_mtz_file(data("whole.mtz", free=0.05))
    table = np.array(whole)[:60]
    table[:, 5] = np.arange(60) >= n_free  # 0 is free
    if flat:
        table[:, 3] = table[:, 3].mean() * (1 + 0.01 * np.cos(np.arange(60)))
    whole.set_data(table)
    path = tmp_path / "few.mtz"
    whole.write_to_file(str(path))
    words = (
        ["restraints=none", "cycles=3", "r_free_flags.test_flag_value=0"]
        if n_free
        else ["cycles=3", "r_free_flags.label=none"]
    )
    result = result_of([files[0], str(path), *words], tmp_path)
    assert np.isfinite(result["final"]["r_work"]) and result["n_free"] == (n_free or None)


def test_mostly_unoccupied_atoms_end(files, data, tmp_path):
    structure = gemmi.read_structure(files[0])
    for number, cra in enumerate(structure[0].all()):
        cra.atom.occ = 1.0 if number % 5 == 0 else 0.0
    path = tmp_path / "1yjp.pdb"
    structure.write_pdb(str(path))
    result = result_of([str(path), data("all.mtz", free=0.05), "restraints=none"], tmp_path)
    assert np.isfinite(result["final"]["r_work"])
    made = gemmi.read_structure(str(tmp_path / "1yjp_refined.pdb"))
    assert sum(cra.atom.occ == 0 for cra in made[0].all()) == sum(cra.atom.occ == 0 for cra in structure[0].all())


def test_a_hydrogen_moves_with_the_atom_of_its_own_conformer(files, data, tmp_path):
    """Of a residue with two conformers 0.6 Å apart, the hydrogens of each, nearer to the other's oxygen, have their parent's shift."""
    structure = gemmi.read_structure(files[0])
    water = next(r for c in structure[0] for r in c if r.name == "HOH")
    oxygen = water[0]
    there = np.array(oxygen.pos.tolist())
    water.remove_atom(oxygen.name, oxygen.altloc, oxygen.element)
    for altloc, shift in (("A", 0.0), ("B", 0.6)):
        for name, element, along in (("O", "O", 0.0), ("H1", "H", 0.95 if altloc == "A" else -0.95)):
            atom = gemmi.Atom()
            atom.name, atom.element, atom.altloc, atom.occ, atom.b_iso = name, gemmi.Element(element), altloc, 0.5, 15
            atom.pos = gemmi.Position(*(there + (shift + along, 0, 0)))
            water.add_atom(atom)
    path = tmp_path / "1yjp.pdb"
    structure.write_pdb(str(path))
    result_of([str(path), data("moved.mtz", free=0.05), "restraints=none"], tmp_path)
    made = gemmi.read_structure(str(tmp_path / "1yjp_refined.pdb"))
    found = next(r for c in made[0] for r in c if r.seqid == water.seqid and r.name == "HOH")
    start = {(a.name, a.altloc): np.array(a.pos.tolist()) for a in water}
    end = {(a.name, a.altloc): np.array(a.pos.tolist()) for a in found}
    for altloc in "AB":
        vector = [there[("H1", altloc)] - there[("O", altloc)] for there in (start, end)]
        assert np.linalg.norm(end[("O", altloc)] - start[("O", altloc)]) > 0.01
        np.testing.assert_allclose(vector[1], vector[0], atol=3e-3)


def test_r_free_without_flags_is_one_sentence(files, data):
    fmodel = FModel.from_files(files[0], data("no_flags.mtz"))
    fmodel.update_scales()
    with pytest.raises(ValueError, match="free"):
        fmodel.r_free()
    assert fmodel.r_factors()[1] is None
