"""``python -m validation audit``: every contract of the package as a named check of a run.

The limits are in ``thresholds.toml``.  Exit status 0 when all checks pass, 1 when one fails, 2 when the run
could not be audited.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

from mmtbx_sfdiff.files import write_all

from libtbx.utils import Sorry

from .measures import MEASURES, values
from .records import Run

THRESHOLDS = Path(__file__).with_name("thresholds.toml")
_KEYS = {"measure", "statistic", "most", "least", "contract", "expected", "excused", "judged_from"}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One check and what became of it.

    Attributes
    ----------
    name, contract : str
    passed : bool
    figure : float or None
        The median, or the number of the worst entry.
    limit : str
    n : int
        Entries that were judged.
    failed : dict
        {entry: number or reason} of those that miss the limit and were not expected to.
    expected : dict
        {entry: (number, reason)} of those that miss it as foretold.
    mended : list of str
        Entries that were expected to miss it and do not.
    judged_from : int
        Entries from which a median says something; of fewer it is told, and not judged.
    """

    name: str
    contract: str
    passed: bool
    figure: float | None = None
    limit: str = ""
    n: int = 0
    failed: dict = dataclasses.field(default_factory=dict)
    expected: dict = dataclasses.field(default_factory=dict)
    mended: list = dataclasses.field(default_factory=list)
    judged_from: int = 1

    @property
    def of_a_handful(self):
        """Whether there are too few entries to judge their median."""
        return 0 < self.n < self.judged_from

    @property
    def word(self):
        """The verdict in a word or two."""
        if self.of_a_handful:
            return "not judged"
        return "FAIL" if not self.passed else "pass, known misses" if self.expected else "pass"

    @property
    def sentence(self):
        """The verdict in words."""
        figure = "nothing to judge" if self.figure is None else f"{self.figure:.3g} ({self.limit}; {self.n} entries)"
        parts = [figure]
        if self.of_a_handful:
            parts.append(f"the median of a handful, which is judged from {self.judged_from} entries on")
        if self.failed:
            parts.append(f"{len(self.failed)} fail: " + _listed(self.failed))
        if self.expected:
            parts.append(f"{len(self.expected)} as expected: " + _listed({e: v for e, (v, _) in self.expected.items()}))
        if self.mended:
            parts.append("mended: " + ", ".join(self.mended))
        return "; ".join(parts)


def _listed(found, most=8):
    items = [f"{entry} {value if isinstance(value, str) else format(value, '.3g')}" for entry, value in found.items()]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def read_thresholds(path=THRESHOLDS):
    """The limits.

    Raises
    ------
    libtbx.utils.Sorry
        When the file cannot be read, or asks for what does not exist.
    """
    try:
        thresholds = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Sorry(
            f"Cannot read the thresholds {path} ({error}): correct it, or name another with --thresholds."
        ) from None
    for name, check in thresholds.get("checks", {}).items():
        said = _fault(check)
        if said:
            raise Sorry(f"The check {name} in {path} {said}: correct it.")
    unknown = set(thresholds.get("moved", {})) - set(MEASURES)
    if unknown:
        raise Sorry(f"[moved] in {path} names {', '.join(sorted(unknown))}, which does not exist: correct it.")
    if not thresholds.get("checks"):
        raise Sorry(f"{path} has no checks: give [checks.NAME] sections, or name another file with --thresholds.")
    return thresholds


def _fault(check):
    """What is wrong with a check as it was read; None when nothing is."""
    unknown = sorted(set(check) - _KEYS)
    if unknown:
        return f"does not know {', '.join(unknown)}"
    if check.get("measure") not in MEASURES:
        return f"asks for the measure {check.get('measure')!r}, which does not exist"
    if ("most" in check) == ("least" in check):
        return "needs either 'most' or 'least'"
    if check.get("statistic") not in ("every", "median"):
        return "needs the statistic 'every' or 'median'"
    if check.get("expected") and check["statistic"] != "every":
        return "has expected entries, which only 'every' can have"
    excused = check.get("excused")
    if excused and (
        check["statistic"] != "every"
        or excused.get("measure") not in MEASURES
        or not excused.get("reason")
        or ("most" in excused) == ("least" in excused)
    ):
        return "has an 'excused' that needs a measure, most or least, and a reason, with the statistic 'every'"
    judged_from = check.get("judged_from", 1)
    if not isinstance(judged_from, int) or judged_from < 1 or (judged_from > 1 and check["statistic"] != "median"):
        return "has a 'judged_from' that is no number of entries of a median"
    if any(set(item) != {"entry", "reason", "limit"} for item in check.get("expected", ())):
        return "has an expected entry without entry, reason and limit"
    return None if check.get("contract") else "needs a 'contract'"


