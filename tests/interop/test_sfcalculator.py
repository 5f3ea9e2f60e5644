"""SFcalculator's interface: against direct summation and the definitions, and programs that were written for it."""

import re
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.interop import sfcalculator
from mmtbx_sfdiff.interop.sfcalculator import PDBParser, SFcalculator, mask, symmetry

import gemmi
import numpy as np
import pytest

from tests.interop import programs
from tests.interop.crystals import write_crystal

N_BINS = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_crystal(tmp_path_factory.mktemp("crystal"))


@pytest.fixture
def sfc(files):
    return SFcalculator(*map(str, files), device="cpu", n_bins=N_BINS)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def exact(sfc, indices):
    atoms = sfc._atoms().to(dtype=torch.float64)
    return sfdiff.structure_factors(atoms, atoms.crystal, torch.as_tensor(indices, dtype=torch.int64), method="direct")


def test_reflections_keep_the_order_of_the_file(files, sfc):
    mtz = gemmi.read_mtz_file(str(files[1]))
    rows = np.array(mtz)
    assert np.array_equal(sfc.HKL_array, rows[:, :3].astype(int)) and sfc.HKL_array.dtype == np.int32
    assert np.allclose(sfc.Fo.numpy(), rows[:, 3]) and np.allclose(sfc.SigF.numpy(), rows[:, 4])
    assert np.array_equal(sfc.free_flag, rows[:, 5] == 0)
    assert np.array_equal(sfc.Hasu_array[sfc.asu2HKL_index], sfc.HKL_array)


def test_structure_factors_are_those_of_direct_summation(sfc):
    f = sfc.calc_fprotein(Return=True)
    assert f.dtype == torch.complex64 and relative(f.to(torch.complex128), exact(sfc, sfc.HKL_array)) < 1e-5
    assert relative(sfc.Fprotein_asu.to(torch.complex128), exact(sfc, sfc.Hasu_array)) < 1e-5


def test_a_batch_is_its_models_whatever_the_partition(sfc):
    sites = sfc.atom_pos_orth + 0.1 * torch.randn(3, sfc.n_atoms, 3, generator=torch.Generator().manual_seed(0))
    together = sfc.calc_fprotein_batch(sites, Return=True, PARTITION=1)
    masks = sfc.calc_fsolvent_batch(Return=True, PARTITION=2)
    for one, f, f_mask in zip(sites, together, masks):
        assert relative(f, sfc.calc_fprotein(one, Return=True)) < 2e-5
        assert relative(f_mask, sfc.calc_fsolvent(Return=True)) < 1e-5


def test_scales_fit_and_are_differentiable(sfc):
    sites = sfc.atom_pos_orth.clone().requires_grad_()
    sfc.calc_fprotein(sites)
    sfc.calc_fsolvent()
    sfc.get_scales_adam()
    assert 0 < float(sfc.r_work) < 0.1 and float(sfc.r_free) < 0.1
    assert len(sfc.kmasks) == len(sfc.kisos) == len(sfc.uanisos) == sfc.n_bins and sfc.uanisos[0].shape == (6,)
    (gradient,) = torch.autograd.grad(sfc.calc_ftotal().abs().sum(), sites)
    assert bool(gradient.isfinite().all()) and float(gradient.norm()) > 0


def test_what_is_done_to_a_list_of_scales_is_done_to_its_bin(sfc):
    sfc.calc_fprotein()
    sfc.calc_fsolvent()
    sfc.init_scales(requires_grad=True)
    before = sfc.calc_ftotal().detach().clone()
    with torch.no_grad():
        sfc.kisos[1] *= 2
    inside = torch.as_tensor(sfc.bins == 1)
    after = sfc.calc_ftotal()
    torch.testing.assert_close(after[inside], 2 * before[inside])
    torch.testing.assert_close(after[~inside], before[~inside])
    after.abs().sum().backward()
    assert all(x.grad is not None for x in (*sfc.kisos, *sfc.kmasks, *sfc.uanisos))


def test_scales_without_data_are_those_given(files):
    sfc = SFcalculator(str(files[0]), dmin=3.0, device="cpu")
    assert sfc.HKL_array is None and len(sfc.dHasu) == len(sfc.Hasu_array)
    f = sfc.calc_fprotein(Return=True)
    f_mask = sfc.calc_fsolvent(Return=True)
    sfc._set_scales(False, kiso=2.0, kmask=0.3, uaniso=[0.0] * 6)
    torch.testing.assert_close(sfc.calc_ftotal(), 2 * (f + 0.3 * f_mask))


def test_density_added_by_hand_reaches_the_mask(sfc):
    sfc.inspect_data()
    sfc.calc_fprotein()
    sfc.calc_fsolvent()
    own = sfc.Fmask_HKL.clone()
    sfc.Fprotein_asu += 0.5 * sfc.Fprotein_asu.roll(1)
    with pytest.warns(UserWarning, match="changed after calc_fprotein"):
        sfc.calc_fsolvent()
    assert relative(sfc.Fmask_HKL, own) > 0.05


