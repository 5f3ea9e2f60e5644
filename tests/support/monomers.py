"""A monomer library for tests, and models to restrain."""

import gzip

from mmtbx_sfdiff.files.demo import shipped_model
from mmtbx_sfdiff.geometry import find_library

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
