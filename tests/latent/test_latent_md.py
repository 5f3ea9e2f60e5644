"""Molecular dynamics: an interrupted run is the run that was not, and the physics is right."""

import json

import torch
from mmtbx_sfdiff.latent import create_system, load_frames, run_md
from mmtbx_sfdiff.latent.generator.units import KT_300, md_value

import numpy as np
import openmm
import pytest

from tests.support.latent_systems import dipeptide, dipeptide_system, protein, protein_system


class Interrupted(Exception):
    pass


def killer(after):
    def progress(done, total, energy):
        if done == after:
            raise Interrupted

    return progress


@pytest.mark.parametrize("platform, solvent_interval", [("Reference", 1), ("CPU", 1), ("CPU", 2)])
def test_interrupted_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, platform, solvent_interval):
    # the CPU platform with one thread, which is what run_md asks for by default
    arguments = dict(
        duration=1.0, frame_interval=0.08, chunk_frames=4, seed=3, platform=platform, solvent_interval=solvent_interval
    )
    whole = run_md(dipeptide(), dipeptide_system(), tmp_path / "whole", **arguments)
    with pytest.raises(Interrupted):
        run_md(dipeptide(), dipeptide_system(), tmp_path / "parts", progress=killer(6), **arguments)
    assert len(load_frames(tmp_path / "parts")[0]) == 4
    parts = run_md(dipeptide(), dipeptide_system(), tmp_path / "parts", **arguments)
    for one, other in zip(load_frames(whole), load_frames(parts)):
        assert torch.equal(one, other)
    last = sorted(path.name for path in whole.glob("state_*.xml"))[-1]
    assert (whole / last).read_text() == (parts / last).read_text()
    assert not list(parts.glob(".*"))


def test_longer_duration_continues(tmp_path):
    arguments = dict(frame_interval=0.08, chunk_frames=4, platform="Reference")
    run_md(dipeptide(), dipeptide_system(), tmp_path, duration=0.32, **arguments)
    before = (tmp_path / "frames_0000.npz").read_bytes()
    run_md(dipeptide(), dipeptide_system(), tmp_path, duration=0.64, **arguments)
    assert (tmp_path / "frames_0000.npz").read_bytes() == before and len(load_frames(tmp_path)[0]) == 8
    assert len(load_frames(tmp_path, skip=0.32)[0]) == 4


def test_small_protein_bitwise(tmp_path):
    # many pairs and torsions: the CPU platform's single precision, one thread
    arguments = dict(duration=0.032, frame_interval=0.008, chunk_frames=2, minimise_first=False, seed=1, time_step=1.0)
    for name in ("a", "b"):
        run_md(protein(), protein_system(), tmp_path / name, **arguments)
    assert torch.equal(load_frames(tmp_path / "a")[0], load_frames(tmp_path / "b")[0])


@pytest.mark.parametrize("solvent_interval", [1, 2])
def test_temperature_and_constraints(tmp_path, solvent_interval):
    # potential energy of a system of harmonic wells alone: k T / 2 for each of its degrees of freedom
    prepared, system = dipeptide(), create_system(dipeptide())
    while system.getNumForces():
        system.removeForce(0)
    while system.getNumConstraints():
        system.removeConstraint(0)
    wells = openmm.CustomExternalForce("0.5*2000*((x-a)^2+(y-b)^2+(z-c)^2)")
    for parameter in "abc":
        wells.addPerParticleParameter(parameter)
    for atom, site in enumerate(prepared.sites_cart.tolist()):
        wells.addParticle(atom, [0.1 * value for value in site])
    system.addForce(wells)
    run_md(
        prepared,
        system,
        tmp_path,
        duration=60.0,
        frame_interval=0.08,
        friction=20.0,
        time_step=4.0,
        solvent_interval=solvent_interval,
        chunk_frames=750,
        platform="Reference",
    )
    _, energy = load_frames(tmp_path, skip=2.0)
    expected = 0.5 * 3 * 22 * KT_300
    assert energy.mean().item() == pytest.approx(expected, rel=0.05)


def test_frames_keep_constrained_bonds(tmp_path):
    run_md(dipeptide(), dipeptide_system(), tmp_path, duration=0.8, frame_interval=0.08, chunk_frames=10)
    frames, energy = load_frames(tmp_path)
    assert frames.dtype == torch.float32 and frames.shape == (10, 22, 3) and torch.isfinite(energy).all()
    for n in range(dipeptide_system().getNumConstraints()):
        i, j, length = dipeptide_system().getConstraintParameters(n)
        np.testing.assert_allclose((frames[:, i] - frames[:, j]).norm(dim=-1), 10 * md_value(length), rtol=2e-4)


def test_other_settings_are_refused(tmp_path):
    arguments = dict(duration=0.08, frame_interval=0.08, chunk_frames=1)
    run_md(dipeptide(), dipeptide_system(), tmp_path, **arguments)
    with pytest.raises(ValueError, match="another seed"):
        run_md(dipeptide(), dipeptide_system(), tmp_path, seed=5, **arguments)
    with pytest.raises(ValueError, match="another system"):
        run_md(dipeptide(), create_system(dipeptide(), implicit_solvent=False), tmp_path, **arguments)
    with pytest.raises(ValueError, match="another start"):
        moved = dipeptide().replace(sites_cart=dipeptide().sites_cart + 1)
        run_md(moved, dipeptide_system(), tmp_path, **arguments)
    assert json.loads((tmp_path / "md.json").read_text())["seed"] == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(duration=-1.0), "duration must be positive"),
        (dict(duration=1.0, time_step=float("nan")), "time_step must be positive"),
        (dict(duration=1.0, frame_interval=0.01), "multiple of time_step"),
        (dict(duration=1.0, frame_interval=0.2, solvent_interval=3), "times solvent_interval"),
        (dict(duration=0.05, frame_interval=0.2), "shorter than frame_interval"),
        (dict(duration=1.0, platform="Abacus"), "no platform 'Abacus'"),
    ],
)
def test_wrong_settings(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_md(dipeptide(), dipeptide_system(), tmp_path / "md", **arguments)


def test_no_frames(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        load_frames(tmp_path)
    run_md(dipeptide(), dipeptide_system(), tmp_path, duration=0.08, frame_interval=0.08, chunk_frames=1)
    with pytest.raises(ValueError, match="leaves no frame"):
        load_frames(tmp_path, skip=1.0)


def test_dynamics_that_blow_up_say_so(tmp_path):
    with pytest.raises(ValueError, match="blew up"):
        run_md(
            dipeptide(), dipeptide_system(), tmp_path, duration=40.0, frame_interval=2.0, time_step=40.0, chunk_frames=5
        )
    assert not list(tmp_path.glob("frames_*"))
