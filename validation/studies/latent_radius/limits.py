"""Why latent refinement fails where it does: the prior's coverage, the target, the search or the polishing.

    python -m validation.studies.latent_radius.limits FOLDER [--starts 1aie:1.5:0 6jqs:2.0:1 ...] [--minutes 60] [--library FOLDER]
    python -m validation.studies.latent_radius.limits FOLDER --report

For starts (entry, target, seed) of the study in FOLDER, by default those that the elastic network has run, if it fails there: what the
deposited model tells, and no method is told.

    coverage   the latent vector whose model is nearest to the deposited one, with the first 10, 40 and all modes: main chain and all atoms (Å)
    target     likelihood gain and penalty of the local optimum by that vector ("right") and by the one that the search found, at
               6 Å, 4 Å and all data: where the found one is better with all data, no search would help
    search     the search's own schedule begun on the way from the start to the right vector, at 1/2 and 3/4 of it and at it; it ends right
               if ordered residues of the main chain are in place
    polishing  the common polishing from the right vector's optimum, and from the found one

One JSON record a start, FOLDER/limits/<entry>/<rms>_<seed>.json; what it has is not made again, what all starts lack comes first.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from mmtbx_sfdiff.files import write_all
from mmtbx_sfdiff.latent.refinement.experiment import Experiment
from mmtbx_sfdiff.latent.refinement.models import LatentModel
from mmtbx_sfdiff.latent.refinement.optimise import Settings
from mmtbx_sfdiff.latent.refinement.problem import with_reflections
from mmtbx_sfdiff.latent.refinement.refine import run_model
from mmtbx_sfdiff.numerics.superposition import superposed

import scipy.optimize

from validation.studies.latent_radius import methods, report
from validation.studies.latent_radius.__main__ import Study, version
from validation.studies.latent_radius.starts import rms, wrong_rotamers

MODES = (10, 40, None)  # None: all
LIMITS = (6.0, 4.0, None)  # Å; None: all data
WAY = (0.5, 0.75, 1.0)
_RIDGE, _ITERATIONS = 1e-4, 150
_OPTIMUM_STEPS = 40


def nearest(prior, truth, main, n_modes=None):
    """The latent vector (n_latent,) whose sites come nearest to others when only the first modes are not zero."""
    n = prior.n_latent if n_modes is None else min(n_modes, prior.n_latent)
    everything = torch.ones_like(main)

    def sites_at(head):
        z = torch.cat([head, head.new_zeros(prior.n_latent - n)])
        return prior.decode(z)[0]

    def evaluate(x):
        head = torch.from_numpy(x).requires_grad_(True)
        sites = sites_at(head)
        goal = superposed(truth, sites.detach(), everything)
        value = (sites - goal).square().sum(-1).mean() + _RIDGE * head.square().sum()
        (gradient,) = torch.autograd.grad(value, head)
        return float(value.detach()), gradient.numpy()

    encoded, _ = prior.encode(truth)
    found = [
        scipy.optimize.minimize(evaluate, begin.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
        for begin in (torch.zeros(n, dtype=torch.float64), encoded[:n].to(torch.float64))
    ]
    best = torch.from_numpy(min(found, key=lambda result: result.fun).x)
    return torch.cat([best, best.new_zeros(prior.n_latent - n)])


def coverage(prior, truth, main):
    """By number of modes: main chain, all atoms (Å), |z| / sqrt(n); and the vector with all modes."""
    rows, z = [], None
    for n in (n for n in MODES if n is None or n < prior.n_latent):
        z = nearest(prior, truth, main, n)
        sites = prior.decode(z)[0]
        every = torch.ones_like(main)
        rows.append(
            {
                "modes": n or prior.n_latent,
                "main": rms(sites, truth, main),
                "all": rms(sites, truth, every, main),
                "z_norm": float(z.norm()) / prior.n_latent**0.5,
            }
        )
    return rows, z


def optimum(problem, model, d_min):
    """The local optimum at one resolution limit: (gain of the work set, penalty), nats, and the run."""
    reflections = problem.fmodel.reflections
    if d_min is not None:
        problem = with_reflections(problem, reflections.select(reflections.d_spacings >= d_min))
    experiment = Experiment(problem.fmodel, "likelihood_gain", live_mask=True)
    settings = Settings(
        objective="likelihood_gain",
        steps=_OPTIMUM_STEPS,
        rigid_steps=0,
        first_d_min=problem.fmodel.reflections.d_min,
        stages=1,
        learning_rate=0.04,
        refresh=20,
        live_mask=True,
    )
    run = run_model(model, experiment, settings, "optimum")
    return -run.objective, run.penalty, run


def along(problem, model):
    """The search's schedule for one vector."""
    whole = methods.SEARCH
    experiment = Experiment(problem.fmodel, "likelihood_gain", live_mask=True)
    settings = Settings(
        objective="likelihood_gain",
        steps=whole.steps,
        rigid_steps=whole.rigid_steps,
        rigid_d_min=whole.rigid_d_min,
        first_d_min=problem.fmodel.reflections.d_min,
        stages=1,
        learning_rate=whole.learning_rate,
        refresh=10,
        live_mask=True,
    )
    return run_model(model, experiment, settings, "on the way")


