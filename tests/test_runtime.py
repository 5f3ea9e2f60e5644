"""Every order of imports ends in right numbers or in a clear message, never in a crash.

Each case needs a process of its own: what is loaded first cannot be undone.
"""

import functools
import importlib.util
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from mmtbx_sfdiff import _cctbx_loading, _runtime
from mmtbx_sfdiff.versions import versions

import pytest

ROOT = Path(__file__).resolve().parent.parent
wheel_only = pytest.mark.skipif(
    not _cctbx_loading.bundled_libstdcxx(), reason="this cctbx brings no C++ runtime of its own"
)
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

# Numbers of torch against NumPy, and of cctbx's structure factors against their sum written out in torch.
CHECK_NUMBERS = """
import numpy as np, torch
print("threads", torch.get_num_threads())
rng = np.random.default_rng(0)
grid, square = rng.standard_normal((60, 64, 72)), rng.standard_normal((400, 400))
square += 40 * np.eye(400)
index, values = rng.integers(0, 1000, 300000), rng.standard_normal(300000)
fft, inverse, sums = np.fft.rfftn(grid), np.linalg.inv(square), np.bincount(index, values, 1000)
for _ in range(4):
    found = torch.fft.rfftn(torch.from_numpy(grid)).numpy()
    assert abs(found - fft).max() < 1e-12 * abs(fft).max(), "fft"
    found = (torch.from_numpy(square) @ torch.from_numpy(inverse)).numpy()
    assert abs(found - np.eye(400)).max() < 1e-10, "matmul"
    assert abs(torch.linalg.inv(torch.from_numpy(square)).numpy() - inverse).max() < 1e-10, "inverse"
    zeros = torch.zeros(1000, dtype=torch.float64)
    found = zeros.index_add(0, torch.from_numpy(index), torch.from_numpy(values))
    assert abs(found.numpy() - sums).max() < 1e-10, "index_add"

from cctbx import crystal, miller, xray
from cctbx.array_family import flex
sites = [(0.1, 0.2, 0.3), (0.45, 0.7, 0.9), (0.8, 0.15, 0.6)]
structure = xray.structure(
    crystal_symmetry=crystal.symmetry(unit_cell=(10, 12, 15, 80, 95, 105), space_group_symbol="P1"),
    scatterers=flex.xray_scatterer([xray.scatterer("C", site=s, u=0.0) for s in sites]))
structure.scattering_type_registry(table="it1992")
f_calc = structure.structure_factors(d_min=1.5, algorithm="direct").f_calc()
h = torch.tensor(list(f_calc.indices()), dtype=torch.float64)
form_factor = structure.scattering_type_registry().gaussian("C")
f0 = torch.tensor([form_factor.at_d_star_sq(d) for d in f_calc.d_star_sq().data()], dtype=torch.float64)
x = torch.tensor(square, requires_grad=True)
(x @ x).sum().backward()
one = torch.ones(400, 400, dtype=torch.float64)
assert abs(x.grad - (one @ torch.tensor(square).T + torch.tensor(square).T @ one)).max() < 1e-9, "autograd"
assert abs(float(torch.tensor(values).sum()) - values.sum()) < 1e-9, "sum"
expected = f0 * torch.exp(2j * torch.pi * (h @ torch.tensor(sites, dtype=torch.float64).T)).sum(1)
assert len(h) > 500
assert abs(f_calc.data().as_numpy_array() - expected.numpy()).max() < 1e-10, "structure factors"
try:
    crystal.symmetry(unit_cell=(1, 1, 1, 90, 90, 90), space_group_symbol="nonsense")
except RuntimeError:
    pass  # a C++ exception still crosses libraries
else:
    raise AssertionError("no exception from C++")
print("numbers are right")
"""


def run(code, **environment):
    """Run code in a fresh interpreter on two OpenMP threads; returns its completed process."""
    env = dict(os.environ, OMP_NUM_THREADS="2", PYTHONPATH=str(ROOT)) | environment
    env.pop("PYTHONWARNINGS", None)
    command = [sys.executable, "-c", code]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with any child that waits for ever
            out, err = process.communicate()
            pytest.fail("no end after 900 s:\n" + out + err)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def assert_right(result, threads):
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    assert "threads %d\n" % threads in result.stdout, report
    assert "numbers are right" in result.stdout, report
    assert "MKL ERROR" not in report, report


NAMES = {"torch": "import torch", "xray": "from cctbx import xray", "ours": "import mmtbx_sfdiff"}
ORDERS = list(itertools.permutations(NAMES))
OTHERS = ("", "import gemmi", "import scipy.optimize", "import matplotlib.pyplot")


def stubs_come_before_torch(order):
    return order[0] == "xray"


