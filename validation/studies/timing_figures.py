"""Figures of ``validation.studies.timing``: time against error, and against size."""

from __future__ import annotations

import statistics

# Okabe and Ito's colours, and a marker each.
_STYLES = {
    "fft": ("#0072B2", "o"),
    "auto": ("#009E73", "s"),
    "direct": ("#E69F00", "^"),
    "cctbx fft": ("#D55E00", "D"),
    "cctbx direct": ("#CC79A7", "v"),
    "gemmi": ("#000000", "P"),
}
_LABELS = {"fft": "this package, fft", "auto": "this package, auto", "direct": "this package, direct"}
_PANELS = (("forward_s", 1, "structure factors"), ("gradient_s", None, "structure factors and gradients"))


def plot_accuracy(results, path):
    """Time against error, medians over the entries, one line a method."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for panel, (what, n_errors, title) in zip(axes, _PANELS):
        for family, (colour, marker) in _STYLES.items():
            points = {}
            for result in results:
                base = result["methods"]["cctbx fft"][what]["median"]
                for name, entry in result["methods"].items():
                    if (name == family or name.rsplit(" ", 1)[0] == family) and what in entry:
                        points.setdefault(name, []).append(
                            (max(entry["errors"][:n_errors]), entry[what]["median"] / base)
                        )
            # A method that was run on a few entries only has no median over all of them.
            xy = sorted(
                tuple(statistics.median(column) for column in zip(*values))
                for values in points.values()
                if len(values) > len(results) / 2
            )
            if xy:
                panel.plot(*zip(*xy), marker=marker, color=colour, label=_LABELS.get(family, family))
        panel.set(xscale="log", yscale="log", xlabel="relative L2 error (the largest of those calculated)", title=title)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("time / time of cctbx fft")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def plot_size(results, path, accuracy=1e-4):
    """Time against atoms times reflections, one point an entry and method."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    names = {
        "fft": f"fft {accuracy:g}",
        "auto": f"auto {accuracy:g}",
        "direct": "direct",
        "cctbx fft": "cctbx fft",
        "cctbx direct": "cctbx direct",
        "gemmi": "gemmi",
    }
    for panel, (what, _, title) in zip(axes, _PANELS):
        for family, name in names.items():
            colour, marker = _STYLES[family]
            xy = sorted(
                (r["n_atoms"] * r["n_reflections"], 1e3 * r["methods"][name][what]["median"])
                for r in results
                if what in r["methods"].get(name, {})
            )
            if xy:
                panel.plot(
                    *zip(*xy),
                    marker,
                    color=colour,
                    ms=5,
                    alpha=0.8,
                    label=_LABELS.get(family, family)
                    + (f", {accuracy:g}" if family in _LABELS and family != "direct" else ""),
                )
        panel.set(xscale="log", yscale="log", xlabel="atoms x reflections of the asymmetric unit", title=title)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("time, ms")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
