"""Table, curves and figure of the study, from its records."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

from mmtbx_sfdiff.files import write_all
from mmtbx_sfdiff.latent.figures import COLOURS, png

import numpy as np
from matplotlib.figure import Figure

from validation.studies.latent_radius.curves import bootstrap, fit

_COLUMNS = 3  # of the figure
SUCCESS = ("success", "success_ordered")
R_FREE, MAIN = 0.03, 0.5  # above the deposited model polished alike; Å
KINDS = ("bend", "loop", "rotamers")
NAMES = {
    "latent_elastic": "latent, elastic network",
    "rigid_refine": "rigid bodies, refine",
    "jelly_refine": "refine with jelly body",
    "servalcat_jelly": "servalcat --jellybody",
    "servalcat_rebuilt": "the same, rebuilt",
    "latent_linear": "latent, linear flow",
    "latent_linear_long": "latent, long linear flow",
    "latent_realnvp": "latent, RealNVP",
    "latent_spline": "latent, circular spline",
    "sites_ff": "sites, force field",
    "average_ff": "average of the dynamics",
    "polish": "polishing alone",
}


def line(found):
    """A run in a line."""
    start = found["start"]
    head = f"{found['entry']} {start['kind']:8s} {start['rms_main']:.2f} Å {found['method']:16s}"
    if "failed" in found:
        return f"{head} failed: {found['failed'].strip().splitlines()[-1]}"
    return (
        f"{head} {start['r'][0]:.3f}/{start['r'][1]:.3f} -> {found['r_before_polish'][0]:.3f}/{found['r_before_polish'][1]:.3f} -> "
        f"{found['r_work']:.4f}/{found['r_free']:.4f}, main {found['rms_main_before_polish']:.2f} -> {found['rms_main']:.2f} Å, "
        f"{found['seconds']['method']:.0f} + {found['seconds']['polish']:.0f} s"
    )


def succeeded(record, benchmark, main="rms_main"):
    """R-free near that of the deposited model polished alike, and the main chain in its place."""
    return record["r_free"] <= benchmark["r_free"] + R_FREE and record[main] <= MAIN


def collect(folder):
    """Records of all runs, those that failed too, each with ``success``, and ``success_ordered``, which leaves disordered residues out."""
    found = []
    for path in sorted(Path(folder).glob("runs/*/*.json")):
        if path.name == "deposited.json":
            continue
        record = json.loads(path.read_text())
        benchmark = json.loads((path.parent / "deposited.json").read_text())
        record["benchmark"] = benchmark["r_work"], benchmark["r_free"]
        record["success"] = "failed" not in record and succeeded(record, benchmark)
        record["success_ordered"] = (
            record["success"] or "rms_ordered" in record and succeeded(record, benchmark, "rms_ordered")
        )
        found.append(record)
    return found


def by_method(records, success="success"):
    """{method: {start: (starting error, success)}} of the starts that every method has run."""
    table = {}
    for record in records:
        start = record["start"]
        key = record["entry"], start["target_rms"], start["seed"]
        table.setdefault(record["method"], {})[key] = start["rms_main"], record[success]
    common = set.intersection(*(set(runs) for runs in table.values())) if table else set()
    return {method: {key: runs[key] for key in sorted(common)} for method, runs in table.items()}


def table(records, success, halves):
    """Half-way points with 95 % intervals, and successes by kind and size, as text."""
    out = []
    runs = by_method(records, success)
    n = len(next(iter(runs.values()), {}))
    if not n:
        return "No start has been run by every method yet."
    halves = halves[success]
    baselines = [method for method in runs if not method.startswith("latent")]
    curves = {method: fit(*zip(*found.values())) for method, found in runs.items()}
    out.append(
        f"{n} starts that every method has run; success: R-free within {R_FREE} of the deposited protein polished alike, main "
        f"chain{' of ordered residues' * (success != 'success')} within {MAIN} Å.\n"
    )
    out.append(f"{'':26s}succeeded   half-way point (95 %)        {'   '.join(f'{k:>8s}' for k in KINDS)}")
    for method, found in runs.items():
        low, high = np.quantile(halves[method], (0.025, 0.975))
        cells = []
        for kind in KINDS:
            chosen = [ok for (_, _, seed), (_, ok) in found.items() if KINDS[seed % len(KINDS)] == kind]
            cells.append(f"{sum(chosen):3d} of {len(chosen):2d}" if chosen else "-")
        total = sum(ok for _, ok in found.values())
        out.append(
            f"{NAMES.get(method, method):26s}{total:3d} of {len(found):2d}   {curves[method].half:5.2f} Å ({low:.2f} to {high:.2f})"
            f"        {'   '.join(f'{c:>8s}' for c in cells)}"
        )
    if baselines:
        best = max(baselines, key=lambda method: curves[method].half)
        for method in runs:
            if method.startswith("latent"):
                low, high = np.quantile(halves[method] - halves[best], (0.025, 0.975))
                out.append(
                    f"\n{NAMES.get(method, method)} - {NAMES.get(best, best)}: {curves[method].half - curves[best].half:+.2f} Å "
                    f"({low:+.2f} to {high:+.2f}); at its half-way point {100 * curves[method](curves[best].half):.0f} % succeed"
                )
    return "\n".join(out)


def rst(records, halves):
    """The same as a table for the docs: successes and half-way points, in brackets those that leave disordered residues out."""
    # An empty first cell would make the heading a continuation of what is above.
    rows = [["\\", "succeeded", "half-way point (95 %), Å", "in brackets", *KINDS]]
    whole, ordered = (by_method(records, success) for success in SUCCESS)

    def counted(method, kind=None):
        found = [
            [ok for (_, _, seed), (_, ok) in runs[method].items() if kind in (None, KINDS[seed % len(KINDS)])]
            for runs in (whole, ordered)
        ]
        return f"{sum(found[0])} ({sum(found[1])}) of {len(found[0])}"

    def half(runs, success, method):
        low, high = np.quantile(halves[success][method], (0.025, 0.975))
        return f"{fit(*zip(*runs[method].values())).half:.2f} ({low:.2f} to {high:.2f})"

    for method in whole:
        rows.append(
            [
                NAMES.get(method, method),
                counted(method),
                half(whole, SUCCESS[0], method),
                half(ordered, SUCCESS[1], method),
                *(counted(method, kind) for kind in KINDS),
            ]
        )
    return simple_table(rows)


def simple_table(rows):
    """Rows of cells, the heading first, as a simple table of reStructuredText."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    ruler = " ".join("=" * w for w in widths)
    text = [" ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([ruler, text[0], ruler, *text[1:], ruler, ""])


def csv(records):
    """One row a run."""
    buffer = io.StringIO()
    buffer.write(
        "entry,kind,seed,target_rms,start_main,start_all,start_r_work,start_r_free,method,r_work,r_free,deposited_r_free,"
        "main_before_polish,main,ordered,all,success,success_ordered,seconds,version\n"
    )
    for r in records:
        s = r["start"]
        head = f"{r['entry']},{s['kind']},{s['seed']},{s['target_rms']},{s['rms_main']:.3f},{s['rms_all']:.3f},{s['r'][0]:.4f},{s['r'][1]:.4f},{r['method']}"
        if "failed" in r:
            buffer.write(f"{head},,,{r['benchmark'][1]:.4f},,,,,False,False,,\n")
            continue
        buffer.write(
            f"{head},{r['r_work']:.4f},{r['r_free']:.4f},{r['benchmark'][1]:.4f},{r['rms_main_before_polish']:.3f},{r['rms_main']:.3f},"
            f"{r.get('rms_ordered', math.nan):.3f},{r['rms_all']:.3f},{r['success']},{r['success_ordered']},{r['seconds']['method'] + r['seconds']['polish']:.0f},{r['version']}\n"
        )
    return buffer.getvalue()


def figure(records):
    """Every run by its starting and its final error, and the fitted curves."""
    runs = by_method(records)
    rows = -(-(len(runs) + 1) // _COLUMNS)
    picture = Figure(figsize=(2.5 * _COLUMNS, 2.9 * rows), layout="constrained")
    axes = picture.subplots(rows, _COLUMNS, squeeze=False).ravel().tolist()
    for unused in axes[len(runs) + 1 :]:
        unused.remove()
    *panels, last = axes[: len(runs) + 1]
    for panel, (method, colour) in zip(panels, zip(runs, COLOURS)):
        for record in records:
            start = record["start"]
            if record["method"] == method and "failed" not in record:
                panel.scatter(
                    start["rms_main"],
                    record["rms_main"],
                    marker="os^"[KINDS.index(start["kind"])],
                    s=18,
                    facecolor=colour if record["success"] else "none",
                    edgecolor=colour,
                    linewidth=1,
                )
        panel.plot([0, 3.2], [0, 3.2], color="#bbbbbb", linewidth=0.8, zorder=0)
        panel.axhline(MAIN, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
        panel.set_title(NAMES.get(method, method), fontsize=8)
        panel.set_xlabel("start, Å", fontsize=8)
        panel.set_xlim(0, 3.4)
        panel.set_ylim(0, 4.5)
        panel.set_ylabel("main chain at the end, Å", fontsize=8)
    x = np.linspace(0.5, 3.3, 100)
    for (method, found), colour in zip(runs.items(), COLOURS):
        last.plot(x, fit(*zip(*found.values()))(x), color=colour, label=NAMES.get(method, method))
    last.set_xlabel("start, Å", fontsize=8)
    last.set_ylabel("success, fitted", fontsize=8)
    last.set_ylim(-0.03, 1.03)
    last.legend(frameon=False, fontsize=6)
    for panel in (*panels, last):
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=7)
    return picture


def write(folder, out, methods=None):
    """``latent_radius.txt``, ``.inc``, ``.csv`` (all runs) and ``.png`` in a folder; the table, which compares some methods or all."""
    everything = collect(folder)
    records = [r for r in everything if methods is None or r["method"] in methods]
    found = {success: by_method(records, success) for success in SUCCESS}
    some = any(found[SUCCESS[0]].values())
    halves = {success: bootstrap(runs) for success, runs in found.items()} if some else {}
    text = "\n\n".join(table(records, success, halves) for success in SUCCESS)
    contents = {
        Path(out) / "latent_radius.txt": (text + "\n").encode(),
        Path(out) / "latent_radius.csv": csv(everything).encode(),
    }
    if some:
        contents[Path(out) / "latent_radius.png"] = png(figure(records))
        contents[Path(out) / "latent_radius.inc"] = rst(records, halves).encode()
    write_all(contents)
    return text