def judge(records, thresholds, entries=()):
    """All verdicts on a run.

    Parameters
    ----------
    records : dict of str to dict
    thresholds : dict
        As :func:`read_thresholds` gives it.
    entries : sequence of str
        Those that the run was asked for.

    Returns
    -------
    list of Verdict
    """
    verdicts = [_completed(records, thresholds.get("completed", {}), entries), _one_version(records)]
    return verdicts + [_judge(name, check, records) for name, check in thresholds["checks"].items()]


def _completed(records, rules, entries):
    asked = list(dict.fromkeys([*entries, *records]))
    good = [entry for entry in asked if entry in records and records[entry]["status"] == "ok"]
    share = len(good) / len(asked) if asked else None
    least = rules.get("least_share", 1.0)
    failures = {
        entry: "not computed yet" if entry not in records else records[entry]["kind"]
        for entry in asked
        if entry not in good
    }
    # Where too few were computed all count; where enough were, those that should never happen, and those
    # still to come.
    never = set(rules.get("never", ())) | {"not computed yet"}
    enough = share is not None and share >= least
    failed = {entry: kind for entry, kind in failures.items() if not enough or kind in never}
    expected = {entry: (kind, records[entry]["reason"]) for entry, kind in failures.items() if entry not in failed}
    return Verdict(
        "completed",
        rules.get("contract", "entries are computed"),
        bool(enough and not failed),
        share,
        f"share computed at least {least:g}",
        len(asked),
        failed,
        expected,
    )


def _one_version(records):
    versions = {}
    for entry, record in records.items():
        if record["status"] == "ok":
            # Machines of a cluster may differ, versions of what computes may not.
            found = {name: value for name, value in record["result"].get("versions", {}).items() if name != "platform"}
            versions.setdefault(json.dumps(found, sort_keys=True), []).append(entry)
    common = max(versions.values(), key=len, default=[])
    others = {entry: "other versions" for group in versions.values() if group is not common for entry in group}
    return Verdict(
        "one_version",
        "all entries were computed by the same versions",
        not others,
        float(len(versions)) if versions else None,
        "versions at most 1",
        sum(map(len, versions.values())),
        others,
    )


def _judge(name, check, records):
    found = values(records, check["measure"])
    highest = "most" in check
    limit = check["most"] if highest else check["least"]

    def misses(value, limit):
        return not (value <= limit if highest else value >= limit)

    common = {
        "name": name,
        "contract": check["contract"],
        "n": len(found),
        "limit": f"{check['statistic']} at {'most' if highest else 'least'} {limit:g}",
    }
    judged_from = check.get("judged_from", 1)
    few = len(found) < judged_from and len(records) < judged_from
    if not found:
        return Verdict(passed=few, judged_from=judged_from, **common)
    if check["statistic"] == "median":
        figure = statistics.median(found.values())
        passed = len(found) < judged_from or not misses(figure, limit)
        return Verdict(passed=passed, figure=figure, judged_from=judged_from, **common)
    known = {item["entry"]: item for item in check.get("expected", ())}
    failed, expected, mended = {}, {}, []
    for entry, value in sorted(found.items(), key=lambda item: item[1], reverse=highest):
        if not misses(value, limit):
            mended += [entry] if entry in known else []
        elif (excused := _excused(check.get("excused"), records[entry])) is not None:
            if excused:
                expected[entry] = value, check["excused"]["reason"]
            else:
                failed[entry] = value
        elif entry in known and not misses(value, known[entry]["limit"]):
            expected[entry] = value, known[entry]["reason"]
        else:
            failed[entry] = value
    figure = (max if highest else min)(found.values())
    return Verdict(passed=not failed, figure=figure, failed=failed, expected=expected, mended=mended, **common)


def _excused(rule, record):
    """Whether a second number of the entry shows why it misses a limit; None where there is no such number."""
    value = MEASURES[rule["measure"]].of(record) if rule else None
    if value is None:
        return None
    return value <= rule["most"] if "most" in rule else value >= rule["least"]


def compare(records, baseline, tolerances):
    """What moved between two runs.

    Returns
    -------
    list of (entry, what, before, after)
        Numbers that moved by more than their tolerance, and entries whose status changed, by entry.
    """
    moved = []
    for entry in [*records, *(entry for entry in baseline if entry not in records)]:
        before, after = baseline.get(entry), records.get(entry)
        statuses = [
            record and (record["status"] if record["status"] == "ok" else f"failed ({record['kind']})")
            for record in (before, after)
        ]
        if statuses[0] != statuses[1]:
            moved.append((entry, "status", *(status or "not in the run" for status in statuses)))
        elif statuses == ["ok", "ok"]:
            for name, tolerance in tolerances.items():
                one, other = MEASURES[name].of(before), MEASURES[name].of(after)
                if (one is None) != (other is None) or one is not None and not abs(one - other) <= tolerance:
                    moved.append((entry, name, one, other))
    return moved


