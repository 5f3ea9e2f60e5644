"""The first stages: a model prepared, its dynamics, a generator trained on them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...files import data_symmetry, load_entry, read_model
from ...files.writing import write_atomically
from ..generator.boltzmann_generator import BoltzmannGenerator
from ..generator.coupling_flows import RealNVP, SplineFlow
from ..generator.flows import LinearFlow
from ..generator.force_field import add_position_restraints, create_system, plddt_force_constants
from ..generator.molecular_dynamics import load_frames, run_md
from ..generator.prepare import prepare_model
from ..generator.prepared_model import PreparedModel
from ..generator.torch_amber import energy_on
from ..generator.train import TrainingSettings, frame_features
from ..generator.train import train as fit
from ..generator.transform import MixedTransform
from ..workdir import WorkDir
from .context import Context
from .placing import place_on

_READING = (
    "labels",
    "free_flag_labels",
    "read_free_flags",
    "test_flag_value",
    "scattering_table",
    "allow_other_entry",
)


# prep


def prep(context: Context, model_path: str, data_path: str) -> dict[str, Any] | None:
    """Model and data into the folder; what the force field sees of the model."""
    params, work, report = context.inputs, context.work, context.progress
    inputs = {"model": model_path, "data": data_path}
    if params.prep.superpose_on:
        inputs["superpose_on"] = params.prep.superpose_on
    settings = {
        "uniprot_id": params.prep.uniprot_id,
        "oligomer": list(params.prep.oligomer or ()),
        **{name: getattr(params, name) for name in _READING},
    }
    if not work.begin("prep", settings, inputs, params.random_seed, params.restart):
        return context.already("prep")
    folder = work.folder("prep")
    data_copy = folder / ("data" + "".join(Path(data_path).suffixes[-2:]))
    shutil.copyfile(data_path, data_copy)
    model_copy = folder / "model.cif"
    predicted = bool(params.prep.uniprot_id)
    symmetry = data_symmetry(data_path)
    model = read_model(model_path, crystal_symmetry=symmetry)
    hierarchy = model.manager.get_hierarchy()
    if params.prep.superpose_on:
        hierarchy = place_on(
            hierarchy,
            read_model(params.prep.superpose_on, crystal_symmetry=symmetry).manager.get_hierarchy(),
            context.say,
        )
    crystal = symmetry if params.prep.superpose_on or predicted else model.crystal_symmetry
    write_atomically(model_copy, hierarchy.as_mmcif_string(crystal_symmetry=crystal))
    entry = _entry(context, model_copy, data_copy, settings)
    report("hydrogens", None)
    prepared = prepare_model(
        entry.model.manager.get_hierarchy(),
        entry.model.crystal_symmetry,
        settings["oligomer"],
        seed=params.random_seed,
    )
    prepared.save(folder)
    for label, reason in (*prepared.dropped, *prepared.added):
        context.say(f"{label}: {reason}")
    facts = {
        "dropped": prepared.dropped,
        "added": prepared.added,
        "n_ff": prepared.n_ff,
        "model": model_copy.name,
        "n_kept": len(prepared.model_index),
        "data": data_copy.name,
        "predicted": predicted,
        "messages": list(entry.messages),
        "name": Path(model_path).name.split(".")[0],
    }
    context.say(
        f"{prepared.n_ff} atoms with hydrogens, {len(prepared.model_index)} of them of the model's "
        f"{entry.model.xray_structure.scatterers().size()}; {len(entry.data.f_obs.indices())} reflections to "
        f"{entry.data.f_obs.d_min():.2f} Å."
    )
    outputs = [model_copy, data_copy, folder / "prepared.json", folder / "prepared.npz"]
    return work.finish("prep", outputs, **facts)


def _entry(context: Context, model: Any, data: Any, settings: Any, d_min: float | None = None) -> Any:
    return load_entry(
        model,
        data,
        scattering_table=settings["scattering_table"],
        labels=settings["labels"],
        r_free_labels=settings["free_flag_labels"] if settings["read_free_flags"] else "none",
        test_flag_value=settings["test_flag_value"],
        d_min=d_min,
        allow_other_entry=True,
    )


def prepared_entry(context: Context, d_min: float | None = None) -> Any:
    record, folder = context.work.need("prep"), context.work.folder("prep")
    facts = record["facts"]
    return _entry(context, folder / facts["model"], folder / facts["data"], record["settings"], d_min)


# md


def md(context: Context) -> dict[str, Any] | None:
    """Molecular dynamics from the prepared model."""
    report = context.progress
    params, work = context.inputs.md, context.work
    names = (
        "duration",
        "frame_interval",
        "temperature",
        "restraint",
        "restrain_by_plddt",
        "platform",
        "threads",
        "solvent_interval",
    )
    settings = {name: getattr(params, name) for name in names}
    if not work.begin(
        "md", settings, None, context.inputs.random_seed, context.inputs.restart, resumable=("duration",)
    ):
        return context.already("md")
    prepared = PreparedModel.load(work.folder("prep"))
    system = create_system(prepared)
    if params.restraint:
        system = add_position_restraints(system, prepared.sites_cart, prepared.ca_index, _constants(context, prepared))
    last = [time.perf_counter()]

    def progress(done: Any, total: int, energy: Any) -> None:
        report(f"molecular dynamics, {energy:.0f} kJ/mol", done / total)
        if context.verbose and (time.perf_counter() - last[0] > 60 or done == total):
            last[0] = time.perf_counter()
            context.say(f"Frame {done} of {total}, {energy:.0f} kJ/mol")

    folder = run_md(
        prepared,
        system,
        work.folder("md"),
        params.duration,
        frame_interval=params.frame_interval,
        solvent_interval=params.solvent_interval,
        temperature=params.temperature,
        seed=context.inputs.random_seed,
        platform=params.platform,
        threads=params.threads,
        progress=progress,
    )
    frames, energies = load_frames(folder)
    return work.finish(
        "md",
        sorted(folder.glob("frames_*.npz")),
        n_frames=len(frames),
        energy_median=float(energies.median()),
    )


def _constants(context: Context, prepared: PreparedModel) -> Any:
    params = context.inputs.md
    if not params.restrain_by_plddt:
        return params.restraint
    entry = prepared_entry(context)
    b = entry.model.manager.get_hierarchy().atoms().extract_b()
    place = dict(zip(prepared.heavy_index.tolist(), prepared.model_index.tolist()))
    n = prepared.n_ff // prepared.n_copies
    return plddt_force_constants([b[place[ca % n]] for ca in prepared.ca_index.tolist()], params.restraint)


# train


def train(context: Context) -> dict[str, Any] | None:
    """A generator of structures like those of the dynamics."""
    report = context.progress
    params, work = context.inputs.train, context.work
    names = ("flow", "shrink", "skip") + (
        () if params.flow == "linear" else ("ml_steps", "kl_steps", "samples", "star_weight")
    )
    settings = {name: getattr(params, name) for name in names}
    if not work.begin("train", settings, None, context.inputs.random_seed, context.inputs.restart):
        return context.already("train")
    report("generator", None)
    prepared, frames = one_copy(work, params.skip)
    folder = work.folder("train")
    transform = MixedTransform.from_prepared(prepared, create_system(prepared), frames=frames)
    features = frame_features(transform, frames)
    linear = LinearFlow.from_samples(features, params.shrink, transform.kinds)
    BoltzmannGenerator(transform, linear).save(folder / "linear.pt")
    outputs = [folder / "linear.pt", folder / "generator.pt"]
    flow: LinearFlow | RealNVP | SplineFlow = linear
    if params.flow != "linear":
        flow = (
            RealNVP(linear, seed=context.inputs.random_seed)
            if params.flow == "realnvp"
            else SplineFlow.from_samples(features, transform.kinds, params.shrink, seed=context.inputs.random_seed)
        )
    generator = BoltzmannGenerator(transform, flow)
    if params.flow != "linear":
        history = _train_flow(context, generator, prepared, frames, folder, report)
        write_atomically(folder / "history.json", json.dumps(history, indent=1))
        outputs.append(folder / "history.json")
    generator.save(folder / "generator.pt")
    with torch.no_grad():
        z, _ = generator.encode(prepared.sites_cart[None])
    norm = float(z.norm()) / generator.n_latent**0.5
    context.say(
        f"{len(frames)} frames, {generator.n_latent} latent variables; the model's latent vector has a length of "
        f"{norm:.2f} sqrt(n)."
    )
    return work.finish("train", outputs, n_frames=len(frames), n_latent=generator.n_latent, z_norm_start=norm)


def _train_flow(
    context: Context,
    generator: Any,
    prepared: PreparedModel,
    frames: torch.Tensor,
    folder: Path,
    report: Callable[..., None],
) -> list[dict[str, Any]]:
    """Likelihood, then likelihood with the energy; the rows of both."""
    params, seed, device = context.inputs.train, context.inputs.random_seed, context.inputs.device
    # Batches of energies on a GPU are several times faster in single precision, and no less useful.
    dtype = torch.float64 if torch.device(device).type == "cpu" else torch.float32
    generator.to(device=device, dtype=dtype)
    energy = energy_on(create_system(prepared), device, dtype)
    parts = [
        (params.ml_steps, {}),
        (
            params.kl_steps,
            {
                "w_ml": 0.2,
                "w_kl": 1.0,
                "n_samples": params.samples,
                "w_star": params.star_weight,
                "learning_rate": 5e-4,
            },
        ),
    ]
    rows = []
    for number, (steps, weights) in enumerate(parts):
        if not steps:
            continue

        def progress(row: dict[str, Any], steps: int = steps) -> None:
            report(f"training, {row['nll_validation']:.2f} nats a variable held out", row["step"] / steps)
            if context.verbose:
                context.say(
                    f"Step {row['step']} of {steps}: held-out likelihood {row['nll_validation']:.3f} nats a variable"
                    + (
                        f", samples {row['median_energy']:.0f} kJ/mol above the frames"
                        if "median_energy" in row
                        else ""
                    )
                )

        rows += fit(
            generator,
            frames.to(generator.transform.reference),
            TrainingSettings(steps=steps, seed=seed, **weights),
            energy,
            prepared.sites_cart.to(generator.transform.reference),
            folder / f"checkpoint_{number}.pt",
            progress,
        )
    generator.to(device="cpu", dtype=torch.float64)
    return rows


def one_copy(work: WorkDir, skip: float) -> tuple[PreparedModel, torch.Tensor]:
    """(the model without symmetry mates, frames of it (n, n_ff, 3) float64)."""
    prepared = PreparedModel.load(work.folder("prep")).first_copy()
    frames, _ = load_frames(work.folder("md"), skip=skip)
    return prepared, frames[:, : prepared.n_ff].double()
