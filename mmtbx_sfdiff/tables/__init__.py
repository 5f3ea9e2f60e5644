"""Numbers as data: form factors, van der Waals radii, settings of space groups.

:mod:`.write` writes them from cctbx, whose licence lies beside them; ``tests/test_tables.py`` compares them with it.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any


@functools.cache
def read(name: str) -> dict[str, Any]:
    """The table ``<name>.json``."""
    table: dict[str, Any] = json.loads((resources.files(__package__) / f"{name}.json").read_text())
    return table
