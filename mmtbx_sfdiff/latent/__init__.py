"""Refinement in the latent space of a Boltzmann generator: a prior of structures from molecular dynamics.

Needs the optional libraries of ``pip install "mmtbx_sfdiff[latent]"``; each module says so when it meets one
that is missing.
"""

from .generator.boltzmann_generator import BoltzmannGenerator
from .generator.chirality import chiral_centres, handedness
from .generator.coupling_flows import RealNVP, SplineFlow
from .generator.elastic import ElasticNetwork
from .generator.energy import OpenMMEnergy, log_clip
from .generator.flows import LinearFlow, calibrate
from .generator.force_field import add_position_restraints, create_system, plddt_force_constants
from .generator.molecular_dynamics import load_frames, minimise, run_md
from .generator.prepare import prepare_model
from .generator.prepared_model import PreparedModel
from .generator.torch_amber import TorchAmber, energy_on
from .generator.train import TrainingSettings, frame_features, train
from .generator.transform import MixedTransform, superpose

__all__ = [
    "BoltzmannGenerator",
    "ElasticNetwork",
    "LinearFlow",
    "MixedTransform",
    "OpenMMEnergy",
    "PreparedModel",
    "RealNVP",
    "SplineFlow",
    "TorchAmber",
    "TrainingSettings",
    "add_position_restraints",
    "calibrate",
    "chiral_centres",
    "create_system",
    "energy_on",
    "frame_features",
    "handedness",
    "load_frames",
    "log_clip",
    "minimise",
    "plddt_force_constants",
    "prepare_model",
    "run_md",
    "superpose",
    "train",
]
