"""Matrix products that no global setting of torch makes less precise.

``torch.set_float32_matmul_precision``, ``allow_tf32`` and their newer names let torch round factors of single precision to
ten bits or eight.  Nothing global is set here: where one of them is on, the product is made in double precision.
"""

from __future__ import annotations

import torch

_DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def product(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None, wide: bool | None = None
) -> torch.Tensor:
    """``a @ b``, in ``out`` if given; ``wide`` is :func:`reduced` where it is known already, for many small ones."""
    double = _DOUBLE.get(a.dtype)
    if double is None or not (reduced(a.device) if wide is None else wide):
        return torch.matmul(a, b) if out is None else torch.matmul(a, b, out=out)
    found = torch.matmul(a.to(double), b.to(double)).to(a.dtype)
    return found if out is None else out.copy_(found)


def reduced(device: torch.device) -> bool:
    """Whether products of single precision may be less precise than that on this device."""
    try:
        if torch.get_float32_matmul_precision() != "highest":
            return True
    except RuntimeError:
        # Old and new settings were mixed, and torch does not say which holds.
        return True
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    kinds = (backend, getattr(backend, "matmul", None))
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        return True
    return any(getattr(kind, "fp32_precision", "ieee") in ("tf32", "bf16") for kind in kinds)
