"""Why latent refinement fails where it does: the prior's coverage, the target, the search or the polishing.

    python -m validation.studies.latent_radius.limits FOLDER [--starts 1aie:1.5:0 6jqs:2.0:1 ...] [--minutes 60] [--library FOLDER]
    python -m validation.studies.latent_radius.limits FOLDER --report

For starts (entry, target, seed) of the study in FOLDER, by default those that the elastic network has run, if it fails there: what the
deposited model tells, and no method is told.

    coverage   the latent vector whose model is nearest to the deposited one, with the first 10, 40 and all modes: main chain and all atoms (Å)
    target     likelihood gain and penalty of the local optimum by that vector ("right") and by the one that the search found, at
               6 Å, 4 Å and all data: where the found one is better, no search would help
    search     the search's own schedule begun on the way from the start to the right vector, at 1/2 and 3/4 of it and at it
    polishing  the common polishing from the right vector's optimum, and from the found one

One JSON record a start, FOLDER/limits/<entry>/<rms>_<seed>.json, not made again.
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

import gemmi
import scipy.optimize

from validation.studies.latent_radius import methods, report
from validation.studies.latent_radius.__main__ import Study, version
from validation.studies.latent_radius.starts import rms, sites_of, wrong_rotamers

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


def _model(problem, prior, z, target, temperature):
    return LatentModel(
        prior,
        z,
        problem.rows,
        problem.residue_b(),
        problem.chain_index,
        target,
        temperature**-2,
        temperature,
    )


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
    """The search's schedule for one vector: from 6 Å to all data."""
    whole = methods.SEARCH
    experiment = Experiment(problem.fmodel, "likelihood_gain", live_mask=True)
    settings = Settings(
        objective="likelihood_gain",
        steps=whole.short_steps + whole.long_steps,
        rigid_steps=whole.rigid_steps,
        rigid_d_min=whole.first_d_min,
        first_d_min=whole.first_d_min,
        stages=6,
        learning_rate=whole.learning_rate,
        refresh=30,
        live_mask=True,
    )
    return run_model(model, experiment, settings, "on the way")


def of_start(study, target_rms, seed, found):
    """The record of one start, with what the elastic network's run left: its record and its sites."""
    structure, facts = study.start(target_rms, seed)
    subject, truth, main = study.subject(structure), study.truth, study.main
    every = torch.ones_like(main)
    problem = methods.problem_of(subject)

    def errors(sites):
        return {"main": rms(sites, truth, main), "all": rms(sites, truth, every, main)}

    def polished(fmodel):
        fmodel.update_scales()
        result, _ = methods.polished(subject, fmodel)
        sites = result.atoms.sites_cart.detach().to(torch.float64)
        r_work, r_free = result.r_factors()
        wrong = wrong_rotamers(study.deposited, sites, truth)
        return {"r_work": float(r_work), "r_free": float(r_free), "rotamers_wrong": wrong, **errors(sites)}

    prior, temperature = methods.elastic_prior(subject), found["temperature"]
    found_z, found_sites = torch.tensor(found["z"], dtype=torch.float64), found["sites"]
    covered, right = coverage(prior, truth, main)
    targets = []
    for d_min in LIMITS:
        row, last = {"d_min": d_min}, {}
        for name, z, place in (
            ("right", right, truth),
            ("found", found_z, found_sites),
        ):
            gain, penalty, last[name] = optimum(problem, _model(problem, prior, z, place, temperature), d_min)
            row[name] = {"gain": gain, "penalty": penalty, **errors(last[name].sites_cart.to(torch.float64))}
        targets.append(row)
    way = []
    for part in WAY:
        z = part * right
        begin = errors(prior.decode(z)[0])
        run = along(problem, _model(problem, prior, z, problem.sites_cart, temperature))
        way.append(
            {
                "part": part,
                "distance": float((z - right).norm()) / prior.n_latent**0.5,
                "begin": begin,
                "end": errors(run.sites_cart.to(torch.float64)),
                "gain": -run.objective,
            }
        )
    return {
        "entry": study.entry,
        "start": facts,
        "n_latent": prior.n_latent,
        "coverage": covered,
        "found": {
            name: found[name] for name in ("rms_main_before_polish", "z_norm", "temperature", "test_gain", "screened")
        },
        "targets": targets,
        "way": way,
        "polished": {
            "right": polished(methods.with_run(subject, last["right"])),
            "found": {
                "main": found["rms_main"],
                "all": found["rms_all"],
                **{name: found[name] for name in ("r_work", "r_free", "rotamers_wrong")},
            },
        },
        "benchmark": [study.benchmark()["r_work"], study.benchmark()["r_free"]],
        "version": version(),
    }


