"""Test data, markers, what runs where cctbx is not installed, and a limit on what is skipped."""

import ast
import importlib
import importlib.util
import os
import traceback

import torch  # before a test loads cctbx.xray, so that it keeps its threads

import pytest

from tests.support.entries import pdb_folder

if importlib.util.find_spec("hypothesis") is not None:
    import hypothesis

    # The same examples in every run: what chance finds once in a hundred runs is for --hypothesis-profile=default and the fuzz studies.
    hypothesis.settings.register_profile("repeatable", derandomize=True)
    hypothesis.settings.load_profile("repeatable")

HAVE_CCTBX = importlib.util.find_spec("cctbx") is not None
CCTBX = {"boost_adaptbx", "cctbx", "iotbx", "libtbx", "mmtbx", "scitbx"}
# Rooms of this package that are about cctbx, and those of which a part needs it.
NEED_CCTBX = ("cctbx_backend", "command_line", "comparison", "programs")
MAY_NEED_CCTBX = (*NEED_CCTBX, "files", "latent", "refinement")
EXPECTED_SKIPS = ("slow: ", "gpu: ", "no folder of PDB entries", "needs cctbx")


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
        if item.get_closest_marker("slow") and not run_slow:
            item.add_marker(pytest.mark.skip(reason="slow: run with --runslow or -m slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device"))
        if item.get_closest_marker("cctbx") and not HAVE_CCTBX:
            item.add_marker(pytest.mark.skip(reason="needs cctbx"))


def pytest_ignore_collect(collection_path):
    """Without cctbx, leave out the files that import it, or a room that is about it, at their top; no other."""
    if not HAVE_CCTBX and collection_path.suffix == ".py" and collection_path.name.startswith("test_"):
        return True if needs_cctbx(collection_path) else None
    return None


def needs_cctbx(path):
    """Whether a file imports cctbx when it is loaded, or something that may, and here does not without it.

    A room of the core that imports cctbx is not excused: its tests are collected, and fail.
    """
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module, alias.name) for alias in node.names]
        for module, name in names:
            first, *rest = f"{module}.{name}".split(".")
            if first in CCTBX or first == "validation" or (first == "mmtbx_sfdiff" and rest[0] in NEED_CCTBX):
                return True
            if first in ("mmtbx_sfdiff", "tests") and _fails_for_want_of_cctbx(module, name):
                return True
    return False


def _fails_for_want_of_cctbx(module, name):
    try:
        loaded = importlib.import_module(module)
        if name and not hasattr(loaded, name):
            importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in CCTBX:
            return False
        where = traceback.extract_tb(error.__traceback__)[-1].filename.replace(os.sep, "/")
        return "/tests/" in where or any(f"/mmtbx_sfdiff/{room}/" in where for room in MAY_NEED_CCTBX)
    except Exception:
        return False  # pytest will say it better
    return False


# MMTBX_SFDIFF_MAX_SKIPS=n: more than n tests that are skipped for other reasons than these fail the run, so that a library
# that went missing does not take its tests with it unseen.
_skipped = []


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        _note_skip(report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr))


def pytest_collectreport(report):
    if report.skipped:
        _note_skip(report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr))


def _note_skip(reason):
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(EXPECTED_SKIPS):
        _skipped.append(reason)


def pytest_sessionfinish(session):
    limit = os.environ.get("MMTBX_SFDIFF_MAX_SKIPS")
    if limit and len(_skipped) > int(limit) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    limit = os.environ.get("MMTBX_SFDIFF_MAX_SKIPS")
    if limit and len(_skipped) > int(limit):
        terminalreporter.section("skipped tests")
        terminalreporter.line(f"{len(_skipped)} were skipped for other reasons than {', '.join(EXPECTED_SKIPS)}:")
        for reason in sorted(set(_skipped)):
            terminalreporter.line(f"  {_skipped.count(reason)} {reason}")
        terminalreporter.line(f"MMTBX_SFDIFF_MAX_SKIPS allows {limit}.")
