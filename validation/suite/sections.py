"""A section through two masks as a small file, for the figure of any entry (the paper's figure 1c)."""

from __future__ import annotations

import io

from mmtbx_sfdiff.comparison.section import MaskSection

import numpy as np

_LEVELS = 255


def as_npz(section):
    """The section as the bytes of a compressed NumPy archive; masks to one part in 255."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        ours=_levels(section.ours),
        mmtbx=_levels(section.mmtbx),
        x=section.x.astype(np.float32),
        y=section.y.astype(np.float32),
        axes=np.array(section.axes),
        normal=np.array(section.normal),
        position=np.array(section.position),
    )
    return buffer.getvalue()


def from_npz(path):
    """The section in a file that :func:`as_npz` made."""
    with np.load(path, allow_pickle=False) as archive:
        return MaskSection(
            ours=archive["ours"] / _LEVELS,
            mmtbx=archive["mmtbx"] / _LEVELS,
            x=archive["x"],
            y=archive["y"],
            axes=tuple(map(str, archive["axes"])),
            normal=str(archive["normal"]),
            position=float(archive["position"]),
        )


def _levels(mask):
    return np.rint(np.clip(mask, 0, 1) * _LEVELS).astype(np.uint8)