def test_normalized_amplitudes_and_outliers_follow_their_definition(sfc):
    squares = (sfc.Eo**2).numpy()
    for i in range(sfc.n_bins):
        assert abs(squares[sfc.bins == i].mean() - 1) < 1e-4
    assert not sfc.Outlier.any() and sfc.Outlier.dtype == bool
    sfc.calc_fprotein()
    e_calc = sfc.calc_Ec(sfc.Fprotein_HKL)
    assert abs(float((e_calc.abs() ** 2)[torch.as_tensor(sfc.bins == 0)].mean()) - 1) < 1e-4


def test_anomalous_scattering_is_that_of_the_wavelength(files):
    sfc = SFcalculator(str(files[0]), dmin=3.0, anomalous=True, wavelength=1.54, device="cpu")
    atoms = sfc._atoms()
    sulfur = sfc.atom_name.index("S")
    fp, fdp = gemmi.cromer_liberman(z=16, energy=gemmi.hc / 1.54)
    assert abs(float(atoms.fp[sulfur]) - fp) < 1e-6 and abs(float(atoms.fdp[sulfur]) - fdp) < 1e-6
    plus, minus = (np.array([1, 2, 3]) * sign for sign in (1, -1))
    rows = {tuple(h): i for i, h in enumerate(sfc.Hasu_array.tolist())}
    f = sfc.calc_fprotein(Return=True).abs()
    assert abs(float(f[rows[tuple(plus)]] - f[rows[tuple(minus)]])) > 1e-3


def test_wrong_labels_and_flags_are_sentences(files):
    model, data = map(str, files)
    with pytest.raises(ValueError, match="no column 'FOBS'.*it has FP, SIGFP"):
        SFcalculator(model, data, expcolumns=["FOBS", "SIGFP"], device="cpu")
    with pytest.raises(ValueError, match="no column 'TEST' for the test set"):
        SFcalculator(model, data, freeflag="TEST", device="cpu")
    with pytest.raises(ValueError, match="testset_value=1 marks .* is no test set"):
        SFcalculator(model, data, testset_value=1, device="cpu")
    with pytest.raises(ValueError, match="testset_value=7 marks 0 of"):
        SFcalculator(model, data, testset_value=7, device="cpu")
    with pytest.raises(ValueError, match="give dmin"):
        SFcalculator(model, device="cpu")
    with pytest.raises(ValueError, match="there is no such file"):
        SFcalculator(model, "nothing.mtz", device="cpu")
    with pytest.raises(TypeError, match=r"a path, a gemmi.Mtz"):
        SFcalculator(model, 3, device="cpu")
    assert not SFcalculator(model, data, freeflag=None, device="cpu").free_flag.any()


def test_intensities_are_refused(files, tmp_path):
    mtz = gemmi.read_mtz_file(str(files[1]))
    mtz.column_with_label("FP").type = "J"
    mtz.write_to_file(str(tmp_path / "i.mtz"))
    with pytest.raises(ValueError, match="holds intensities"):
        SFcalculator(str(files[0]), str(tmp_path / "i.mtz"), device="cpu")


def test_calls_out_of_order_are_sentences(sfc):
    with pytest.raises(ValueError, match=r"call calc_fprotein\(\) first"):
        sfc.calc_fsolvent()
    sfc.calc_fprotein()
    with pytest.raises(ValueError, match="no scales yet"):
        sfc.calc_ftotal()
    with pytest.raises(ValueError, match="must have the shape"):
        sfc.atom_pos_orth = torch.zeros(3, 3)


def test_every_door_gives_the_same(files):
    reciprocalspaceship = pytest.importorskip("reciprocalspaceship")
    doors = [
        SFcalculator(PDBParser(gemmi.read_structure(str(files[0]))), data, device="cpu", n_bins=N_BINS)
        for data in (str(files[1]), gemmi.read_mtz_file(str(files[1])), reciprocalspaceship.read_mtz(str(files[1])))
    ]
    for other in doors[1:]:
        assert np.array_equal(doors[0].HKL_array, other.HKL_array) and torch.equal(doors[0].Fo, other.Fo)
        assert np.array_equal(doors[0].free_flag, other.free_flag)
    sfc = doors[0]
    sfc.calc_fprotein()
    data = sfc.prepare_dataset("HKL_array", "Fprotein_HKL")
    assert np.allclose(data["FMODEL"].to_numpy(), sfc.Fprotein_HKL.abs().numpy())


def test_a_model_written_and_read_again_is_the_same(sfc, tmp_path):
    sfc.atom_pos_orth = sfc.atom_pos_orth + 1.0
    sfc.savePDB(tmp_path / "out.pdb")
    again = PDBParser(str(tmp_path / "out.pdb"))
    assert np.allclose(again.atom_pos, sfc.atom_pos_orth.numpy(), atol=1e-3)
    assert again.cra_name == sfc.cra_name and again.spacegroup.hm == sfc.space_group.hm


