"""What a refinement leaves behind: maps, metadata, the report, new flags; and nothing where it fails."""

import html.parser
import json
import re
import resource
import signal

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.command_line.refine import run
from mmtbx_sfdiff.files.demo import demo_entry
from mmtbx_sfdiff.programs import refine_page, refine_pictures

import gemmi
import numpy as np
import pytest

from tests.support.processes import heed_interrupts, refine_process

FEW = ["cycles=1", "steps=2", "mask=binary", "restraints=none", "figure=False"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model and simulated data."""
    return demo_entry(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def refined(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refined")
    assert run([str(files.model), str(files.data), *FEW, "shake=0.1", "prefix=x", f"directory={folder}"]) == 0
    return folder, json.loads((folder / "x_refined.json").read_text())


def test_the_maps_open_in_coot_and_are_those_of_the_model(refined, files):
    folder, result = refined
    table = gemmi.read_mtz_file(str(folder / "x_refined.mtz"))
    kinds = {column.label: column.type for column in table.columns}
    assert kinds == {
        "H": "H",
        "K": "H",
        "L": "H",
        "F": "F",
        "SIGF": "Q",
        "FREE": "I",
        "FC": "F",
        "PHIC": "P",
        "FC_ALL": "F",
        "PHIC_ALL": "P",
        "FWT": "F",
        "PHWT": "P",
        "DELFWT": "F",
        "PHDELWT": "P",
    }
    column = {name: np.array(table.column_with_label(name)) for name in kinds}
    assert result["reflections"]["used"] == len(column["F"]) and not np.isnan(column["F"]).any()
    assert int((column["FREE"] == 0).sum()) == result["n_free"]  # CCP4's convention
    used = ~np.isnan(column["FWT"])
    assert int(used.sum()) == result["in_use"]["n_reflections"]
    r = np.abs(column["F"] - column["FC_ALL"])[used].sum() / column["F"][used].sum()
    assert r == pytest.approx(result["in_use"]["r_all"], abs=2e-3)
    # Read again with the model, the same map.
    fmodel = FModel.from_files(folder / "x_refined.pdb", folder / "x_refined.mtz", mask={"method": "binary"})
    fmodel.update_scales()
    assert float(fmodel.r_work()) == pytest.approx(result["final"]["r_work"], abs=3e-3)
    assert int(fmodel.reflections.r_free_flags.sum()) == result["n_free"]
    density = table.transform_f_phi_to_map("FWT", "PHWT", sample_rate=3)
    peaks = [density.interpolate_value(atom.pos) for atom in _heavy(folder / "x_refined.pdb")]
    assert np.mean(peaks) > 2 * np.array(density).std()


def _heavy(path):
    for cra in gemmi.read_structure(str(path))[0].all():
        if not cra.atom.is_hydrogen() and cra.atom.occ == 1:
            yield cra.atom


def test_the_model_says_how_it_was_refined(refined):
    folder, result = refined
    structure = gemmi.read_structure(str(folder / "x_refined.pdb"))
    (found,) = structure.meta.refinement
    assert found.r_work == pytest.approx(result["final"]["r_work"], abs=1e-4)
    assert found.r_free == pytest.approx(result["final"]["r_free"], abs=1e-4)
    assert found.reflection_count == result["in_use"]["n_reflections"]
    assert "MMTBX_SFDIFF" in (folder / "x_refined.pdb").read_text()


def test_shells_residues_and_torsions(refined):
    _, result = refined
    shells = result["shells"]
    assert sum(s["n_work"] for s in shells) == result["in_use"]["n_work"]
    assert sum(s["n_free"] for s in shells) == result["in_use"]["n_free"]
    assert all(a["d_min"] == b["d_max"] for a, b in zip(shells, shells[1:])) and len(shells) > 5
    assert all(0.8 < s["completeness"] <= 1 and s["cc_work"] > 0.8 for s in shells)
    mean = sum(s["r_work"] * s["n_work"] for s in shells) / result["in_use"]["n_work"]
    assert mean == pytest.approx(result["final"]["r_work"], abs=0.03)
    assert all(-1 <= r["cc"] <= 1 for r in result["residues"])
    assert np.mean([r["cc"] for r in result["residues"] if r["kind"] == "polymer"]) > 0.85
    assert sum(map(sum, result["displacements"]["counts"].values())) <= result["n_atoms"]
    rama = result["ramachandran"]["final"]
    if rama is None:
        pytest.skip("needs cctbx with the tables of mmtbx's validation")
    assert rama["favored"] + rama["allowed"] + rama["outliers"] == rama["total"] > 20


class _Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.outside, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.outside += [
            value
            for name, value in attributes.items()
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:"))
        ]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "br", "img"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_file(refined):
    folder, result = refined
    text = (folder / "x_refined.html").read_text()
    tags = _Tags()
    tags.feed(text)
    assert not tags.open and not tags.outside and "<script" not in text and "@import" not in text
    assert len(tags.ids) == len(set(tags.ids))  # of several pictures in one page
    for target in set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)):
        assert target in tags.ids
    assert text.count("<svg") == 4 and "SIMULATED" in text
    for needle in (f"{result['final']['r_work']:.4f}", f"{result['final']['r_free']:.4f}", "Ramachandran", "2mFo-DFc"):
        assert needle in text


@pytest.mark.parametrize(
    "missing", [{"shells": 1}, {"residues": 0}, {"steps": 0}, {"shells": 1, "residues": 1, "steps": 0}]
)
def test_the_report_does_without_a_picture_that_cannot_be_drawn(refined, missing):
    """Few reflections have one shell, waters alone no residues."""
    _, result = refined
    result = result | {name: result[name][:count] for name, count in missing.items()}
    drawn = refine_pictures.pictures(result)
    assert not set(missing) & set(drawn)
    assert refine_page.render(result, drawn).count("<svg") == len(drawn)


def test_no_legend_covers_a_curve(refined):
    _, result = refined
    for draw in (
        refine_pictures.draw_progress,
        refine_pictures.draw_shells,
        refine_pictures.draw_displacements,
        refine_pictures.draw_residues,
    ):
        figure = draw(result)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        legend, inside = axes.get_legend().get_window_extent(), axes.get_window_extent()
        assert legend.y0 >= inside.y1 - 1 and legend.x1 <= figure.bbox.x1 + 1
        ticks = [t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()]
        inside_ticks = sorted((t for t in ticks if t.x1 > inside.x0 and t.x0 < inside.x1), key=lambda t: t.x0)
        assert all(a.x1 <= b.x0 + 1 for a, b in zip(inside_ticks, inside_ticks[1:]))


# New flags


@pytest.fixture(scope="module")
def unflagged(files, tmp_path_factory):
    """The data without their flags."""
    table = gemmi.read_mtz_file(str(files.data))
    label = next(c.label for c in table.columns if c.type == "I")
    table.remove_column(table.column_with_label(label).idx)
    path = tmp_path_factory.mktemp("unflagged") / "data.mtz"
    table.write_to_file(str(path))
    return str(path)


@pytest.mark.parametrize("style, label, value", [("phenix", "R-free-flags", 1), ("ccp4", "FreeR_flag", 0)])
def test_new_flags_are_made_said_and_written(style, label, value, files, unflagged, tmp_path, capsys):
    words = [str(files.model), unflagged, *FEW, "report=False", "prefix=x", f"directory={tmp_path}"]
    assert run([*words, "r_free_flags.generate=True", "r_free_flags.fraction=0.1", f"flag_style={style}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "New R-free flags" in out and "biased" in out
    result = json.loads((tmp_path / "x_refined.json").read_text())
    assert result["final"]["r_free"] is not None and any("biased" in message for message in result["messages"])
    assert (
        result["reflections"]["free"] == result["n_free"] == pytest.approx(0.1 * result["n_reflections"], rel=0.15)
    )  # cctbx's CCP4 style makes 9 parts
    table = gemmi.read_mtz_file(str(tmp_path / "x_free.mtz"))
    marked = np.array(table.column_with_label(label)) == value
    assert 0.08 < marked.mean() < 0.12
    # The file serves the next refinement, whose flags are the same.
    again = [*words[:-1], f"directory={tmp_path}/again", f"r_free_flags.file_name={tmp_path}/x_free.mtz"]
    assert run(again) == 0
    next_one = json.loads((tmp_path / "again" / "x_refined.json").read_text())
    assert next_one["n_free"] == result["n_free"] and not (tmp_path / "again" / "x_free.mtz").exists()
    assert next_one["start"]["r_free"] == pytest.approx(result["start"]["r_free"], abs=1e-9)


def test_new_flags_into_a_named_file(files, unflagged, tmp_path):
    name = tmp_path / "mine.mtz"
    words = [
        str(files.model),
        unflagged,
        *FEW,
        "report=False",
        f"directory={tmp_path}/out",
        "r_free_flags.generate=True",
    ]
    assert run([*words, f"r_free_flags.file_name={name}"]) == 0
    assert name.is_file() and not list((tmp_path / "out").glob("*_free.mtz"))


def test_without_flags_what_to_do_is_said(files, unflagged, tmp_path, capsys):
    assert run([str(files.model), unflagged, *FEW, "report=True", f"directory={tmp_path}"]) == 0
    assert "r_free_flags.generate=True" in capsys.readouterr().out
    assert "None" not in next(tmp_path.glob("*.html")).read_text()


def test_flags_that_are_there_are_not_replaced_silently(files, tmp_path, capsys):
    words = [str(files.model), str(files.data), *FEW, f"directory={tmp_path}", "r_free_flags.generate=True"]
    assert run(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("Sorry: ") and "has free flags" in error and not list(tmp_path.iterdir())
    assert run([*words, "r_free_flags.label=none"]) == 0


# Faults: nothing half-written


def _small_files():
    heed_interrupts()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write fails then, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (130_000, 130_000))


def test_a_full_disk_leaves_nothing(files, tmp_path):
    words = [str(files.model), str(files.data), *FEW, "prefix=x", f"directory={tmp_path}"]
    process = refine_process(words, tmp_path, preexec_fn=_small_files)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 1 and "Cannot write" in error and "Traceback" not in error
    assert not [p.name for p in tmp_path.iterdir() if p.name != "x_refine_state.npz"]


def test_a_folder_that_may_not_be_written_is_refused_at_once(files, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert run([str(files.model), str(files.data), *FEW, f"directory={tmp_path}/file"]) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith("Sorry: ") and "output.directory" in error and [p.name for p in tmp_path.iterdir()] == ["file"]
    )


@pytest.mark.parametrize("content", [b"", b"not a model\n", b"\x00\x01\x02" * 100, b"data_x\n_cell.length_a 10\n"])
@pytest.mark.parametrize("which", ["model.pdb", "model.cif", "data.mtz", "data.cif"])
def test_a_wrong_file_is_one_sentence(which, content, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / which).write_bytes(content)
    given = [which, str(files.data)] if which.startswith("model") else [str(files.model), which]
    assert run([*given, *FEW]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Sorry: ") and which in error and "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == [which]


def test_ctrl_c_while_files_are_made_leaves_none(files, tmp_path, monkeypatch, capsys):
    from mmtbx_sfdiff.programs import refine_output

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(refine_output, "map_file", interrupted)
    words = [str(files.model), str(files.data), *FEW, "prefix=x", f"directory={tmp_path}"]
    assert run(words) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["x_refine_state.npz"]
    monkeypatch.undo()
    assert run(words) == 0 and (tmp_path / "x_refined.mtz").exists()
    assert "Going on after macro-cycle 1" in capsys.readouterr().out
    assert torch.is_grad_enabled()


# Twins


def test_a_twin_is_recognised_refined_and_deposited(pdb_dir, tmp_path, capsys):
    """1l2h, deposited as a twin: R-free below the single crystal's, law and fraction in every file."""
    files = [str(pdb_dir / "1l2h" / name) for name in ("1l2h.cif.gz", "1l2h.mtz")]
    assert run([*files, *FEW, "d_min=2.2", f"directory={tmp_path}"]) == 0
    assert "look twinned" in capsys.readouterr().out
    result = json.loads((tmp_path / "1l2h_refined.json").read_text())
    assert result["twin"]["law"] == "h,-k,-l" and result["twin"]["fraction"] == pytest.approx(0.37, abs=0.03)
    assert result["final"]["r_work"] < result["start"]["r_work"] < 0.17
    block = gemmi.cif.read(str(tmp_path / "1l2h_refined.cif"))[0]
    row = block.find("_pdbx_reflns_twin.", ["operator", "fraction"])[1]
    assert gemmi.cif.as_string(row[0]) == "h,-k,-l" and float(row[1]) == pytest.approx(
        result["twin"]["fraction"], abs=1e-3
    )
    assert np.mean([r["cc"] for r in result["residues"] if r["kind"] == "polymer"]) > 0.85


@pytest.mark.parametrize(
    "words, needle",
    [
        (["twin_law=x"], "twin law"),
        (["twin_law=none", "twin_fraction=0.2"], "twin_fraction"),
        (["twin_fraction=2"], "twin_fraction"),
        (["twin_law=h,k,l"], "symmetry"),
    ],
)
def test_impossible_twins_are_one_sentence(words, needle, files, tmp_path, capsys):
    assert run([str(files.model), str(files.data), *FEW, *words, f"directory={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Sorry: ") and needle in error and not list(tmp_path.iterdir())