class Start:
    """A start and the record of the elastic network's run."""

    def __init__(self, study, target_rms, seed, found):
        structure, self.facts = study.start(target_rms, seed)
        self.study, self.found, self.subject = study, found, study.subject(structure)
        self.prior, self.temperature = methods.elastic_prior(self.subject), found["temperature"]
        self.problem = methods.problem_of(self.subject)
        self.right = nearest(self.prior, study.truth, study.main)

    def head(self):
        """What is known without computing anything."""
        names = "rms_main_before_polish", "z_norm", "temperature", "test_gain", "screened"
        benchmark = self.study.benchmark()
        return {
            "entry": self.study.entry,
            "start": self.facts,
            "n_latent": self.prior.n_latent,
            "found": {name: self.found[name] for name in names},
            "benchmark": [benchmark["r_work"], benchmark["r_free"]],
            "version": version(),
        }

    def errors(self, sites):
        sites, truth, main = sites.detach().to(torch.float64), self.study.truth, self.study.main
        return {
            "main": rms(sites, truth, main),
            "ordered": rms(sites, truth, self.study.ordered),
            "all": rms(sites, truth, torch.ones_like(main), main),
        }

    def model(self, z, place):
        return LatentModel(
            self.prior,
            z,
            self.problem.rows,
            self.problem.residue_b(),
            self.problem.chain_index,
            place,
            self.temperature**-2,
            methods.SEARCH.starts[0].rate / methods.SEARCH.learning_rate,
        )

    def coverage(self):
        return coverage(self.prior, self.study.truth, self.study.main)[0]

    def targets(self):
        result = []
        ends = {
            "right": (self.right, self.study.truth),
            "found": (
                torch.tensor(self.found["z"], dtype=torch.float64),
                torch.tensor(self.found["sites_of_search"], dtype=torch.float64),
            ),
        }
        for d_min in LIMITS:
            row = {"d_min": d_min}
            for name, begin in ends.items():
                gain, penalty, run = optimum(self.problem, self.model(*begin), d_min)
                row[name] = {"gain": gain, "penalty": penalty, **self.errors(run.sites_cart)}
            result.append(row)
        return result

    def polished(self):
        _, _, run = optimum(self.problem, self.model(self.right, self.study.truth), None)
        fmodel = run.model_in(self.subject.fmodel())
        fmodel.update_scales()
        result, _ = methods.polished(self.subject, fmodel)
        sites = result.atoms.sites_cart.detach().to(torch.float64)
        r_work, r_free = result.r_factors()
        wrong = wrong_rotamers(self.study.deposited, sites, self.study.truth)
        names = "r_work", "r_free", "rotamers_wrong"
        return {
            "right": {"r_work": float(r_work), "r_free": float(r_free), "rotamers_wrong": wrong, **self.errors(sites)},
            "found": {"main": self.found["rms_main"], "all": self.found["rms_all"]}
            | {name: self.found[name] for name in names},
        }

    def way(self):
        result = []
        for part in WAY:
            z = part * self.right
            run = along(self.problem, self.model(z, self.problem.sites_cart))
            result.append(
                {
                    "part": part,
                    "distance": float((z - self.right).norm()) / self.prior.n_latent**0.5,
                    "begin": self.errors(self.prior.decode(z)[0]),
                    "end": self.errors(run.sites_cart),
                    "gain": -run.objective,
                }
            )
        return result


# All starts have the first of these before any has the next, so that an interrupted study has something of each.
PARTS = (("coverage", "targets"), ("polished",), ("way",))


def verdict(record):
    """What limits a start, in a word, by the order in which a limit makes the next ones void; "-" before all is known."""
    bar = record["benchmark"][1] + report.R_FREE
    if "polished" not in record:
        return "-"

    def succeeds(end):
        return end["r_free"] <= bar and end["main"] <= report.MAIN

    right, found = record["polished"]["right"], record["polished"]["found"]
    if not succeeds(right):
        return "coverage" if record["coverage"][-1]["main"] > report.MAIN else "polishing"
    if found["main"] <= report.MAIN:
        return "polishing"
    last = record["targets"][-1]  # with all data, with which the search begins and ends
    return "target" if _posterior(last["found"]) > _posterior(last["right"]) else "search"