def test_atoms_keep_the_order_of_the_file(tmp_path):
    """A chain that comes in two parts, as waters after the other chains do."""
    line = "HETATM{:5d}  O   HOH {}{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 20.00           O"
    atoms = [(1, "A", 1, 1.0), (2, "B", 1, 4.0), (3, "A", 101, 7.0), (4, "B", 102, 10.0)]
    text = "CRYST1   30.000   34.000   40.000  90.00  90.00  90.00 P 21 21 21\n"
    text += "\n".join(line.format(n, chain, number, x, x, x) for n, chain, number, x in atoms) + "\nEND\n"
    (tmp_path / "model.pdb").write_text(text)
    parser = PDBParser(str(tmp_path / "model.pdb"))
    assert parser.atom_pos[:, 0].tolist() == [x for *_, x in atoms]
    assert [name[0] for name in parser.cra_name] == ["A", "B", "A", "B"] and parser.res_id == [1, 1, 101, 102]
    parser.savePDB(tmp_path / "again.pdb")
    again = PDBParser(str(tmp_path / "again.pdb"))
    assert again.cra_name == parser.cra_name and np.allclose(again.atom_pos, parser.atom_pos)


def test_reciprocal_space_in_p1_is_that_of_the_operators():
    cell, group = gemmi.UnitCell(40, 50, 62, 90, 104, 90), gemmi.SpaceGroup("C 1 2 1")
    crystal = sfdiff.Crystal(tuple(cell.parameters), "C 1 2 1")
    generator = torch.Generator().manual_seed(0)
    sites = 20 * torch.rand(5, 3, generator=generator, dtype=torch.float64)
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C"] * 5, sites, b_iso=[20.0] * 5)
    asu = symmetry.generate_reciprocal_asu(cell, group, 4.0)
    f = sfdiff.structure_factors(atoms, crystal, torch.as_tensor(asu, dtype=torch.int64), method="direct")
    indices, found = symmetry.expand_to_p1(group, asu, f, dmin_mask=5.0, unitcell=cell)
    direct = sfdiff.structure_factors(atoms, crystal, torch.as_tensor(indices, dtype=torch.int64), method="direct")
    assert relative(found, direct) < 1e-10 and len(np.unique(indices, axis=0)) == len(indices)


def test_installed_under_its_name(monkeypatch):
    import sys

    for name in [n for n in sys.modules if n.split(".")[0] == "SFC_Torch"]:
        monkeypatch.delitem(sys.modules, name)
    package = sfcalculator.install()
    try:
        from SFC_Torch import PDBParser as parser
        from SFC_Torch import SFcalculator as calculator
        from SFC_Torch.Fmodel import SFcalculator as same
        from SFC_Torch.mask import reciprocal_grid

        assert calculator is same is SFcalculator and parser is PDBParser
        assert reciprocal_grid is mask.reciprocal_grid
        assert sfcalculator.install() is package
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "SFC_Torch"]:
            del sys.modules[name]
    monkeypatch.setitem(sys.modules, "SFC_Torch", type(sys)("SFC_Torch"))
    with pytest.raises(RuntimeError, match="imported already"):
        sfcalculator.install()


@pytest.mark.parametrize("way", ["installed", "import changed"])
@pytest.mark.parametrize("program", ["likelihood_gain", "ensemble_reward", "map_loss"])
def test_programs_written_for_the_published_package_run(program, way, files):
    if program == "ensemble_reward":
        pytest.importorskip("reciprocalspaceship")
    import sys

    assert "SFC_Torch" not in sys.modules
    if way == "installed":
        sfcalculator.install()
        source = programs
    else:
        text = Path(programs.__file__).read_text()
        changed = re.sub(r"^(\s+(?:import|from) )SFC_Torch\b", r"\1mmtbx_sfdiff.interop.sfcalculator", text, flags=re.M)
        assert changed.count("mmtbx_sfdiff.interop.sfcalculator") == 7
        source = type(sys)("changed")
        exec(compile(changed, "changed", "exec"), vars(source))
    try:
        found = getattr(source, program)(*map(str, files))
        assert ("SFC_Torch" in sys.modules) == (way == "installed")
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "SFC_Torch"]:
            del sys.modules[name]
    flat = [x for v in found.values() for x in (v if isinstance(v, list) else [v]) if isinstance(x, float)]
    assert flat and np.isfinite(flat).all()
    if program == "likelihood_gain":
        assert found["losses"][-1] < found["losses"][0] and found["sequence"]


def test_a_flag_that_is_absent_by_default_is_warned_of(files, tmp_path):
    mtz = gemmi.read_mtz_file(str(files[1]))
    mtz.remove_column(5)
    mtz.write_to_file(str(tmp_path / "plain.mtz"))
    with pytest.warns(UserWarning, match="no column 'FreeR_flag': there is no test set"):
        sfc = SFcalculator(str(files[0]), str(tmp_path / "plain.mtz"), device="cpu")
    assert not sfc.free_flag.any()
    sfc.calc_fprotein()
    sfc.calc_fsolvent()
    sfc.get_scales_adam()
    assert float(sfc.r_work) < 0.1 and np.isnan(float(sfc.r_free))
