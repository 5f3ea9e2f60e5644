"""Where SFcalculator and this package differ: that this one is right, by cctbx's direct summation and by counting."""

import torch
from mmtbx_sfdiff.interop.sfcalculator import SFcalculator

import numpy as np
import pytest

from validation.studies import sfcalculator_cases as cases


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    cases.write(folder)
    return folder


@pytest.mark.parametrize("name", ["general", "special", "ions"])
def test_structure_factors_are_cctbx_s_direct_sums(name, folder):
    """Atoms on a twofold axis count once; zinc, calcium and chloride have the form factors of their charges."""
    sfc = SFcalculator(str(folder / f"{name}.pdb"), dmin=2.0, device="cpu")
    found = sfc.calc_fprotein(Return=True).numpy()
    exact = cases.exact(name, sfc.Hasu_array.astype(int))
    assert np.linalg.norm(found - exact) <= 1e-5 * np.linalg.norm(exact)


def test_a_mask_does_not_know_of_the_others_in_its_batch(folder):
    sfc = SFcalculator(str(folder / "general.pdb"), dmin=2.5, device="cpu")
    sites = sfc.atom_pos_orth
    found = []
    for scale in (1.0, 0.6):
        sfc.calc_fprotein_batch(torch.stack([sites.mean(0) + scale * (sites - sites.mean(0)), sites]))
        found.append(sfc.calc_fsolvent_batch(Return=True)[1])
    assert torch.equal(*found)
    sfc.calc_fprotein(sites)
    torch.testing.assert_close(
        sfc.calc_fsolvent(Return=True), found[0], rtol=1e-5, atol=1e-5 * float(found[0].abs().max())
    )


def test_the_test_set_is_that_of_the_file(folder):
    sfc = SFcalculator(str(folder / "general.pdb"), str(folder / "data.mtz"), device="cpu")
    assert 0.02 < sfc.free_flag.mean() < 0.08
    with pytest.raises(ValueError, match="is no test set"):
        SFcalculator(str(folder / "general.pdb"), str(folder / "data.mtz"), testset_value=1, device="cpu")