def _posterior(value):
    return value["gain"] - value["penalty"]


def radius(record):
    """(main chain's starting error from which the search still ends right, Å; the least part of the way), or None."""
    good = []
    for row in reversed(record["way"]):
        if row["end"]["ordered"] > report.MAIN:
            break
        good.append(row)
    return (good[-1]["begin"]["main"], good[-1]["part"]) if good else None


def collect(folder):
    """All records."""
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("limits/*/*.json"))]


def table(records):
    """One row a start, as text."""
    out = [
        "right - found: likelihood gain, in brackets less the penalty (nats), of the local optima by the nearest vector and by the found one",
        "",
        f"{'start':23s}{'nearest model with 10, 40,':>30s}   {'right - found, 6 Å':>18s} {'4 Å':>18s} {'all data':>18s}   {'search ends':>12s}   "
        f"{'R-free (main, Å) polished':>32s}",
        f"{'':23s}{'all modes: main (all), Å':>30s}   {'':18s} {'':18s} {'':18s}   {'right from, Å':>13s}  "
        f"{'from right':>16s} {'from found':>15s}   limit",
    ]
    for record in records:
        start = record["start"]
        rows = {row["modes"]: row for row in record["coverage"]}
        near = [f"{rows[n]['main']:.2f}" if n in rows else "-" for n in (10, 40)]
        last = record["coverage"][-1]
        differences = []
        for row in record["targets"]:
            gain = row["right"]["gain"] - row["found"]["gain"]
            differences.append(f"{gain:+.0f} ({_posterior(row['right']) - _posterior(row['found']):+.0f})")
        if "way" in record:
            reached = radius(record)
            reached = "nowhere" if reached is None else f"{reached[0]:.2f}"
        else:
            reached = "-"
        ends = [f"{end['r_free']:.3f} ({end['main']:.2f})" for end in record.get("polished", {}).values()] or ["-", "-"]
        covered = f"{near[0]} {near[1]} {last['main']:.2f} ({last['all']:.2f})"
        out.append(
            f"{record['entry']} {start['kind']:9s}{start['rms_main']:5.2f} Å {covered:>31s}   "
            + " ".join(f"{d:>18s}" for d in differences)
            + f"   {reached:>12s}   {ends[0]:>16s} {ends[1]:>15s}   {verdict(record)}"
        )
    return "\n".join(out)


def _extend(options, name, parts, studies, begun):
    """Add some parts to the record of a start, if the elastic network fails there."""
    entry, target, seed = name
    path = options.folder / "limits" / entry / f"{target:.1f}_{seed}.json"
    record = json.loads(path.read_text()) if path.is_file() else {}
    missing = [part for part in parts if part not in record]
    if not missing:
        return
    if entry not in studies:
        studies[entry] = Study(options.folder, entry, library=options.library)
    study = studies[entry]
    found, new = study.run("latent_elastic", target, seed, None)
    if new:
        print(report.line(found), flush=True)
    if "failed" in found or report.succeeded(found, study.benchmark()) or "z" not in found:
        return
    if name not in begun:
        begun[name] = Start(study, target, seed, found)
    record = begun[name].head() | record
    for part in missing:
        record[part] = getattr(begun[name], part)()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_all({path: json.dumps(record, indent=1).encode()})
    print(table([record]).splitlines()[-1], flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--starts", nargs="+", help="entry:target:seed")
    parser.add_argument("--minutes", type=float, help="nothing begins after so long")
    parser.add_argument("--library", help="of monomers")
    parser.add_argument("--report", action="store_true", help="only what is there")
    parser.add_argument("--out", type=Path, help="of the report; by default the folder")
    options = parser.parse_args(arguments)
    starts = [(e, float(t), int(s)) for e, t, s in (text.split(":") for text in options.starts or ())]
    if not starts:
        runs = [r for r in report.collect(options.folder) if r["method"] == "latent_elastic" and "failed" not in r]
        starts = [(r["entry"], r["start"]["target_rms"], r["start"]["seed"]) for r in runs if not r["success"]]
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    torch.set_num_threads(1)
    studies, begun = {}, {}
    for parts in () if options.report else PARTS:
        for name in starts:
            if end is not None and time.monotonic() > end:
                print("Time is up: give the same command again.")
                return 3
            _extend(options, name, parts, studies, begun)
    records = collect(options.folder)
    if records:
        text = table(records)
        out = options.out or options.folder
        write_all({out / "latent_limits.txt": (text + "\n").encode()})
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
