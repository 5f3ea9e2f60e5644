"""``mmtbx_sfdiff.latent``, end to end: alanine dipeptide in a made-up crystal, from the command line to the
files."""

import csv
import json
import shutil

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.command_line.latent import run
from mmtbx_sfdiff.latent import BoltzmannGenerator
from mmtbx_sfdiff.latent.workdir import STAGES, WorkDir
from mmtbx_sfdiff.latent.workflow.placing import place_on

import numpy as np
import pytest
from iotbx import mtz

from tests.support import latent_crystal

pytest.importorskip("openmm")
pytest.importorskip("pdbfixer")

MD = ["duration=10", "frame_interval=0.024"]
REFINE = [
    "starts=2",
    "refine.steps=60",
    "rigid_steps=20",
    "first_d_min=2",
    "polish_steps=40",
    "baselines=sites_ff+average_ff",
    "method=direct",
]


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crystal")
    truth = latent_crystal.SITES + [0.5, 0.3, 3.0]
    model, data = latent_crystal.write_crystal(folder, truth)
    # Turned about CA: another conformation, so that only the dynamics know what is near.
    rng = np.random.default_rng(5)
    (folder / "start.pdb").write_text(
        latent_crystal.pdb_text(truth + 0.15 * rng.standard_normal(truth.shape) + [0.3, 0, 0.2])
    )
    return folder


@pytest.fixture(scope="module")
def finished(crystal):
    work = crystal / "work"
    assert run(["prep", str(work), str(crystal / "start.pdb"), str(crystal / "data.mtz")]) == 0
    assert run(["md", str(work), *MD]) == 0
    assert run(["train", str(work), "skip=0.5"]) == 0
    assert run(["refine", str(work), *REFINE, f"benchmark={crystal / 'truth.pdb'}"]) == 0
    assert run(["report", str(work)]) == 0
    return work


def test_every_stage_says_what_it_did(finished):
    for stage in STAGES:
        record = json.loads((finished / stage / "stage.json").read_text())
        assert record["finished"] and record["seed"] == 0 and record["outputs"] and record["versions"]
        for text in (record["inputs"], record["outputs"]):
            assert all(len(s) == 64 for v in text.values() for s in (v.values() if isinstance(v, dict) else [v]))
    assert json.loads((finished / "prep" / "stage.json").read_text())["facts"]["n_ff"] == 22


def test_refined_model(finished, crystal):
    table = json.loads((finished / "refine" / "table.json").read_text())
    rows = {row[0]: row for row in table["rows"]}
    assert rows["start"][1] > 0.3 and rows["refined"][1] < 0.15
    assert rows["refined"][2] < rows["start"][2] - 0.15
    assert {"baseline sites_ff", "baseline average_ff", "reference, stripped"} <= set(rows)
    # The model on disk has the R factors that were printed.
    model = FModel.from_files(finished / "refine" / "refined.cif", crystal / "data.mtz")
    assert model.atoms.n_atoms == 10 and float(model.atoms.occupancies.min()) == 1
    model.update_scales()
    assert model.r_work() == pytest.approx(rows["refined"][1], abs=5e-3)
    labels = mtz.object(str(finished / "refine" / "refined.mtz")).column_labels()
    assert {"2FOFCWT", "PH2FOFCWT", "FOFCWT", "PHFOFCWT"} <= set(labels)


def test_history(finished):
    with open(finished / "refine" / "history.csv") as file:
        steps = list(csv.DictReader(file))
    assert len({s["run"] for s in steps}) == 5 and {"r_work", "r_free", "d_min", "z_norm", "energy"} <= set(steps[0])
    latent = [s for s in steps if s["run"].startswith("start 1")]
    assert len(latent) in (60, 80) and float(latent[-1]["r_work"]) < float(latent[0]["r_work"])


def test_the_start_is_taken_by_its_target(finished):
    table = json.loads((finished / "refine" / "table.json").read_text())
    targets = [run["target"] for run in table["runs"]]
    assert targets == sorted(targets)
    assert [row for row in table["rows"] if "taken" in row[3]][0][0] == table["runs"][0]["label"]


def test_figures(finished):
    for name in ("energies.png", "course.png"):
        assert (finished / "report" / name).read_bytes().startswith(b"\x89PNG")


