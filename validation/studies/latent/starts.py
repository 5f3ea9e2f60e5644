"""Wrong models to start from: bent along soft modes of an elastic network, some side chains turned, then
minimised.

The modes are those of an anisotropic network model of the CA atoms (Atilgan et al. 2001), so that the error
is large-scale, as a predicted model's is; the force field then makes the geometry good again. No dynamics has
run from the deposited coordinates.
"""

import math

import torch
from mmtbx_sfdiff.latent import (
    MixedTransform,
    add_position_restraints,
    create_system,
    minimise,
    superpose,
)

import numpy as np

CUTOFF = 15.0  # Å, of the network's springs
N_MODES = 10  # the softest, each with an amplitude of random sign and size over its frequency


def soft_modes(sites_ca, n_modes=N_MODES):
    """Softest modes of the network: (n, 3) -> frequencies (n_modes,), displacements (n_modes, n, 3)"""
    n = len(sites_ca)
    delta = sites_ca[:, None] - sites_ca[None]
    square = (delta**2).sum(-1)
    near = (square < CUTOFF**2) & (square > 0)
    blocks = np.where(
        near[..., None, None],
        -delta[..., :, None] * delta[..., None, :] / np.where(near, square, 1)[..., None, None],
        0,
    )
    blocks[np.arange(n), np.arange(n)] = -blocks.sum(1)
    values, vectors = np.linalg.eigh(blocks.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n))
    return np.sqrt(values[6 : 6 + n_modes]), vectors[:, 6 : 6 + n_modes].T.reshape(-1, n, 3)


def backbone_rmsd(prepared, sites_a, sites_b):
    """Å, over N, CA and C, superposed."""
    index = prepared.backbone_index
    moved, _ = superpose(sites_a, sites_b, index)
    return (moved - sites_b)[index].square().sum(-1).mean().sqrt().item()


def all_atom_rmsd(prepared, sites_a, sites_b):
    """Å, over the model's atoms, superposed by the backbone."""
    moved, _ = superpose(sites_a, sites_b, prepared.backbone_index)
    return (moved - sites_b)[prepared.heavy_index].square().sum(-1).mean().sqrt().item()


def wrong_start(prepared, rmsd, seed, turned=0.2, log=print):
    """A start with a given backbone error, within 0.15 Å if eight attempts find one.

    Parameters
    ----------
    prepared : PreparedModel
        Of the deposited model.
    rmsd : float
        Å, backbone, after minimisation.
    seed : int
    turned : float
        Fraction of side chains whose first torsion is changed by 120 degrees, where nothing is in the way.
    log : callable

    Returns
    -------
    sites_cart : torch.Tensor
        (n_ff, 3), Å.
    record : dict
    """
    rng = np.random.default_rng(seed)
    deposited = prepared.sites_cart
    frequencies, modes = soft_modes(deposited[prepared.ca_index].numpy())
    amplitudes = rng.normal(size=len(modes)) / frequencies
    bend = np.einsum("m,mnd->nd", amplitudes, modes)
    bend /= math.sqrt((bend**2).sum(-1).mean())
    by_residue = np.zeros((len(prepared.residue_names), 3))
    by_residue[prepared.residue_index[prepared.ca_index]] = bend
    bend = torch.from_numpy(by_residue)[prepared.residue_index]
    bend = _smooth(prepared, bend)
    system = create_system(prepared, hydrogen_mass=None)
    turned_sites, n_turned = _turn_side_chains(prepared, system, rng, turned)
    scale, low, high = rmsd, 0.0, None
    for _attempt in range(8):
        bent = turned_sites + scale * bend
        held = create_system(prepared, hydrogen_mass=None)
        add_position_restraints(held, bent, prepared.ca_index, 5.0)
        sites, _ = minimise(held, bent, n_steps=150)
        sites, energy = minimise(system, sites, n_steps=100)
        found = backbone_rmsd(prepared, sites, deposited)
        log(f"  start: bent by {scale:.2f} Å, {found:.2f} Å after minimisation, {energy:.0f} kJ/mol")
        if abs(found - rmsd) < 0.15:
            break
        low, high = (scale, high) if found < rmsd else (low, scale)
        scale = scale * rmsd / found if high is None else 0.5 * (low + high)
    record = {
        "seed": seed,
        "target_rmsd": rmsd,
        "rmsd_backbone": found,
        "energy": energy,
        "bent_by": scale,
        "rmsd_all": all_atom_rmsd(prepared, sites, deposited),
        "side_chains_turned": n_turned,
    }
    return sites, record


def _smooth(prepared, bend):
    """The displacement of C and O moved halfway to the next residue's, so that peptide bonds are strained less."""
    residue, chain = prepared.residue_index, prepared.chain_index
    first_atom = {int(r): i for i, r in reversed(list(enumerate(residue.tolist())))}
    smoothed = bend.clone()
    for i, name in enumerate(prepared.names):
        step = {"C": 1, "O": 1, "N": -1, "H": -1}.get(name, 0)
        other = first_atom.get(int(residue[i]) + step)
        if step and other is not None and chain[other] == chain[i]:
            smoothed[i] = 0.6 * bend[i] + 0.4 * bend[other]
    return smoothed


def _turn_side_chains(prepared, system, rng, fraction):
    transform = MixedTransform.from_prepared(prepared, system)
    sites = prepared.sites_cart.clone()
    names = prepared.names
    residues = prepared.residue_index
    chains = {}
    for row, (atom, parent, _, _) in enumerate(transform.z_matrix.tolist()):
        name = prepared.residue_names[residues[atom]]
        if names[parent] == "CB" and prepared.elements[atom] != "H" and name not in ("PRO", "ALA", "CYS"):
            chains.setdefault(int(residues[atom]), row)
    k = len(transform.z_matrix)
    chosen = [r for r in sorted(chains) if rng.random() < fraction]
    done = 0
    for r in chosen:
        x, _ = transform.to_features(superpose(sites, transform.reference, transform.cart_index)[0])
        for turn in rng.permutation([2 * math.pi / 3, -2 * math.pi / 3]):
            trial = x.clone()
            trial[transform.n_features - k + chains[r]] += turn
            moved, _ = transform.to_sites(trial)
            mine = (residues == r) & (moved - sites).norm(dim=-1).gt(0.3)
            others = residues != r
            if not mine.any() or torch.cdist(moved[mine], moved[others]).min() > 1.6:  # Å, with hydrogens
                sites, done = moved, done + 1
                break
    return sites, done
