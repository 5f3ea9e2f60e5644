"""The examples in these pages run as tests; this puts the one import first that has to be first."""

import mmtbx_sfdiff  # noqa: F401

import importlib.util

collect_ignore = [] if importlib.util.find_spec("openmm") else ["latent_generator.rst"]
