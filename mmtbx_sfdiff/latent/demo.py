"""Alanine dipeptide, the smallest system that has everything: for examples and tests."""

from __future__ import annotations

from typing import Any

_SITES = """\
ATOM      1  C   ACE A   1       4.724   6.932   7.057  1.00 20.00           C
ATOM      2  O   ACE A   1       5.429   7.900   7.338  1.00 20.00           O
ATOM      3  CH3 ACE A   1       3.224   7.084   6.958  1.00 20.00           C
ATOM      4  N   ALA A   2       5.210   5.714   6.822  1.00 20.00           N
ATOM      5  CA  ALA A   2       6.633   5.362   6.899  1.00 20.00           C
ATOM      6  C   ALA A   2       7.493   5.931   5.745  1.00 20.00           C
ATOM      7  O   ALA A   2       8.723   5.978   5.858  1.00 20.00           O
ATOM      8  CB  ALA A   2       6.729   3.833   6.953  1.00 20.00           C
ATOM      9  N   NME A   3       6.869   6.364   4.640  1.00 20.00           N
ATOM     10  C   NME A   3       7.535   6.925   3.465  1.00 20.00           C
"""


def alanine_dipeptide() -> Any:
    """N-acetyl-L-alanine-N'-methylamide near a minimum of the force field, heavy atoms only.

    Returns
    -------
    iotbx.pdb.hierarchy.root
    """
    import iotbx.pdb

    return iotbx.pdb.input(source_info=None, lines=_SITES.splitlines()).construct_hierarchy()
