"""The ``atom_site`` loop of an mmCIF as columns of texts."""

from __future__ import annotations

from typing import Any

import gemmi

MISSING = ("?", ".", "")


class AtomSite:
    """The atom_site loop as columns of texts."""

    def __init__(self, loop: Any) -> None:
        width, values = loop.width(), loop.values
        self.columns: dict[str, list[str]] = {
            tag.split(".", 1)[1]: list(values[number::width]) for number, tag in enumerate(loop.tags)
        }
        self.n = loop.length()
        self.changed = False

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