def cases():
    """Every order alone and after one other library; the rest is slow."""
    for number, order in enumerate(ORDERS):
        for place, other in enumerate(OTHERS):
            marks = () if place in (0, 1 + number % 3) else pytest.mark.slow
            yield pytest.param(order, other, marks=marks, id="-".join((*other.split()[1:], *order)))


@pytest.mark.cctbx
@linux_only
@pytest.mark.parametrize(("order", "other"), list(cases()))
def test_numbers_are_right_in_every_order_of_imports(order, other):
    startup = ""
    if order.index("xray") < order.index("ours") and (other or order[0] != "xray"):
        # Before this package is imported, only its start-up file can help; that is there where it was asked for.
        startup = "import mmtbx_sfdiff_startup; mmtbx_sfdiff_startup.start()\n"
    result = run(startup + "\n".join([other, *(NAMES[name] for name in order)]) + CHECK_NUMBERS)
    held = stubs_come_before_torch(order) and bool(_cctbx_loading.bundled_libstdcxx())
    assert_right(result, threads=1 if held else 2)
    assert result.stderr.count("RuntimeWarning: cctbx's OpenMP stubs") == int(held)
    if held:
        assert "LD_PRELOAD=" in result.stderr and "import torch or mmtbx_sfdiff before" in result.stderr.lower()
    else:
        assert "Warning" not in result.stderr


@pytest.mark.cctbx
@pytest.mark.parametrize("first", ["import numpy", "from cctbx.array_family import flex", "import gemmi, torch, numba"])
def test_numbers_are_right_after_other_libraries(first):
    result = run(first + "\nimport mmtbx_sfdiff\n" + CHECK_NUMBERS)
    assert_right(result, threads=2)
    assert "Warning" not in result.stderr


def test_import_loads_torch_and_nothing_of_cctbx():
    result = run(
        "import mmtbx_sfdiff, sys\n"
        "assert 'torch' in sys.modules\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'boost_adaptbx', 'cctbx', 'iotbx', 'libtbx', 'mmtbx', "
        "'scitbx', 'matplotlib', 'rich', 'jinja2', 'jsonschema', 'sympy'}), 'torch._dynamo' in sys.modules)"
    )
    assert result.stdout.split() == ["[]", "False"], result.stdout + result.stderr


@linux_only
@wheel_only
def test_stub_openmp_refuses_more_threads():
    result = run(
        "from cctbx import xray\nimport mmtbx_sfdiff, torch\ntorch.set_num_threads(1)\ntorch.set_num_threads(2)"
    )
    assert result.returncode == 1
    assert "RuntimeError: torch must stay on one thread in this process" in result.stderr


@linux_only
@wheel_only
def test_the_preload_that_the_warning_names_gives_both_threads_back():
    gomp = run("from cctbx import xray\nimport mmtbx_sfdiff").stderr.split("LD_PRELOAD=")[1].split(".\n")[0]
    assert Path(gomp).is_file()
    result = run("from cctbx import xray\nimport mmtbx_sfdiff\n" + CHECK_NUMBERS, LD_PRELOAD=gomp)
    assert_right(result, threads=2)
    assert "Warning" not in result.stderr


@functools.cache
def torch_first_crashes():
    """Whether cctbx after torch ends in a crash without this package, as with the wheels of torch up to 2.13."""
    return run("import torch\nfrom cctbx import xray").returncode != 0


def crashing(cache, code):
    # Without RTLD_GLOBAL the C++ runtime cannot be shared, as on a system where it is too old to be.
    return run(
        "import os, mmtbx_sfdiff._cctbx_loading as loading\nloading._BINDING = os.RTLD_NOW\n" + code,
        XDG_CACHE_HOME=str(cache),
    )


@linux_only
@wheel_only
def test_a_crash_that_cannot_be_avoided_is_an_import_error_where_cctbx_is_wanted(tmp_path):
    if not torch_first_crashes():
        pytest.skip("this torch and this cctbx load in one process by themselves")
    for code in ("from cctbx import xray", "mmtbx_sfdiff.Crystal.from_cctbx(None)"):
        result = crashing(tmp_path, "import mmtbx_sfdiff\nprint('imported')\n" + code)
        assert result.returncode == 1 and "imported" in result.stdout, result.stderr
        assert "ImportError: " in result.stderr and "Segmentation fault" not in result.stderr
        assert "cctbx cannot be loaded in this process: its own C++ runtime" in result.stderr
        assert "which torch" in result.stderr and "take cctbx from conda-forge" in result.stderr


