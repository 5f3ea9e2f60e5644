"""B factors that are the residual of a TLS refinement get the part that the header describes, through every door."""

import warnings

import mmtbx_sfdiff as sfdiff
from mmtbx_sfdiff.files import read_model
from mmtbx_sfdiff.files.model_text import read_structure

import numpy as np
import pytest
from cctbx.array_family import flex
from mmtbx.tls import tools
from scitbx import matrix

from tests.support import case_files

ORIGIN = (8.0, 9.0, 14.0)
T = (0.2, 0.15, 0.25, 0.01, 0.02, 0.03)  # 11 22 33 12 13 23
L = (14.0, 9.0, 6.0, 0.5, 0.8, 1.2)
S = (0.1, 0.2, -0.3, 0.15, -0.25, 0.1, -0.1, 0.3, 0.15)
RESIDUAL = "ATOM RECORD CONTAINS RESIDUAL B FACTORS ONLY"


def remark(atoms="    RESIDUE RANGE :   A     2        A     6", which=RESIDUAL, s13="S13:  -0.3000"):
    body = f"""
  TLS DETAILS
   NUMBER OF TLS GROUPS  : 1
   {which}

   TLS GROUP : 1
    NUMBER OF COMPONENTS GROUP : 1
    COMPONENTS        C SSSEQI   TO  C SSSEQI
{atoms}
    ORIGIN FOR THE GROUP (A):   8.0000   9.0000  14.0000
    T TENSOR
      T11:   0.2000 T22:   0.1500
      T33:   0.2500 T12:   0.0100
      T13:   0.0200 T23:   0.0300
    L TENSOR
      L11:  14.0000 L22:   9.0000
      L33:   6.0000 L12:   0.5000
      L13:   0.8000 L23:   1.2000
    S TENSOR
      S11:   0.1000 S12:   0.2000 {s13}
      S21:   0.1500 S22:  -0.2500 S23:   0.1000
      S31:  -0.1000 S32:   0.3000 S33:   0.1500
"""
    return "".join(f"REMARK   3 {line}".rstrip() + "\n" for line in body.splitlines())


def pdb(folder, header, more=None):
    path = folder / "residual.pdb"
    text = case_files.pdb_text(header=header)
    path.write_text(more(text) if more else text)
    return path


def cif(folder, flag="'LIKELY RESIDUAL'", ranges=("A", "2", "A", "6"), details="?"):
    tensor = {f"T[{i}][{j}]": x for (i, j), x in zip(((1, 1), (2, 2), (3, 3), (1, 2), (1, 3), (2, 3)), T)}
    tensor |= {f"L[{i}][{j}]": x for (i, j), x in zip(((1, 1), (2, 2), (3, 3), (1, 2), (1, 3), (2, 3)), L)}
    tensor |= {f"S[{k // 3 + 1}][{k % 3 + 1}]": x for k, x in enumerate(S)}
    lines = [f"_refine.pdbx_TLS_residual_ADP_flag {flag}", "_pdbx_refine_tls.id 1"]
    lines += [f"_pdbx_refine_tls.origin_{axis} {x}" for axis, x in zip("xyz", ORIGIN)]
    lines += [f"_pdbx_refine_tls.{name} {x}" for name, x in tensor.items()]
    names = ("beg_auth_asym_id", "beg_auth_seq_id", "end_auth_asym_id", "end_auth_seq_id")
    lines += ["_pdbx_refine_tls_group.id 1", "_pdbx_refine_tls_group.refine_tls_id 1"]
    lines += [f"_pdbx_refine_tls_group.{name} {x}" for name, x in zip(names, ranges)]
    lines += [f"_pdbx_refine_tls_group.selection_details {details}"]
    path = folder / "residual.cif"
    path.write_text(case_files.cif_text(more="\n".join(lines) + "\n"))
    return path


