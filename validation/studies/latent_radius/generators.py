"""Methods of the study that need a force field: priors of dynamics, and refinement of sites with the force field.

    latent_linear, latent_linear_long   a linear flow of SHORT ps, of LONG ps of dynamics begun at the start
    latent_realnvp, latent_spline       flows of the long dynamics, trained by likelihood, then likelihood and energy
    sites_ff, average_ff                sites with U / kT from 6 Å, from the start or from the average of the long dynamics

Dynamics hold CA atoms weakly at the *start*, and are kept in a folder beside the run, so that the flows of one start share them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.files import read_model, write_all
from mmtbx_sfdiff.latent import (
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
    prepare_model,
    run_md,
    train,
)
from mmtbx_sfdiff.latent.refinement.baselines import run_baseline
from mmtbx_sfdiff.latent.refinement.optimise import Settings
from mmtbx_sfdiff.latent.refinement.problem import Problem, problem_of_structure
from mmtbx_sfdiff.latent.refinement.search import SearchSettings, search

SHORT, LONG, SKIP, INTERVAL = 8.0, 60.0, 3.0, 0.024  # ps
RESTRAINT, SHRINK = 0.5, 0.3  # kJ/mol/Å²; of the covariance
LIKELIHOOD_STEPS, ENERGY_STEPS, ENERGY_SAMPLES = 300, 100, 8
FORCE_FIELD_WEIGHT = 1.0  # of U / kT in sites_ff and average_ff
RIGID_STEPS = 50
KINDS = ("linear", "linear_long", "realnvp", "spline")


def prepared_start(subject: Any, folder: Path) -> PreparedModel:
    """The start with hydrogens, made once."""
    place = folder / "prepared"
    if not place.exists():
        path = folder / "start.pdb"
        write_all({path: subject.structure.make_pdb_string().encode()})
        prepare_model(read_model(path).manager.get_hierarchy()).save(place)
    return PreparedModel.load(place)


def force_field_problem(subject: Any, prepared: PreparedModel) -> Problem:
    """The study's problem with the force field's atoms behind it."""
    selection, order = prepared.model_index.sort()
    plain = problem_of_structure(subject.structure, subject.fmodel(torch.float32, 1e-3))
    if len(selection) != plain.fmodel.atoms.n_atoms:
        raise ValueError(
            f"The force field takes {len(selection)} of the start's {plain.fmodel.atoms.n_atoms} atoms: all are needed here."
        )
    return dataclasses.replace(
        plain,
        sites_cart=prepared.sites_cart.to(torch.float64),
        rows=prepared.heavy_index[order],
        chain_index=torch.as_tensor(prepared.chain_index, dtype=torch.int64),
        residue_index=torch.as_tensor(prepared.residue_index, dtype=torch.int64),
    )


def frames_of(prepared: PreparedModel, folder: Path, duration: float, seed: int) -> torch.Tensor:
    """(n, n_ff, 3) Å, float64, of dynamics from the start; what is there is not computed again."""
    system = add_position_restraints(create_system(prepared), prepared.sites_cart, prepared.ca_index, RESTRAINT)
    run_md(
        prepared,
        system,
        folder / "md",
        duration,
        frame_interval=INTERVAL,
        solvent_interval=2,
        seed=seed,
        chunk_frames=50,
    )
    frames, _ = load_frames(folder / "md", skip=SKIP)
    return frames[: max(1, round((duration - SKIP) / INTERVAL))].double()


def generator(kind: str, prepared: PreparedModel, folder: Path, seed: int) -> BoltzmannGenerator:
    """One of :data:`KINDS`, made once."""
    path = folder / f"{kind}.pt"
    if not path.is_file():
        frames = frames_of(prepared, folder, SHORT if kind == "linear" else LONG, seed)
        transform = MixedTransform.from_prepared(prepared, create_system(prepared), frames=frames)
        features = frame_features(transform, frames)
        flow: Any = LinearFlow.from_samples(features, SHRINK, transform.kinds)
        if kind == "realnvp":
            flow = RealNVP(flow, seed=seed)
        elif kind == "spline":
            flow = SplineFlow.from_samples(features, transform.kinds, SHRINK, seed=seed)
        made = BoltzmannGenerator(transform, flow)
        if kind in ("realnvp", "spline"):
            made.double()
            energy = energy_on(create_system(prepared), "cpu", torch.float64)
            for steps, weights in (
                (LIKELIHOOD_STEPS, {}),
                (ENERGY_STEPS, {"w_ml": 0.2, "w_kl": 1.0, "n_samples": ENERGY_SAMPLES, "learning_rate": 5e-4}),
            ):
                train(made, frames, TrainingSettings(steps=steps, seed=seed, **weights), energy, prepared.sites_cart)
        made.save(path)
    return BoltzmannGenerator.load(path).double()


def latent(subject: Any, seed: int, folder: Path, kind: str, settings: SearchSettings) -> tuple[FModel, dict[str, Any]]:
    """The search of the elastic network with a generator of dynamics."""
    prepared = prepared_start(subject, folder)
    prior = generator(kind, prepared, folder, seed)
    runs = search(force_field_problem(subject, prepared), prior, settings, seed)
    best = runs[0]
    facts = {name: best.facts[name] for name in ("test_gain", "start", "screened", "z_norm")}
    return best.model_in(subject.fmodel()), facts | {"n_latent": prior.n_latent, "evaluations": settings.n_steps}


def sites(subject: Any, seed: int, folder: Path, kind: str, budget: int) -> tuple[FModel, dict[str, Any]]:
    """``sites_ff`` or ``average_ff`` with the objective, the first resolution and the number of evaluations of the search."""
    prepared = prepared_start(subject, folder)
    frames = frames_of(prepared, folder, LONG, seed) if kind == "average_ff" else None
    settings = Settings(
        objective="likelihood_gain",
        rigid_steps=min(RIGID_STEPS, budget // 4),
        steps=budget - min(RIGID_STEPS, budget // 4),
        first_d_min=6.0,
        live_mask=True,
    )
    energy = energy_on(create_system(prepared, constraints=None, hydrogen_mass=None), "cpu")
    found = run_baseline(kind, force_field_problem(subject, prepared), energy, frames, settings, FORCE_FIELD_WEIGHT)
    return found.model_in(subject.fmodel()), {"evaluations": budget}
