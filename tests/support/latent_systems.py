"""Alanine dipeptide and one small protein, prepared once for all tests of the latent package."""

from functools import lru_cache

import torch

import pytest

pytest.importorskip("openmm")
pytest.importorskip("pdbfixer")

from mmtbx_sfdiff.files import read_model
from mmtbx_sfdiff.latent import create_system, prepare_model
from mmtbx_sfdiff.latent.demo import alanine_dipeptide

from tests.support.entries import pdb_folder


@lru_cache
def dipeptide():
    """PreparedModel of alanine dipeptide."""
    return prepare_model(alanine_dipeptide())


@lru_cache
def dipeptide_system():
    return create_system(dipeptide())


@lru_cache
def hierarchy_of(entry):
    """Model of an entry; skips the test where there is none."""
    if pdb_folder() is None:
        pytest.skip("no folder of PDB entries: set MMTBX_SFDIFF_PDB_DIR")
    return read_model(next((pdb_folder() / entry).glob(f"{entry}.*.gz"))).manager.get_hierarchy()


@lru_cache
def protein():
    """PreparedModel of 1aie, 31 residues."""
    return prepare_model(hierarchy_of("1aie"))


@lru_cache
def protein_system():
    return create_system(protein())


def random_sites(prepared, n, amplitude, seed=0):
    """Structures around a prepared model, independent errors in every atom."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, *prepared.sites_cart.shape, generator=generator, dtype=torch.float64)
    return prepared.sites_cart + amplitude * noise


def turned(sites, seed=0):
    """Each structure in an orientation and at a place of its own."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(sites), 3, 3, generator=generator, dtype=torch.float64))[0]
    q = q * torch.det(q)[:, None, None]
    return sites @ q + 10 * torch.randn(len(sites), 1, 3, generator=generator, dtype=torch.float64)
