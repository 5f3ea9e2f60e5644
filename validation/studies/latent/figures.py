"""The figures of docs/latent.rst, from what the studies left behind.

    python -m validation.studies.latent.figures --folder /tmp/latent --results latent.jsonl --entry 1aie --seed 0
    --out docs/figures

``latent_energies.png``     4a: energies of the dynamics and of samples (realnvp.json of validation.studies.latent.priors)
``latent_course.png``       4b: target, R-work, R-free against the steps; baselines; the deposited model
``latent_convergence.png``  start RMSD against final R-free at each resolution
``latent_refinement.csv``   every run
``latent_runs.inc``         the tables of the documentation
"""

import argparse
import csv
import io
import json
import sys
from pathlib import Path

from mmtbx_sfdiff.files import write_all
from mmtbx_sfdiff.latent import figures

from validation.studies.latent.refinement import RESOLUTION
from validation.studies.latent.runs import key, read

NAMES = {
    "latent": "latent",
    "sites_ff": "sites + force field",
    "average_ff": "MD average, sites + force field",
    "sites": "sites alone",
}
COLUMNS = (
    "entry",
    "seed",
    "kind",
    "label",
    "d_min",
    "rmsd_start_main",
    "rmsd_start_all",
    "r_work_start",
    "r_free_start",
    "r_work_before_polish",
    "r_free_before_polish",
    "r_work",
    "r_free",
    "rmsd_main",
    "rmsd_all",
    "weight",
    "side_chains_turned",
    "side_chains_wrong",
    "seconds",
    "version",
)


def energies(folder, entry, seed):
    """Figure 4a."""
    record = json.loads((folder / entry / f"seed{seed}" / "realnvp.json").read_text())
    names = {
        "md": "dynamics",
        "realnvp": "RealNVP, likelihood and energy",
        "linear": "linear",
        "linear_half": "linear, z x 0.5",
        "diagonal": "diagonal",
    }
    samples = {names[name]: record["energies"][name] for name in names if name in record["energies"]}
    return figures.energies(samples, record["n_atoms"], f"{entry}: energies of dynamics and of the priors' samples")


def course(folder, lines, entry, seed, d_min):
    """Figure 4b."""
    mine = {line["kind"]: line for line in lines if key(line) in [(entry, seed, kind, d_min, "") for kind in NAMES]}
    runs = {}
    for kind, name in NAMES.items():
        path = folder / entry / f"seed{seed}" / f"history_{kind}_{d_min:g}.json"
        if kind in mine and path.exists():
            histories = json.loads(path.read_text())
            runs[name] = histories["before"][0] + histories["polish"][0]
    benchmark = next(
        line for line in lines if (line["entry"], line["kind"], line["d_min"]) == (entry, "benchmark", d_min)
    )
    start = mine["latent"]["rmsd_start"]["main"]
    return figures.course(
        runs,
        {
            "deposited, stripped": (benchmark["r_work"], benchmark["r_free"]),
            "deposited": tuple(benchmark["full"]),
        },
        f"{entry} to {d_min:g} Å, from {start:.2f} Å (main chain); the last part of each curve is polishing",
    )


def convergence(lines, entry):
    """Start RMSD against final R-free."""
    points = [
        {
            "rmsd": line["rmsd_start"]["main"],
            "r_free": line["r_free"],
            "d_min": line["d_min"],
            "name": NAMES[line["kind"]],
        }
        for line in sorted(lines, key=lambda line: [*NAMES, line["kind"]].index(line["kind"]))
        if line["entry"] == entry and line["kind"] in NAMES and not line["label"]
    ]
    return figures.convergence(points, f"{entry}: where refinement ends")


def table(lines):
    """Every run as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for line in sorted(lines, key=key):
        row = dict(line)
        before = line.get("before_polish") or {}
        row |= {f"{name}_before_polish": before.get(name) for name in ("r_work", "r_free")}
        if "start_r" in line:
            row |= {"r_work_start": line["start_r"][0], "r_free_start": line["start_r"][1]}
        for place in ("rmsd_start", "rmsd"):
            row |= {f"{place}_{part}": value for part, value in (line.get(place) or {}).items()}
        chains = line.get("side_chains", {})
        row |= {"weight": line.get("facts", {}).get("weight"), "side_chains_turned": chains.get("turned")}
        row["side_chains_wrong"] = chains["end"][0] if "end" in chains else None
        writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
    return buffer.getvalue()


def runs_table(lines):
    """R-work / R-free, and distances, of every run at each entry's own resolution, as tables of the documentation.

    An asterisk marks runs of another version of the code than the last one's.
    """
    newest = next((line["version"] for line in reversed(lines) if "version" in line), None)
    mine = [line for line in lines if line["d_min"] == RESOLUTION.get(line["entry"]) and not line["label"]]
    found = {(line["entry"], line["seed"], line["kind"]): line for line in mine}
    starts = sorted({(line["entry"], line["seed"]) for line in mine if line["kind"] == "latent"})

    def r(entry, seed, kind):
        line = found.get((entry, seed, kind))
        mark = "" if line is None or line.get("version", newest) == newest else "*"
        return "-" if line is None else f"{line['r_work']:.3f} / {line['r_free']:.3f}{mark}"

    def first(entry, kind):
        return next((r(e, s, k) for e, s, k in found if (e, k) == (entry, kind)), "-")

    def moved(entry, seed, kind, place="rmsd"):
        line = found.get((entry, seed, kind))
        return "-" if line is None else f"{line[place]['main']:.2f} / {line[place]['all']:.2f}"

    r_factors = [["entry, seed", "start: Å", *NAMES.values(), "deposited, stripped", "the same, polished"]]
    distances = [["entry, seed", "start", *NAMES.values()]]
    for entry, seed in starts:
        start = moved(entry, seed, "latent", "rmsd_start")
        kinds = [r(entry, seed, kind) for kind in NAMES]
        r_factors.append([f"{entry}, {seed}", start, *kinds, first(entry, "benchmark"), first(entry, "deposited_ff")])
        distances.append([f"{entry}, {seed}", start, *(moved(entry, seed, kind) for kind in NAMES)])
    return list_table(r_factors) + "\n" + list_table(distances)


def list_table(rows):
    """Rows of texts as a ``list-table`` of reStructuredText."""
    out = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        out += [("   * - " if i == 0 else "     - ") + cell for i, cell in enumerate(row)]
    return "\n".join(out) + "\n"


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("latent_study"))
    parser.add_argument("--results", type=Path, default=Path("latent.jsonl"))
    parser.add_argument("--entry", default="1aie")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--d-min", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("."))
    options = parser.parse_args(args)
    lines = read(options.results)
    files = {"latent_refinement.csv": table(lines).encode(), "latent_runs.inc": runs_table(lines).encode()}
    if (options.folder / options.entry / f"seed{options.seed}" / "realnvp.json").exists():
        files["latent_energies.png"] = figures.png(energies(options.folder, options.entry, options.seed))
    files["latent_course.png"] = figures.png(course(options.folder, lines, options.entry, options.seed, options.d_min))
    files["latent_convergence.png"] = figures.png(convergence(lines, options.entry))
    write_all({options.out / name: content for name, content in files.items()})
    print("Written: " + ", ".join(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
