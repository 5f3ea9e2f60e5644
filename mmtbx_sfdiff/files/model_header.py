"""What a model's header says: the radiation, B factors that lack their TLS part, the statistics of its refinement."""

from __future__ import annotations

import re
from typing import Any

from ..rules import b_is_residual
from .cif_symmetry import value

_SCATTERING = {"x-ray": "X-RAY DIFFRACTION", "neutron": "NEUTRON DIFFRACTION", "electron": "ELECTRON DIFFRACTION"}


def methods(text: str, block: Any = None) -> list[str]:
    """Experimental methods of the header, upper case."""
    if block is not None:
        column = block.find_values("_exptl.method")
        single = value(block, "_exptl.method")
        found = [str(text).strip("'\"") for text in column] or ([single] if single else [])
        if not any(word in method.upper() for method in found for word in ("X-RAY", "NEUTRON", "ELECTRON")):
            kind = value(block, "_diffrn_radiation.pdbx_scattering_type", "_diffrn_radiation_probe") or ""
            found += [_SCATTERING[kind.lower()]] if kind.lower() in _SCATTERING else []
        return [method.upper() for method in found]
    lines = [line[10:] for line in text.splitlines()[:5000] if line.startswith("EXPDTA")]
    return [method.strip().upper() for method in " ".join(lines).split(";") if method.strip()]


def is_tls_residual(text: str, block: Any = None) -> bool:
    """Whether the B factors are what TLS refinement left over, by the header."""
    if block is not None:
        flag = value(block, "_refine.pdbx_TLS_residual_ADP_flag") or ""
        return "RESIDUAL" in flag.upper() or b_is_residual(_details(block))
    header = re.split(r"^(?:ATOM  |HETATM)", text, maxsplit=1, flags=re.MULTILINE)[0]
    return b_is_residual("\n".join(line for line in header.splitlines() if line.startswith("REMARK   3")))


def tls_added(n: int) -> str:
    """What is said where the TLS part was added."""
    return (
        "the B factors are the residual of a TLS refinement, by the header: the TLS part of the header's groups was added to "
        f"{n} atoms"
    )


def tls_missing(why: object) -> str:
    """What is said where it could not be."""
    return (
        f"the B factors are the residual of a TLS refinement, by the header, and the TLS part is not added ({why}), so R is higher "
        "than that of the whole: add it with a program that does, such as phenix.tls or tlsanl"
    )


def _details(block: Any) -> str:
    return value(block, "_refine.details") or ""


def published_statistics(pdb_input: Any, text: str) -> tuple[float | None, ...]:
    """R-work, R-free and resolution from the header; None for what is absent or unreadable."""
    try:
        found = pdb_input.get_r_rfree_sigma()
        values = [found.r_work, found.r_free, found.high] if found is not None else [None] * 3
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        values = [None] * 3
    # cctbx leaves both R factors out where the free one is NULL
    for i, label in enumerate((r"R VALUE\s+\(WORKING SET\)", r"FREE R VALUE")):
        if values[i] is None:
            match = re.search(rf"^REMARK   3 +{label} *: *([0-9.]+)", text, flags=re.MULTILINE)
            values[i] = match.group(1) if match else None
    return tuple(_number(value, high) for value, high in zip(values, (1.0, 1.0, 100.0)))


def _number(value: Any, high: float) -> float | None:
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if 0 < value < high else None
