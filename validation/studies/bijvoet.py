"""Bijvoet mates of real data: ``mmtbx_sfdiff.refine`` with ``wavelength=``, by each target, and without.

From the deposited model of an entry whose file has F(+) and F(-). All results are judged alike, on both mates and with f' and f'' of the wavelength:
R factors, and over the pairs of each set the correlation of observed and calculated anomalous differences, and the slope of the former
against the latter (1 where f'' is right, noise or not). The control is the same with
the sites of every atom where they are and f'' = 0, which explains no difference.

    python -m validation.studies.bijvoet --library FOLDER --out FOLDER [--entry 5g27] [--wavelength 1.54189] [--start 0.3]
        [--targets maximum_likelihood least_squares] [words for mmtbx_sfdiff.refine ...]
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from mmtbx_sfdiff import Atoms, FModel, Reflections
from mmtbx_sfdiff.files import find_entry, load_entry, write_all
from mmtbx_sfdiff.real_space import anomalous_difference_coefficients

from validation.studies import refinement_peers

TARGETS = ("maximum_likelihood", "least_squares", "intensity_least_squares")


def judge(model, data, wavelength):
    """R factors over both mates, and correlations of anomalous differences, with f'' of a wavelength or (None) without."""
    entry = load_entry(model, data, anomalous=True)
    structure = entry.model.xray_structure
    if wavelength:
        structure.set_inelastic_form_factors(photon=wavelength, table="sasaki")
    reflections = Reflections.from_cctbx(entry.data.f_obs, entry.data.r_free_flags)
    fmodel = FModel(Atoms.from_cctbx(structure), reflections, mask={"method": "binary"})
    fmodel.update_scales()
    r_work, r_free = fmodel.r_factors()
    with torch.no_grad():
        f_model = fmodel.f_model().abs()
    found = {"r_work": r_work, "r_free": r_free, "n_reflections": len(reflections)}
    for name, chosen in (("work", reflections.work), ("free", reflections.r_free_flags)):
        used = chosen & fmodel.selection
        pairs = torch.stack([differences(reflections.select(used), f[used]) for f in (reflections.f_obs, f_model)])
        found[f"n_pairs_{name}"] = pairs.shape[1]
        found[f"cc_{name}"] = float(torch.corrcoef(pairs)[0, 1]) if wavelength else None
        found[f"slope_{name}"] = float(pairs[0] @ pairs[1] / pairs[1].square().sum()) if wavelength else None
    return found


def differences(reflections, amplitudes):
    """F(+) - F(-) of the acentric pairs."""
    phases = torch.ones(len(reflections), dtype=torch.complex128)
    data = dataclasses.replace(reflections, f_obs=amplitudes)
    return (2j * anomalous_difference_coefficients(data, phases)[1]).real


def study(options):
    """{name: judgement}"""
    options.out.mkdir(parents=True, exist_ok=True)
    files = find_entry(options.entry, download=False)
    model = Path(files.model)
    if options.start != "deposited":
        model, _ = refinement_peers.make_start(options.entry, options.start, options.out / "start")
    found = {"start": judge(model, files.data, options.wavelength), "start, f'' = 0": judge(model, files.data, None)}
    for target in options.targets:
        for name, words in (("mates merged", []), ("mates apart", [f"wavelength={options.wavelength}"])):
            folder = options.out / f"{target}_{'apart' if words else 'merged'}"
            folder.mkdir(exist_ok=True)
            command = [
                sys.executable,
                "-m",
                "mmtbx_sfdiff.command_line.refine",
                model.resolve(),
                files.data,
                f"target={target}",
            ]
            command += [
                f"library={options.library.resolve()}",
                "prefix=x",
                "overwrite=True",
                "resume=False",
                "report=False",
            ]
            with open(folder / "log.txt", "w") as log:
                subprocess.run(
                    [*map(str, command), "figure=False", *words, *options.words],
                    cwd=folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    check=True,
                )
            refined = next(p for p in (folder / "x_refined.pdb", folder / "x_refined.cif") if p.is_file())
            result = json.loads((folder / "x_refined.json").read_text())
            found[f"{target}, {name}"] = judge(refined, files.data, options.wavelength) | {
                "own": result["final"],
                "geometry": result["geometry"]["final"],
            }
            print(line(f"{target}, {name}", found[f"{target}, {name}"]), flush=True)
    return found


def line(name, row):
    values = [row[f"{what}_{kind}"] for what in ("cc", "slope") for kind in ("work", "free")]
    cc = "  ".join("    –" if value is None else f"{value:.3f}" for value in values)
    return f"{name:38} {row['r_work']:.4f} / {row['r_free']:.4f}   {cc}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entry", default="5g27")
    parser.add_argument("--wavelength", type=float, default=1.54189)
    parser.add_argument("--start", default="0.3", help="deposited, or a shift in Å")
    parser.add_argument("--targets", nargs="*", default=TARGETS[:2], choices=TARGETS)
    parser.add_argument("--library", type=Path, default=os.environ.get("CLIBD_MON"))
    parser.add_argument("--out", type=Path, required=True)
    options, options.words = parser.parse_known_args(arguments)
    found = study(options)
    write_all({options.out / "bijvoet.json": (json.dumps(found, indent=1) + "\n").encode()})
    some = next(iter(found.values()))
    print(
        f"{options.entry}, {some['n_reflections']:,} reflections, {some['n_pairs_work']:,} and {some['n_pairs_free']:,} pairs; R-work / R-free, CC and slope of differences (work, free)"
    )
    for name, row in found.items():
        print(line(name, row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
