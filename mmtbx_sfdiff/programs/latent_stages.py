"""The first stages of ``mmtbx_sfdiff.latent``: each takes the program and returns its record."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import torch

from libtbx.utils import Sorry

from ..files import (
    data_symmetry,
    find_entry,
    find_predicted_model,
    load_entry,
    read_model,
)
from ..files.writing import write_atomically
from ..latent import (
    BoltzmannGenerator,
    LinearFlow,
    MixedTransform,
    PreparedModel,
    RealNVP,
    SplineFlow,
    TrainingSettings,
    add_position_restraints,
    create_system,
    energy_on,
    frame_features,
    load_frames,
    plddt_force_constants,
    prepare_model,
    run_md,
)
from ..latent.generator.train import train as fit
from .latent_placing import place_on

_READING = (
    "labels",
    "free_flag_labels",
    "read_free_flags",
    "test_flag_value",
    "scattering_table",
    "allow_other_entry",
)


def already(program, stage):
    program.say(f"The stage {stage} is finished in {program.work.path}; set restart=True to do it again.")
    return program.work.record(stage)


# prep


def prep(program, report):
    """Model and data into the folder; what the force field sees of the model."""
    params, work = program.inputs, program.work
    report("model and data", None)
    model_path, data_path = _model_and_data(program, report)
    inputs = {"model": model_path, "data": data_path}
    if params.prep.superpose_on:
        inputs["superpose_on"] = params.prep.superpose_on
    settings = {
        "uniprot_id": params.prep.uniprot_id,
        "oligomer": list(params.prep.oligomer or ()),
        **{name: getattr(params, name) for name in _READING},
    }
    if not work.begin("prep", settings, inputs, params.random_seed, params.restart):
        return already(program, "prep")
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
            program.logger,
        )
    crystal = symmetry if params.prep.superpose_on or predicted else model.crystal_symmetry
    write_atomically(model_copy, hierarchy.as_mmcif_string(crystal_symmetry=crystal))
    entry = _entry(program, model_copy, data_copy, settings)
    report("hydrogens", None)
    prepared = prepare_model(
        entry.model.manager.get_hierarchy(),
        entry.model.crystal_symmetry,
        settings["oligomer"],
        seed=params.random_seed,
    )
    prepared.save(folder)
    for label, reason in (*prepared.dropped, *prepared.added):
        program.say(f"{label}: {reason}")
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
    program.say(
        f"{prepared.n_ff} atoms with hydrogens, {len(prepared.model_index)} of them of the model's "
        f"{entry.model.xray_structure.scatterers().size()}; {len(entry.data.f_obs.indices())} reflections to "
        f"{entry.data.f_obs.d_min():.2f} Å."
    )
    outputs = [model_copy, data_copy, folder / "prepared.json", folder / "prepared.npz"]
    return work.finish("prep", outputs, **facts)


def _model_and_data(program, report):
    params = program.inputs
    if not params.prep.uniprot_id:
        if params.demo:
            raise Sorry("There is no demonstration of this program: give a model and a data file, or a PDB entry.")
        return program.find_files(None, report)
    data = params.data_file
    if not data:
        data = find_entry(
            params.entry_id,
            download=params.download,
            mirrors=params.mirrors,
            cache_dir=params.cache_dir,
            log=program.logger,
        ).data
    return (
        find_predicted_model(params.prep.uniprot_id, params.download, params.cache_dir, log=program.logger),
        data,
    )


def _entry(program, model, data, settings, d_min=None):
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


def prepared_entry(program, d_min=None):
    record, folder = program.work.need("prep"), program.work.folder("prep")
    facts = record["facts"]
    return _entry(program, folder / facts["model"], folder / facts["data"], record["settings"], d_min)


# md


def md(program, report):
    """Molecular dynamics from the prepared model."""
    params, work = program.inputs.md, program.work
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
        "md", settings, None, program.inputs.random_seed, program.inputs.restart, resumable=("duration",)
    ):
        return already(program, "md")
    prepared = PreparedModel.load(work.folder("prep"))
    system = create_system(prepared)
    if params.restraint:
        system = add_position_restraints(system, prepared.sites_cart, prepared.ca_index, _constants(program, prepared))
    last = [time.perf_counter()]

    def progress(done, total, energy):
        report(f"molecular dynamics, {energy:.0f} kJ/mol", done / total)
        if program.verbose and (time.perf_counter() - last[0] > 60 or done == total):
            last[0] = time.perf_counter()
            program.say(f"Frame {done} of {total}, {energy:.0f} kJ/mol")

    folder = run_md(
        prepared,
        system,
        work.folder("md"),
        params.duration,
        frame_interval=params.frame_interval,
        solvent_interval=params.solvent_interval,
        temperature=params.temperature,
        seed=program.inputs.random_seed,
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


def _constants(program, prepared):
    params = program.inputs.md
    if not params.restrain_by_plddt:
        return params.restraint
    entry = prepared_entry(program)
    b = entry.model.manager.get_hierarchy().atoms().extract_b()
    place = dict(zip(prepared.heavy_index.tolist(), prepared.model_index.tolist()))
    n = prepared.n_ff // prepared.n_copies
    return plddt_force_constants([b[place[ca % n]] for ca in prepared.ca_index.tolist()], params.restraint)


# train


def train(program, report):
    """A generator of structures like those of the dynamics."""
    params, work = program.inputs.train, program.work
    names = ("flow", "shrink", "skip") + (
        () if params.flow == "linear" else ("ml_steps", "kl_steps", "samples", "star_weight")
    )
    settings = {name: getattr(params, name) for name in names}
    if not work.begin("train", settings, None, program.inputs.random_seed, program.inputs.restart):
        return already(program, "train")
    report("generator", None)
    prepared, frames = one_copy(work, params.skip)
    folder = work.folder("train")
    transform = MixedTransform.from_prepared(prepared, create_system(prepared), frames=frames)
    features = frame_features(transform, frames)
    linear = LinearFlow.from_samples(features, params.shrink, transform.kinds)
    BoltzmannGenerator(transform, linear).save(folder / "linear.pt")
    outputs, history = [folder / "linear.pt", folder / "generator.pt"], []
    flow = linear
    if params.flow != "linear":
        flow = (
            RealNVP(linear, seed=program.inputs.random_seed)
            if params.flow == "realnvp"
            else SplineFlow.from_samples(features, transform.kinds, params.shrink, seed=program.inputs.random_seed)
        )
    generator = BoltzmannGenerator(transform, flow)
    if params.flow != "linear":
        history = _train_flow(program, generator, prepared, frames, folder, report)
        write_atomically(folder / "history.json", json.dumps(history, indent=1))
        outputs.append(folder / "history.json")
    generator.save(folder / "generator.pt")
    with torch.no_grad():
        z, _ = generator.encode(prepared.sites_cart[None])
    norm = float(z.norm()) / generator.n_latent**0.5
    program.say(
        f"{len(frames)} frames, {generator.n_latent} latent variables; the model's latent vector has a length of "
        f"{norm:.2f} sqrt(n)."
    )
    return work.finish("train", outputs, n_frames=len(frames), n_latent=generator.n_latent, z_norm_start=norm)


def _train_flow(program, generator, prepared, frames, folder, report):
    """Likelihood, then likelihood with the energy; the rows of both."""
    params, seed, device = program.inputs.train, program.inputs.random_seed, program.inputs.device
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

        def progress(row, steps=steps):
            report(f"training, {row['nll_validation']:.2f} nats a variable held out", row["step"] / steps)
            if program.verbose:
                program.say(
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


def one_copy(work, skip):
    """(the model without symmetry mates, frames of it (n, n_ff, 3) float64)."""
    prepared = PreparedModel.load(work.folder("prep")).first_copy()
    frames, _ = load_frames(work.folder("md"), skip=skip)
    return prepared, frames[:, : prepared.n_ff].double()
