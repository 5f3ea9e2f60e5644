"""A monomer library for tests, and models to restrain."""

import gzip

from mmtbx_sfdiff.files.demo import shipped_model
from mmtbx_sfdiff.geometry import GeometryRestraints, find_library

import pytest


def library_or_skip():
    """The environment's or the wheel's library; skips the test where there is none."""
    try:
        return find_library()
    except ValueError as error:
        pytest.skip(str(error))


def shipped_structure():
    """A protein that cctbx brings (with hydrogens or waters, as it comes), as gemmi reads it."""
    import gemmi

    return gemmi.read_structure(str(shipped_model()))


def entry_structure(pdb_dir, name):
    """gemmi's structure of an entry, and its text."""
    import gemmi

    for suffix in (".pdb.gz", ".cif.gz"):
        path = pdb_dir / name / (name + suffix)
        if path.is_file():
            return gemmi.read_structure(str(path)), gzip.decompress(path.read_bytes()).decode()
    pytest.skip(f"no entry {name}")


PEPTIDE = """
ATOM      1  N   GLY A   1       1.000   1.000   1.000  1.00 15.00           N
ATOM      2  CA  GLY A   1       2.450   1.000   1.000  1.00 15.00           C
ATOM      3  C   GLY A   1       3.000   2.420   1.000  1.00 15.00           C
ATOM      4  O   GLY A   1       2.250   3.400   1.000  1.00 15.00           O
ATOM      5  N   GLY A   2       4.330   2.500   1.000  1.00 15.00           N
ATOM      6  CA  GLY A   2       5.000   3.790   1.000  1.00 15.00           C
ATOM      7  C   GLY A   2       6.510   3.600   1.000  1.00 15.00           C
ATOM      8  O   GLY A   2       7.030   2.480   1.000  1.00 15.00           O
"""


def peptide_restraints():
    """Restraints of two glycines; skips the test where there is no library."""
    import gemmi

    library = library_or_skip()
    text = f"CRYST1   20.000   22.000   24.000  90.00  90.00  90.00 P 1\n{PEPTIDE.lstrip()}END\n"
    structure = gemmi.read_pdb_string(text)
    structure.setup_entities()
    return GeometryRestraints.from_gemmi(structure, library)
