"""``mmtbx_sfdiff.refine``, from the command line to the files it leaves behind."""

import importlib.metadata
import json
import signal
import sys

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.command_line.refine import run
from mmtbx_sfdiff.geometry import GeometryRestraints
from mmtbx_sfdiff.programs.refine_restraints import biased_flags
from mmtbx_sfdiff.programs.refine_table import render
from mmtbx_sfdiff.refinement import figure

import gemmi
import pytest
from iotbx import mtz
from matplotlib.text import Text

from tests.support.monomers import library_or_skip
from tests.support.processes import refine_process

FEW = ["cycles=2", "steps=4", "shake=0.2", "mask=binary", "restraints=none"]


@pytest.fixture(scope="module")
def files_1yjp(pdb_dir):
    return [str(pdb_dir / "1yjp" / name) for name in ("1yjp.pdb.gz", "1yjp-sf.cif.gz")]


@pytest.fixture(scope="module")
def refined(files_1yjp, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refined")
    assert run([*files_1yjp, *FEW, f"directory={folder}"]) == 0
    return folder, json.loads((folder / "1yjp_refined.json").read_text())


def test_what_is_written(refined, files_1yjp):
    folder, result = refined
    assert sorted(p.name for p in folder.iterdir()) == [
        f"1yjp_refined.{s}" for s in ("html", "json", "mtz", "pdb", "png")
    ]
    assert (folder / "1yjp_refined.png").read_bytes().startswith(b"\x89PNG")
    # The model on disk has the R factors that were printed, up to the digits of a PDB file.
    model = FModel.from_files(folder / "1yjp_refined.pdb", files_1yjp[1], mask={"method": "binary"})
    model.update_scales()
    assert model.r_work() == pytest.approx(result["final"]["r_work"], abs=2e-3)
    assert result["final"]["r_work"] < result["start"]["r_work"] - 0.02


def test_json_and_figure(refined):
    _, result = refined
    assert result["geometry_restraints"] is None and any("no geometry restraints" in m for m in result["messages"])
    assert [c["cycle"] for c in result["cycles"]] == [1, 2] and result["settings"]["shake"] == 0.2
    assert len(result["steps"]) == sum(c["steps"] for c in result["cycles"])
    drawn = [t.get_text() for t in figure.draw(result).findobj(Text) if t.get_text().strip()]
    for needle in ("R factor", "step", "log likelihood", "R-work", "R-free", "Å"):
        assert any(needle in text for text in drawn), needle


def test_output_says_that_nothing_restrains(files_1yjp, tmp_path, capsys):
    assert (
        run(
            [
                *files_1yjp,
                "restraints=none",
                "cycles=1",
                "steps=1",
                "adp=False",
                "figure=False",
                "report=False",
                "mtz_labels=phenix",
                "model_format=mmcif",
                "mask=binary",
                f"directory={tmp_path}",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "no geometry restraints" in out and "\x1b" not in out and "R-free" in out
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".cif", ".json", ".mtz"]
    labels = mtz.object(str(tmp_path / "1yjp_refined.mtz")).column_labels()
    assert {"2FOFCWT", "PH2FOFCWT", "FOFCWT", "PHFOFCWT", "F-model", "R-free-flags"} <= set(labels)
    model = FModel.from_files(tmp_path / "1yjp_refined.cif", files_1yjp[1])
    original = FModel.from_files(*files_1yjp)
    torch.testing.assert_close(model.atoms.u_iso, original.atoms.u_iso, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "words",
    [["target=least_squares"], ["minimiser=adam", "steps=20"], ["mask=density_cutoff", "steps=2"], ["dtype=float32"]],
)
def test_choices(words, files_1yjp, tmp_path):
    assert run([*files_1yjp, *FEW, *words, "figure=False", f"directory={tmp_path}"]) == 0
    result = json.loads((tmp_path / "1yjp_refined.json").read_text())
    for cycle in result["cycles"]:
        assert cycle["target_end"] <= cycle["target_start"]
    assert result["final"]["r_work"] < result["start"]["r_work"]


def test_ctrl_c_and_going_on(files_1yjp, tmp_path):
    """Interrupted after a macro-cycle: exit code 130, the state alone is left; the same command goes on."""
    arguments = [*files_1yjp, "cycles=200", "steps=5", "tolerance=1e-9", "mask=binary", "shake=0.2", "restraints=none"]
    process = refine_process(arguments, tmp_path)
    for line in process.stdout:
        if line.startswith("Macro-cycle 1"):
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 130, error
    assert "Interrupted" in error and "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["1yjp_refine_state.npz"]
    process = refine_process([word.replace("200", "2") for word in arguments], tmp_path)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert "Going on after macro-cycle" in out and "Macro-cycle 1:" not in out
    assert not (tmp_path / "1yjp_refine_state.npz").exists() and (tmp_path / "1yjp_refined.pdb").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{model}"], "data file is missing"),
        (["{data}"], "model file is missing"),
        (["nosuch.pdb"], "nosuch.pdb"),
        (["{model}", "{data}", "labels=XX"], "XX"),
        (["{model}", "{data}", "cycles=0"], "cycles=0"),
        (["{model}", "{data}", "damping=-1"], "damping=-1"),
        (["{model}", "{data}", "tolerance=0"], "tolerance=0"),
        (["{model}", "{data}", "target=r1"], "target"),
        (["{model}", "{data}", "sites=False", "adp=False"], "Nothing is refined"),
        (["{model}", "{data}", "d_min=3", "d_max=2"], "No reflection is between"),
        (["{model}", "{data}", "shake=-1"], "shake=-1"),
        (["{model}", "{data}", "device=tpu"], "device=tpu"),
        (["empty.pdb", "{data}"], "empty.pdb is empty"),
        (["{model}", "{data}", "d_min=22", "d_max=30"], ""),
        (["{model}", "{data}", "prefix=a/b"], "holds a folder"),
        (["{model}", "{data}", "cycles=nan"], "whole number"),
        (["{model}", "{data}", "cycles=inf"], "whole number"),
        (["{model}", "{data}", "cycles=1.5"], "cycles"),
        (["{model}", "{data}", "steps=auto"], "steps=Auto"),
        (["{model}", "{data}", "d_min=nan"], "d_min=nan"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, files_1yjp, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pdb").touch()
    model, data = files_1yjp
    assert run([word.format(model=model, data=data) for word in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Sorry: ") and words in error and "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["empty.pdb"]


def test_existing_results_are_kept(files_1yjp, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1yjp_refined.mtz").write_text("kept")
    assert run([*files_1yjp, *FEW]) == 1
    assert "overwrite=True" in capsys.readouterr().err
    assert (tmp_path / "1yjp_refined.mtz").read_text() == "kept"


def test_every_parameter_has_help_and_a_caption():
    from mmtbx_sfdiff.programs.refine import Program

    import iotbx.phil

    for definition in iotbx.phil.parse(Program.master_phil_str).all_definitions():
        assert definition.object.help and definition.object.short_caption, definition.path


def test_force_field_restrains(files_1yjp, tmp_path, capsys):
    """GNNQQNY, shaken: with the force field, bonds come back, and R-work does not fall as far."""
    pytest.importorskip("openmm"), pytest.importorskip("pdbfixer")
    bonds, r_work = {}, {}
    for weight in (0, 1):
        folder = tmp_path / str(weight)
        assert (
            run(
                [
                    *files_1yjp,
                    "cycles=3",
                    "steps=15",
                    "shake=0.3",
                    "mask=binary",
                    "figure=False",
                    "adp=False",
                    *(["restraints=force_field", "force_field_weight=1"] if weight else ["restraints=none"]),
                    f"directory={folder}",
                ]
            )
            == 0
        )
        out = capsys.readouterr().out
        result = json.loads((folder / "1yjp_refined.json").read_text())
        assert ("no geometry restraints" in out) == (weight == 0) == (result["geometry_restraints"] is None)
        assert ("restraint" in result["steps"][0]) == (weight == 1)
        atoms = FModel.from_files(folder / "1yjp_refined.pdb", files_1yjp[1]).atoms
        original = FModel.from_files(*files_1yjp).atoms
        pairs = (torch.cdist(original.sites_cart, original.sites_cart) < 1.7).triu(1).nonzero()
        lengths = [(a.sites_cart[pairs[:, 0]] - a.sites_cart[pairs[:, 1]]).norm(dim=1) for a in (atoms, original)]
        bonds[weight], r_work[weight] = (
            float((lengths[0] - lengths[1]).square().mean().sqrt()),
            result["final"]["r_work"],
        )
    assert bonds[1] < 0.06 and bonds[1] < 0.5 * bonds[0] and r_work[1] > r_work[0] - 0.02


def test_force_field_weight_by_cross_validation(files_1yjp, tmp_path, capsys):
    pytest.importorskip("openmm"), pytest.importorskip("pdbfixer")
    assert (
        run(
            [
                *files_1yjp,
                "cycles=2",
                "steps=4",
                "mask=binary",
                "figure=False",
                "restraints=force_field",
                "force_field_weight=Auto",
                f"directory={tmp_path}",
            ]
        )
        == 0
    )
    result = json.loads((tmp_path / "1yjp_refined.json").read_text())
    chosen = result["geometry_restraints"]
    tests = {float(weight): r for weight, r in chosen["tests"].items()}
    assert 2 < len(tests) < 7 and tests[chosen["force_field_weight"]] == min(tests.values())
    assert f"Force field weight {chosen['force_field_weight']:g}, by R of a tenth" in capsys.readouterr().out


def test_force_field_without_its_libraries(files_1yjp, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pdbfixer", None)
    assert run([*files_1yjp, "restraints=force_field", "force_field_weight=1", f"directory={tmp_path}"]) == 1
    assert 'pip install "mmtbx_sfdiff[latent]"' in capsys.readouterr().err


# Restraints of the library


@pytest.fixture(scope="module")
def restrained(files_1yjp, tmp_path_factory):
    """GNNQQNY, shaken and refined with the defaults."""
    library = library_or_skip()
    folder = tmp_path_factory.mktemp("restrained")
    arguments = [*files_1yjp, "shake=0.3", f"library={library.path}", "figure=False", f"directory={folder}"]
    assert run(arguments) == 0
    return json.loads((folder / "1yjp_refined.json").read_text()), folder, library


def test_a_library_holds_the_geometry(restrained):
    result, folder, library = restrained
    start, final = result["geometry"]["start"], result["geometry"]["final"]
    assert start["bond"] > 0.1 and final["bond"] < 0.02 and final["angle"] < 4 < start["angle"]
    assert result["final"]["r_work"] < result["start"]["r_work"] - 0.05
    structure = gemmi.read_structure(str(folder / "1yjp_refined.pdb"))
    geometry = GeometryRestraints.from_gemmi(structure, library)
    sites = torch.tensor(geometry.topology.atoms.sites_cart)
    assert geometry.rms(sites)["bond"] == pytest.approx(final["bond"], abs=1e-3)  # the digits of a PDB file
    assert result["geometry_restraints"]["restraints"] == "library"
    assert all("weight" in cycle and "bond_rms" in cycle for cycle in result["cycles"])
    assert any("monomer library" in message for message in result["messages"])


def test_the_table_fits_a_terminal_and_has_bonds_and_angles(restrained):
    result, _, _ = restrained
    text = render(result, width=80)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert "bonds Å" in text and f"{result['geometry']['final']['bond']:.4f}" in text
    without = json.loads(json.dumps(result))
    for part in (without["start"], without["final"], *without["cycles"]):
        part["r_free"] = None
    for part in without["geometry"].values():
        part.update(bond=None, angle=None)
    assert "–" in render(without, width=80) and "None" not in render(without, width=80)


@pytest.mark.parametrize(
    "words, needle",
    [
        (["library=nowhere"], "mon_lib_list"),
        (["ligands=nowhere.cif"], "nowhere.cif"),
        (["bond_rms=0"], "bond_rms"),
        (["geometry_weight=-1"], "geometry_weight"),
        (["adp_weight=-1"], "adp_weight"),
        (["anisotropic=often"], "anisotropic"),
    ],
)
def test_impossible_restraints_are_one_sentence(words, needle, files_1yjp, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    library_or_skip()
    assert run([*files_1yjp, *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Sorry: ") and needle in error and "Traceback" not in error and not list(tmp_path.iterdir())


def test_without_a_library_one_sentence(files_1yjp, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("CLIBD_MON", "MMTBX_CCP4_MONOMER_LIB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(importlib.metadata, "distribution", _absent)
    assert run(list(files_1yjp)) == 1
    error = capsys.readouterr().err
    assert 'pip install "mmtbx_sfdiff[refine]"' in error and "restraints=none" in error and "Traceback" not in error


def _absent(name):
    raise importlib.metadata.PackageNotFoundError(name)


def test_mmtbx_holds_the_geometry(files_1yjp, tmp_path, monkeypatch):
    library = library_or_skip()
    monkeypatch.setenv("MMTBX_CCP4_MONOMER_LIB", str(library.path))
    assert run([*files_1yjp, "shake=0.2", "restraints=cctbx", "cycles=3", "figure=False", f"directory={tmp_path}"]) == 0
    result = json.loads((tmp_path / "1yjp_refined.json").read_text())
    assert result["geometry"]["final"]["bond"] < 0.03 < result["geometry"]["start"]["bond"]


def test_a_start_without_a_gap_is_said(files_1yjp):
    assert biased_flags(0.20, 0.21) and "probably not those" in biased_flags(0.20, 0.21)[0]
    assert not biased_flags(0.20, 0.25) and not biased_flags(0.2, None)
