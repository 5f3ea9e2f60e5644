"""Sphinx configuration: python -m sphinx -W docs docs/_build/html"""

import importlib.util

import mmtbx_sfdiff

project = "mmtbx_sfdiff"
author = "the mmtbx_sfdiff developers"
copyright = "2026, the mmtbx_sfdiff developers"
version = release = mmtbx_sfdiff.__version__

# The last one brings the fonts and scripts for formulae, which would otherwise come from the network.
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "sphinx-mathjax-offline"]
napoleon_google_docstring = False
napoleon_use_ivar = True  # an attribute that is a property, too, stands in the page once
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
autodoc_mock_imports = [name for name in ("jax",) if importlib.util.find_spec(name) is None]

html_static_path = ["_static"]  # alabaster loads custom.css from there
html_theme = "alabaster"  # comes with Sphinx, fetches nothing
html_theme_options = {"description": "Differentiable structure factors for cctbx", "page_width": "1100px"}
