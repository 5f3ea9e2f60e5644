"""Compiling ahead: nothing is left for the first call, and where it is kept."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mmtbx_sfdiff
from mmtbx_sfdiff import kernels
from mmtbx_sfdiff.kernels import compilation

import pytest

from tests.support.torch_versions import of_known_layouts

ROOT = Path(__file__).resolve().parents[2]


def run(code, folder, **environment):
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "user"), "PYTHONPATH": str(ROOT), **environment}
    environment.pop("NUMBA_CACHE_DIR" if "NUMBA_CACHE_DIR" not in environment else "", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@of_known_layouts
def test_every_signature_with_which_the_kernels_are_called_is_listed():
    """Otherwise write the table anew: python -m validation.studies.kernel_signatures."""
    command = [sys.executable, "-m", "validation.studies.kernel_signatures", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


AHEAD = """
from mmtbx_sfdiff import kernels
said = []
groups = ("structure_factors",)
n = kernels.compile(lambda done, n: said.append((done, n)), groups, n_processes={n})
assert said[-1] == (n, n) and said == sorted(said), said
assert kernels.compile(lambda *_: said.append(None), groups) == 0 and said[-1] == (n, n)
compiled = []
from numba.core import event
class Listener(event.Listener):
    def on_start(self, one): pass
    def on_end(self, one): compiled.append(one.data["dispatcher"].py_func)
event.register("numba:compile", Listener())
import sys
sys.argv.append("--check")
from validation.studies.kernel_signatures import calls
calls("structure_factors")
ours = [f.__name__ for f in compiled if f.__module__.startswith("mmtbx_sfdiff")]
assert not ours, ours
print(n)
"""


@of_known_layouts
@pytest.mark.parametrize("n_processes", [1, 2])
def test_what_was_compiled_ahead_is_not_compiled_again(tmp_path, n_processes):
    (n,) = run(AHEAD.format(n=n_processes), tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "numba"))
    assert int(n) > 5
    assert list(tmp_path.glob("numba/**/*.nbi"))


SLOW_KEEPER = """
import time
from mmtbx_sfdiff.kernels import compilation
hand_out = compilation.Compilation._hand_out
def slowly(self):
    hand_out(self)
    time.sleep(0.5)
compilation.Compilation._hand_out = slowly
print(compilation.compile(groups=("structure_factors",), n_processes=2))
print(compilation.compile(groups=("structure_factors",), n_processes=2))
"""


def test_when_all_is_compiled_nothing_is_left_running(tmp_path):
    first, second = run(SLOW_KEEPER, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "numba"))
    assert int(first) > 5 and int(second) == 0


SMALL = """
import sys
from mmtbx_sfdiff.kernels import compilation
from mmtbx_sfdiff.kernels.cpu.histogram import summary
task = next(t for t in compilation._tasks(("structure_factors",)) if t[1] == "cpu.histogram.summary")
print(compilation.__file__, compilation._compile_one(task) or "nowhere")
"""


def copied(folder):
    """A copy of the package in whose folders nothing can be written, whoever asks: a file is in the way."""
    package = folder / "site" / "mmtbx_sfdiff"
    shutil.copytree(Path(mmtbx_sfdiff.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for place in [package, *package.rglob("*")]:
        if place.is_dir():
            (place / "__pycache__").write_text("in the way")
    return str(folder / "site")


def test_where_the_package_cannot_be_written_the_users_cache_is(tmp_path):
    file, place = run(SMALL, tmp_path, PYTHONPATH=copied(tmp_path))
    assert file.startswith(str(tmp_path / "site"))
    assert place.startswith(str(tmp_path / "user")) and list(Path(place).glob("*.nbi"))


def test_where_nothing_can_be_written_kernels_still_work(tmp_path):
    (tmp_path / "user").write_text("in the way")
    file, place = run(SMALL, tmp_path, PYTHONPATH=copied(tmp_path), HOME="/dev/null")
    assert file.startswith(str(tmp_path / "site")) and place == "nowhere"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are for Linux")
def test_a_child_that_is_ended_keeps_nobody_waiting(tmp_path):
    code = """
import os, signal
from mmtbx_sfdiff.kernels import compilation
begun = compilation.start(("gradients",), 2)
for worker in begun._workers.values():
    os.kill(worker.pid, signal.SIGKILL)
begun.wait()
assert not begun.finished and compilation.start(("gradients",), 2)._todo
print("went on")
"""
    assert run(code, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "numba")) == ["went", "on"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are for Linux")
def test_children_end_with_their_parent(tmp_path):
    code = """
from mmtbx_sfdiff.kernels import compilation
begun = compilation.start(("gradients",), 2)
print(*[worker.pid for worker in begun._workers.values()], flush=True)
input()
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba"), "XDG_CACHE_HOME": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as parent:
        children = [int(word) for word in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.send_signal(signal.SIGKILL)
    for _ in range(600):  # each goes on to the end of its function
        if not any(_alive(child) for child in children):
            return
        time.sleep(0.1)
    raise AssertionError(f"{children} live on")


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_group_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="no kernels for colours: choose from structure_factors"):
        kernels.compile(groups=("colours",))


def test_all_groups_are_in_the_table():
    assert {group for group, _, _ in compilation.read_signatures()} == set(compilation.ALL_GROUPS)


BEGUN = """
from mmtbx_sfdiff.kernels import compilation
begun = compilation.start(("direct", "gradients"), n_processes=2)
assert begun.running and compilation.start(("direct",)) is begun
compilation.finish(groups=("direct",))
assert not any(begun._missing[group] for group in ("direct",))
n = compilation.start(("direct", "masks"), n_processes=1).wait()  # another: the end of the first comes before it
assert begun.finished and not begun.running
compilation.finish()
print(n, sum(group in ("direct", "masks") for group, *_ in compilation.read_signatures()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are forked on Linux only")
def test_what_a_program_began_is_what_it_waits_for(tmp_path):
    found, listed = run(BEGUN, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "numba"))
    assert found == listed


PROGRAM = """
import gc, sys
sys.argv = ["{name}", *{words}]
import mmtbx_sfdiff
from mmtbx_sfdiff import command_line
from mmtbx_sfdiff.kernels import compilation
started = []
compilation.start = started.append
command_line.compile_meanwhile(None)
command_line.load("common")
assert gc.isenabled()
print(len(started), gc.get_freeze_count() > 10_000)
"""


@pytest.mark.parametrize(
    "name, words, expected",
    [
        ("mmtbx_sfdiff.refine", ["demo"], ["1", "True"]),
        ("mmtbx_sfdiff.refine", ["demo", "--show-defaults"], ["0", "True"]),
        ("mmtbx_sfdiff.refine", [], ["0", "True"]),
        ("another_program", ["demo"], ["0", "False"]),
    ],
)
def test_a_program_that_computes_begins_to_compile_and_keeps_what_is_loaded(tmp_path, name, words, expected):
    pytest.importorskip("libtbx")
    assert run(PROGRAM.format(name=name, words=words), tmp_path) == expected


AT_THE_END = """
from mmtbx_sfdiff import command_line
command_line.is_program = lambda: True
command_line._keep_what_is_loaded()
import torch, triton
torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])
"""


def test_a_program_that_has_loaded_triton_ends_without_a_word(tmp_path):
    pytest.importorskip("triton")
    pytest.importorskip("libtbx")
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