def expected(rows):
    """(n, 6) U of mmtbx for the atoms of residues 2 to 6, others as they are."""
    cell = case_files.SYMMETRY.unit_cell()
    found = []
    for _, residue, number, x, y, z, _, b in rows:
        u = np.array([1, 1, 1, 0, 0, 0]) * round(b, 2) / (8 * np.pi**2)
        if residue != "HOH" and 2 <= number <= 6:
            site = flex.vec3_double([tuple(round(v, 3) for v in (x, y, z))])
            tlso = tools.tlso(t=T, l=L, s=S, origin=ORIGIN)
            u = u + np.array(tools.uaniso_from_tls_one_group(tlso, site, zeroize_trace=False)[0])
        found.append(u)
    assert cell is not None and matrix.sqr(S).trace() == pytest.approx(0.0, abs=1e-9)
    return np.array(found)


def check(structure):
    u = np.array(structure.scatterers().extract_u_cart_plus_u_iso(structure.unit_cell()))
    want = expected(case_files.atoms())
    assert np.abs(u - want).max() < 6e-5  # the format's last digit
    assert np.abs(want[5:30, :3]).min() > 0.2  # there is something to add


@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_whole_tensors_are_those_of_mmtbx(kind, tmp_path):
    path = pdb(tmp_path, remark()) if kind == "pdb" else cif(tmp_path)
    model = read_model(path)
    assert any("TLS part of the header's groups was added to 25 atoms" in message for message in model.messages)
    check(model.xray_structure)


@pytest.mark.parametrize(
    "atoms",
    [
        "    SELECTION: CHAIN A AND RESSEQ 2:6",
        "    SELECTION: (CHAIN A AND RESID 2 THROUGH 6 )",
        "    SELECTION: CHAIN A AND RESSEQ 2:3 OR CHAIN A AND RESSEQ 4:6",
        "    SET : { A|2 - A|6 }",
    ],
)
def test_selections_that_are_ranges_are_read(atoms, tmp_path):
    check(read_model(pdb(tmp_path, remark(atoms))).xray_structure)


@pytest.mark.parametrize("details", ["'chain A and resseq 2:6'", "'chain A and resid 2 through 6'"])
def test_selections_of_a_cif_are_read(details, tmp_path):
    check(read_model(cif(tmp_path, ranges=("?", "?", "?", "?"), details=details)).xray_structure)


def test_every_door_has_the_same_atoms(tmp_path):
    for path in (pdb(tmp_path, remark()), cif(tmp_path)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is said twice, or wrongly
            structure, said = read_structure(path)
            ours = sfdiff.Atoms.from_gemmi(structure)
        theirs = sfdiff.Atoms.from_cctbx(read_model(path).xray_structure)
        assert len(said) == 1 and np.abs((ours.u_cart - theirs.u_cart).numpy()).max() < 1e-15


@pytest.mark.parametrize(
    "header, why",
    [
        (remark("    SELECTION: ALL"), "more than ranges of residues"),
        (remark("    RESIDUE RANGE :   B     2        B     6"), "no atom belongs"),
        (remark("    RESIDUE RANGE :   A     2        B     6"), "from one chain to another"),
        (remark(s13=""), "lacks numbers of its S tensor"),
        (f"REMARK   3   {RESIDUAL}\n", "lists no TLS groups"),
    ],
)
def test_what_is_incomplete_is_said_and_nothing_is_added(header, why, tmp_path):
    model = read_model(pdb(tmp_path, header))
    (said,) = [message for message in model.messages if "TLS" in message]
    assert why in said and "not added" in said
    assert model.xray_structure.use_u_aniso().count(True) == 0


def test_whole_b_factors_are_left_alone(tmp_path):
    model = read_model(pdb(tmp_path, remark(which="ATOM RECORD CONTAINS SUM OF TLS AND RESIDUAL B FACTORS")))
    assert not any("TLS" in message for message in model.messages)
    assert model.xray_structure.use_u_aniso().count(True) == 0


def test_tensors_that_are_there_already_are_not_added_to(tmp_path):
    def with_tensor(text):
        line = next(x for x in text.splitlines() if x.startswith("ATOM") and x[22:26].strip() == "3")
        return text.replace(
            line, line + "\n" + f"ANISOU{line[6:27]}   1000   1000   1000      0      0      0  {line[72:]}"
        )

    model = read_model(pdb(tmp_path, remark(), with_tensor))
    assert any("have displacement tensors already" in message for message in model.messages)
