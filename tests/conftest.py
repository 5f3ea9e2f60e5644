"""Test data and markers for the whole suite."""

import torch  # before a test loads cctbx.xray, so that it keeps its threads

import pytest

from tests.support.entries import pdb_folder


@pytest.fixture(scope="session")
def pdb_dir():
    """Path of the folder of real PDB entries; skips the test where there is none."""
    folder = pdb_folder()
    if folder is None:
        pytest.skip("no folder of PDB entries: set MMTBX_SFDIFF_PDB_DIR")
    return folder


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    run_slow = config.getoption("--runslow") or "slow" in config.getoption("markexpr")
    for item in items:
        if "slow" in item.keywords and not run_slow:
            item.add_marker(pytest.mark.skip(reason="slow: run with --runslow or -m slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device"))
