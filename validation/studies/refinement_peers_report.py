"""Tables and the figure of :mod:`.refinement_peers`."""

import csv
import io
import json
import math
import statistics

from matplotlib.figure import Figure

_FIELDS = ("r_work", "r_free", "bond", "angle", "d_min", "n_atoms", "n_reflections", "n_free")
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito
_MARKERS = "os^D"


WITH_HYDROGENS = " with hydrogens"


def collect(out, starts):
    """[{entry, start, program, r_work, ..., seconds or failed}]; runs with hydrogens on both sides are of a start of their own."""
    found, wet = [], []
    for kind in starts:
        for path in sorted(out.glob(f"*/{kind}/*.json")):
            row = {"entry": path.parts[-3], "start": kind, "program": path.stem} | json.loads(path.read_text())
            if path.stem == "start":
                wet.append(row | {"start": kind + WITH_HYDROGENS})
            if path.stem.endswith("_h"):
                wet.append(row | {"start": kind + WITH_HYDROGENS, "program": path.stem.removesuffix("_h")})
            else:
                found.append(row)
    known = {(row["entry"], row["start"]) for row in wet if row["program"] != "start"}
    return found + [row for row in wet if (row["entry"], row["start"]) in known]


def by_entry(rows, kind):
    """{entry: {program: row}}, by resolution."""
    found = {}
    for row in rows:
        if row["start"] == kind:
            found.setdefault(row["entry"], {})[row["program"]] = row
    return dict(sorted(found.items(), key=lambda item: item[1].get("start", {}).get("d_min", 9)))


def pairs(rows, kind, name, other):
    """Rows of two programs over the entries that both refined."""
    return [
        (r[name], r[other])
        for r in by_entry(rows, kind).values()
        if "r_free" in r.get(name, {}) and "r_free" in r.get(other, {})
    ]


def sampling_error(row):
    return row["r_free"] / math.sqrt(2 * row["n_free"])


def table(rows, kind, names):
    """Lines, and the comparison of each program with the first over the entries that both did."""
    lines = [
        f"start {kind}",
        f"{'entry':5} {'d_min':>5} {'free':>5} {'start':>13}  " + "  ".join(f"{n:>34}" for n in names),
    ]
    for entry, results in by_entry(rows, kind).items():
        s = results.get("start")
        if s is not None:
            lines.append(
                f"{entry:5} {s['d_min']:5.2f} {s['n_free']:5d} {s['r_work']:.4f}/{s['r_free']:.4f}  "
                + "  ".join(cell(results.get(name)) for name in names)
            )
    for name in names[1:]:
        both = pairs(rows, kind, name, names[0])
        if both:
            lines.append(_comparison(name, names[0], both))
        started = pairs(rows, kind, name, "start")
        if started:
            rises = [a["r_free"] - b["r_free"] for a, b in started]
            allowed = [max(0.003, 2 * sampling_error(b)) for _, b in started]
            lines.append(
                f"{name}: R-free - that of the start: median {statistics.median(rises):+.4f}, lower in "
                f"{sum(d < 0 for d in rises)} of {len(rises)}, up by more than max(.003, 2 sampling errors) in "
                f"{sum(d > a for d, a in zip(rises, allowed))}"
            )
    return "\n".join(lines)


def _comparison(name, other, both):
    differences = [a["r_free"] - b["r_free"] for a, b in both]
    allowed = [max(0.01, sampling_error(b)) for _, b in both]

    def medians(value, digits):
        first, second = (statistics.median(value(pair[i]) for pair in both) for i in (0, 1))
        return f"{first:.{digits}f} ({second:.{digits}f})"

    ratios = [a["seconds"]["cpu"] / b["seconds"]["cpu"] for a, b in both]
    return (
        f"{name}: {len(both)} entries, R-free - {other}'s: median {statistics.median(differences):+.4f}, below in "
        f"{sum(d < 0 for d in differences)}, above by more than allowed in "
        f"{sum(d > a for d, a in zip(differences, allowed))}; gap {medians(lambda r: r['r_free'] - r['r_work'], 4)}, bonds "
        f"{medians(lambda r: r['bond'], 4)} Å, angles {medians(lambda r: r['angle'], 2)}°, CPU time / {other}'s "
        f"{statistics.median(ratios):.2f}"
    )


