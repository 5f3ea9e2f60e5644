"""Bijvoet mates in ``mmtbx_sfdiff.refine``: both refined against where f'' is known, else taken together and said; the anomalous map."""

import json

from mmtbx_sfdiff import Atoms, Crystal, structure_factors
from mmtbx_sfdiff.command_line.refine import run
from mmtbx_sfdiff.files import load_entry
from mmtbx_sfdiff.files.demo import demo_entry

import gemmi
import numpy as np
import pytest

FEW = ["cycles=1", "steps=4", "mask=binary", "restraints=none", "figure=False", "report=False", "remove_outliers=False"]
WAVELENGTH = 1.7  # Å, above the K edge of iron: f'' 3.8, and 0.7 of sulfur
PLACE = "HOH"  # of which one becomes iron


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(model with an iron in a water's place, F(+) and F(-) of its f'', their means alone)"""
    folder = tmp_path_factory.mktemp("anomalous")
    demo = demo_entry(folder)
    structure = gemmi.read_structure(str(demo.model))
    heavy = next(cra for cra in structure[0].all() if cra.residue.name == PLACE and cra.atom.occ == 1)
    heavy.residue.name, heavy.atom.name = "FE", "FE"
    heavy.atom.element = gemmi.Element("Fe")
    model = folder / "m.pdb"
    structure.write_pdb(str(model))
    entry = load_entry(model, demo.data)
    xray = entry.model.xray_structure
    xray.set_inelastic_form_factors(photon=WAVELENGTH, table="sasaki")
    atoms = Atoms.from_cctbx(xray)
    crystal = Crystal.from_cctbx(xray)
    h = crystal.build_miller_indices(2.0)
    f = [structure_factors(atoms, crystal, sign * h, method="direct").abs().numpy() for sign in (1, -1)]
    free = np.arange(len(h)) % 20 != 0

    def write(name, columns):
        mtz = gemmi.Mtz(with_base=True)
        mtz.spacegroup, mtz.cell = structure.find_spacegroup(), structure.cell
        mtz.add_dataset("x").wavelength = WAVELENGTH
        for label, kind, _ in columns:
            mtz.add_column(label, kind)
        mtz.set_data(np.column_stack([h.numpy(), *(values for _, _, values in columns)]).astype(np.float32))
        mtz.write_to_file(str(folder / name))
        return str(folder / name)

    centric = crystal.centric_flags(h).numpy()
    minus = np.where(centric, np.nan, f[1])
    apart = [
        ("F(+)", "G", f[0]),
        ("SIGF(+)", "L", 0.02 * f[0] + 0.1),
        ("F(-)", "G", minus),
        ("SIGF(-)", "L", 0.02 * minus + 0.1),
    ]
    mean = [("F", "F", np.mean(f, 0)), ("SIGF", "Q", 0.02 * f[0] + 0.1)]
    flags = [("FREE", "I", free)]
    n_pairs = int((~centric).sum())
    place = gemmi.Position(*next(cra.atom.pos for cra in structure[0].all() if cra.atom.element.name == "Fe").tolist())
    return str(model), write("apart.mtz", apart + flags), write("mean.mtz", mean + flags), (len(h), n_pairs), place


def refined(files, folder, *words):
    assert run([*files, *FEW, *words, "prefix=x", f"directory={folder}"]) == 0
    return json.loads((folder / "x_refined.json").read_text()), gemmi.read_mtz_file(str(folder / "x_refined.mtz"))


def height(table, labels, place):
    """Of the map at a place, in standard deviations."""
    density = table.transform_f_phi_to_map(*labels, sample_rate=3)
    return density.interpolate_value(place) / np.array(density).std()


@pytest.mark.parametrize("labels", ["ccp4", "phenix"])
def test_both_mates_are_refined_against_where_the_wavelength_is_known(labels, files, tmp_path):
    model, apart, _, (n, n_pairs), place = files
    result, table = refined([model, apart], tmp_path, f"wavelength={WAVELENGTH}", "shake=0.05", f"mtz_labels={labels}")
    assert result["n_reflections"] == n + n_pairs and result["anomalous"]
    assert any("all atoms have f' and f'' of 1.7 Å; Bijvoet mates are apart (F(+)" in m for m in result["messages"])
    assert result["final"]["r_work"] < 0.7 * result["start"]["r_work"]
    kinds = {column.label: column.type for column in table.columns}
    observed = "F" if labels == "ccp4" else "F-obs-filtered"
    assert [kinds[f"{observed}{sign}"] for sign in ("(+)", "(-)")] == ["G", "G"] and kinds[f"SIG{observed}(-)"] == "L"
    assert len(np.array(table)) <= n and f"{observed}(+)" in kinds
    assert height(table, ("FAN", "PHAN") if labels == "ccp4" else ("PANOM", "PHPANOM"), place) > 6
    assert height(table, ("FWT", "PHWT") if labels == "ccp4" else ("2FOFCWT", "PH2FOFCWT"), place) > 6
    if labels == "ccp4":
        free = np.array(table.column_with_label("FREE")) == 0
        assert abs(free.sum() - n / 20) <= 1


def test_the_file_that_is_written_is_read_with_both_mates(files, tmp_path):
    model, apart, *_ = files
    result, _ = refined([model, apart], tmp_path, f"wavelength={WAVELENGTH}", "steps=1")
    again = load_entry(tmp_path / "x_refined.pdb", tmp_path / "x_refined.mtz", anomalous=True)
    assert again.data.f_obs.anomalous_flag() and again.data.f_obs.size() == result["n_reflections"]
    assert again.data.r_free_flags.data().count(True) == result["n_free"]


def test_f_double_prime_is_part_of_the_target(files, tmp_path):
    """Data made with f'': R of the same model is nearly 0 with both mates, and as far off as the pairs differ without."""
    model, apart, _, _, _ = files
    known, _ = refined([model, apart], tmp_path, f"wavelength={WAVELENGTH}", "steps=1")
    other, _ = refined([model, apart], tmp_path, "wavelength=0.5", "steps=1", "overwrite=True")
    assert known["start"]["r_work"] < 0.5 * other["start"]["r_work"]


def test_without_a_wavelength_mates_are_taken_together_and_their_map_is_written(files, tmp_path, capsys):
    model, apart, _, (n, _), place = files
    result, table = refined([model, apart], tmp_path)
    said = next(m for m in result["messages"] if "Bijvoet" in m)
    assert "F(+),SIGF(+),F(-),SIGF(-)" in said and "taken together, as f'' is not known; wavelength=1.7" in said
    assert said[1:] in capsys.readouterr().out
    assert result["n_reflections"] == n and not result["anomalous"]
    assert height(table, ("FAN", "PHAN"), place) > 6
    assert sum(np.isfinite(np.array(table.column_with_label("FAN")))) == files[3][1]


def test_data_without_pairs_are_said_to_have_none(files, tmp_path):
    model, _, mean, (n, _), _ = files
    result, table = refined([model, mean], tmp_path, f"wavelength={WAVELENGTH}")
    assert any("the data have no Bijvoet pairs" in m for m in result["messages"])
    assert result["n_reflections"] == n and not result["anomalous"]
    assert table.column_with_label("FAN") is None and table.column_with_label("F") is not None
    result, _ = refined([model, mean], tmp_path, "overwrite=True")
    assert not any("Bijvoet" in m for m in result["messages"])


@pytest.mark.parametrize(
    "words, needle",
    [
        (["wavelength=0"], "0.2 to 5"),
        (["wavelength=-1"], "0.2 to 5"),
        (["wavelength=12"], "0.2 to 5"),
        (["wavelength=1", "scattering_table=electron"], "are of X-rays"),
    ],
)
def test_an_impossible_wavelength_is_one_sentence(words, needle, files, tmp_path, capsys):
    assert run([*files[:2], *FEW, *words, "prefix=x", f"directory={tmp_path}"]) != 0
    said = "".join(capsys.readouterr())
    assert needle in said and "Traceback" not in said and not list(tmp_path.iterdir())
