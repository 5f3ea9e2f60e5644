"""The start-up file in fresh environments: asked for, found, effective, and gone again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import pytest
from libtbx.env_config import get_installed_path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("mmtbx_sfdiff", "mmtbx_sfdiff_startup.py", "pyproject.toml", "README.md", "LICENSE")

PROGRAM = """
import sys
startup = sys.modules.get("mmtbx_sfdiff_startup")
early = startup is not None and startup.active()
import mmtbx.f_model
from cctbx.xray.structure_factors.algorithm import algorithms
print(early, "sfdiff" in algorithms, "sfdiff" in str(algorithms["fft"]))
"""


class Environment:
    """A virtual environment with the package in it; everything else is the environment's that runs the tests."""

    def __init__(self, folder, kind):
        self.python = folder / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.site = folder / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        # Its own start-up files are not read from there: only the folder is on the path.
        (self.site / "__overlay.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
        tree = folder / "tree"
        tree.mkdir()
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, tree)
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--python", self.python, "install", "--no-deps", "--no-build-isolation"]
            + ["--no-index", "--quiet", "--disable-pip-version-check"]
            + (["-e", tree] if kind == "editable" else [tree]),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        self.folder = folder
        (folder / "program.py").write_text(PROGRAM)

    def run(self, *arguments, **variables):
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MMTBX_SFDIFF")}
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=900,
            # cctbx's wheel looks for its settings in the environment's own folder otherwise.
            env={"LIBTBX_BUILD": get_installed_path(), **kept, "OMP_NUM_THREADS": "1", **variables},
        )

    def files(self):
        return sorted(path.name for path in self.site.glob("mmtbx_sfdiff*.pth"))


@pytest.mark.parametrize("kind", ["plain", "editable"])
def test_the_variable_acts_where_the_file_was_asked_for(tmp_path, kind):
    pytest.importorskip("setuptools", minversion="77")
    environment = Environment(tmp_path, kind)
    assert environment.files() == []
    done = environment.run("program.py", MMTBX_SFDIFF="takeover")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["False", "False", "False"]
    assert environment.run("-c", "import sys; print('mmtbx_sfdiff_startup' in sys.modules)").stdout == "False\n"

    run = ("-m", "mmtbx_sfdiff.command_line.run")
    done = environment.run(*run, "--install-startup")
    path = environment.site / "mmtbx_sfdiff_startup.pth"
    assert done.returncode == 0 and str(path) in done.stdout, done.stderr
    again = environment.run(*run, "--install-startup")
    assert again.returncode == 0 and f"there already: {path}" in again.stdout
    assert environment.files() == [path.name]

    # The other values are those of tests/cctbx_backend.
    for value, expected in {"": ["False"] * 3, "takeover": ["True"] * 3}.items():
        done = environment.run("program.py", MMTBX_SFDIFF=value)
        assert (done.returncode, done.stdout.split(), done.stderr) == (0, expected, ""), value

    done = environment.run(*run, "--remove-startup")
    assert done.returncode == 0 and f"Removed {path}" in done.stdout and environment.files() == []
    assert "nothing to remove" in environment.run(*run, "--remove-startup").stdout


def test_a_file_that_would_do_nothing_is_not_left_behind(tmp_path, monkeypatch):
    from mmtbx_sfdiff.programs import startup_file

    from libtbx.utils import Sorry

    monkeypatch.setattr(startup_file, "folders", lambda: [tmp_path])
    with pytest.raises(Sorry, match="would have no effect"):  # Python does not read that folder
        startup_file.install()
    assert list(tmp_path.iterdir()) == []


def test_the_state_says_when_the_variable_can_do_nothing(tmp_path, monkeypatch):
    from mmtbx_sfdiff.programs import startup_file

    monkeypatch.setattr(startup_file, "folders", lambda: [tmp_path])
    monkeypatch.setenv("MMTBX_SFDIFF", "takeover")
    assert "does NOTHING" in startup_file.state() and "--install-startup" in startup_file.state()
    monkeypatch.setenv("MMTBX_SFDIFF", "yes")
    assert "is ignored" in startup_file.state()
    monkeypatch.setenv("MMTBX_SFDIFF", "0")
    assert "is not set" in startup_file.state()


REPORTED = """
import helper
import mmtbx_sfdiff
from cctbx import miller, xray
from cctbx.development import random_structure
from cctbx import sgtbx

s = random_structure.xray_structure(sgtbx.space_group_info("P21"), elements=["C"] * 3)
m = miller.build_set(s, False, d_min=3)
xray.structure_factors.from_scatterers(miller_set=m)(s, m, algorithm="sfdiff")
xray.structure_factors.from_scatterers(miller_set=m)(s, m, algorithm="direct")
print(helper.NAME)
"""


def test_a_script_runs_beside_its_own_modules_and_says_who_computed(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "helper.py").write_text("NAME = 'found'\n")
    (folder / "script.py").write_text(REPORTED)
    done = subprocess.run(
        [sys.executable, "-m", "mmtbx_sfdiff.command_line.run", "scripts/script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", MMTBX_SFDIFF_REPORT="1"),
    )
    assert (done.returncode, done.stdout) == (0, "found\n"), done.stderr
    assert done.stderr == "mmtbx_sfdiff: F_calc: 1 by mmtbx_sfdiff, 1 by cctbx\n"