def _unmoved(moved, n):
    failed = {}
    for entry, what, before, after in moved:
        change = _change(what, before, after)
        failed[entry] = f"{failed[entry]}, {change}" if entry in failed else change
    return Verdict(
        "baseline",
        "no number moved from the baseline by more than [moved] allows",
        not failed,
        float(len(failed)),
        "entries that moved at most 0",
        n,
        failed,
    )


def _change(what, before, after):
    text = f"{what} was {_number(before)} and is {_number(after)}"
    numbers = all(isinstance(value, (int, float)) for value in (before, after))
    return text + (f" ({after - before:+.3g})" if numbers else "")


def _number(value):
    return "none" if value is None else value if isinstance(value, str) else f"{value:.6g}"


def as_json(verdicts, run, moved):
    """The verdicts as JSON."""
    content = {
        "run": str(run.folder),
        "passed": all(verdict.passed for verdict in verdicts),
        "description": {name: value for name, value in run.description().items() if name != "entries"},
        "checks": [dataclasses.asdict(verdict) for verdict in verdicts],
        "moved": [dict(zip(("entry", "measure", "before", "after"), item)) for item in moved],
    }
    return json.dumps(content, indent=1) + "\n"


def as_csv(verdicts):
    """The verdicts as a table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["check", "verdict", "figure", "limit", "entries", "misses"])
    for verdict in verdicts:
        misses = _listed(verdict.failed | {entry: value for entry, (value, _) in verdict.expected.items()})
        figure = "" if verdict.figure is None else f"{verdict.figure:.3g}"
        writer.writerow([verdict.name, verdict.word, figure, verdict.limit, verdict.n, misses])
    return text.getvalue()


def as_junit(verdicts):
    """The verdicts as JUnit XML, which continuous integration reads."""
    n_failed = sum(not verdict.passed for verdict in verdicts)
    suite = ElementTree.Element(
        "testsuite",
        name="mmtbx_sfdiff audit",
        tests=str(len(verdicts)),
        failures=str(n_failed),
        errors="0",
        skipped="0",
    )
    for verdict in verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname="audit", name=verdict.name)
        if not verdict.passed:
            failure = ElementTree.SubElement(case, "failure", message=_clean(f"{verdict.contract}: {verdict.sentence}"))
            failure.text = _clean("\n".join(f"{entry}: {value}" for entry, value in verdict.failed.items()))
        out = ElementTree.SubElement(case, "system-out")
        lines = [verdict.contract, verdict.sentence]
        lines += [f"{entry}: {value} (expected: {reason})" for entry, (value, reason) in verdict.expected.items()]
        out.text = _clean("\n".join(lines))
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)


def _clean(text):
    """Without the control characters that XML cannot hold."""
    return re.sub("[^\\t\\n\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]", "?", text)


def add_options(parser):
    """The command line of ``audit``."""
    parser.add_argument("folder", metavar="RUN", help="folder of a run")
    parser.add_argument("--thresholds", default=str(THRESHOLDS), help="limits (default: validation/thresholds.toml)")
    parser.add_argument("--baseline", metavar="RUN2", help="another run, whose numbers this one has to repeat")
    parser.add_argument("--out", help="folder for audit.json, junit.xml and checks.csv (default: RUN/audit)")
    parser.set_defaults(run=run)


def run(options):
    """Audit; return 0 or 1.  What cannot be audited is a Sorry, which becomes 2."""
    thresholds = read_thresholds(options.thresholds)
    audited = Run(options.folder)
    description, records = audited.description(), audited.records()
    if not records:
        raise Sorry(f"Nothing is recorded in {audited.folder} yet: run it first.")
    verdicts, moved = judge(records, thresholds, description["entries"]), []
    if options.baseline:
        other = Run(options.baseline)
        other.description()
        baseline = other.records()
        if not baseline:
            raise Sorry(f"Nothing is recorded in the baseline {other.folder}: name another run.")
        moved = compare(records, baseline, thresholds.get("moved", {}))
        verdicts.append(_unmoved(moved, len(set(records) | set(baseline))))
    out = Path(options.out) if options.out else audited.folder / "audit"
    out.mkdir(parents=True, exist_ok=True)
    write_all(
        {
            out / "audit.json": as_json(verdicts, audited, moved).encode(),
            out / "junit.xml": as_junit(verdicts),
            out / "checks.csv": as_csv(verdicts).encode(),
        }
    )
    for verdict in verdicts:
        word = "FAIL" if not verdict.passed else "few " if verdict.of_a_handful else "pass"
        print(f"{word}  {verdict.name}: {verdict.sentence}")
    failed = [verdict.name for verdict in verdicts if not verdict.passed]
    for entry, what, before, after in moved:
        print(f"      {entry}: {_change(what, before, after)}")
    print(
        f"{len(verdicts) - len(failed)} of {len(verdicts)} checks pass"
        + (f"; fail: {', '.join(failed)}." if failed else ".")
    )
    return 1 if failed else 0
