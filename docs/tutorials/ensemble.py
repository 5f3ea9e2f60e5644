"""An ensemble of eight conformers, guided by the log-likelihood gain with the solvent mask live.

    python ensemble.py [--figure ensemble.png]

The crystal has a helix whose second half is in one of two places.  Eight copies start around the average, and go where the
gradient of a reward takes them, with noise that fades, as a sampler of a generative model would be guided.
"""

import argparse
import tempfile

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff import real_space
from mmtbx_sfdiff.interop.rewards import StructureFactorReward

import gemmi
import helix

N_MEMBERS, N_STEPS, APART = 8, 100, 1.6
HINGE = helix.N_RESIDUES // 2


def two_places(sites):
    """(2, n, 3): the second half swung to either side, APART Å at its end."""
    z = sites[:, 2]
    bend = ((z - z[5 * HINGE]) / (z.max() - z[5 * HINGE])).clamp(min=0)
    swing = torch.stack([0 * z, 0.5 * APART * bend, 0 * z], 1)
    return torch.stack([sites - swing, sites + swing])


def geometry(truth):
    """The energy of distances between bonded and 1-3 atoms, as a further term of the reward: (b, n, 3) -> (b,)."""
    pairs = helix.bonds()
    ideal = (truth[pairs[:, 0]] - truth[pairs[:, 1]]).norm(dim=1)

    def energy(sites):
        lengths = (sites[:, pairs[:, 0]] - sites[:, pairs[:, 1]]).norm(dim=-1)
        return ((lengths - ideal) / 0.03).square().mean(-1)

    return energy


def guide(folder, n_steps=N_STEPS):
    average = sfdiff.Atoms.from_gemmi(helix.helix()).sites_cart
    truth = two_places(average)
    model, data = helix.write(folder, truth)

    reward = StructureFactorReward(
        data, target="llg", solvent="combined", refresh_scales=5, terms=[(0.01 / N_MEMBERS, geometry(average))]
    )
    reward.prepare(gemmi.read_structure(str(model)))
    generator = torch.Generator().manual_seed(0)
    # Members differ by slow bends, as samples of a prior would.
    z = (average[:, 2] - average[:, 2].mean()) / 20
    bends = torch.stack([z**k for k in (0, 1, 2, 3)]) * torch.tensor([0.2, 0.5, 0.5, 0.3])[:, None]
    start = average + torch.einsum(
        "mdk,kn->mnd", torch.randn(N_MEMBERS, 3, 4, generator=generator, dtype=torch.float64), bends
    )
    sites = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([sites], lr=0.05)
    history = []
    for step in range(n_steps + 1):
        loss = reward(sites)
        if step % 5 == 0:
            history.append((step, float(loss.detach()), reward.scales.r_work, reward.scales.r_free))
        if step == n_steps:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            left = 1 - step / n_steps
            sites += 0.03 * left**2 * torch.randn(sites.shape, generator=generator, dtype=sites.dtype)
            optimizer.param_groups[0]["lr"] = 0.05 * left + 0.002
    return reward, start, sites.detach(), truth, history


def section(reward, sites, at, step=0.2):
    """2mFo-DFc of the ensemble in a plane of constant z, in units of its standard deviation."""
    scales = reward.scales
    f_model = scales.f_model(*(x.detach() for x in reward.structure_factors(sites)))
    used = scales.selected(reward.data)
    coefficients = real_space.map_coefficients(used, f_model[scales.selection], scales.k_total[scales.selection])[
        "2mFo-DFc"
    ]
    crystal = reward.data.crystal
    rho = real_space.fourier_map(crystal, used.miller_indices, coefficients, crystal.grid(step))
    return rho[:, :, round(at / helix.CELL[2] * rho.shape[2])] / rho.std()


def draw(reward, start, sites, truth, history, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps, loss, r_work, r_free = zip(*history)
    figure, axes = plt.subplot_mosaic(
        [["loss", "map"], ["r", "map"]], figsize=(9, 6), width_ratios=[1, 1.2], layout="constrained"
    )
    axes["loss"].plot(steps, loss, color="#0072b2")
    axes["loss"].set(xlabel="step", ylabel="reward\n(nats per reflection)")
    axes["r"].plot(steps, r_work, color="#0072b2", label="R-work")
    axes["r"].plot(steps, r_free, color="#d55e00", linestyle="--", label="R-free")
    axes["r"].set(xlabel="step", ylabel="R", ylim=(0, None))
    axes["r"].legend(frameon=False)
    atom = 5 * (helix.N_RESIDUES - 3) + 1  # CA of a residue near the end
    at = float(truth[:, atom, 2].mean())
    a, b, _ = helix.CELL[:3]
    values = section(reward, sites, at).numpy()
    image = axes["map"].imshow(values.T, origin="lower", extent=(0, a, 0, b), cmap="cividis", vmin=-1, vmax=4)
    figure.colorbar(image, ax=axes["map"], location="bottom", label="2mFo-DFc of the ensemble (standard deviations)")
    for points, marker, color, label in (
        (start, "x", "#e69f00", "eight members, start"),
        (sites, "o", "white", "eight members, guided"),
        (truth, "+", "#ff5fa2", "the two places of the crystal"),
    ):
        style = {"facecolors": "none", "edgecolors": color} if marker == "o" else {"color": color}
        axes["map"].scatter(*points[:, atom, :2].T.tolist(), s=45, marker=marker, linewidths=1.5, label=label, **style)
    x, y = truth[:, atom, :2].mean(0).tolist()
    axes["map"].set(
        xlim=(x - 5, x + 5),
        ylim=(y - 5, y + 5),
        xlabel="x (Å)",
        ylabel="y (Å)",
        title=f"CA of residue {helix.N_RESIDUES - 2}, section z = {at:.1f} Å",
    )
    axes["map"].legend(loc="lower center", facecolor="#555555", labelcolor="white", fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reward, start, sites, truth, history = guide(folder)
    for row in history[::4]:
        print("step {:3d}: reward {:.3f}, R-work {:.3f}, R-free {:.3f}".format(*row))
    end = sites[:, 5 * (helix.N_RESIDUES - 3) + 1, 1] - truth[:, 5 * (helix.N_RESIDUES - 3) + 1, 1].mean()
    print("CA near the end, y from the average (Å):", " ".join(f"{y:+.2f}" for y in sorted(end.tolist())))
    if options.figure:
        draw(reward, start, sites, truth, history, options.figure)
