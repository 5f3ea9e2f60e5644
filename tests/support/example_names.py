"""What the examples of the public docstrings take as given: a small crystal, its atoms and data, and an FModel of both."""

import functools

import mmtbx_sfdiff as sfdiff
import torch

import gemmi
import numpy as np

# A peptide of glycine and alanine, well made.
PEPTIDE = """\
CRYST1   20.000   25.000   30.000  90.00  90.00  90.00 P 21 21 21
ATOM      1  N   GLY A   1       2.000   3.000   4.000  1.00 10.00           N
ATOM      2  CA  GLY A   1       3.450   3.000   4.000  1.00 11.00           C
ATOM      3  C   GLY A   1       4.002   4.410   4.000  1.00 12.00           C
ATOM      4  O   GLY A   1       3.247   5.380   4.000  1.00 13.00           O
ATOM      5  N   ALA A   2       5.328   4.528   4.000  1.00 12.00           N
ATOM      6  CA  ALA A   2       5.972   5.835   4.000  1.00 14.00           C
ATOM      7  C   ALA A   2       7.489   5.700   4.000  1.00 15.00           C
ATOM      8  O   ALA A   2       8.030   4.595   4.000  1.00 16.00           O
ATOM      9  CB  ALA A   2       5.537   6.643   5.220  1.00 15.00           C
ATOM     10  OXT ALA A   2       8.160   6.735   4.000  1.00 18.00           O
END
"""


def example_names():
    """Names by which docstrings call them.

    ``crystal``, ``atoms``, ``data`` (amplitudes with sigmas and a free set), ``fmodel`` (with scales) and ``structure``
    (a ``gemmi.Structure``), beside ``sfdiff`` and ``torch``.  What an example may change is made anew each time.
    """
    crystal, atoms, data, scales = _values()
    fmodel = sfdiff.FModel(atoms, data)
    fmodel.scales = scales
    return {
        "sfdiff": sfdiff,
        "torch": torch,
        "crystal": crystal,
        "atoms": atoms,
        "data": data,
        "fmodel": fmodel,
        "structure": gemmi.read_pdb_string(PEPTIDE),
    }


@functools.cache
def _values():
    crystal = sfdiff.Crystal((20, 25, 30, 90, 90, 90), "P 21 21 21")
    random = np.random.RandomState(1)
    sites = crystal.orthogonalization.numpy() @ random.rand(3, 40)
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "N", "O", "C"] * 10, sites.T, b_iso=15.0)
    indices = crystal.build_miller_indices(2.2)
    f_calc = sfdiff.structure_factors(atoms, crystal, indices, method="direct")
    f_mask = sfdiff.solvent_structure_factors(atoms, crystal, indices)
    f = (f_calc + 0.35 * f_mask).abs()
    noisy = f * torch.from_numpy(1 + 0.05 * random.standard_normal(len(f)))
    data = sfdiff.Reflections.from_arrays(crystal, indices, noisy, 0.05 * f + 0.1, np.arange(len(f)) % 5 == 0)
    return crystal, atoms, data, sfdiff.update_all_scales(data, f_calc, f_mask)
