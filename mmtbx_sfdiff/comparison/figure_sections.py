"""The panel of the masks themselves: the same section of both."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from .figure_style import HEIGHT_INCHES, VERMILLION, WIDTH_INCHES

_MASK_COLOURS = LinearSegmentedColormap.from_list("mask", ["#f4f1ea", "#9ccbe8", "#0b4f80"])


def draw_sections(figure: Any, section: Any, result: dict[str, Any], box: Any) -> Any:
    """Both masks in Å, to one scale, side by side or one above the other, with mmtbx's outline over ours."""
    left, bottom, width, height = box
    beside = [(0.0, 0.5, 0.45, 1.0), (0.55, 0.5, 0.45, 1.0)]
    above = [(0.5, 1.0, 0.9, 0.38), (0.5, 0.38, 0.9, 0.38)]
    extent = np.ptp(section.x), np.ptp(section.y)

    def scale(part: Any) -> float:
        """Inches per Å such that the section fits its part of the box."""
        return min(part[2] * width * WIDTH_INCHES / extent[0], part[3] * height * HEIGHT_INCHES / extent[1])  # type: ignore[no-any-return]

    stacked = scale(above[0]) > scale(beside[0])
    inches = scale((above if stacked else beside)[0])
    w, h = extent[0] * inches / WIDTH_INCHES, extent[1] * inches / HEIGHT_INCHES
    top = bottom + height
    step = 0.062 + h
    second = (left, top - h - step) if stacked else (left + w + 0.035, top - h)
    corners = [(left, top - h), second]
    narrow = not stacked and w * WIDTH_INCHES < 1.35
    names = (f"mmtbx_sfdiff: {result['f_mask']['method'].replace('_', ' ')}", "mmtbx: probe–shrink")
    for number, (mask, name, (x, y)) in enumerate(zip((section.ours, section.mmtbx), names, corners)):
        axes = figure.add_axes((x, y, w, h))
        image = axes.pcolormesh(
            section.x, section.y, mask, cmap=_MASK_COLOURS, vmin=0, vmax=1, rasterized=True, linewidth=0
        )
        axes.set_aspect("equal")
        axes.set_xlim(section.x.min(), section.x.max())
        axes.set_ylim(section.y.min(), section.y.max())
        axes.set_title(name.replace(": ", "\n") if narrow else name, fontsize=7, pad=3, loc="left")
        axes.locator_params(nbins=4)
        for spine in axes.spines.values():
            spine.set_visible(True)
        if stacked or number == 0:
            axes.set_ylabel(f"along {section.axes[1]} (Å)")
        else:
            axes.set_yticklabels([])
        if not stacked or number == 1:
            axes.set_xlabel(f"along {section.axes[0]} (Å)")
        else:
            axes.set_xticklabels([])
        if number == 0 and 0 < section.mmtbx.mean() < 1:
            centres = [(c[:-1, :-1] + c[1:, 1:]) / 2 for c in (section.x, section.y)]
            axes.contour(*centres, section.mmtbx, levels=[0.5], colors=VERMILLION, linewidths=0.5)
    right = max(x for x, _ in corners) + w
    bar = figure.add_axes((right + 0.012, top - min(h, 0.16), 0.011, min(h, 0.16)))
    figure.colorbar(image, cax=bar, ticks=[0, 1]).set_ticklabels(["model", "solvent"])
    bar.tick_params(length=2, pad=2)
