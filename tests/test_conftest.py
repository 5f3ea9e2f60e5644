"""What the suite does where a library is missing."""

import pytest

pytest_plugins = ["pytester"]

FILES = {
    "test_top.py": ("import cctbx.xray\n", True),
    "test_from.py": ("from iotbx import pdb\n", True),
    "test_room.py": ("from mmtbx_sfdiff.programs.run import run\n", True),
    "test_core.py": ("import mmtbx_sfdiff\nfrom mmtbx_sfdiff.plans import grid\n", False),
    "test_inside.py": ("def test_it():\n    from cctbx import xray\n", False),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_need_cctbx_are_told_by_what_they_import_at_their_top(tmp_path, name):
    from tests.conftest import needs_cctbx

    text, expected = FILES[name]
    (tmp_path / name).write_text(text)
    assert needs_cctbx(tmp_path / name) is expected


@pytest.mark.parametrize("limit, status", [("", 0), ("1", 0), ("0", 1)])
def test_too_many_skips_fail_a_run(pytester, monkeypatch, limit, status):
    pytester.makeconftest(
        "from tests.conftest import pytest_runtest_logreport, pytest_collectreport\n"
        "from tests.conftest import pytest_sessionfinish, pytest_terminal_summary\n"
    )
    pytester.makepyfile(
        "import pytest\n"
        "def test_slow():\n    pytest.skip('slow: run with --runslow or -m slow')\n"
        "def test_other():\n    pytest.importorskip('no_such_library')\n"
    )
    monkeypatch.setenv("MMTBX_SFDIFF_MAX_SKIPS", limit)
    monkeypatch.setattr("tests.conftest._skipped", [])
    result = pytester.runpytest()
    assert result.ret == status
    result.assert_outcomes(skipped=2)
    if status:
        result.stdout.fnmatch_lines(["*no_such_library*", "MMTBX_SFDIFF_MAX_SKIPS allows 0."])
