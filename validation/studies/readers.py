"""Every entry's model by gemmi and by cctbx: do the structure factors agree?

    python -m validation.studies.readers FOLDER

F to 3 Å (at most 2,000 reflections) by direct summation of ``Atoms.from_gemmi`` and of ``Atoms.from_cctbx`` of what iotbx
makes of the same file with the coordinates as they stand (iotbx can take them by rounded SCALE
records instead); the largest difference relative to the largest amplitude.  Entries above 1e-12 are listed.
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch

import gemmi
import iotbx.pdb

AGREEMENT = 1e-12


def difference(path: Path, d_min: float = 3.0) -> tuple[float, int]:
    """Largest difference of F relative to the largest F, and the number of atoms."""
    structure = iotbx.pdb.input(file_name=str(path)).xray_structure_simple(use_scale_matrix_if_available=False)
    structure.scattering_type_registry(table="n_gaussian", d_min=d_min)
    expected = sfdiff.Atoms.from_cctbx(structure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        atoms = sfdiff.Atoms.from_gemmi(gemmi.read_structure(str(path)), d_min=d_min)
    if atoms.n_atoms != expected.n_atoms:
        return float("inf"), atoms.n_atoms
    indices = expected.crystal.build_miller_indices(d_min)
    indices = indices[:: max(1, len(indices) // 2000)]
    with torch.no_grad():
        f = [sfdiff.structure_factors(a, a.crystal, indices, method="direct") for a in (atoms, expected)]
    return float((f[0] - f[1]).abs().max() / f[1].abs().max()), atoms.n_atoms


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each entry; the exit status is 1 where some differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with MANIFEST.tsv and the entries")
    options = parser.parse_args(arguments)
    with open(options.folder / "MANIFEST.tsv") as file:
        rows = list(csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t"))
    differ = []
    for row in rows:
        try:
            found, n_atoms = difference(options.folder / row["model_file"])
            print(f"{row['entry'] if 'entry' in row else row['id']} {n_atoms:6d} atoms  {found:.1e}", flush=True)
        except Exception as error:  # listed, and the others go on
            found = float("inf")
            print(f"{row['model_file']} {type(error).__name__}: {str(error)[:160]}", flush=True)
        if not found < AGREEMENT:
            differ.append(row["model_file"])
    print(f"{len(rows) - len(differ)} of {len(rows)} agree to {AGREEMENT:.0e}; others: {', '.join(differ) or 'none'}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
