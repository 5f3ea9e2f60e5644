"""``FModel.compile()``'s graphs, in play (:mod:`tests.support.graphs`): ``python -m tests.kernels.captured``."""

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff import fmodel_graph
from mmtbx_sfdiff.fmodel_graph import Graphs
from mmtbx_sfdiff.kernels import engines
from mmtbx_sfdiff.likelihood.alpha_beta import AlphaBeta

from tests.support.graphs import played
from tests.support.interpreter import small_tiles

small_tiles()


def made():
    crystal = sfdiff.Crystal((6, 7, 8, 85, 95, 100), "P 1")
    generator = torch.Generator().manual_seed(0)
    sites = torch.rand(2, 3, generator=generator) * 6
    atoms = sfdiff.Atoms.from_arrays(crystal, ["C", "O"], sites, b_iso=20.0, dtype=torch.float32)
    indices = crystal.build_miller_indices(3.0)
    n, ones = len(indices), torch.ones(len(indices))
    data = sfdiff.Reflections.from_arrays(crystal, indices, 10 + torch.rand(n, generator=generator), ones, ones == 0)
    with engines.everywhere("cpu"):
        fmodel = sfdiff.FModel(
            atoms, data, method="fft", accuracy=1e-3, mask={"grid_step": 1.5}, refine=("sites_cart", "u_iso")
        )
        fmodel.update_scales()
        own = vars(fmodel.alpha_beta())
        # So few reflections say nothing.
        fmodel._alpha_beta = AlphaBeta(**own | {"alpha": ones, "beta": 100 * ones})
    return fmodel


def gradients(value, leaves, **options):
    return [value.detach(), *torch.autograd.grad(value, leaves, **options)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


def main():
    fmodel = made()
    atoms = fmodel.atoms
    u = dict(fmodel.named_parameters())["u_iso"]
    points = [
        (atoms.sites_cart.detach() + shift).requires_grad_() for shift in (torch.zeros(2, 3), torch.eye(2, 3), 1.7)
    ]
    fmodel_graph._WARM_UP = 1  # the interpreter is slow, and has nothing to warm up
    with played():
        expected = [gradients(fmodel.target(sites_cart=x), [x, u]) for x in points]
        assert not same(expected[0], expected[1])
        fmodel._graphs = Graphs()
        # Other coordinates by the same graph, once captured.
        found = [gradients(fmodel.target(sites_cart=x), [x, u]) for x in points]
        assert all(map(same, found, expected)), (found, expected)
        ((_, captured),) = fmodel._graphs._made.values()
        assert captured.forward.replays == 3 and captured.backward.replays == 3
        # Two calls before their backward passes, and one that is gone back through twice.
        first, second = (fmodel.target(sites_cart=x) for x in points[:2])
        assert same(gradients(first, [points[0], u], retain_graph=True), expected[0])
        assert same(gradients(second, [points[1], u]), expected[1])
        assert same(gradients(first, [points[0], u]), expected[0])
        # A parameter that moves in place is read where it is; one that did before the backward pass is refused, as always.
        value = fmodel.target(sites_cart=points[0])
        with torch.no_grad():
            u.mul_(1.5)
        try:
            gradients(value, [u])
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
        else:
            raise AssertionError("a parameter that changed in between was not noticed")
        moved = gradients(fmodel.target(sites_cart=points[0]), [points[0], u])
        # Second derivatives are refused.
        (g,) = torch.autograd.grad(fmodel.target(sites_cart=points[0]), points[0], create_graph=True)
        try:
            torch.autograd.grad(g.sum() + points[0].sum(), points[0])
        except NotImplementedError as error:
            assert "of this order are not available" in str(error)
        else:
            raise AssertionError("a second derivative of a graph was given")
        assert len(fmodel._graphs._made) == 1
        fmodel._graphs = None
        assert same(moved, gradients(fmodel.target(sites_cart=points[0]), [points[0], u]))
        # Whatever the call reads as it is makes a graph of its own.
        fmodel._graphs = Graphs()
        with torch.no_grad():
            fmodel.target(sites_cart=points[0])
            own = vars(fmodel.alpha_beta())
            fmodel._alpha_beta = AlphaBeta(**own | {"alpha": 0.9 * own["alpha"]})
            found = fmodel.target(sites_cart=points[0])
            assert len(fmodel._graphs._made) == 2
            fmodel._graphs = None
            assert torch.equal(found, fmodel.target(sites_cart=points[0]))
    print("passed")


if __name__ == "__main__":
    main()
