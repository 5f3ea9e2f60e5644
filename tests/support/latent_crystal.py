"""Alanine dipeptide in a made-up P21 crystal, with simulated data; and a generator that needs no training."""

from pathlib import Path

import torch
from mmtbx_sfdiff.files import read_model
from mmtbx_sfdiff.files.demo import simulate

import numpy as np
from cctbx.array_family import flex

CELL = "CRYST1   10.300    9.400   11.100  90.00  96.00  90.00 P 1 21 1      2"
# name, residue, number, element, sites of an extended conformation
ATOMS = (  # in cctbx's order, which is not that of most files
    ("C", "ACE", 1, "C", 3.427, 2.641, 0.000),
    ("O", "ACE", 1, "O", 4.391, 1.877, 0.000),
    ("CH3", "ACE", 1, "C", 2.000, 2.090, 0.000),
    ("N", "ALA", 2, "N", 3.555, 3.970, 0.000),
    ("CA", "ALA", 2, "C", 4.853, 4.614, 0.000),
    ("C", "ALA", 2, "C", 4.713, 6.129, 0.000),
    ("O", "ALA", 2, "O", 3.601, 6.653, 0.000),
    ("CB", "ALA", 2, "C", 5.661, 4.221, -1.232),
    ("N", "NME", 3, "N", 5.846, 6.835, 0.000),
    ("C", "NME", 3, "C", 5.846, 8.284, 0.000),
)
SITES = np.array([atom[4:] for atom in ATOMS])


def pdb_text(sites, b=15.0):
    """The model as a PDB file."""
    lines = [CELL]
    for i, ((name, residue, number, element, *_), (x, y, z)) in enumerate(zip(ATOMS, sites), 1):
        lines.append(
            f"ATOM  {i:5d}  {name:<3s} {residue} A{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00{b:6.2f}          "
            f"{element:>2s}"
        )
    return "\n".join([*lines, "END", ""])


def write_crystal(folder, truth, d_min=1.2):
    """truth.pdb, and data.mtz simulated from it; returns their paths."""
    folder = Path(folder)
    model, data = folder / "truth.pdb", folder / "data.mtz"
    model.write_text(pdb_text(truth))
    f_obs, flags = simulate(read_model(model, d_min=d_min).xray_structure, d_min)
    # A tenth free: there are few reflections.
    rng = np.random.default_rng(1)
    flags = flags.customized_copy(data=flex.int((rng.random(flags.size()) < 0.1).astype(np.int32)))
    dataset = f_obs.as_mtz_dataset(column_root_label="FOBS")
    dataset.add_miller_array(flags, column_root_label="R-free-flags")
    dataset.mtz_object().write(str(data))
    return model, data


class ToyGenerator:
    """Independent normal shifts of every site: x = mean + sigma z."""

    def __init__(self, mean, sigma):
        self.mean, self.sigma = mean, sigma
        self.n_latent = mean.numel()

    def encode(self, sites_cart):
        z = ((sites_cart - self.mean) / self.sigma).flatten(-2)
        return z, torch.zeros(z.shape[:-1])

    def decode(self, z):
        sites = self.mean + self.sigma * z.reshape(*z.shape[:-1], -1, 3)
        return sites, torch.zeros(z.shape[:-1])
