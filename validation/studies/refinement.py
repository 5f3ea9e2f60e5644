"""Does refinement bring a model back to its data?  Random shifts of every atom, then ``mmtbx_sfdiff.refinement``.

For every entry: R factors of the deposited model (scales determined anew), of the same model with its sites
shifted at random (normally distributed, 0.3 Å root mean square), and after refinement of sites and displacement
parameters, without any geometry restraints. The exit status is 1 when R-work does not come back to within 0.02 of
the deposited model's.

    python -m validation.studies.refinement [--entries 1dur 2okz ...] [--shake 0.3] [--json refinement.json] [--figure x.png]
    python -m validation.studies.refinement --plot-only --json refinement.json --figure x.png
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.bulk_solvent import DEFAULT_MASK
from mmtbx_sfdiff.files import find_entry, write_all
from mmtbx_sfdiff.programs.refine import shaken
from mmtbx_sfdiff.refinement import Settings, refine
from mmtbx_sfdiff.refinement.figure import draw_r_factors

from matplotlib.figure import Figure

ENTRIES = ("2okz", "1dur", "1bff", "3ds1", "1cbs")
CLOSE = 0.02


def study(entry, settings, shake, mask):
    files = find_entry(entry, download=False)
    fmodel = FModel.from_files(files.model, files.data, mask={"method": mask})
    fmodel.update_scales()
    deposited = r_factors(fmodel)
    sites = fmodel.atoms.sites_cart
    fmodel.replace(sites_cart=shaken(fmodel.atoms, shake, seed=0))
    fmodel.update_scales()
    shaken_r = r_factors(fmodel)
    start = time.perf_counter()
    refined, history = refine(fmodel, settings)
    seconds = time.perf_counter() - start
    return {
        "entry": entry,
        "d_min": fmodel.reflections.d_min,
        "n_atoms": fmodel.atoms.n_atoms,
        "n_reflections": len(fmodel.reflections),
        "deposited": deposited,
        "start": shaken_r,
        "final": r_factors(refined),
        "reference_r_work": deposited["r_work"],
        "rms_to_deposited": [rms(m.atoms.sites_cart - sites) for m in (fmodel, refined)],
        "cycles": history.cycles,
        "steps": history.steps,
        "seconds": seconds,
    }


def r_factors(fmodel):
    r_work, r_free = fmodel.r_factors()
    return {"r_work": r_work, "r_free": None if fmodel.reflections.r_free_flags is None else r_free}


def rms(shifts):
    return float(shifts.square().sum(-1).mean().sqrt())


def draw(results, shake):
    """One panel for each entry: R factors against the step."""
    figure = Figure(figsize=(7.2, 2.5 * ((len(results) + 1) // 2)), layout="constrained")
    axes = figure.subplots((len(results) + 1) // 2, 2, squeeze=False).ravel()
    for _number, (panel, result) in enumerate(zip(axes, results)):
        draw_r_factors(panel, result, legend=False)
        panel.set_title(f"{result['entry']}: {result['d_min']:.1f} Å, {result['n_atoms']} atoms", fontsize=9)
        panel.set_xlabel("step")
        panel.set_ylim(bottom=0)
        limits = [c["d_min"] for c in result["cycles"]]
        boundaries = {s["cycle"]: i for i, s in reversed(list(enumerate(result["steps"])))}
        for cycle, first in boundaries.items():
            if cycle > 1:
                panel.axvline(first - 0.5, color="#bbbbbb", linewidth=0.5, zorder=0)
            if cycle == 1 or limits[cycle - 1] != limits[cycle - 2]:
                panel.annotate(
                    f"to {limits[cycle - 1]:.1f} Å",
                    (first, 0),
                    xycoords="data",
                    fontsize=7,
                    rotation=90,
                    xytext=(2, 3),
                    textcoords="offset points",
                    va="bottom",
                )
    for panel in axes[len(results) :]:
        panel.axis("off")
    handles, labels = max((panel.get_legend_handles_labels() for panel in axes), key=lambda pair: len(pair[1]))
    spare = axes[len(results)] if len(axes) > len(results) else axes[0]
    spare.legend(handles, labels, frameon=False, fontsize=9, loc="center" if spare is not axes[0] else "upper right")
    figure.suptitle(f"Refinement after random shifts of {shake:g} Å, without geometry restraints", fontsize=11)
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", nargs="*", default=ENTRIES)
    parser.add_argument("--shake", type=float, default=0.3, help="root mean square shift, Å")
    parser.add_argument("--mask", default=DEFAULT_MASK)
    parser.add_argument("--json", type=Path, help="where results are written, and read by --plot-only")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--plot-only", action="store_true")
    options = parser.parse_args(arguments)
    settings = Settings()
    if options.plot_only:
        results = json.loads(options.json.read_text())["results"]
    else:
        results = []
        print(f"{options.mask} mask, {settings}")
        print("entry  d_min  atoms   refl.  deposited R  shifted R    refined R    cycles steps  rms Å from, to      s")
        for entry in options.entries:
            r = study(entry, settings, options.shake, options.mask)
            results.append(r)
            print(
                f"{entry:6s}{r['d_min']:6.2f}{r['n_atoms']:7d}{r['n_reflections']:8d}  "
                + "  ".join(text(r[name]) for name in ("deposited", "start", "final"))
                + f"{len(r['cycles']):7d}{len(r['steps']):6d}     {r['rms_to_deposited'][0]:.2f} {r['rms_to_deposited'][1]:.2f}"
                f"  {r['seconds']:7.1f}",
                flush=True,
            )
            if options.json:
                content = {
                    "settings": dataclasses.asdict(settings),
                    "mask": options.mask,
                    "shake": options.shake,
                    "results": results,
                }
                write_all({options.json: json.dumps(content, indent=1).encode()})
    if options.figure:
        draw(results, options.shake).savefig(options.figure, dpi=150)
    failed = [r["entry"] for r in results if r["final"]["r_work"] > r["deposited"]["r_work"] + CLOSE]
    print(f"{len(results)} entries, not back within {CLOSE}: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def text(r):
    return f"{r['r_work']:.3f}/" + ("-    " if r["r_free"] is None else f"{r['r_free']:.3f}")


if __name__ == "__main__":
    sys.exit(main())
