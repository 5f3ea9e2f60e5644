"""What ``SFcalculator`` says of its structure factors: R factors, normalized amplitudes, sigma-A, tables, files."""

from __future__ import annotations

import os
from typing import Any

import torch

import numpy as np

from .scales import ScaleState
from .utils import assert_numpy, r_factor


class Report(ScaleState):
    """Statistics by the bins of the calculator, and its files."""

    def _in_bins(self, values: torch.Tensor) -> torch.Tensor:
        """Averages (..., n_bins) of (..., n)."""
        where = torch.as_tensor(self.bins, device=values.device)
        total = values.new_zeros((*values.shape[:-1], self.n_bins)).index_add(-1, where, values)
        return total / torch.bincount(where, minlength=self.n_bins)

    def calc_Ec(self, Ftotal_HKL: torch.Tensor | None = None) -> torch.Tensor:
        """Normalized structure factors (..., n) complex, ``<|E|^2> = 1`` in each bin, of ``Ftotal_HKL`` or of what is given."""
        f = self.Ftotal_HKL if Ftotal_HKL is None else Ftotal_HKL
        sigma = self._in_bins(f.abs().square() / self.epsilon)[..., torch.as_tensor(self.bins, device=f.device)]
        return f / (self.epsilon * sigma).sqrt()

    def get_sigmaA(self, Ec_HKL: torch.Tensor, subset: str = "working") -> torch.Tensor:
        """sigma-A (..., n_bins) from the correlation of Eo^2 and Ec^2, without a gradient."""
        chosen = ~self.Outlier & ~self.free_flag if subset == "working" else ~self.Outlier
        e_calc, result = Ec_HKL.detach().abs().square(), []
        for i in range(self.n_bins):
            rows = torch.as_tensor(np.flatnonzero(chosen & (self.bins == i)), device=self.device)
            calc, obs = e_calc[..., rows], self.Eo[rows].square()
            calc, obs = calc - calc.mean(-1, keepdim=True), obs - obs.mean()
            correlation = (calc * obs).sum(-1) / (calc.square().sum(-1) * obs.square().sum()).sqrt()
            result.append(correlation.clamp(0.001, 0.999).sqrt())
        return torch.stack(result, -1).to(torch.float32)

    def summarize(self, Ftotal_HKL: torch.Tensor | None = None) -> None:
        """Print R factors and scales by bins of resolution."""
        f = (self._f_total("", None, True) if Ftotal_HKL is None else Ftotal_HKL).detach().abs()
        print(
            f"{'Resolution':15} {'N_work':>7} {'N_free':>7} {'<Fobs>':>7} {'<|Fmodel|>':>10} "
            f"{'R_work':>7} {'R_free':>7} {'k_mask':>7} {'k_iso':>7}"
        )
        for i in range(self.n_bins):
            inside = (self.bins == i) & ~self.Outlier
            rows, free = torch.as_tensor(inside, device=self.device), self.free_flag[inside]
            r_work, r_free = r_factor(self.Fo[rows], f[rows], free)
            print(
                f"{self.bin_labels[i]:<15} {int((~free).sum()):7d} {int(free.sum()):7d} {float(self.Fo[rows].mean()):7.1f} "
                f"{float(f[rows].mean()):10.1f} {float(r_work):7.3f} {float(r_free):7.3f} {float(self.kmasks[i]):7.3f} "
                f"{float(self.kisos[i]):7.3f}"
            )
        self.r_work, self.r_free = self.get_rfactors(f)
        print(f"r_work: {float(self.r_work):<7.3f}")
        print(f"r_free: {float(self.r_free):<7.3f}")
        print(f"Number of outliers: {int(self.Outlier.sum()):<7d}")

    def prepare_dataset(self, HKL_attr: str, F_attr: str) -> Any:
        """A ``reciprocalspaceship.DataSet`` with FMODEL and PHIFMODEL (degrees) of two attributes, indices and F.

        Raises
        ------
        ImportError
            Without reciprocalspaceship.
        ValueError
            Attributes of different lengths.
        """
        try:
            import reciprocalspaceship
        except ImportError as error:
            raise ImportError("prepare_dataset needs reciprocalspaceship: pip install reciprocalspaceship.") from error
        indices, f = assert_numpy(getattr(self, HKL_attr)), assert_numpy(getattr(self, F_attr))
        if len(indices) != len(f):
            raise ValueError(f"{HKL_attr} has {len(indices)} reflections, but {F_attr} {len(f)}.")
        data = reciprocalspaceship.DataSet(spacegroup=self.space_group, cell=self.unit_cell)
        for name, column in zip("HKL", indices.T):
            data[name] = column
        data["FMODEL"], data["PHIFMODEL"] = np.abs(f), np.rad2deg(np.angle(f))
        data.set_index(["H", "K", "L"], inplace=True)
        data.infer_mtz_dtypes(inplace=True)
        return data

    def savePDB(self, outname: str | os.PathLike[str]) -> None:
        """Write the model with its present coordinates, B and occupancies in PDB format."""
        parser = self._pdb
        parser.set_positions(assert_numpy(self.atom_pos_orth))
        parser.set_biso(assert_numpy(self.atom_b_iso))
        parser.set_baniso(assert_numpy(self.atom_aniso_uw))
        parser.set_occ(assert_numpy(self.atom_occ))
        parser.savePDB(outname)