def as_rst(rows, names, unseen):
    """Tables for docs, one for each kind of start, each with what it comes to; entries that decided nothing are marked."""
    parts = []
    for kind in dict.fromkeys(row["start"] for row in rows):
        chosen = {
            e: r
            for e, r in by_entry(rows, kind).items()
            if "start" in r and any("r_free" in r.get(n, {}) for n in names[1:])
        }
        if not chosen:
            continue
        lines = [["entry", "d_min", "free", "start", *names]]
        for entry, results in chosen.items():
            s = results["start"]
            begin = [entry + "*" * (entry in unseen), f"{s['d_min']:.2f}", f"{s['n_free']}", _two(s)]
            lines.append(begin + [_rst_cell(results.get(name)) for name in names])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        bar = " ".join("=" * w for w in widths)
        texts = [" ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines]
        title = _title(kind)
        parts.append("\n".join([f"*{title[0].upper()}{title[1:]}.*", "", bar, texts[0], bar, *texts[1:], bar, ""]))
        for name in names[1:]:
            for words, only in (("", None), (" unseen", unseen)):
                both = [p for p in pairs(rows, kind, name, names[0]) if only is None or p[0]["entry"] in only]
                if len(both) > 2:
                    parts.append(_rst_comparison(name, names[0], both, words))
            if kind.startswith("deposited"):
                parts.append(_rst_against_start(name, names[0], rows, kind))
        parts.append("")
    return "\n".join(parts)


def _two(row):
    return f"{row['r_work']:.4f} / {row['r_free']:.4f}".replace("0.", ".")


def _rst_cell(row):
    if row is None:
        return "–"
    return "stops" if "failed" in row else f"{_two(row)}, {row['bond']:.4f} Å, {row['angle']:.1f}°"


def _rst_comparison(name, other, both, words):
    differences = [a["r_free"] - b["r_free"] for a, b in both]
    above = [a["entry"] for (a, b), d in zip(both, differences) if d > max(0.01, sampling_error(b))]

    def medians(value, digits):
        first, second = (statistics.median(value(pair[i]) for pair in both) for i in (0, 1))
        return f"{first:.{digits}f} ({second:.{digits}f})"

    return (
        f"* {name}, {len(both)}{words} entries: R-free {statistics.median(differences):+.4f} against {other}'s in the median, below it in "
        f"{sum(d < 0 for d in differences)}, above by more than allowed in {', '.join(above) or 'none'}; R-free - R-work "
        f"{medians(lambda r: r['r_free'] - r['r_work'], 4)}, bonds {medians(lambda r: r['bond'], 4)} Å, angles "
        f"{medians(lambda r: r['angle'], 2)}°."
    )


def is_credible(start):
    """Whether a test set is that of the deposited refinement: R-free within 0.01 of what the file says, the gap at least 0.015."""
    stated = start.get("deposited_r_free")
    return stated is not None and abs(start["r_free"] - stated) <= 0.01 and start["r_free"] - start["r_work"] >= 0.015


def _rst_against_start(name, other, rows, kind):
    """R-free of deposited models whose flags are credible against where it began, and of the others against a peer's."""
    credible = [(a, b) for a, b in pairs(rows, kind, name, "start") if is_credible(b)]
    rises = [a["r_free"] - b["r_free"] for a, b in credible]
    over = [a["entry"] for (a, b), d in zip(credible, rises) if d > max(0.003, 2 * sampling_error(b))]
    known = {a["entry"] for a, _ in credible}
    others = [a["r_free"] - b["r_free"] for a, b in pairs(rows, kind, name, other) if a["entry"] not in known]
    text = ""
    if credible:
        text = (
            f"* {name}, the {len(credible)} with credible flags: R-free {statistics.median(rises):+.4f} against the start in the "
            f"median, lower in {sum(d < 0 for d in rises)}, up by more than max(.003, 2 sampling errors) in {', '.join(over) or 'none'}."
        )
    if others:
        text += (
            f"\n* {name}, the other {len(others)}: above {other}'s R-free in {sum(d > 0 for d in others)}, by "
            f"{max(others):+.4f} at most, {statistics.median(others):+.4f} in the median."
        )
    return text


def cell(result):
    if result is None or "failed" in result:
        return f"{'-' if result is None else 'failed':>34}"
    return (
        f"{result['r_work']:.4f}/{result['r_free']:.4f} {result['bond']:.4f} Å {result['angle']:4.2f}° "
        f"{result['seconds']['cpu']:5.0f} s"
    )


def as_csv(rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["entry", "start", "program", *_FIELDS, "cpu_s", "wall_s", "failed"])
    for row in rows:
        values = [row.get(name, "") for name in _FIELDS]
        values = [f"{v:.5g}" if isinstance(v, float) else v for v in values]
        seconds = row.get("seconds", {})
        times = [f"{seconds[name]:.1f}" if name in seconds else "" for name in ("cpu", "wall")]
        writer.writerow([row["entry"], row["start"], row["program"], *values, *times, row.get("failed", "")])
    return text.getvalue()


def draw(rows, names, columns=3):
    """R-free of ours against the first program's, one panel for each start that some entry has of both."""
    kinds = [
        kind
        for kind in dict.fromkeys(row["start"] for row in rows)
        if any(pairs(rows, kind, name, names[0]) for name in names[1:])
    ]
    columns = max(1, min(columns, len(kinds)))
    lines = max(1, -(-len(kinds) // columns))
    figure = Figure(figsize=(3.4 * columns, 3.7 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(kinds) :]:
        axis.remove()
    for axis, kind in zip(axes, kinds):
        values = []
        for number, name in enumerate(names[1:]):
            both = pairs(rows, kind, name, names[0])
            if not both:
                continue
            x, y = [b["r_free"] for _, b in both], [a["r_free"] for a, _ in both]
            errors = [sampling_error(b) for _, b in both]
            axis.errorbar(
                x,
                y,
                xerr=errors,
                fmt=_MARKERS[number],
                color=_COLORS[number],
                markersize=4,
                elinewidth=0.6,
                label=f"{name} ({len(both)})",
            )
            values += x + y
        if values:
            low, high = min(values) - 0.01, max(values) + 0.01
            axis.plot([low, high], [low, high], color="#888888", linewidth=0.8)
            axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axis.set_title(_title(kind), fontsize=10)
        axis.set_ylabel("R-free")
        axis.set_xlabel(f"R-free, {names[0]}")
        axis.legend(loc="upper left", fontsize=8, frameon=False)
    return figure


def _title(kind):
    dry = kind.removesuffix(WITH_HYDROGENS)
    known = {"deposited": "deposited models", "alanine": "side chains cut to alanine"}
    return known.get(dry, f"shaken by {dry} Å") + ("" if dry == kind else ", hydrogens on both sides")
