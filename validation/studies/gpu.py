"""Masks, structure factors and refinement steps on a GPU, beside cctbx on one core of the same machine.

    python -m validation.studies.gpu [--entries 1dur 1cbs ...] [--device cuda] [--batch 16] [--repeat 5] [--output gpu]

For every entry, medians of calls taken in turns in one process, each with what it is worth beside it:

- *mask*: mmtbx's default mask with its F_mask; ours (probe_shrink at its defaults), forward, forward and backward to the
  sites, and for one of a batch of models; the largest difference of the mask from the one computed on the CPU;
- *F*: cctbx's FFT, and ours at an accuracy of 1e-3 in single precision, with and without gradients in sites and u_iso;
  relative L2 of both F against direct summation in double precision, which is timed as well;
- *step*: one step of a refinement as in ``validation/studies/refinement_step.py``, with the mask made anew and held fixed.

Writes <output>.csv, <output>.json (with the machine and versions) and <output>.png, also after each entry; ``--draw FILE``
draws the picture of an earlier <output>.json alone.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import statistics
import sys
import time
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.crystal import as_miller_tensor
from mmtbx_sfdiff.files import find_entry, load_entry, write_all
from mmtbx_sfdiff.versions import versions

import mmtbx.masks
from cctbx import xray
from cctbx.array_family import flex

from validation.studies.refinement_step import Ours, Theirs, step_times

ENTRIES = ("1dur", "1cbs", "4cjl", "1nsf", "3mpq", "2uxj", "4iid")
ACCURACY = 1e-3


class Clock:
    """Medians of calls taken in turns, ms; the first turn, which plans and compiles, does not count."""

    def __init__(self, device, repeat):
        self.wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
        self.repeat = repeat

    def __call__(self, calls):
        times = {name: [] for name in calls}
        for turn in range(self.repeat + 1):
            for name, call in calls.items():
                self.wait()
                start = time.perf_counter()
                call()
                self.wait()
                if turn:
                    times[name].append(1e3 * (time.perf_counter() - start))
        return {name: statistics.median(values) for name, values in times.items()}


def mask_times(loaded, atoms, indices, batch, clock):
    """Times of masks, and how far ours is from the one made on the CPU."""
    structure, f_obs = loaded.model.xray_structure, loaded.data.f_obs
    noise = torch.randn((batch, *atoms.sites_cart.shape), generator=torch.Generator().manual_seed(0), dtype=atoms.dtype)
    many = atoms.sites_cart + 0.1 * noise.to(atoms.device)

    def forward(sites):
        mask = sfdiff.solvent_mask(atoms.replace(sites_cart=sites), atoms.crystal, memory=4 * 2**30)
        return sfdiff.mask_structure_factors(mask, atoms.crystal, indices)

    def backward(sites):
        sites = sites.clone().requires_grad_()
        torch.autograd.grad(forward(sites).abs().sum(), sites)

    times = clock(
        {
            "mmtbx": lambda: mmtbx.masks.manager(miller_array=f_obs).shell_f_masks(structure, force_update=True),
            "forward": lambda: forward(atoms.sites_cart),
            "gradient": lambda: backward(atoms.sites_cart),
            "batch_forward": lambda: forward(many),
            "batch_gradient": lambda: backward(many),
        }
    )
    for name in ("batch_forward", "batch_gradient"):
        times[name] /= batch
    there = sfdiff.solvent_mask(atoms, atoms.crystal).cpu()
    here = atoms.to(device="cpu")
    return times | {"difference": float((there - sfdiff.solvent_mask(here, here.crystal)).abs().max())}


def f_times(loaded, atoms, indices, clock):
    """Times of structure factors and gradients, and errors of F."""
    structure = loaded.model.xray_structure.deep_copy_scatterers()
    xray.set_scatterer_grad_flags(scatterers=structure.scatterers(), site=True, u_iso=True)
    set_ = loaded.data.f_obs
    calculate = xray.structure_factors.from_scatterers(miller_set=set_)
    gradients = xray.structure_factors.gradients(miller_set=set_)
    exact = sfdiff.structure_factors(atoms, atoms.crystal, indices, method="direct", memory=4 * 2**30)
    single = atoms.to(dtype=torch.float32)
    seed = flex.complex_double(exact.cpu().numpy())

    def theirs():
        return calculate(xray_structure=structure, miller_set=set_, algorithm="fft").f_calc().data()

    def their_gradient():
        theirs()
        gradients(
            xray_structure=structure,
            u_iso_refinable_params=None,
            miller_set=set_,
            d_target_d_f_calc=seed,
            n_parameters=0,
            algorithm="fft",
        )

    def ours(atoms=single):
        return sfdiff.structure_factors(atoms, atoms.crystal, indices, method="fft", accuracy=ACCURACY)

    def our_gradient():
        leaves = [getattr(single, name).clone().requires_grad_() for name in ("sites_cart", "u_iso")]
        f = ours(single.replace(sites_cart=leaves[0], u_iso=leaves[1]))
        torch.autograd.grad(f, leaves, exact.to(f.dtype))

    def direct():
        return sfdiff.structure_factors(single, single.crystal, indices, method="direct", memory=4 * 2**30)

    def error(f):
        return float((f.to(exact) - exact).norm() / exact.norm())

    times = clock(
        {"cctbx": theirs, "cctbx_gradient": their_gradient, "fft": ours, "fft_gradient": our_gradient, "direct": direct}
    )
    return times | {
        "cctbx_error": error(torch.from_numpy(theirs().as_numpy_array())),
        "fft_error": error(ours()),
        "direct_error": error(direct()),
    }


def measure(entry, device, batch, repeat):
    """One row of the table."""
    files = find_entry(entry, download=False)
    loaded = load_entry(files.model, files.data)
    atoms = sfdiff.Atoms.from_cctbx(loaded.model.xray_structure, device=device)
    indices = as_miller_tensor(loaded.data.f_obs, device=device)
    clock = Clock(device, repeat)
    row = {
        "entry": entry,
        "space_group": atoms.crystal.space_group_symbol,
        "atoms": atoms.n_atoms,
        "reflections": len(indices),
    }
    row |= {f"mask_{key}": value for key, value in mask_times(loaded, atoms, indices, batch, clock).items()}
    row |= {f"f_{key}": value for key, value in f_times(loaded, atoms, indices, clock).items()}
    ours, theirs = Ours(entry, "probe_shrink", ACCURACY, "auto", device), Theirs(entry)
    for fixed, name in ((False, "step"), (True, "step_mask_fixed")):
        seconds, _ = step_times(ours, theirs, repeat, fixed, clock.wait)
        row |= {f"{name}_{who}": 1e3 * statistics.median(values) for who, values in seconds.items()}
    return row


RATIOS = (
    ("mask, one of a batch", "mask_mmtbx", "mask_batch_forward"),
    ("mask", "mask_mmtbx", "mask_forward"),
    ("mask and gradient, against the mask", "mask_mmtbx", "mask_gradient"),
    ("F", "f_cctbx", "f_fft"),
    ("F and gradients", "f_cctbx_gradient", "f_fft_gradient"),
    ("step", "step_mmtbx", "step_sfdiff"),
    ("step, mask held fixed", "step_mask_fixed_mmtbx", "step_mask_fixed_sfdiff"),
)


def draw(record):
    """PNG: how many times faster than one core, against the number of atoms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(record["rows"], key=lambda row: row["atoms"])
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    # Okabe and Ito's colours; markers differ too.
    colours = ("#0072B2", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7")
    for (label, theirs, ours), colour, marker, line in zip(RATIOS, colours, "os^Dv*P", ("--", *["-"] * 6)):
        axes.plot(
            [row["atoms"] for row in rows],
            [row[theirs] / row[ours] for row in rows],
            color=colour,
            marker=marker,
            markersize=5,
            linestyle=line,
            linewidth=1.2,
            label=label,
        )
    axes.axhline(1, color="0.4", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="Atoms in the model", ylabel="Time of cctbx on one core / time here")
    axes.set_title(f"{record['device']}, {record['date']}", fontsize=9)
    axes.grid(which="major", color="0.9")
    for axis, places in ((axes.xaxis, (500, 1000, 2000, 4000, 8000, 16000)), (axes.yaxis, (1, 3, 10, 30, 100, 300))):
        low, high = axis.get_view_interval()
        axis.set_ticks([place for place in places if low <= place <= high])
        axis.set_ticks([], minor=True)
        axis.set_major_formatter("{x:g}")
    figure.legend(frameon=False, fontsize=8, ncols=2, loc="outside lower center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", nargs="*", default=ENTRIES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("gpu"))
    parser.add_argument("--draw", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.draw:
        write_all({options.output.with_suffix(".png"): draw(json.loads(options.draw.read_text()))})
        return 0
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here: run it on a machine with one, or with --device cpu")
    name = torch.cuda.get_device_name(0) if torch.device(options.device).type == "cuda" else options.device
    rows = []
    for entry in options.entries:
        rows.append(row := measure(entry, options.device, options.batch, options.repeat))
        print(
            entry,
            row["atoms"],
            "atoms:",
            ", ".join(f"{what} {row[theirs] / row[ours]:.1f}x" for what, theirs, ours in RATIOS),
            flush=True,
        )
        table = io.StringIO()
        writer = csv.DictWriter(table, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows([{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows])
        record = {
            "device": name,
            "date": datetime.date.today().isoformat(),
            "versions": versions(),
            "accuracy": ACCURACY,
            "batch": options.batch,
            "repeat": options.repeat,
            "rows": rows,
        }
        write_all(
            {
                options.output.with_suffix(".csv"): table.getvalue().encode(),
                options.output.with_suffix(".json"): json.dumps(record, indent=1).encode(),
                options.output.with_suffix(".png"): draw(record),
            }
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
