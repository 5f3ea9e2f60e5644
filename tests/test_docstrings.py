"""The examples in the docstrings of what the nouns stand on run; those of public names in test_docstring_examples.py."""

import doctest
import importlib

import pytest

MODULES = (
    "displacements",
    "form_factors",
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