def verdict(record):
    """What limits a start, in a word, by the order in which a limit makes the next ones void."""
    bar = record["benchmark"][1] + report.R_FREE

    def succeeds(end):
        return end["r_free"] <= bar and end["main"] <= report.MAIN

    right, found = record["polished"]["right"], record["polished"]["found"]
    if not succeeds(right):
        return "coverage" if record["coverage"][-1]["main"] > report.MAIN else "polishing"
    if found["main"] <= report.MAIN:
        return "polishing"
    last = record["targets"][-1]
    if _posterior(last["found"]) > _posterior(last["right"]):
        return "target"
    return "search"


def _posterior(value):
    return value["gain"] - value["penalty"]


def radius(record):
    """(main chain's starting error from which the search still ends right, Å; the least part of the way), or None."""
    good = []
    for row in reversed(record["way"]):
        if row["end"]["main"] > report.MAIN:
            break
        good.append(row)
    return (good[-1]["begin"]["main"], good[-1]["part"]) if good else None


def collect(folder):
    """All records."""
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("limits/*/*.json"))]


def table(records):
    """One row a start, as text."""
    head = (
        f"{'start':22s} {'nearest model, Å, with':>30s}   {'gain less penalty, right - found, nats':>38s}   {'ends right':>12s}   "
        f"{'polished R-free (main, Å)':>33s}\n"
        f"{'':22s} {'10':>9s} {'40':>9s} {'all modes':>10s}   {'6 Å':>12s} {'4 Å':>12s} {'all data':>12s}   {'from, Å':>12s}   "
        f"{'from right':>16s} {'from found':>16s}   limit"
    )
    out = [head]
    for record in records:
        start = record["start"]
        rows = {row["modes"]: row for row in record["coverage"]}
        near = [f"{rows[n]['main']:.2f}" if n in rows else "-" for n in (10, 40)]
        last = record["coverage"][-1]
        differences = [f"{_posterior(row['right']) - _posterior(row['found']):+.0f}" for row in record["targets"]]
        reached = radius(record)
        ends = [f"{end['r_free']:.3f} ({end['main']:.2f})" for end in record["polished"].values()]
        out.append(
            f"{record['entry']} {start['kind']:9s}{start['rms_main']:5.2f} Å  {near[0]:>9s} {near[1]:>9s} "
            f"{last['main']:4.2f}/{last['all']:4.2f}   " + " ".join(f"{d:>12s}" for d in differences) + "   "
            f"{'nowhere' if reached is None else f'{reached[0]:.2f}':>12s}   {ends[0]:>16s} {ends[1]:>16s}   {verdict(record)}"
        )
    return "\n".join(out)


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
    studies = {}
    torch.set_num_threads(1)
    for entry, target, seed in () if options.report else starts:
        path = options.folder / "limits" / entry / f"{target:.1f}_{seed}.json"
        if path.is_file():
            continue
        if end is not None and time.monotonic() > end:
            print("Time is up: give the same command again.")
            return 3
        study = studies.setdefault(entry, None) or Study(options.folder, entry, library=options.library)
        studies[entry] = study
        found, new = study.run("latent_elastic", target, seed, None)
        if new:
            print(report.line(found), flush=True)
        if "failed" in found or report.succeeded(found, study.benchmark()):
            continue
        model = gemmi.read_structure(str(options.folder / "runs" / entry / f"{target:.1f}_{seed}_latent_elastic.pdb"))
        made = of_start(study, target, seed, found | {"sites": sites_of(model)})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_all({path: json.dumps(made, indent=1).encode()})
        print(table([made]).splitlines()[-1], flush=True)
    records = collect(options.folder)
    if records:
        text = table(records)
        write_all({(options.out or options.folder) / "latent_limits.txt": (text + "\n").encode()})
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
