"""Where R is absurd the sentence names what is wrong and what to give, and giving it makes R small."""

import random
import shlex
import types

import mmtbx_sfdiff as sfdiff
from mmtbx_sfdiff.files import load_entry
from mmtbx_sfdiff.files.disagreement import HIGH, _missed, disagreement_messages
from mmtbx_sfdiff.files.screening import Screen
from mmtbx_sfdiff.programs import compare, fmodel
from mmtbx_sfdiff.programs.runner import main

import gemmi
import numpy as np
import pytest
from cctbx import crystal, sgtbx, xray
from cctbx.array_family import flex
from cctbx.development import random_structure

TETRAGONAL = (26.0, 26.0, 34.0, 90, 90, 90)
# name, group of the model, its cell, what is done, what is said, the parameter that is named
CASES = {
    "merohedral": ("P 4", TETRAGONAL, {"reindex": "h,-k,-l"}, "which the lattice allows", "reindex"),
    "beta near 90": ("P 1 21 1", (23, 27, 31, 90, 90.4, 90), {"reindex": "-h,-k,l"}, "allows within", "reindex"),
    "a near b": (
        "P 21 21 21",
        (26, 26.2, 34, 90, 90, 90),
        {"reindex": "k,h,-l"},
        "which the lattice allows",
        "reindex",
    ),
    "axes": ("P 2 2 21", (22, 27, 34, 90, 90, 90), {"permuted": True}, "their axes were in another order", "reindex"),
    "enantiomorph": ("P 41", TETRAGONAL, {"group": "P 43"}, "P 41, the enantiomorph of P 43", "space_group"),
    "screw axes": (
        "P 21 21 2",
        (22, 27, 34, 90, 90, 90),
        {"group": "P 2 2 2"},
        "the space group is P 21 21 2",
        "space_group",
    ),
    "origin": (
        "P 21 21 21",
        (22, 27, 34, 90, 90, 90),
        {"shift": (0.25, 0.25, 0)},
        "the model is moved by",
        "model_shift",
    ),
    "cell by SCALE": (
        "P 21 21 21",
        (22, 27, 34, 90, 90, 90),
        {"cell": (27, 22, 34, 90, 90, 90)},
        "SCALE records",
        "unit_cell",
    ),
    "cell by axes": (
        "P 21 21 21",
        (22, 27, 34, 90, 90, 90),
        {"cell": (27, 22, 34, 90, 90, 90), "scale": False},
        "its axes in another order",
        "unit_cell",
    ),
    "intensities": ("P 21 21 21", (22, 27, 34, 90, 90, 90), {"squares": True}, "the amplitudes are intensities", None),
}


@pytest.fixture(scope="module")
def structures():
    """Random structures by group and cell, made once."""
    made = {}

    def get(group, cell):
        if (group, cell) not in made:
            random.seed(3)
            flex.set_random_seed(3)
            symmetry = crystal.symmetry(cell, group)
            structure = random_structure.xray_structure(
                space_group_info=symmetry.space_group_info(),
                unit_cell=symmetry.unit_cell(),
                elements=["C", "N", "O"] * 14,
                general_positions_only=True,
                min_distance=1.8,
                random_u_iso=True,
                random_u_iso_scale=0.2,
            )
            made[group, cell] = structure
        return made[group, cell]

    return get


