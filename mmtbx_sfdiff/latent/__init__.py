"""Refinement in the latent space of a Boltzmann generator: a prior of structures from molecular dynamics.

Needs the optional libraries of ``pip install "mmtbx_sfdiff[latent]"``; each module says so when it meets one
that is missing.
"""
from .chirality import chiral_centres, handedness
from .coupling_flows import RealNVP, SplineFlow
from .energy import OpenMMEnergy, log_clip
from .flows import LinearFlow, calibrate
from .force_field import add_position_restraints, create_system, plddt_force_constants
from .generator import BoltzmannGenerator
from .molecular_dynamics import load_frames, minimise, run_md
from .prepare import prepare_model
from .prepared_model import PreparedModel
from .torch_amber import TorchAmber, energy_on
from .train import TrainingSettings, frame_features, train
from .transform import MixedTransform, superpose

__all__ = ["BoltzmannGenerator", "LinearFlow", "MixedTransform", "OpenMMEnergy", "PreparedModel", "RealNVP",
           "SplineFlow", "TorchAmber", "TrainingSettings", "add_position_restraints", "calibrate", "chiral_centres",
           "create_system", "energy_on", "frame_features", "handedness", "load_frames", "log_clip", "minimise",
           "plddt_force_constants", "prepare_model", "run_md", "superpose", "train"]
