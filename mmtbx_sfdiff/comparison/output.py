"""Writing the results of a comparison: all files or none, each complete."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files.writing import check_writable, write_all
from . import schema

__all__ = ["check_writable", "json_text", "paths", "write_all"]


def json_text(result: dict[str, Any]) -> str:
    """A result as JSON; NaN and infinity, which JSON does not have, become null.

    Raises
    ------
    ValueError
        When the result does not have the form that :mod:`.schema` promises.
    """
    result = _finite(result)
    faults = schema.errors(result)
    if faults:
        raise ValueError(f"The result is not as its schema says: {'; '.join(faults)}.")
    return json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(child) for name, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def paths(directory: str | Path, prefix: str, kinds: Sequence[str]) -> dict[str, Path]:
    """``{kind: directory/prefix_compare.kind}`` for kinds such as "json" and "png"."""
    return {kind: Path(directory).expanduser() / f"{prefix}_compare.{kind}" for kind in kinds}
