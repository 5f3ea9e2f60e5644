"""The ``atom_site`` loop of an mmCIF as columns of texts."""

from __future__ import annotations

from typing import Any

import gemmi

MISSING = ("?", ".", "")
_NAMES = {
    name.lower(): name
    for name in (
        "Cartn_x Cartn_y Cartn_z B_iso_or_equiv U_iso_or_equiv pdbx_PDB_ins_code pdbx_PDB_model_num group_PDB id type_symbol "
        "label_atom_id label_alt_id label_comp_id label_asym_id label_seq_id label_entity_id auth_atom_id auth_comp_id "
        "auth_asym_id auth_seq_id occupancy pdbx_formal_charge "
        + " ".join(f"aniso_{kind}[{ij[0]}][{ij[1]}]" for kind in "UB" for ij in ("11", "22", "33", "12", "13", "23"))
    ).split()
}


class AtomSite:
    """The atom_site loop as columns of texts."""

    def __init__(self, loop: Any) -> None:
        width, values = loop.width(), loop.values
        # names of a CIF are the same in upper and lower case
        names = [_NAMES.get(name.lower(), name) for name in (tag.split(".", 1)[1] for tag in loop.tags)]
        self.columns: dict[str, list[str]] = {name: list(values[number::width]) for number, name in enumerate(names)}
        self.n = loop.length()
        self.changed = any(f"_atom_site.{name}" != tag for name, tag in zip(names, loop.tags))

    def get(self, name: str) -> list[str] | None:
        return self.columns.get(name)

    def set(self, name: str, values: list[str]) -> None:
        self.columns[name] = values
        self.changed = True

    def name(self, i: int) -> str:
        """Which atom, for people."""
        parts = []
        for names in (
            ("auth_asym_id", "label_asym_id"),
            ("auth_comp_id", "label_comp_id"),
            ("auth_seq_id", "label_seq_id"),
            ("auth_atom_id", "label_atom_id"),
            ("label_alt_id",),
        ):
            texts = [column[i] for name in names if (column := self.get(name)) is not None and column[i] not in MISSING]
            parts += texts[:1]
        return " ".join(gemmi.cif.as_string(part) for part in parts) or f"number {i + 1}"
