"""Atoms in a torch module: chosen fields are parameters, and everything moves, is saved and is loaded as torch does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from typing_extensions import Self

from .atoms import Atoms

REFINABLE = ("sites_cart", "u_iso", "u_star", "occupancies", "fp", "fdp")


class AtomsModule(torch.nn.Module):
    """Base of :class:`~mmtbx_sfdiff.FModel`.

    A subclass says in :meth:`_move` what of its own goes along to another dtype or device.

    Parameters
    ----------
    atoms : Atoms
    refine : sequence of str
        Fields of the atoms that are ``parameters()``, under their own names.

    Raises
    ------
    ValueError
        An unknown name.
    """

    def __init__(self, atoms: Atoms, refine: Iterable[str] = ()) -> None:
        super().__init__()
        self.refine = (refine,) if isinstance(refine, str) else tuple(refine)
        unknown = [name for name in self.refine if name not in REFINABLE]
        if unknown:
            raise ValueError(f"refine={unknown[0]!r} is no parameter of atoms: choose from {', '.join(REFINABLE)}.")
        # Everything but the parameters, whose values in it are those of the last move, load or assignment.
        self._base = atoms
        for name in self.refine:
            self.register_parameter(name, torch.nn.Parameter(getattr(atoms, name).detach().clone()))

    @property
    def atoms(self) -> Atoms:
        if not self.refine:
            return self._base
        atoms: Atoms = self._base.replace(**{name: getattr(self, name) for name in self.refine})
        return atoms

    @atoms.setter
    def atoms(self, atoms: Atoms) -> None:
        for name in self.refine:
            own, value = getattr(self, name), getattr(atoms, name)
            if value is not own and value.requires_grad and value.grad_fn is not None:
                raise ValueError(
                    f"{name} is a parameter of this FModel, into which values are copied, and those given are the result of a "
                    f"differentiable calculation: give them to f_model() or target(), or make the FModel without refine."
                )
            if value.shape != own.shape:
                raise ValueError(
                    f"{name} of the atoms has the shape {tuple(value.shape)}, and the parameter {tuple(own.shape)}: "
                    "use with_(atoms=...)."
                )
        with torch.no_grad():
            for name in self.refine:
                getattr(self, name).copy_(getattr(atoms, name))
        self._base = atoms

    def _up_to_date(self) -> Atoms:
        """The atoms with the values of the parameters, which are no longer among them."""
        atoms: Atoms = self._base.replace(**{name: getattr(self, name).detach().clone() for name in self.refine})
        return atoms

    def replace(self, **parameters: torch.Tensor) -> None:
        """Set new parameters of the atoms, such as ``sites_cart``; the scales stay.

        Examples
        --------
        >>> fmodel.replace(sites_cart=atoms.sites_cart + 0.1)
        >>> round(float(fmodel.atoms.sites_cart[0, 0] - atoms.sites_cart[0, 0]), 6)
        0.1
        """
        self.atoms = self.atoms.replace(**parameters)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """What ``.to()``, ``.cuda()``, ``.double()`` come to, of this module or of one that holds it."""
        atoms = self._base = self._up_to_date()
        # The atoms' own .to() keeps in float64 what has to stay so: fn is asked where it goes, not applied to everything.
        there = fn(torch.empty(0, dtype=atoms.dtype, device=atoms.device))
        if there.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"An FModel computes in float32 or float64, not {there.dtype}: keep it out of the module that is converted, and "
                "give it coordinates of any precision."
            )
        if (there.dtype, there.device) != (atoms.dtype, atoms.device):
            self._base = atoms.to(dtype=there.dtype, device=there.device)
            self._move(there.dtype, there.device)
        super()._apply(fn, recurse)
        return self

    def _move(self, dtype: torch.dtype, device: torch.device) -> None:
        """Move what else there is."""

    # What state_dict and load_state_dict take beside the parameters: what may have changed since the files were read.

    def get_extra_state(self) -> dict[str, Any]:
        return {"atoms": self.atoms.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.atoms = self._base.with_state(state["atoms"])
