"""A prior without dynamics: an elastic network in torsion space.

Near atoms are joined by springs that are at rest in the model (Tirion 1996), weaker with distance (Yang, Song & Jernigan 2009);
what moves are torsions alone (as in iMod: Lopéz-Blanco, Garzón & Chacón 2011), so that bonds, angles and planes stay as they
are however large a movement is. With J the change of distances by torsions, K the springs and s the largest standard deviation
of a torsion by itself, torsions have the covariance

    C = (c J^T K J + 1 / s^2)^-1

and c is such that the main chain of samples moves by a given root mean square distance, in the median: the error that the model
may have. Latent variables are independent and normal, the softest first; the model itself is at the origin.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .torsions import TorsionTree

CUTOFF = 10.0  # Å
_AT_REST, _POWER = 4.0, 6  # springs are (4 Å / d)^6, at most 1
_BACKBONE, _SIDE_CHAIN = math.radians(35), math.radians(60)  # of one torsion alone
_STEPS = 60
_SAMPLES, _CORRECTIONS, _NEAR, _CAUTION = 32, 6, 0.1, 0.7


class ElasticNetwork(nn.Module):
    """See the module; with the interface of :class:`~mmtbx_sfdiff.latent.BoltzmannGenerator`.

    Parameters
    ----------
    tree : TorsionTree
        Of the model.
    side_chain : torch.Tensor
        (m,) bool: which torsions are of side chains.
    main_chain : torch.Tensor
        (n,) bool: the atoms whose movement ``rms`` is of.
    rms : float
        Å.
    cutoff : float
        Å: how far springs reach.

    Raises
    ------
    ValueError
        No torsions; rms that is not positive, or cannot be reached by torsions within their largest deviations.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 1, 0], [0, 0, 0], [1.5, 0, 0], [1.5, 1, 0]], dtype=torch.float64)
    >>> moved = torch.tensor([[False, False, False, True]])
    >>> tree = TorsionTree(x, torch.tensor([[0, 1, 2, 3]]), moved, torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool))
    >>> prior = ElasticNetwork(tree, torch.tensor([False]), torch.ones(4, dtype=torch.bool), rms=0.1)
    >>> z, _ = prior.encode(x)
    >>> sites, log_det = prior.decode(z)
    >>> prior.n_latent, bool(torch.allclose(sites, x)), bool(z.abs().max() < 1e-9)
    (1, True, True)
    """

    axes: torch.Tensor
    deviations: torch.Tensor

    def __init__(
        self,
        tree: TorsionTree,
        side_chain: torch.Tensor,
        main_chain: torch.Tensor,
        rms: float = 2.0,
        cutoff: float = CUTOFF,
    ) -> None:
        super().__init__()
        if not tree.n_torsions:
            raise ValueError("The model has no torsions that could turn.")
        if not 0 < rms < math.inf:
            raise ValueError(f"rms must be positive, not {rms}.")
        self.tree, self.rms = tree, rms
        jacobian = tree.jacobian()
        springs = _springs(tree.reference, jacobian, cutoff)
        largest = torch.where(side_chain, _SIDE_CHAIN, _BACKBONE).to(springs)
        moves = jacobian[main_chain].flatten(0, 1)
        moves = moves.T @ moves / max(1, int(main_chain.sum()))
        self.register_buffer("axes", torch.eye(tree.n_torsions, dtype=springs.dtype, device=springs.device))
        self.register_buffer("deviations", largest)
        linear = rms
        for _ in range(_CORRECTIONS):
            variance, axes = torch.linalg.eigh(_of_size(springs, largest, moves, linear))
            order = (axes * (moves @ axes)).sum(0).mul(variance).argsort(descending=True)
            self.axes, self.deviations = axes[:, order], variance[order].clamp(min=1e-12).sqrt()
            found = self._movement(main_chain)
            if abs(found / rms - 1) < _NEAR:
                break
            linear *= (rms / found) ** _CAUTION

    @classmethod
    def from_gemmi(cls, structure: Any, rms: float = 2.0, cutoff: float = CUTOFF) -> ElasticNetwork:
        """The network of a model's first conformation, hydrogens and waters left out.

        Parameters
        ----------
        structure : gemmi.Structure
            Of proteins. What is not protein does not move with it, and is left out.
        rms, cutoff
            See the class.

        Returns
        -------
        ElasticNetwork
            Its sites are in the order of :attr:`labels`.

        Raises
        ------
        ValueError
            No protein, or what the class says.

        Examples
        --------
        >>> prior = ElasticNetwork.from_gemmi(structure, rms=0.1)
        >>> prior.n_latent, len(prior.labels), prior.sample(5).shape
        (3, 10, torch.Size([5, 10, 3]))
        """
        from .protein_torsions import protein_torsions

        found = protein_torsions(structure)
        made = cls(found.tree, found.side_chain, found.main_chain, rms, cutoff)
        made.labels = found.labels
        return made

    labels: tuple[tuple[str, str, str, str], ...] = ()

    def _movement(self, main_chain: torch.Tensor) -> float:
        """Median over samples of the main chain's root mean square distance from the model, Å."""
        moved = self.sample(_SAMPLES, generator=torch.Generator().manual_seed(0)) - self.tree.reference
        return float(moved[:, main_chain].square().sum(-1).mean(-1).sqrt().median())

    @property
    def n_latent(self) -> int:
        """Number of latent variables, that of torsions."""
        return len(self.deviations)

    def encode(self, sites_cart: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent vectors (..., n_latent) of sites (..., n, 3), by their torsions; and the logarithm of the volume of latent vectors
        for each volume of torsions."""
        z = (self.tree.changes(sites_cart) @ self.axes) / self.deviations
        return z, -self.deviations.log().sum().expand(z.shape[:-1])

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sites (..., n, 3) Å, superposed on the model, of latent vectors; and minus the logarithm of :meth:`encode`."""
        sites = self.tree((z.to(self.axes) * self.deviations) @ self.axes.T)
        return sites, self.deviations.log().sum().expand(z.shape[:-1])

    def sample(self, n: int, scale: float = 1.0, generator: torch.Generator | None = None) -> torch.Tensor:
        """(n, n_atoms, 3) Å: structures of random latent vectors, whose standard deviation is ``scale``."""
        z = torch.randn(n, self.n_latent, dtype=torch.float64, generator=generator)
        return self.decode(scale * z.to(self.axes))[0]


def _springs(sites: torch.Tensor, jacobian: torch.Tensor, cutoff: float) -> torch.Tensor:
    """(m, m) J^T K J of the distances of near atoms."""
    distances = torch.cdist(sites, sites)
    i, j = ((distances < cutoff) & (distances > 0)).triu(1).nonzero().T
    d = distances[i, j]
    unit = (sites[i] - sites[j]) / d[:, None]
    weight = (_AT_REST / d).clamp(max=1.0) ** (_POWER / 2)  # its square is the spring
    result = jacobian.new_zeros(jacobian.shape[-1], jacobian.shape[-1])
    for part in torch.arange(len(d), device=sites.device).split(4096):
        change = ((jacobian[i[part]] - jacobian[j[part]]) * unit[part, :, None]).sum(1) * weight[part, None]
        result += change.T @ change
    return result


def _of_size(springs: torch.Tensor, largest: torch.Tensor, moves: torch.Tensor, rms: float) -> torch.Tensor:
    """The covariance with which the main chain moves by rms, by bisection of the springs' common factor."""
    own = torch.diag(largest.square().reciprocal())

    def covariance(log_factor: float) -> torch.Tensor:
        inverse: torch.Tensor = torch.linalg.inv(math.exp(log_factor) * springs + own)
        return inverse

    def size(c: torch.Tensor) -> float:
        return math.sqrt(float((moves * c).sum()))

    low, high = -30.0, 30.0
    if size(covariance(low)) < rms:
        raise ValueError(
            f"The main chain cannot move by {rms:g} Å by its torsions, at most by {size(covariance(low)):.2g} Å: give a smaller rms."
        )
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if size(covariance(middle)) > rms else (low, middle)
    return covariance(high)