def test_finished_stages_are_not_repeated(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert (
        run(["md", str(finished), *MD]) == 0
        and run(["refine", str(finished), *REFINE, f"benchmark={finished.parent / 'truth.pdb'}"]) == 0
    )
    assert capsys.readouterr().out.count("is finished") == 2
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


def test_other_settings_are_refused(finished, capsys):
    assert run(["train", str(finished), "shrink=0.2"]) == 1
    error = capsys.readouterr().err
    assert "other shrink, skip" in error and "restart=True" in error
    assert run(["md", str(finished), *MD, "random_seed=2"]) == 1
    assert "random_seed" in capsys.readouterr().err


def test_a_trained_flow(finished, tmp_path, capsys):
    work = tmp_path / "work"
    for stage in ("prep", "md"):
        shutil.copytree(finished / stage, work / stage)
    assert run(["train", str(work), "skip=0.5", "flow=realnvp", "ml_steps=3", "kl_steps=3", "samples=4"]) == 0
    assert "held-out likelihood" in capsys.readouterr().out
    rows = json.loads((work / "train" / "history.json").read_text())
    assert [row["step"] for row in rows] == [3, 3] and "median_energy" in rows[1]
    sites = BoltzmannGenerator.load(work / "train" / "generator.pt").sample(2)
    assert sites.shape == (2, 22, 3) and bool(torch.isfinite(sites).all())


def test_an_interrupted_refinement_goes_on(finished, crystal, tmp_path, capsys):
    """What is on disk is not computed again."""
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    record = json.loads((work / "refine" / "stage.json").read_text())
    (work / "refine" / "stage.json").write_text(json.dumps(record | {"finished": False}))
    (work / "refine" / "refined.cif").unlink()
    (work / "refine" / "polished.npz").write_bytes(b"cut off")
    kept = (work / "refine" / "start_1.npz").stat().st_mtime_ns
    assert run(["refine", str(work), *REFINE, f"benchmark={crystal / 'truth.pdb'}"]) == 0
    assert "polish:" in capsys.readouterr().out
    assert (work / "refine" / "start_1.npz").stat().st_mtime_ns == kept
    rows = [json.loads((folder / "refine" / "table.json").read_text())["rows"] for folder in (work, finished)]
    assert [row[:2] for row in rows[0]] == [[name, pytest.approx(r_work, abs=1e-3)] for name, r_work, *_ in rows[1]]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["prep"], "working folder is missing"),
        (["fold", "x"], "fold is not a stage"),
        (["md", "new"], "run mmtbx_sfdiff.latent prep"),
        (["prep", "new", "{start}"], "data file is missing"),
        (["prep", "new", "{start}", "{data}", "uniprot_id=Q07157"], "not both"),
        (["prep", "new", "{data}", "uniprot_id=Q07157"], "superpose_on"),
        (
            ["prep", "new", "{data}", "uniprot_id=xx", "superpose_on={start}", "download=False"],
            "not a UniProt accession",
        ),
        (
            ["prep", "new", "{data}", "uniprot_id=Q07157", "superpose_on={start}", "download=False"],
            "downloading is off",
        ),
        (["md", "new", "{start}"], "takes model and data from the stage prep"),
        (["md", "new", "duration=-1"], "md.duration=-1"),
        (["train", "new", "shrink=2"], "train.shrink=2"),
        (["refine", "new", "starts=9"], "refine.starts=9"),
        (["refine", "new", "device=tpu"], "device=tpu"),
        (["prep", "{start}", "{start}", "{data}"], "is a file"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, crystal, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMTBX_SFDIFF_CACHE_DIR", str(tmp_path / "cache"))
    names = {"start": crystal / "start.pdb", "data": crystal / "data.mtz"}
    assert run([word.format(**names) for word in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Sorry: ") and words in error and "Traceback" not in error
    assert arguments[0] == "prep" or not (tmp_path / "new").exists()


def test_work_folder_notices_changed_inputs(tmp_path):
    work, file = WorkDir(tmp_path / "w"), tmp_path / "input"
    file.write_text("a")
    assert work.begin("prep", {"n": 1}, {"file": file}, 0)
    with pytest.raises(ValueError, match="no finished stage prep"):
        work.begin("md", {})
    work.finish("prep", [])
    assert not work.begin("prep", {"n": 1}, {"file": file}, 0)
    file.write_text("b")
    with pytest.raises(ValueError, match="other inputs"):
        work.begin("prep", {"n": 1}, {"file": file}, 0)
    with pytest.raises(ValueError, match="other n, inputs"):
        work.begin("prep", {"n": 2}, {"file": file}, 0)
    (tmp_path / "w" / "prep" / "old").touch()
    assert work.begin("prep", {"n": 2}, {"file": file}, 0, restart=True)
    assert not (tmp_path / "w" / "prep" / "old").exists()
    work.finish("prep", [])
    assert work.begin("prep", {"n": 3}, {"file": file}, 0, resumable=("n",))


def test_a_predicted_model_is_put_on_each_chain(pdb_dir):
    from mmtbx_sfdiff.files import read_model

    from scitbx.array_family import flex
    from scitbx.matrix import sqr

    reference = read_model(pdb_dir / "1g1j" / "1g1j.pdb.gz").manager.get_hierarchy()
    predicted = reference.deep_copy()
    model = predicted.models()[0]
    for chain in list(model.chains())[1:]:
        model.remove_chain(chain)
    turn = sqr((0, 1, 0, 0, 0, 1, 1, 0, 0))
    predicted.atoms().set_xyz(turn.elems * predicted.atoms().extract_xyz() + (30.0, -7.0, 2.0))
    placed = place_on(predicted, reference)
    assert [c.id for c in placed.models()[0].chains()] == [
        c.id for c in reference.models()[0].chains() if c.is_protein()
    ]
    first, target = placed.models()[0].chains()[0], reference.models()[0].chains()[0]
    ca = [
        flex.vec3_double([a.xyz for a in c.atoms() if a.name == " CA " and a.parent().altloc in ("", "A")])
        for c in (first, target)
    ]
    assert len(ca[0]) > 30 and ca[0].rms_difference(ca[1]) < 0.01


def test_every_parameter_has_help_and_a_caption():
    from mmtbx_sfdiff.programs.latent import Program

    import iotbx.phil

    for definition in iotbx.phil.parse(Program.master_phil_str).all_definitions():
        assert definition.object.help and definition.object.short_caption, definition.path
