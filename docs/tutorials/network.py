"""A small network's coordinates, trained against an MTZ file.

    python network.py [--figure network.png]

The network sees where along the chain an atom is, and what it is; it answers with the atom's shift from a bent start.
"""

import argparse
import tempfile

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff import real_space

import helix

N_STEPS = 120


class Network(torch.nn.Module):
    """(n_atoms, n_features) -> shifts (n_atoms, 3) in Å; zero before it is trained."""

    def __init__(self, n_features, width=64):
        super().__init__()
        layers = [torch.nn.Linear(n_features, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU()]
        self.body, self.head = torch.nn.Sequential(*layers), torch.nn.Linear(width, 3)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, features):
        return self.head(self.body(features))


def features_of(n_atoms):
    """Place along the chain as sines and cosines, and the kind of atom, one of five; float32."""
    residue, kind = torch.arange(n_atoms) // 5, torch.arange(n_atoms) % 5
    phase = torch.arange(1, 9)[None] * torch.pi * residue[:, None] / helix.N_RESIDUES
    return torch.cat([phase.sin(), phase.cos(), torch.nn.functional.one_hot(kind, 5)], 1).to(torch.float32)


def bent(sites):
    """The start: the helix bent and stretched, 0.55 Å rms from the truth."""
    z = (sites[:, 2] - sites[:, 2].mean()) / 20
    shift = torch.stack([1.1 * (z**2 - 0.35), -0.7 * z, 0.4 * torch.sin(3 * z)], 1)
    return sites + shift * 0.55 / shift.square().sum(1).mean().sqrt()


def distance(sites, truth):
    """Root of the mean square distance, Å."""
    return float((sites - truth).square().sum(-1).mean().sqrt())


def train(folder, n_steps=N_STEPS):
    truth = sfdiff.Atoms.from_gemmi(helix.helix()).sites_cart
    model, data = helix.write(folder, truth[None])

    # From here on only files are known, and the model is wrong.
    fmodel = sfdiff.FModel.from_files(str(model), str(data))
    start = bent(fmodel.atoms.sites_cart)
    torch.manual_seed(0)
    network, features = Network(21), features_of(len(start))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    pairs = helix.bonds()

    def lengths(sites):
        return (sites[pairs[:, 0]] - sites[pairs[:, 1]]).norm(dim=1)

    ideal = lengths(truth)
    fmodel = fmodel.with_(atoms=fmodel.atoms.replace(sites_cart=start))
    fmodel.update_scales()
    before = fmodel
    history = [(0, float(fmodel.target("maximum_likelihood")), *fmodel.r_factors(), distance(start, truth))]
    for step in range(n_steps):
        sites = start + network(features)  # float32 and float64 make float64
        target = fmodel.target("maximum_likelihood", sites_cart=sites)
        geometry = ((lengths(sites) - ideal) / 0.03).square().mean()
        optimizer.zero_grad()
        (target + 0.02 * geometry).backward()
        optimizer.step()
        if step % 10 == 9:  # scales, alpha and beta follow the model
            fmodel = fmodel.with_(atoms=fmodel.atoms.replace(sites_cart=sites.detach()))
            fmodel.update_scales()
            history.append((step + 1, float(target.detach()), *fmodel.r_factors(), distance(sites.detach(), truth)))
    return before, fmodel, truth, history


def section(fmodel, step=0.2):
    """2mFo-DFc in the plane x = the helix's middle, e/Å^3 and in units of its standard deviation."""
    crystal = fmodel.atoms.crystal
    grid = crystal.grid(step)
    coefficients = fmodel.map_coefficients()["2mFo-DFc"]
    rho = real_space.fourier_map(crystal, fmodel.reflections.miller_indices[fmodel.selection], coefficients, grid)
    return rho[grid[0] // 2] / rho.std()


def draw(before, after, truth, history, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps, target, r_work, r_free, rms = zip(*history)
    figure, axes = plt.subplot_mosaic([["target", "r"], ["map", "map"]], figsize=(8.5, 7.5), layout="constrained")
    axes["target"].plot(steps, target, color="#0072b2")
    axes["target"].set(xlabel="step", ylabel="maximum-likelihood target\n(nats per reflection)")
    axes["r"].plot(steps, r_work, color="#0072b2", label="R-work")
    axes["r"].plot(steps, r_free, color="#d55e00", linestyle="--", label="R-free")
    axes["r"].plot(steps, rms, color="#444444", linestyle=":", label="rms distance from the truth (Å)")
    axes["r"].set(xlabel="step", ylabel="R, and rms distance (Å)", ylim=(0, None))
    axes["r"].legend(frameon=False)
    values = section(after).numpy()
    _, b, c = helix.CELL[:3]
    image = axes["map"].imshow(
        values, origin="lower", extent=(0, c, 0, b), cmap="cividis", vmin=-1, vmax=4, aspect="equal"
    )
    figure.colorbar(
        image,
        ax=axes["map"],
        location="bottom",
        shrink=0.6,
        aspect=40,
        label="2mFo-DFc after training (standard deviations)",
    )
    near = (truth[:, 0] - helix.CELL[0] / 2).abs() < 1.0
    for sites, marker, color, label in (
        (before.atoms.sites_cart, "x", "#e69f00", "start"),
        (after.atoms.sites_cart, "o", "white", "trained"),
    ):
        style = {"facecolors": "none", "edgecolors": color} if marker == "o" else {"color": color}
        axes["map"].scatter(
            *sites[near][:, [2, 1]].T.tolist(), s=22, marker=marker, linewidths=1.2, label=label, **style
        )
    axes["map"].set(
        xlabel="z (Å)", ylabel="y (Å)", ylim=(6, 23), title="atoms within 1 Å of the section x = 12.5 Å", facecolor="k"
    )
    axes["map"].legend(loc="upper right", facecolor="#555555", labelcolor="white")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before, after, truth, history = train(folder)
    print(f"start: R-work {before.r_factors()[0]:.3f}, R-free {before.r_factors()[1]:.3f}")
    for row in history[::3] + history[-1:]:
        print("step {:3d}: target {:.3f}, R-work {:.3f}, R-free {:.3f}, rms {:.2f} Å".format(*row))
    if options.figure:
        draw(before, after, truth, history, options.figure)
