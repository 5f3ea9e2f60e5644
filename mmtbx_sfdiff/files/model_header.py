"""What a model's header says that changes a calculation: the radiation, and B factors that lack their TLS part."""

from __future__ import annotations

import re
from typing import Any

from .cif_symmetry import value

_RESIDUAL = re.compile(r"ATOM RECORD CONTAINS RESIDUAL B FACTORS ONLY", re.IGNORECASE)


def methods(text: str, block: Any = None) -> list[str]:
    """Experimental methods of the header, upper case."""
    if block is not None:
        column = block.find_values("_exptl.method")
        single = value(block, "_exptl.method")
        found = [str(text).strip("'\"") for text in column] or ([single] if single else [])
        return [method.upper() for method in found]
    lines = [line[10:] for line in text.splitlines()[:5000] if line.startswith("EXPDTA")]
    return [method.strip().upper() for method in " ".join(lines).split(";") if method.strip()]


def method_messages(found: list[str], table: str) -> list[str]:
    """Whether the scattering table fits the radiation."""
    electron = any("ELECTRON" in method and "MICROSCOPY" not in method for method in found)
    neutron = any("NEUTRON" in method for method in found)
    xray = any("X-RAY" in method for method in found)
    if neutron and table != "neutron" and not xray:
        return [f"the header says neutron diffraction, but the scattering table is {table}: scattering_table=neutron"]
    if electron and table != "electron" and not xray:
        return [
            f"the header says electron diffraction, but the scattering table is {table}: scattering_table=electron gives "
            "electrons' form factors"
        ]
    if found and xray and not electron and not neutron and table in ("electron", "neutron"):
        return [f"the header says X-ray diffraction, but the scattering table is {table}"]
    return []


def tls_messages(text: str, block: Any = None) -> list[str]:
    """Whether the B factors are what TLS refinement left over."""
    if block is not None:
        flag = value(block, "_refine.pdbx_TLS_residual_ADP_flag") or ""
        residual = "RESIDUAL" in flag.upper() or bool(_RESIDUAL.search(_details(block)))
    else:
        header = text.split("\nATOM  ", 1)[0]
        residual = bool(_RESIDUAL.search(header))
    if not residual:
        return []
    return [
        "the B factors are the residual of a TLS refinement, by the header: the TLS part is not in them and not added, so "
        "R is higher than that of the whole; add it with a program that does, such as phenix.tls or tlsanl"
    ]


def _details(block: Any) -> str:
    return value(block, "_refine.details") or ""
