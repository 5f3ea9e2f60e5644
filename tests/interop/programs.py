"""Three programs written against SFC_Torch 0.3.3 and nothing else, with the calls that its consumers make.

They import ``SFC_Torch`` when they run: the published package, or this one's interface under that name.
``python programs.py NAME MODEL DATA`` runs one by itself and prints what it found as JSON.
"""

import json
import sys

import torch

import numpy as np


def likelihood_gain(model, data, n_steps=12):
    """A network's coordinates against an MTZ, with a second chain added to the structure factors (as ROCKET calls it)."""
    import SFC_Torch as SFC

    device = SFC.utils.try_gpu()
    sfc = SFC.SFcalculator(
        model,
        data,
        expcolumns=["FP", "SIGFP"],
        freeflag="FreeR_flag",
        set_experiment=True,
        testset_value=0,
        device=device,
        n_bins=10,
    )
    sfc.inspect_data(verbose=False, spacing=4.5)
    sfc.calc_fprotein()
    added = 0.01 * sfc.Fprotein_HKL.detach().clone()
    added_asu = 0.01 * sfc.Fprotein_asu.detach().clone()
    sfc.Fprotein_HKL += added
    sfc.Fprotein_asu += added_asu
    sfc.calc_fsolvent()
    sfc.get_scales_adam(lr=0.01, n_steps=10, sub_ratio=0.7, initialize=True)
    work = torch.tensor(~sfc.free_flag & ~sfc.Outlier)
    order = np.argsort(-sfc.dHKL)
    sites = sfc.atom_pos_orth.detach().clone()
    sites += 0.2 * torch.randn(sites.shape, generator=torch.Generator().manual_seed(0))
    sites.requires_grad_()
    losses = []
    optimizer = torch.optim.Adam([sites], lr=0.02)
    for _ in range(n_steps):
        optimizer.zero_grad()
        sfc.calc_fprotein(atoms_position_tensor=sites)
        sfc.calc_fsolvent()
        e_calc = sfc.calc_Ec(sfc.calc_ftotal()).abs()
        sigma_a = sfc.get_sigmaA(sfc.calc_Ec(sfc.Ftotal_HKL))[torch.tensor(sfc.bins)].detach()
        loss = ((sfc.Eo - sigma_a * e_calc)[work] ** 2 / (1 - sigma_a**2)[work]).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    sfc.atom_b_iso = sfc.atom_b_iso.detach() * 1.1
    sfc.get_scales_lbfgs(ls_steps=1, r_steps=1)
    b = np.array([sfc._pdb.sequence])
    return {
        "losses": losses,
        "r_work": sfc.r_work.item(),
        "r_free": sfc.r_free.item(),
        "n": len(sfc.dHKL[order]),
        "names": len(sfc.cra_name),
        "sequence": str(b[0]),
        "gradient": float(sites.grad.norm()),
    }


def ensemble_reward(model, data):
    """An ensemble scored by amplitudes of one mask and of one mask each (as sampleworks calls it)."""
    import gemmi
    import reciprocalspaceship as rs
    from SFC_Torch import SFcalculator
    from SFC_Torch.io import PDBParser

    parser = PDBParser(gemmi.read_structure(model))
    sfc = SFcalculator(
        parser,
        mtzdata=rs.read_mtz(data).copy(),
        dmin=2.5,
        mode="xray",
        anomalous=False,
        set_experiment=True,
        expcolumns=["FP", "SIGFP"],
        device=torch.device("cpu"),
    )
    sfc.inspect_data()
    sfc._set_scales(requires_grad=False)
    n_models = 3
    sfc.atom_b_iso = sfc.atom_b_iso.clone()
    sfc.atom_occ = torch.full_like(sfc.atom_occ, 1.0 / n_models)
    noise = torch.randn(n_models, sfc.n_atoms, 3, generator=torch.Generator().manual_seed(1))
    sites = (sfc.atom_pos_orth + 0.1 * noise).requires_grad_()
    mask = torch.tensor(~sfc.free_flag & ~sfc.Outlier)
    found = {"cell": list(sfc.unit_cell.parameters), "group": sfc.space_group.hm, "solvent": float(sfc.solventpct)}
    f = sfc.calc_fprotein_batch(sites, Return=True, PARTITION=2)
    for mode in ("off", "combined", "per_conformer"):
        sfc.Fprotein_HKL = f.sum(0)
        sfc.Fprotein_asu = sfc.Fprotein_asu_batch.sum(0)
        if mode == "off":
            amplitudes = sfc.Fprotein_HKL.abs()
        else:
            if mode == "combined":
                sfc.calc_fsolvent()
            else:
                sfc.Fmask_HKL = sfc.calc_fsolvent_batch(Return=True, PARTITION=2).mean(0)
            amplitudes = sfc.calc_ftotal().abs()
        e_calc = sfc.calc_Ec(amplitudes)
        loss = torch.nn.functional.mse_loss(e_calc[mask], sfc.Eo[mask])
        (gradient,) = torch.autograd.grad(loss, sites, retain_graph=True)
        found[mode] = [float(loss.detach()), float(gradient.norm())]
    dataset = sfc.prepare_dataset("HKL_array", "Ftotal_HKL")
    found["dataset"] = [len(dataset), sorted(map(str, dataset.columns))]
    return found


def map_loss(model, data):
    """Density on a grid of its own, without data, and electron scattering (as LossLab and the PanDDA pipeline call it)."""
    import SFC_Torch as SFC
    from SFC_Torch.mask import reciprocal_grid
    from SFC_Torch.symmetry import expand_to_p1
    from SFC_Torch.utils import assert_numpy

    found = {}
    for mode in ("xray", "cryoem"):
        pdb = SFC.PDBParser(model)
        sfc = SFC.SFcalculator(pdb, dmin=2.5, mode=mode, device=torch.device("cpu"))
        sfc.inspect_data()
        sfc.gridsize = [36, 40, 48]
        sites = torch.tensor(pdb.atom_pos, dtype=torch.float32).requires_grad_()
        sfc.calc_fprotein(sites, Return=True)
        indices, values = expand_to_p1(
            sfc.space_group,
            sfc.Hasu_array,
            sfc.Fprotein_asu,
            dmin_mask=None,
            unitcell=sfc.unit_cell,
            anomalous=sfc.anomalous,
        )
        grid = reciprocal_grid(indices, values, sfc.gridsize)
        density = torch.real(torch.fft.fftn(grid, dim=(-3, -2, -1)))
        target = density.detach().roll(1, 0)
        a, b = density - density.mean(), target - target.mean()
        loss = 1 - (a * b).sum() / (a.norm() * b.norm())
        loss.backward()
        found[mode] = [float(loss.detach()), float(sites.grad.norm()), float(np.std(assert_numpy(density)))]
    return found


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:4])))
