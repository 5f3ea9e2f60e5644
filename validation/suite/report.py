"""``python -m validation report``: figures, tables and pages of a run.

::

    RUN/report/index.html            everything at a glance; one file, needs no network
    RUN/report/entries/<entry>.html  one entry
    RUN/report/figures/              1a, 1b, 1c, 2a and 2b of the paper as PDF and PNG, and their tables as CSV
    RUN/report/entries.csv           the table of entries
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import shlex
import statistics
from pathlib import Path

from mmtbx_sfdiff.comparison import page
from mmtbx_sfdiff.comparison.html import environment
from mmtbx_sfdiff.files import write_all

from jinja2 import FileSystemLoader
from libtbx.utils import Sorry

from . import audit, figures
from .measures import MEASURES
from .parameters import Parameters
from .records import Run

_TEMPLATES = Path(__file__).with_name("templates")
_environment = environment(FileSystemLoader(_TEMPLATES))
_CAPTIONS = {
    "figure_1a": "Correlation of |F_protein| with exact summation against resolution (the paper's figure 1a): median, "
    "quartiles, and every entry lightly. Right: the same as its distance from 1.",
    "figure_1b": "Correlation of |F_mask| with mmtbx's mask on a fine grid against resolution (figure 1b). Left: the hard "
    "edge at mmtbx's radii, which tests the geometry, and the density-cutoff mask as published. Right: both "
    "packages at their defaults; the soft default of this package is another definition, chosen on R factors.",
    "figure_1c": "One section through both masks of one entry (figure 1c).",
    "figure_2a": "Times of both packages, one process, calls in turns (figure 2a); one mark for each entry.",
    "figure_2b": "R factors against those of mmtbx, all by mmtbx's scaling, and against the header of the model file "
    "(figure 2b).",
}
# The columns of the table: title, number of a record (or its text), format; None where it is text.
_COLUMNS = (
    ("space group", lambda r: r["result"]["space_group"], None),
    ("d min", lambda r: r["result"]["d_min"], "{:.2f}"),
    ("atoms", lambda r: r["result"]["n_atoms"], "{:d}"),
    ("reflections", lambda r: r["result"]["n_reflections"], "{:d}"),
    ("F error", lambda r: r["result"]["f_protein"]["relative_l2_vs_direct"], "{:.1e}"),
    ("mask L2", lambda r: MEASURES["hard_mask_l2"].of(r), "{:.3f}"),
    ("mask CC", lambda r: MEASURES["hard_mask_worst_shell"].of(r), "{:.3f}"),
    ("R-work", lambda r: r["result"]["r_factors"]["sfdiff"]["r_work"], "{:.4f}"),
    ("ΔR-work", lambda r: MEASURES["r_work_change"].of(r), "{:+.4f}"),
    ("R-free", lambda r: r["result"]["r_factors"]["sfdiff"]["r_free"], "{:.4f}"),
    ("ΔR-free", lambda r: MEASURES["r_free_change"].of(r), "{:+.4f}"),
)
_COMMON = (("CPU s", lambda r: r["cpu_s"], "{:.0f}"), ("GiB", lambda r: r["peak_bytes"] / 2**30, "{:.2f}"))


def missed(verdicts):
    """{entry: [(name of the check, number or reason, reason why it was expected or None)]}."""
    found = {}
    for verdict in verdicts:
        for entry, value in verdict.failed.items():
            found.setdefault(entry, []).append((verdict.name, value, None))
        for entry, (value, reason) in verdict.expected.items():
            found.setdefault(entry, []).append((verdict.name, value, reason))
    return found


def worst_first(records, problems):
    """Entries as in the table: not computed, then by unexpected and expected misses, then by the change of R-free."""

    def key(item):
        entry, record = item
        good = record["status"] == "ok"
        found = problems.get(entry, [])
        change = MEASURES["r_free_change"].of(record) if good else None
        return good, -sum(reason is None for *_, reason in found), -len(found), -(change or 0), entry

    return [entry for entry, _ in sorted(records.items(), key=key)]


def rows(records, problems):
    """The table of entries: dicts of ``entry``, ``state``, ``good``, ``note`` and ``cells`` (text, value to sort by)."""
    table = []
    for entry in worst_first(records, problems):
        record = records[entry]
        good = record["status"] == "ok"
        found = problems.get(entry, [])
        unexpected = any(reason is None for *_, reason in found)
        state = record["kind"] if not good else "missed" if unexpected else "known" if found else "ok"
        cells = [_cell(of(record) if good else None, form) for _, of, form in _COLUMNS]
        cells += [_cell(of(record), form) for _, of, form in _COMMON]
        table.append(
            {
                "entry": entry,
                "state": state,
                "good": good,
                "cells": cells,
                "note": record["reason"] if not good else ", ".join(name for name, *_ in found),
            }
        )
    return table


def _cell(value, form):
    if value is None:
        return "", ""
    return (value, value) if form is None else (form.format(value), repr(value))


def command(record, description):
    """The command that computes one entry again, as this run did, with the local files that it took."""
    entry = record["entry"]
    changed = [
        word
        for name, value in description["parameters"].items()
        if value != getattr(Parameters, name)
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
    local = record.get("files") if record.get("source") == "MMTBX_SFDIFF_PDB_DIR" else None
    folder = os.path.commonpath([os.path.dirname(name) for name in local]) if local else None
    where = ["env", f"MMTBX_SFDIFF_PDB_DIR={folder}"] if folder else []
    words = [*where, "python", "-m", "validation", "run", entry, "--out", f"again_{entry}", *changed]
    return shlex.join(words)


def _shown(value):
    return value if isinstance(value, str) else f"{value:.3g}"


def entry_page(record, folder, description, problems):
    """The page of one entry, a text."""
    facts = [
        *([f"files: {', '.join(record['files'])}"] if record.get("files") else []),
        f"{record['wall_s']:.0f} s, of which {record['cpu_s']:.0f} s of CPU; "
        f"{record['peak_bytes'] / 2**30:.2f} GiB of memory; on {record['host']}",
        *(
            f"{step}: {seconds:.1f} s"
            for step, seconds in sorted(record.get("steps_s", {}).items(), key=lambda item: -item[1])[:5]
        ),
    ]
    notes = [
        f"{name}: {_shown(value)}" + (f" (expected: {reason})" if reason else "") for name, value, reason in problems
    ]
    common = {
        "notes": notes,
        "facts": facts,
        "command": command(record, description),
        "commit": description["commit"],
    }
    if record["status"] == "ok":
        figure = folder / "figures" / f"{record['entry']}.svg"
        return page.render(record["result"], figure.read_bytes() if figure.is_file() else None, common)
    return _environment.get_template("failure.html").render(record=record, versions=description["versions"], **common)


def index_page(description, records, verdicts, table, drawn, n_entries, pages):
    """The page of the run, a text: the figures are in it."""
    script = (_TEMPLATES / "table.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    images = []
    for name, contents in drawn.items():
        data = base64.b64encode(contents[f"{name}.png"]).decode()
        tables = [file for file in contents if not file.endswith(".png")]
        images.append((name, _CAPTIONS[name], "data:image/png;base64," + data, tables))
    good = [record for record in records.values() if record["status"] == "ok"]
    summary = [
        ("entries", f"{n_entries} asked for, {len(records)} recorded, {len(records) - len(good)} of them failed")
    ]
    medians = {
        "r_work_change": "R-work less mmtbx's, median",
        "r_free_change": "R-free less mmtbx's, median",
        "f_accuracy": "error of F_protein over the accuracy asked for, median",
        "hard_mask_l2": "hard mask's relative L2, median",
    }
    for name, what in medians.items():
        found = [value for value in map(MEASURES[name].of, good) if value is not None]
        if found:
            summary.append((what, format(statistics.median(found), "+.4f" if "change" in name else ".3f")))
    summary += [
        ("CPU", f"{sum(record['cpu_s'] for record in records.values()) / 3600:.2f} hours"),
        ("memory of a worker, at most", f"{max(record['peak_bytes'] for record in records.values()) / 2**30:.2f} GiB"),
    ]
    return _environment.get_template("index.html").render(
        description=description,
        verdicts=verdicts,
        table=table,
        images=images,
        summary=summary,
        script=script,
        digest=digest,
        columns=[title for title, *_ in (*_COLUMNS, *_COMMON)],
        pages=pages,
    )


def as_csv(table):
    """The table of entries, whole numbers of digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["entry", "state", *(title for title, *_ in (*_COLUMNS, *_COMMON)), "note"])
    for row in table:
        writer.writerow(
            [row["entry"], row["state"], *(_defused(text) for text, _ in row["cells"]), _defused(row["note"])]
        )
    return text.getvalue()


