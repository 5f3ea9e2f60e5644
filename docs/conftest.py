"""The examples in these pages run as tests."""

import importlib.util

import torch  # noqa: F401  (before an example loads cctbx.xray, so that it keeps its threads)

_NEEDS = {"openmm": "latent_generator.rst", "jax": "jax.rst"}
collect_ignore = [page for library, page in _NEEDS.items() if importlib.util.find_spec(library) is None]