@linux_only
@wheel_only
def test_whether_cctbx_loads_is_tried_once(tmp_path):
    count = (
        "import subprocess\nreal, calls = subprocess.run, []\n"
        "subprocess.run = lambda *a, **k: calls.append(a) or real(*a, **k)\n"
        "import torch, mmtbx_sfdiff\nassert not calls\nfrom cctbx import xray\nprint(len(calls))"
    )
    for tries in ("1", "0"):
        result = run(count, XDG_CACHE_HOME=str(tmp_path))
        assert result.stdout.split() == [tries], result.stderr
    answers = json.loads((tmp_path / "mmtbx_sfdiff" / "cctbx_loads.json").read_text())
    assert list(answers.values()) == [True]
    crashes = torch_first_crashes()
    assert crashing(tmp_path, "from cctbx import xray").returncode == crashes
    answers = json.loads((tmp_path / "mmtbx_sfdiff" / "cctbx_loads.json").read_text())
    assert list(answers.values()) == [True, not crashes]  # another question has another answer
    (tmp_path / "mmtbx_sfdiff" / "cctbx_loads.json").write_text("not JSON")
    assert run("import torch, mmtbx_sfdiff\nfrom cctbx import xray", XDG_CACHE_HOME=str(tmp_path)).returncode == 0


@pytest.mark.cctbx
def test_where_nothing_can_be_written_cctbx_loads_all_the_same():
    result = run("import torch, mmtbx_sfdiff\nfrom cctbx import xray\nprint('loaded')", XDG_CACHE_HOME="/proc/nowhere")
    assert "loaded" in result.stdout, result.stderr


@linux_only
@wheel_only
def test_the_self_test_sees_wrong_threads():
    result = run(
        "from cctbx import xray\n"
        "import mmtbx_sfdiff._runtime as runtime, torch\n"
        "torch._C.set_num_threads(2)  # past the guard\n"
        "for _ in range(100):\n"
        "    runtime.self_test(torch)\n"
    )
    assert "ImportError: torch computes wrong numbers in this process" in result.stderr, result.stderr
    assert "libomptbx" in result.stderr


def test_missing_cctbx_is_named_with_the_remedy():
    result = run(
        "import sys; sys.modules['boost_adaptbx'] = None\nimport mmtbx_sfdiff\nmmtbx_sfdiff.Crystal.from_cctbx(1)"
    )
    assert result.returncode == 1
    assert (
        "ImportError: Crystal.from_cctbx needs cctbx: install it with `pip install 'mmtbx_sfdiff[cctbx]'"
        in result.stderr
    )


def test_importing_changes_no_thread_count():
    result = run(
        "import torch\nbefore = torch.get_num_threads()\nimport mmtbx_sfdiff\nprint(before, torch.get_num_threads())"
    )
    assert result.stdout.split() == ["2", "2"], result.stderr


def test_self_test_passes_in_another_thread():
    import torch

    errors = []

    def check():
        try:
            _runtime.self_test(torch)
        except ImportError as error:
            errors.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert not errors


FORK = """
import mmtbx_sfdiff, torch

def work(seed):
    x = torch.linspace(0, 1, 48 * 60 * 60, dtype=torch.float64).reshape(48, 60, 60).requires_grad_()
    (torch.fft.rfftn(x * seed).abs() ** 2).sum().backward()
    m = torch.ones(300, 300, dtype=torch.float64, requires_grad=True)
    (m @ m).sum().backward()
    return float(x.grad.sum()), float(m.grad.sum()), torch.get_num_threads()

here = work(2)
assert here[2] == 2
%s
for there in results:
    assert there[2] == 1, there
    assert abs(there[0] / here[0] - 1) < 1e-10 and there[1] == here[1], (here, there)
assert work(2) == here or abs(work(2)[0] / here[0] - 1) < 1e-10  # the parent goes on with its threads
assert torch.get_num_threads() == 2
print("forked")
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.parametrize(
    "fork",
    [
        "import multiprocessing\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    results = pool.map_async(work, [2, 2, 2]).get(600)",
        pytest.param(
            "from libtbx import easy_mp\nresults = easy_mp.pool_map(fixed_func=work, args=[2, 2, 2], processes=2)",
            marks=pytest.mark.cctbx,
        ),
    ],
    ids=["multiprocessing", "easy_mp"],
)
def test_forked_children_of_a_threaded_parent_finish(fork):
    result = run(FORK % fork)
    assert result.returncode == 0 and "forked" in result.stdout, result.stderr


def test_versions_names_everything_that_computes():
    found = versions()
    assert set(found) == {"mmtbx_sfdiff", "python", "platform", "cctbx", "torch", "gemmi", "numpy", "scipy"}
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    if importlib.util.find_spec("cctbx") is None:
        assert found.pop("cctbx") is None
    else:
        assert found["cctbx"][:2] == "20"  # cctbx versions are years
    assert all(found.values()), found
