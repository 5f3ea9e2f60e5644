"""Gradients of the probe-shrink mask, at its defaults, against central differences over steps that a refinement takes.

    python -m validation.studies.mask_gradients RESULTS.json [--entries 1yjp ...] [--directions 20] [--csv TABLE.csv]

Functions of F_mask to 3 Å: random linear functionals, and least squares and R of F_model with the scales and F_calc held
fixed.  Derivatives along random directions of all sites, of all van der Waals radii, and by r_probe, r_shrink and softness,
against differences over 0.001 to 0.02 Å (of each coordinate, rms); the deviation is relative to the difference.  For the
smallest entries the full gradient by the sites, too: its cosine with the one made of differences.
RESULTS.json keeps what is done.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.bulk_solvent import probe_shrink_defaults
from mmtbx_sfdiff.files import find_entry
from mmtbx_sfdiff.files.writing import write_atomically
from mmtbx_sfdiff.likelihood import targets

import numpy as np

ENTRIES = ("5wkd", "1yjp", "2okz", "1bdw", "1aie", "1dur", "1dtx", "6jqs", "5o5i", "3ds1", "6nfs", "1g1j")
STEPS = (0.001, 0.003, 0.01, 0.02)
FUNCTIONS = ("linear", "least squares", "R")
#: Atoms up to which the full gradient is made by differences, and their step, Å.
FULL, FULL_STEP = 80, 0.003


class Case:
    """One entry; :meth:`values` of the functions at given parameters."""

    def __init__(self, name):
        files = find_entry(name, download=False)
        fmodel = self.fmodel = FModel.from_files(files.model, files.data)
        fmodel.update_scales()
        self.atoms, self.reflections = fmodel.atoms, fmodel.reflections
        self.f_calc = fmodel.f_calc()
        self.generator = torch.Generator().manual_seed(0)
        self.weights = self.random(len(self.reflections), dtype=torch.complex128)
        lengths = dict(zip(("r_probe", "r_shrink", "softness"), probe_shrink_defaults()))
        self.point = {
            "sites": self.atoms.sites_cart,
            "radii": self.atoms.vdw_radii(),
            **{k: torch.tensor(v, dtype=torch.float64) for k, v in lengths.items()},
        }

    def random(self, *shape, dtype=torch.float64):
        return torch.randn(*shape, dtype=dtype, generator=self.generator)

    def values(self, **changed):
        """(3,) the functions."""
        point = self.point | changed
        atoms, crystal = self.atoms.replace(sites_cart=point.pop("sites")), self.reflections.crystal
        f_mask = sfdiff.mask_structure_factors(
            sfdiff.solvent_mask(atoms, crystal, **point), crystal, self.reflections.miller_indices
        )
        f_model = self.fmodel.scales.f_model(self.f_calc, f_mask)
        used = self.fmodel.in_use()
        return torch.stack(
            [
                (f_mask * self.weights).real.sum(),
                targets.normalized_least_squares(self.reflections, f_model, **used),
                targets.r_factors(self.reflections, f_model, **used)[0],
            ]
        )

    def gradients(self, name):
        """(3, ...) of the functions by one kind of parameter."""
        x = self.point[name].clone().requires_grad_()
        values = self.values(**{name: x})
        return torch.stack([torch.autograd.grad(value, x, retain_graph=True)[0] for value in values])

    def difference(self, name, change):
        """(3,) half the difference of the functions between + and - a change of the parameter."""
        with torch.no_grad():
            up, down = (self.values(**{name: self.point[name] + sign * change}) for sign in (1, -1))
        return (up - down) / 2


def measure(name, n_directions):
    case = Case(name)
    result = {"n_atoms": case.atoms.n_atoms}
    for parameter in case.point:
        gradients = case.gradients(parameter)
        number = n_directions if parameter == "sites" else max(1, n_directions // 4) if parameter == "radii" else 1
        rows = result[parameter] = []
        for _ in range(number):
            direction = case.random(*gradients.shape[1:]) if parameter in ("sites", "radii") else torch.ones(())
            found = (gradients * direction).reshape(len(FUNCTIONS), -1).sum(1)
            rows.append(
                {
                    "derivative": found.tolist(),
                    "differences": {str(h): (case.difference(parameter, h * direction) / h).tolist() for h in STEPS},
                }
            )
    if case.atoms.n_atoms <= FULL:
        gradient = case.gradients("sites").flatten(1)
        twin = torch.empty_like(gradient)
        for i in range(gradient.shape[1]):
            change = torch.zeros(gradient.shape[1], dtype=torch.float64)
            change[i] = FULL_STEP
            twin[:, i] = case.difference("sites", change.reshape(-1, 3)) / FULL_STEP
        result["cosine"] = ((gradient * twin).sum(1) / (gradient.norm(dim=1) * twin.norm(dim=1))).tolist()
    return result


def deviations(results, parameter, function, step):
    rows = [row for result in results.values() for row in result[parameter]]
    found, expected = (
        np.array([r[function] for r in values])
        for values in ([row["derivative"] for row in rows], [row["differences"][str(step)] for row in rows])
    )
    return np.abs(found - expected) / np.abs(expected)


def table(results):
    """Rows of: parameter, function, number of directions, then median and 90th percentile for each step."""
    lines = []
    for parameter in ("sites", "radii", "r_probe", "r_shrink", "softness"):
        for number, function in enumerate(FUNCTIONS):
            values = [deviations(results, parameter, number, step) for step in STEPS]
            lines.append(
                [
                    parameter,
                    function,
                    len(values[0]),
                    *(f"{q:.4f}" for v in values for q in (np.median(v), np.percentile(v, 90))),
                ]
            )
    return lines


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results")
    parser.add_argument("--entries", nargs="*", default=ENTRIES)
    parser.add_argument("--directions", type=int, default=20)
    parser.add_argument("--csv")
    options = parser.parse_args(arguments)
    out = Path(options.results)
    results = json.loads(out.read_text()) if out.is_file() else {}
    for name in options.entries:
        if name not in results:
            results[name] = measure(name, options.directions)
            write_atomically(out, json.dumps(results))
            print(
                name,
                *(
                    "{} {:.4f}".format(f, np.median([deviations({name: results[name]}, "sites", i, s) for s in STEPS]))
                    for i, f in enumerate(FUNCTIONS)
                ),
                flush=True,
            )
    header = ["parameter", "function", "directions", *(f"{q}_{step:g}" for step in STEPS for q in ("median", "p90"))]
    rows = table(results)
    print(f"{len(results)} entries; relative deviation from central differences")
    for row in [header, *rows]:
        print("  ".join(f"{x!s:>13s}" for x in row))
    for name, result in results.items():
        if "cosine" in result:
            print(
                f"{name}: cosine of the full gradient by sites with differences over {FULL_STEP:g} Å: "
                + ", ".join(f"{f} {c:.5f}" for f, c in zip(FUNCTIONS, result["cosine"]))
            )
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