def write(
    folder, structure, reindex=None, permuted=False, group=None, shift=None, cell=None, scale=True, squares=False
):
    """(model, data): the data are those of the structure, and one thing is wrong with one of the files."""
    true = structure.crystal_symmetry()
    f = abs(structure.structure_factors(d_min=1.9, algorithm="direct").f_calc())
    rng = np.random.default_rng(0)
    values = f.data().as_numpy_array() * (1 + 0.03 * rng.standard_normal(f.size()))
    indices = np.array(list(f.indices()))
    stated = crystal.symmetry(cell or true.unit_cell(), group or str(true.space_group_info()))
    if reindex:
        matrix = np.array(gemmi.Op(reindex.translate(str.maketrans("hkl", "xyz"))).rot) // 24
        indices = indices @ matrix.T
    if permuted:
        indices = indices[:, [2, 0, 1]]
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = gemmi.SpaceGroup(str(stated.space_group_info()))
    mtz.add_dataset("made")
    for label, kind in (("F", "F"), ("SIGF", "Q"), ("FREE", "I")):
        mtz.add_column(label, kind)
    mtz.set_cell_for_all(gemmi.UnitCell(*stated.unit_cell().parameters()))
    values = values**2 if squares else values
    mtz.set_data(np.column_stack([indices, values, 0.03 * values, np.arange(len(values)) % 20]).astype(np.float32))
    mtz.write_to_file(str(folder / "data.mtz"))
    moved = structure.sites_frac() + flex.vec3_double([tuple(shift or (0, 0, 0))] * structure.scatterers().size())
    sites = true.unit_cell().orthogonalize(moved)
    hall = stated.space_group_info()
    a, b, c, *angles = stated.unit_cell().parameters()
    lines = [
        f"CRYST1{a:9.3f}{b:9.3f}{c:9.3f}{angles[0]:7.2f}{angles[1]:7.2f}{angles[2]:7.2f} {hall!s:<11}{1:4d}".ljust(80)
    ]
    if scale:
        matrix = np.array(true.unit_cell().fractionalization_matrix()).reshape(3, 3)
        for i, row in enumerate(matrix, 1):
            lines.append(f"SCALE{i}    {row[0]:10.6f}{row[1]:10.6f}{row[2]:10.6f}     {0:10.5f}".ljust(80))
    for i, (scatterer, site) in enumerate(zip(structure.scatterers(), sites), 1):
        element = scatterer.scattering_type
        b_iso = 8 * np.pi**2 * scatterer.u_iso
        lines.append(
            f"HETATM{i:5d}  {element:<3} HOH A{i:4d}    {site[0]:8.3f}{site[1]:8.3f}{site[2]:8.3f}  1.00{b_iso:6.2f}"
            f"          {element:>2}  "
        )
    (folder / "model.pdb").write_text("\n".join([*lines, "END", ""]))
    return folder / "model.pdb", folder / "data.mtz"


def scaled(entry):
    """An FModel of the entry, without solvent to speak of."""
    model = sfdiff.FModel(
        sfdiff.Atoms.from_cctbx(entry.model.xray_structure),
        sfdiff.Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags),
        mask={"method": "binary"},
        source=entry,
    )
    model.update_scales()
    return model


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_named_and_its_remedy_helps(name, structures, tmp_path):
    group, cell, wrong, what, parameter = CASES[name]
    files = write(tmp_path, structures(group, cell), **wrong)
    model = scaled(load_entry(*files))
    assert model.scales.r_work > HIGH
    (said,) = disagreement_messages(model)
    assert what in said and said.count(". ") == 0
    if parameter is None:
        return
    words = shlex.split(said.split("give ", 1)[1].rsplit(", or mend", 1)[0])
    remedy = dict(word.split("=", 1) for word in words)
    assert list(remedy) == [parameter]
    values = {
        key: value if key in ("reindex", "space_group") else [float(x) for x in value.split()]
        for key, value in remedy.items()
    }
    again = scaled(load_entry(*files, **values))
    assert again.scales.r_work < 0.2
    assert f"but {again.scales.r_work:.3f} if" in said and disagreement_messages(again) == []


def test_a_right_model_is_left_alone_and_an_unrelated_one_is_said_to_be_so(structures, tmp_path):
    cell = (22, 27, 34, 90, 90, 90)
    structure = structures("P 21 21 21", cell)
    assert disagreement_messages(scaled(load_entry(*write(tmp_path, structure)))) == []
    other = structure.deep_copy_scatterers()
    flex.set_random_seed(9)
    other.set_sites_frac(flex.vec3_double(flex.random_double(3 * other.scatterers().size())))
    model, _ = write(tmp_path, other)
    text = model.read_text()
    _, data = write(tmp_path, structure)
    model.write_text(text)
    (said,) = disagreement_messages(scaled(load_entry(model, data)))
    assert "may be of another crystal" in said


def test_cell_of_the_data_file_is_tried(structures, tmp_path):
    """One per cent is within what counts as the same cell, and too much for a large crystal at high resolution."""
    structure = structures("P 21 21 21", (22, 27, 34, 90, 90, 90))
    model, data = write(tmp_path, structure, scale=False)
    wrong = "CRYST1" + "".join(f"{1.009 * x:9.3f}" for x in (22, 27, 34))
    text = model.read_text()
    model.write_text(wrong + text[33:])
    fmodel = scaled(load_entry(model, data))
    found = disagreement_messages(fmodel)
    if fmodel.scales.r_work > HIGH:
        assert "that of the data file" in found[0]
    else:  # too small a crystal to tell
        assert found == [] or "unit cell" in found[0]


