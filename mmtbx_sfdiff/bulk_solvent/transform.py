"""Structure factors of a mask given on the grid of the whole unit cell.

    F_mask(h) = V/N sum_g mask(g) exp(+2 pi i h.x_g)

with the N grid points g at the fractional coordinates x_g, and the cell volume V: electrons, for a solvent of one
electron per Å^3.  As in mmtbx, reflections beyond 3 Å are set to zero unless asked otherwise.

Reference: ``mmtbx.masks.manager.compute_f_mask``.
"""
from __future__ import annotations

import torch

from ..crystal import as_miller_tensor

# mmtbx's Fmask_res_high.
F_MASK_D_MIN = 3.0


def mask_structure_factors(mask, crystal, miller_indices, d_min=F_MASK_D_MIN):
    """Structure factors of a mask; differentiable in the mask.

    Parameters
    ----------
    mask : torch.Tensor
        (..., n1, n2, n3) real, on the whole unit cell; point (i, j, k) is at (i/n1, j/n2, k/n3).
    crystal : Crystal
    miller_indices : torch.Tensor, flex.miller_index or miller.set
        (n, 3) integers, in any order, inside the asymmetric unit or not.
    d_min : float or None
        Structure factors with d < ``d_min`` (Å) are zero, as in mmtbx (``Fmask_res_high``, 3 Å).  None: no cut.

    Returns
    -------
    torch.Tensor
        (..., n) complex, in the precision and on the device of the mask.

    Raises
    ------
    ValueError
        A mask without three grid dimensions; an index, not cut away, that the grid cannot resolve.
    TypeError
        A mask that is not real floating point; Miller indices that are not integers.
    """
    if not isinstance(mask, torch.Tensor) or not mask.is_floating_point():
        raise TypeError("mask must be a tensor of real floating-point numbers; convert it with .to(torch.float64).")
    if mask.ndim < 3:
        raise ValueError(f"mask must have the shape (..., n1, n2, n3), not {tuple(mask.shape)}.")
    indices = as_miller_tensor(miller_indices, device=mask.device)
    grid = mask.shape[-3:]
    # The margin keeps a reflection exactly at the limit, whose d is rounded.
    kept = None
    if d_min is not None:
        inside = crystal.to(mask.device).d_star_sq(indices) <= (1 + 1e-10) / float(d_min) ** 2
        if not bool(inside.all()):
            kept = inside.nonzero()[:, 0]
            indices = indices[kept]
    n = torch.tensor(grid, device=mask.device)
    too_fine = (2 * indices.abs() >= n).any(-1)
    if bool(too_fine.any()):
        worst = tuple(indices[too_fine][0].tolist())
        raise ValueError(f"The reflection {worst} is beyond the Nyquist limit of the mask's grid {tuple(grid)}: "
                         "use a smaller grid_step, or a d_min that leaves it out.")
    # Only l >= 0 is kept of the transform of a real map; the sign in the exponent is the opposite of torch's.
    flip = indices[:, 2] < 0
    half = torch.where(flip[:, None], -indices, indices)
    half = torch.stack([half[:, 0] % n[0], half[:, 1] % n[1], half[:, 2]], -1)
    n_l = grid[2] // 2 + 1
    rows = (half[:, 0] * grid[1] + half[:, 1]) * n_l + half[:, 2]
    transform = torch.fft.rfftn(mask, dim=(-3, -2, -1)).flatten(-3)
    f = torch.view_as_real(transform.index_select(-1, rows))
    scale = crystal.volume / mask[(0,) * (mask.ndim - 3)].numel()
    sign = (2 * flip.to(mask.dtype) - 1) * scale
    f = torch.view_as_complex(torch.stack([f[..., 0] * scale, f[..., 1] * sign], -1))
    if kept is None:
        return f
    result = f.new_zeros((*f.shape[:-1], len(inside)))
    return result.index_copy(-1, kept, f)
