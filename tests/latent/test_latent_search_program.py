"""``mmtbx_sfdiff.latent`` without dynamics: an elastic network's search, from the command line to the files."""

import json

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.command_line.latent import run
from mmtbx_sfdiff.files import read_model
from mmtbx_sfdiff.files.demo import simulate
from mmtbx_sfdiff.latent import ElasticNetwork
from mmtbx_sfdiff.latent.refinement.search import SearchSettings, Start
from mmtbx_sfdiff.latent.workflow import searching
from mmtbx_sfdiff.latent.workflow.reporting import course_steps

import numpy as np
import pytest
from cctbx.array_family import flex

from tests.support.monomers import library_or_skip
from tests.support.peptide import peptide

pytest.importorskip("openmm")
pytest.importorskip("pdbfixer")


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    """start.pdb, the peptide bent, and data.mtz of what it was."""
    folder = tmp_path_factory.mktemp("bent")
    structure = peptide(cell=(19.0, 16.0, 22.0, 90.0, 104.0, 90.0))
    (folder / "truth.pdb").write_text(structure.make_pdb_string())
    f_obs, flags = simulate(read_model(folder / "truth.pdb", d_min=2.0).xray_structure, 2.0)
    free = np.random.default_rng(1).random(flags.size()) < 0.1
    dataset = f_obs.as_mtz_dataset(column_root_label="FOBS")
    dataset.add_miller_array(
        flags.customized_copy(data=flex.int(free.astype(np.int32))), column_root_label="R-free-flags"
    )
    dataset.mtz_object().write(str(folder / "data.mtz"))
    bent = ElasticNetwork.from_gemmi(structure, rms=0.8).sample(1, 1.0, torch.Generator().manual_seed(4))[0]
    for cra, place in zip(structure[0].all(), bent.tolist()):
        for axis, value in zip("xyz", place):
            setattr(cra.atom.pos, axis, value)
    (folder / "start.pdb").write_text(structure.make_pdb_string())
    return folder


def test_without_dynamics_the_elastic_network_is_searched_and_a_library_polishes(
    crystal, tmp_path, monkeypatch, capsys
):
    library_or_skip()
    monkeypatch.setattr(
        searching,
        "SEARCH",
        SearchSettings(starts=(Start(rate=0.08), Start(2.0, rate=0.08)), rigid_steps=5, steps=50),
    )
    work = tmp_path / "work"
    assert run(["prep", str(work), str(crystal / "start.pdb"), str(crystal / "data.mtz")]) == 0
    assert run(["refine", str(work), "starts=2"]) == 1
    assert "refine.starts is of prior=generator" in capsys.readouterr().err
    assert run(["refine", str(work), "prior=generator"]) == 1
    assert "no finished stage train" in capsys.readouterr().err
    assert run(["refine", str(work), f"library={tmp_path / 'none'}"]) == 1
    assert "none" in capsys.readouterr().err and not (work / "refine" / "stage.json").exists()
    assert run(["refine", str(work)]) == 0 and run(["report", str(work)]) == 0
    table = json.loads((work / "refine" / "table.json").read_text())
    rows = {row[0]: row for row in table["rows"]}
    assert rows["start"][1] > 0.4 and rows["refined"][1] < 0.15 and rows["refined"][2] < rows["start"][2] - 0.2
    assert table["final"]["facts"]["geometry"]["bond"] < 0.03
    model = FModel.from_files(work / "refine" / "refined.cif", crystal / "data.mtz")
    model.update_scales()
    assert model.r_work() == pytest.approx(rows["refined"][1], abs=5e-3)
    assert sorted(path.name for path in (work / "report").glob("*.png")) == ["course.png"]
    steps = course_steps(work / "refine", table)
    assert [run["label"].split(",")[0] for run in table["runs"]] == ["rebuilt", "search"]
    assert len(steps["latent (rebuilt)"]) == len((work / "refine" / "history.csv").read_text().splitlines()) - 1
    # What is there is not done again; another width of the prior is refused.
    before = (work / "refine" / "search.npz").stat().st_mtime_ns
    assert run(["refine", str(work)]) == 0 and (work / "refine" / "search.npz").stat().st_mtime_ns == before
    assert run(["refine", str(work), "prior_rms=2"]) == 1
    assert "other prior_rms" in capsys.readouterr().err
