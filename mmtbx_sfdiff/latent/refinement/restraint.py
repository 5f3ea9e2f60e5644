"""A force field's energy as a restraint of an ordinary refinement: U / kT of the model's protein, with
hydrogens that ride.

The force field's atoms that the model does not have (hydrogens, missing side-chain atoms) move with the
nearest atom that it has; between macro-cycles they are put where the energy is lowest. Waters, ligands and
other conformations are not restrained, and contacts with symmetry mates are not seen.
"""

from __future__ import annotations

from typing import Any

import torch

from ...refinement.minimize import Evaluation, minimize
from ..generator.energy import OpenMMEnergy
from ..generator.force_field import create_system
from ..generator.prepare import prepare_model
from ..generator.units import KT_300
from .models import limited

_SETTLE_STEPS = 30


class ForceFieldRestraint:
    """See the module.

    Parameters
    ----------
    hierarchy : iotbx.pdb.hierarchy.root
        Of the model that is refined, atoms in its order.
    weight : float
        Of U / kT.
    platform : str
        Of OpenMM.

    Attributes
    ----------
    n_restrained : int
        Atoms of the model that the force field knows.

    Raises
    ------
    ImportError
        Without the libraries of ``mmtbx_sfdiff[latent]``.
    ValueError
        A model without protein, or with atoms that the force field does not know; a weight that is not
        positive.
    """

    def __init__(self, hierarchy: Any, weight: float = 1.0, platform: str = "CPU") -> None:
        if not 0 < weight < float("inf"):
            raise ValueError(f"The weight of the force field must be positive, not {weight}.")
        prepared = prepare_model(hierarchy)
        self.weight = weight
        self.energy = OpenMMEnergy(create_system(prepared, constraints=None, hydrogen_mass=None), platform)
        self.base, self.rows, self.places = prepared.sites_cart, prepared.heavy_index, prepared.model_index
        self.n_restrained = len(self.rows)
        self.parent = torch.cdist(self.base, self.base[self.rows]).argmin(1)
        riding = torch.ones(len(self.base), dtype=torch.bool)
        riding[self.rows] = False
        self.riding = riding.nonzero()[:, 0]

    def sites(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """(n_ff, 3) Å, float64: the force field's atoms for sites (n_atoms, 3) of the model."""
        moved = sites_cart.to(torch.float64)[self.places] - self.base[self.rows]
        return self.base + moved[self.parent]

    def __call__(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """Weighted U / kT, a scalar; beyond 10,000 only its logarithm grows."""
        return self.weight * limited(self.energy(self.sites(sites_cart)) / KT_300)

    def update(self, sites_cart: torch.Tensor) -> None:
        """Take sites as the ones that riding atoms belong to, and let these settle."""
        with torch.no_grad():
            base = self.sites(sites_cart.detach())
        shift = torch.zeros(3 * len(self.riding), dtype=torch.float64, requires_grad=True)

        def evaluate(vector: torch.Tensor) -> Evaluation:
            value = limited(self.energy(base.index_add(0, self.riding, vector.reshape(-1, 3))) / KT_300) / 1000
            (gradient,) = torch.autograd.grad(value, vector)
            return Evaluation(float(value.detach()), gradient.nan_to_num(0.0, 0.0, 0.0), None)

        if len(self.riding):
            minimize(evaluate, shift, _SETTLE_STEPS)
        self.base = base.index_add(0, self.riding, shift.detach().reshape(-1, 3))
