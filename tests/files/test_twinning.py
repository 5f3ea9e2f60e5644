"""Data that are twinned are recognised, and those that are not are left alone."""

import dataclasses

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.files import find_entry
from mmtbx_sfdiff.files.twinning import twin_messages, twins
from mmtbx_sfdiff.programs.fmodel import Program
from mmtbx_sfdiff.programs.runner import main

import pytest
from cctbx import sgtbx

from tests.support.scaling_data import manager


def twinned(fmodel, fraction):
    """The same with amplitudes of a twin by -h-k,k,-l, of the model itself but for a little noise."""
    reflections = fmodel.reflections
    intensities = fmodel.f_calc().abs().square()
    f_obs, _ = reflections.to_cctbx()
    own = {index: n for n, index in enumerate(f_obs.map_to_asu().indices())}
    operator = sgtbx.change_of_basis_op(sgtbx.rt_mx("-x,-x+y,-z"))
    mates = f_obs.customized_copy(indices=operator.apply(f_obs.indices())).map_to_asu().indices()
    mate = torch.tensor([own.get(index, n) for n, index in enumerate(mates)])
    amplitudes = ((1 - fraction) * intensities + fraction * intensities[mate]).sqrt()
    noise = 1 + 0.1 * torch.randn(len(amplitudes), generator=torch.Generator().manual_seed(0), dtype=amplitudes.dtype)
    return FModel(
        fmodel.atoms,
        dataclasses.replace(reflections, f_obs=amplitudes * noise.clamp(min=0.5)),
        method="direct",
        mask={"method": "binary"},
    )


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5])
def test_fraction_is_found(fraction):
    fmodel = FModel.from_cctbx(manager("P 3", n_atoms=30, d_min=2.0, seed=2), method="direct")
    fmodel = twinned(fmodel, fraction)
    fmodel.update_scales(remove_outliers=False)
    best = min(twins(fmodel), key=lambda twin: twin.r_twinned)
    assert best.suspected == (fraction > 0)
    if fraction:
        assert best.fraction == pytest.approx(fraction, abs=0.08)
        assert "look twinned" in twin_messages(fmodel)[0]
    else:
        assert twin_messages(fmodel) == []


def test_data_in_the_other_indexing_are_said_with_the_command():
    fmodel = FModel.from_cctbx(manager("P 3", n_atoms=30, d_min=2.0, seed=2), method="direct")
    fmodel = twinned(fmodel, 1.0)
    fmodel.update_scales(remove_outliers=False)
    (said,) = twin_messages(fmodel)
    laws = [twin.law for twin in twins(fmodel) if twin.r_reindexed < 0.2]
    assert "the data are in the other indexing" in said and any(f"gemmi reindex --hkl='{law}'" in said for law in laws)


def test_no_law_no_twin():
    fmodel = FModel.from_cctbx(manager("P 1", n_atoms=12, d_min=2.5))
    fmodel.update_scales()
    assert twins(fmodel) == [] and twin_messages(fmodel) == []


@pytest.mark.parametrize("entry, law", [("1l2h", "h,-k,-l"), ("1aie", None)])
def test_program_says_so(entry, law, pdb_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMTBX_SFDIFF_PDB_DIR", str(pdb_dir))
    files = find_entry(entry, download=False)
    assert main(Program, [str(files.model), str(files.data), f"directory={tmp_path}", "mask=binary", "maps=False"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert ("look twinned" in text) == (law is not None)
    if law:
        assert f"by the law {law}" in text
