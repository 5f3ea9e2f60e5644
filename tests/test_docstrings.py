"""The examples in the docstrings of the nouns, and of what they stand on, run."""

import doctest
import importlib

import pytest

MODULES = (
    "atoms",
    "crystal",
    "displacements",
    "form_factors",
    "reflections",
    "symmetry.operators",
    "symmetry.settings",
    "symmetry.unit_cell",
    "tables.gaussians",
    "versions",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    found = doctest.testmod(importlib.import_module(f"mmtbx_sfdiff.{name}"))
    assert found.attempted and not found.failed