def _defused(text):
    """A text that no spreadsheet takes for a formula."""
    return "'" + text if text[:1] in ("=", "@") else text


def add_options(parser):
    """The command line of ``report``."""
    parser.add_argument("folder", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", help="folder of the report (default: RUN/report)")
    parser.add_argument(
        "--thresholds", default=str(audit.THRESHOLDS), help="limits (default: validation/thresholds.toml)"
    )
    parser.add_argument("--entry", help="entry of figure 1c (default: the one with the median correlation of masks)")
    parser.add_argument(
        "--pages", type=int, default=None, metavar="N", help="pages of the N worst entries only (default: of all)"
    )
    parser.set_defaults(run=run)


def run(options):
    """Write the report; return the exit status."""
    reported = Run(options.folder)
    description, records = reported.description(), reported.records()
    if not records:
        raise Sorry(f"Nothing is recorded in {reported.folder} yet: run it first.")
    thresholds = audit.read_thresholds(options.thresholds)
    verdicts = audit.judge(records, thresholds, description["entries"])
    problems = missed(verdicts)
    section = _section(reported.folder, records, options.entry)
    out = Path(options.out) if options.out else reported.folder / "report"
    for folder in (out, out / "figures", out / "entries"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Sorry(f"Cannot make the folder {folder} ({error.strerror}): choose another with --out.") from None
    # Simulated data say nothing about R factors.
    results = [
        record["result"]
        for record in records.values()
        if record["status"] == "ok" and not record["result"]["simulated"]
    ]
    drawn = {}
    for name, (figure, tables) in (figures.draw(results, section) if results else {}).items():
        drawn[name] = figures.files(figure, name, tables)
        write_all({out / "figures" / file: content for file, content in drawn[name].items()})
    table = rows(records, problems)
    chosen = [row["entry"] for row in table][: options.pages]
    for entry in chosen:
        text = entry_page(records[entry], reported.folder, description, problems.get(entry, []))
        write_all({out / "entries" / f"{entry}.html": text.encode()})
    index = index_page(description, records, verdicts, table, drawn, len(description["entries"]), set(chosen))
    write_all({out / "entries.csv": as_csv(table).encode(), out / "index.html": index.encode()})
    print(f"{out / 'index.html'}: {len(records)} entries, {len(chosen)} pages.")
    return 0


def _section(folder, records, entry):
    """(result, path) of the entry in figure 1c."""
    found = [
        (record["result"]["mask_map"]["cc"] or 0, name)
        for name, record in records.items()
        if record["status"] == "ok" and (folder / "sections" / f"{name}.npz").is_file()
    ]
    if entry is not None and entry not in [name for _, name in found]:
        raise Sorry(f"There is no section of {entry} in {folder}: choose another --entry.")
    if not found:
        return None
    name = entry or sorted(found)[len(found) // 2][1]
    return records[name]["result"], folder / "sections" / f"{name}.npz"
