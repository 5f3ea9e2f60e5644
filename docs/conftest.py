"""The examples in these pages run as tests."""

import importlib.util

import torch  # noqa: F401  (before an example loads cctbx.xray, so that it keeps its threads)

collect_ignore = [] if importlib.util.find_spec("openmm") else ["latent_generator.rst"]
