"""mmtbx's own geometry restraints as one differentiable term.

Value and gradient are those of ``mmtbx.model.manager.get_restraints_manager().geometry.energies_sites``: bonds, angles,
torsions, planes, chirality, parallelity and repulsion, with whatever mmtbx was told to add (GeoStd, CDL, Ramachandran,
NCS inside Phenix).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

import iotbx.cif
import mmtbx.model
import numpy as np
from cctbx.array_family import flex
from libtbx.utils import Sorry, null_out
from mmtbx.monomer_library import server

from ..geometry import find_library

_VARIABLE = "MMTBX_CCP4_MONOMER_LIB"


class CctbxRestraints(torch.nn.Module):
    """``energies_sites`` of a model, differentiable once.

    Parameters
    ----------
    manager : mmtbx.model.manager
        With restraints (see :func:`interpret`).

    Attributes
    ----------
    n_atoms : int
    messages : tuple of str
    """

    def __init__(self, manager: Any) -> None:
        super().__init__()
        self.geometry = manager.get_restraints_manager().geometry
        self.n_atoms = manager.size()
        self.messages: tuple[str, ...] = ()

    def forward(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """Sum of residuals, as ``energies_sites(...).target``.

        Parameters
        ----------
        sites_cart : torch.Tensor
            (..., n_atoms, 3) Å, in the manager's order.

        Returns
        -------
        torch.Tensor
            (...,) float64 on the device of the sites.
        """
        if sites_cart.shape[-2:] != (self.n_atoms, 3):
            raise ValueError(
                f"sites_cart must have the shape (..., {self.n_atoms}, 3) of the restrained model, "
                f"not {tuple(sites_cart.shape)}."
            )
        return _EnergiesSites.apply(sites_cart, self.geometry)  # type: ignore[no-any-return]

    def rms(self, sites_cart: torch.Tensor) -> dict[str, float]:
        """Root mean square deviations of one model: ``bond`` in Å and ``angle`` in degrees."""
        energies = self.geometry.energies_sites(sites_cart=_flex(sites_cart), compute_gradients=False)
        return {"bond": energies.bond_deviations()[2], "angle": energies.angle_deviations()[2]}

    def update_contacts(self, sites_cart: torch.Tensor) -> None:
        """Nothing to do: cctbx keeps its own list of pairs."""

    def curvature(self, sites_cart: torch.Tensor) -> torch.Tensor:
        """(n_atoms, 3) Å^-2: diagonal of the Gauss-Newton matrix of the bonds, 2 sum (d z / d x)^2."""
        sites = sites_cart.detach().cpu().to(torch.float64).numpy()
        pairs, _ = self.geometry.get_all_bond_proxies(sites_cart=_flex(sites_cart))
        rows = np.array([proxy.i_seqs for proxy in pairs], dtype=np.int64).reshape(-1, 2)
        weights = np.array([proxy.weight for proxy in pairs])
        unit = sites[rows[:, 1]] - sites[rows[:, 0]]
        unit /= np.linalg.norm(unit, axis=1, keepdims=True).clip(1e-6)
        result = np.zeros((self.n_atoms, 3))
        for column in (0, 1):
            np.add.at(result, rows[:, column], 2 * weights[:, None] * unit**2)
        return torch.from_numpy(result).to(sites_cart.device)

    def neighbors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (n, 2) of bonded atoms and (m, 2) of the ends of angles."""
        pairs, _ = self.geometry.get_all_bond_proxies(sites_cart=self.geometry.sites_cart_used_for_pair_proxies())
        bonds = [proxy.i_seqs for proxy in pairs]
        ends = [(proxy.i_seqs[0], proxy.i_seqs[2]) for proxy in self.geometry.angle_proxies or ()]
        return tuple(torch.tensor(x, dtype=torch.int64).reshape(-1, 2) for x in (bonds, ends))  # type: ignore[return-value]


def interpret(
    manager: Any,
    parameters: Any = None,
    library: str | os.PathLike[str] | None = None,
    ligands: Sequence[str | os.PathLike[str]] = (),
) -> CctbxRestraints:
    """mmtbx's interpretation of a model.

    Parameters
    ----------
    manager : mmtbx.model.manager
        It is not changed.
    parameters : phil extract, optional
        Of ``mmtbx.model.manager.get_default_pdb_interpretation_params()``, changed at will.
    library : path, optional
        Folder of a monomer library in CCP4's layout; by default the one that mmtbx finds, then that of :func:`find_library`.
    ligands : sequence of path
        CIF files of further monomers.

    Raises
    ------
    ValueError
        In one sentence: no monomer library; a residue or a modification that it does not know; a file that cannot be read.
    """
    if parameters is None:
        parameters = mmtbx.model.manager.get_default_pdb_interpretation_params()
    parameters.pdb_interpretation.sort_atoms = False  # rows stay those of the manager
    before = [atom.id_str() for atom in manager.get_hierarchy().atoms()]
    copy = mmtbx.model.manager(
        model_input=None,
        pdb_hierarchy=manager.get_hierarchy().deep_copy(),
        crystal_symmetry=manager.crystal_symmetry(),
        restraint_objects=[(str(path), _read(path)) for path in ligands] or None,
        log=null_out(),
    )
    try:
        with library_in_environment(library):
            copy.process(pdb_interpretation_params=parameters, make_restraints=True)
    except Sorry as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"mmtbx cannot restrain this model ({text[:250]}): give a library that knows it (library=...), the monomer's CIF "
            "file (ligands=...), or restraints=library."
        ) from None
    except (KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"mmtbx cannot restrain this model with the monomer library that it found ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:120]}): use restraints=library, or the library that Phenix brings."
        ) from None
    if [atom.id_str() for atom in copy.get_hierarchy().atoms()] != before:
        raise ValueError("mmtbx has changed the order of this model's atoms: use restraints=library.")
    return CctbxRestraints(copy)


@contextlib.contextmanager
def library_in_environment(library: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """mmtbx finds a library by the environment, or inside Phenix: the one that is named, or, where it finds none, that of :func:`find_library`."""
    if library is None:
        try:
            server.server()
        except (Sorry, RuntimeError):
            pass
        else:
            yield
            return
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(find_library(library).path)
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE)
        if before is not None:
            os.environ[_VARIABLE] = before


def _read(path: str | os.PathLike[str]) -> Any:
    try:
        return iotbx.cif.reader(file_path=str(path)).model()
    except (Sorry, OSError, RuntimeError, iotbx.cif.CifParserError) as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The ligand file {path} cannot be read ({text}): give a monomer's restraints as CIF."
        ) from None


def _flex(sites_cart: torch.Tensor) -> Any:
    values = sites_cart.detach().cpu().to(torch.float64).numpy()
    return flex.vec3_double(flex.double(np.ascontiguousarray(values).ravel()))


class _EnergiesSites(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sites_cart: torch.Tensor, geometry: Any) -> torch.Tensor:
        models = sites_cart.reshape(-1, *sites_cart.shape[-2:])
        results = [geometry.energies_sites(sites_cart=_flex(m), compute_gradients=True) for m in models]
        gradients = np.stack([r.gradients.as_double().as_numpy_array() for r in results]).reshape(sites_cart.shape)
        ctx.save_for_backward(torch.from_numpy(gradients).to(sites_cart))
        values = torch.tensor([r.target for r in results], dtype=torch.float64, device=sites_cart.device)
        return values.reshape(sites_cart.shape[:-2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradients,) = ctx.saved_tensors
        return grad[..., None, None].to(gradients) * gradients, None