def test_programs_say_it_and_take_the_remedy(structures, tmp_path, capsys):
    files = [str(path) for path in write(tmp_path, structures("P 41", TETRAGONAL), group="P 43")]
    more = [f"output.directory={tmp_path}", "mask=binary"]
    assert main(fmodel.Program, [*files, *more, "maps=False"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert 'give space_group="P 41"' in said
    assert main(compare.Program, [*files, *more, "html=False", "figure=False", "n_timing=1"]) == 0
    assert 'give space_group="P 41"' in " ".join(capsys.readouterr().out.split())
    assert main(fmodel.Program, [*files, *more, "maps=False", "space_group=P 41", "overwrite=True"]) == 0
    assert "if the space group" not in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words", ["reindex=k,h", "reindex=h,h,l", "space_group=P 9 9 9", "unit_cell=1 2 3 4 5 6"])
def test_impossible_symmetry_is_refused_in_a_sentence(words, structures, tmp_path, capsys):
    files = [str(path) for path in write(tmp_path, structures("P 21 21 21", (22, 27, 34, 90, 90, 90)))]
    assert main(fmodel.Program, [*files, words, f"output.directory={tmp_path}"]) == 1
    text = capsys.readouterr()
    assert "Traceback" not in text.out + text.err and words.split("=")[1].split(",")[0] in text.out + text.err


@pytest.mark.parametrize("group", ["P 41 21 2", "C 1 2 1", "I 2 2 2", "P 61 2 2", "F 4 3 2"])
def test_amplitudes_of_other_groups_are_those_of_cctbx(group):
    symmetry = sgtbx.space_group_info(group).any_compatible_crystal_symmetry(volume=20000)
    random.seed(1)
    flex.set_random_seed(1)
    structure = random_structure.xray_structure(
        space_group_info=symmetry.space_group_info(),
        unit_cell=symmetry.unit_cell(),
        elements=["C"] * 6,
        general_positions_only=True,
        random_u_iso=True,
    )
    atoms = sfdiff.Atoms.from_cctbx(structure)
    f = structure.structure_factors(d_min=3.0, algorithm="direct").f_calc()
    model = sfdiff.FModel(atoms, sfdiff.Reflections.from_cctbx(abs(f)))
    screen = Screen(model)
    shift = (0.1, 0.2, 0.3)
    moved = structure.deep_copy_scatterers()
    moved.set_sites_frac(moved.sites_frac() + flex.vec3_double([shift] * moved.scatterers().size()))
    parts = screen.molecule(screen.h)
    for one in (screen.own, *screen.groups()):
        there = crystal.symmetry(symmetry.unit_cell(), space_group_info=sgtbx.space_group_info(one.symbol))
        settings = crystal.special_position_settings(there, min_distance_sym_equiv=1e-3)
        there = xray.structure(special_position_settings=settings, scatterers=moved.scatterers())
        chosen = f.customized_copy(
            crystal_symmetry=there.crystal_symmetry(),
            indices=flex.miller_index(screen.h.tolist()),
            data=flex.complex_double(len(screen.h)),
        )
        exact = abs(chosen.structure_factors_from_scatterers(xray_structure=there, algorithm="direct").f_calc())
        exact = exact.data().as_numpy_array() / len(screen.crystal.centring)
        found = screen.amplitudes(parts, screen.h, one, shift)
        assert np.abs(found - exact).max() < 2e-3 * exact.max()


@pytest.mark.parametrize(
    "cell, law, missed",
    [
        ((105.248, 35.747, 86.989, 90, 126.37, 90), "h,-k,-h-l", (0.02, 2.0)),
        ((45.65, 47.56, 77.61, 90, 90, 90), "k,h,-l", (0.05, 0.1)),
        ((50, 50, 80, 90, 90, 90), "k,h,-l", (0, 0)),
    ],
)
def test_by_how_much_a_lattice_misses_an_operator(cell, law, missed):
    said = _missed(types.SimpleNamespace(crystal=sfdiff.Crystal(cell, "P 1")), law)
    numbers = [float(word.rstrip("%°")) for word in said.split() if word[0].isdigit()] or [0, 0]
    assert numbers[0] <= 100 * missed[0] and numbers[1] <= missed[1]


def test_square_roots_that_lower_r_by_themselves_are_no_explanation(structures, tmp_path):
    """Amplitudes of a tetragonal crystal with their axes in another order, merged as they should not be."""
    model = scaled(load_entry(*write(tmp_path, structures("P 4", TETRAGONAL), permuted=True)))
    assert model.scales.r_work > HIGH
    assert not any("intensities" in said for said in disagreement_messages(model))
