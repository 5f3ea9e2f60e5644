"""``mmtbx_sfdiff.compare``, from the command line to the files it leaves behind."""

import html.parser
import json
import math
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import torch
from mmtbx_sfdiff.command_line.compare import run
from mmtbx_sfdiff.comparison import (
    Comparison,
    Settings,
    figure,
    measure,
    output,
    page,
    schema,
    statistics,
    table,
    timing,
)
from mmtbx_sfdiff.comparison import mmtbx_numbers as reference
from mmtbx_sfdiff.comparison.section import mask_section
from mmtbx_sfdiff.files import load_entry

import mmtbx.f_model
import mmtbx.masks
import numpy as np
import pytest
from cctbx.array_family import flex
from libtbx.utils import Sorry, null_out
from matplotlib.text import Text

from tests.support.processes import heed_interrupts

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("html", "json", "pdf", "png")


def strict_json(path):
    """Read JSON, refusing the NaN and Infinity that Python would let through."""

    def refuse(word):
        raise AssertionError(f"{word} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def subprocess_run(arguments, **kwargs):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    return subprocess.Popen(
        [sys.executable, "-m", "mmtbx_sfdiff.command_line.compare", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
        **kwargs,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(folder, result, output) of the demonstration."""
    folder = tmp_path_factory.mktemp("demo")
    process = subprocess_run(["demo", "n_timing=1", "reference_step=0.3"], cwd=folder)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return folder, strict_json(folder / "demo_compare.json"), out


@pytest.fixture(scope="module")
def files_1yjp(pdb_dir):
    return [str(pdb_dir / "1yjp" / name) for name in ("1yjp.pdb.gz", "1yjp-sf.cif.gz")]


@pytest.fixture(scope="module")
def entry(files_1yjp):
    return load_entry(*files_1yjp)


@pytest.fixture(scope="module")
def result(files_1yjp, tmp_path_factory):
    """1yjp with mmtbx's own mask, so that every number has a twin that cctbx computes alone."""
    folder = tmp_path_factory.mktemp("1yjp")
    # Files in either order; a folder that does not exist yet.
    assert (
        run(
            [
                *reversed(files_1yjp),
                "mask=binary",
                "method=direct",
                "n_timing=1",
                "reference_step=0.3",
                f"output.directory={folder / 'new'}",
                "prefix=x",
            ]
        )
        == 0
    )
    assert sorted(path.name for path in (folder / "new").iterdir()) == [f"x_compare.{kind}" for kind in KINDS]
    return strict_json(folder / "new" / "x_compare.json")


# what is written


def test_demo_leaves_its_four_files_and_a_folder_of_its_own_that_is_named(demo):
    folder, result, out = demo
    assert sorted(path.name for path in folder.iterdir()) == [*(f"demo_compare.{kind}" for kind in KINDS), "demo_files"]
    own = sorted(path.name for path in (folder / "demo_files").iterdir())
    assert len(own) == 2 and all(f"demo_files/{name}" in out for name in own)
    assert schema.errors(result) == []
    assert (folder / "demo_compare.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "demo_compare.pdf").read_bytes().startswith(b"%PDF")
    assert not list(folder.glob(".*"))


def test_demo_says_everywhere_that_it_is_simulated(demo):
    folder, result, out = demo
    assert result["simulated"] and "SIMULATED" in result["entry"] and "SIMULATED" in result["files"]["labels"]
    assert "SIMULATED" in out.split("Agreement")[0]
    text = (folder / "demo_compare.html").read_text()
    assert "SIMULATED" in text.split("</title>")[0] and 'class="simulated"' in text
    # R factors of a header were measured on other data.
    assert result["r_factors"]["deposited"] == {"r_work": None, "r_free": None}


def test_plain_output_has_no_terminal_codes(demo):
    assert "\x1b" not in demo[2]
    assert "\x1b" in table.render(demo[1], terminal=True, width=100)


def test_agreement_of_the_demo(demo):
    result = demo[1]
    for part in (result["f_protein"], result["gradients"]):
        assert part["relative_l2_vs_direct"] < 1e-3 < part["mmtbx_fft_relative_l2_vs_direct"]
    assert result["f_protein"]["relative_l2_vs_direct"] < 1e-4
    # 3 % noise was put in.
    assert 0.02 < result["r_factors"]["mmtbx"]["r_work"] < 0.05
    assert result["f_mask"]["density_cutoff"]["cc"] < result["f_mask"]["mmtbx_default"]["cc"]


# numbers, against cctbx called directly


def test_header(result, entry):
    structure, f_obs = entry.model.xray_structure, entry.data.f_obs
    assert result["entry"] == "1yjp" and result["space_group"] == str(f_obs.space_group_info())
    assert result["unit_cell"] == pytest.approx(structure.unit_cell().parameters())
    assert (result["d_max"], result["d_min"]) == pytest.approx(f_obs.d_max_min())
    assert (result["n_atoms"], result["n_reflections"]) == (structure.scatterers().size(), f_obs.size())
    assert result["n_free"] == entry.data.r_free_flags.data().count(True)
    assert result["versions"]["torch"] == torch.__version__ and not result["simulated"]


def test_f_protein(result, entry):
    f = {
        name: entry.data.f_obs.structure_factors_from_scatterers(entry.model.xray_structure, algorithm=name)
        .f_calc()
        .data()
        .as_numpy_array()
        for name in ("direct", "fft")
    }
    error = np.linalg.norm(f["fft"] - f["direct"]) / np.linalg.norm(f["direct"])
    part = result["f_protein"]
    assert part["mmtbx_fft_relative_l2_vs_direct"] == pytest.approx(error, rel=1e-6)
    fft, exact = abs(f["fft"]), abs(f["direct"])
    assert part["mmtbx_fft"]["cc"] == pytest.approx(np.corrcoef(fft, exact)[0, 1], abs=1e-12)
    assert part["relative_l2_vs_direct"] < 1e-12 and part["cc"] == pytest.approx(1, abs=1e-12)
    d = entry.data.f_obs.d_spacings().data().as_numpy_array()
    assert sum(shell["n"] for shell in part["shells"]) == len(d)
    for shell in part["mmtbx_fft"]["shells"]:
        first = shell["d_max"] == result["d_max"]
        inside = (d >= shell["d_min"]) & ((d < shell["d_max"]) | first)
        assert inside.sum() == shell["n"]
        assert shell["cc"] == pytest.approx(np.corrcoef(fft[inside], exact[inside])[0, 1], abs=1e-12)


def test_f_mask_and_map(result, entry):
    managers, f = {}, {}
    for step in (0.6, 0.3):
        parameters = mmtbx.masks.mask_master_params.extract()
        parameters.step = step
        # All reflections, with mmtbx's own cut at 3 Å, through the f_model.
        managers[step] = mmtbx.f_model.manager(
            f_obs=entry.data.f_obs, xray_structure=entry.model.xray_structure, mask_params=parameters
        )
        low = managers[step].f_obs().d_spacings().data() >= 3
        f[step] = abs(managers[step].f_masks()[0].data().select(low).as_numpy_array())
    part, maps = result["f_mask"], result["mask_map"]
    assert part["reference"] == "mmtbx at 0.3 Å"
    assert part["mmtbx_default"]["cc"] == pytest.approx(np.corrcoef(f[0.6], f[0.3])[0, 1], abs=1e-9)
    assert part["cc"] == pytest.approx(part["mmtbx_default"]["cc"], abs=1e-9)
    assert sum(shell["n"] for shell in part["shells"]) == len(f[0.6])
    complete = entry.data.f_obs.complete_set(d_min=3).array(flex.double(entry.data.f_obs.complete_set(d_min=3).size()))
    f_mask = [abs(reference.f_mask(entry.model.xray_structure, complete, step)) for step in (0.6, 0.3)]
    whole = part["mmtbx_default"]["complete"]
    assert complete.size() > len(f[0.6]) and sum(shell["n"] for shell in whole["shells"]) == complete.size()
    assert whole["cc"] == pytest.approx(np.corrcoef(*f_mask)[0, 1], abs=1e-9)
    assert maps["cc"] == pytest.approx(1, abs=1e-9)
    share = managers[0.6].mask_manager.solvent_content_via_mask
    for name in ("solvent_fraction", "solvent_fraction_mmtbx"):
        assert maps[name] == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("name, algorithm", [("mmtbx", "fft"), ("mmtbx_direct", "direct"), ("sfdiff", "direct")])
def test_r_factors(result, entry, name, algorithm):
    parameters = mmtbx.f_model.sf_and_grads_accuracy_master_params.extract()
    parameters.algorithm = algorithm
    manager = mmtbx.f_model.manager(
        f_obs=entry.data.f_obs,
        r_free_flags=entry.data.r_free_flags,
        xray_structure=entry.model.xray_structure,
        sf_and_grads_accuracy_params=parameters,
    )
    manager.update_all_scales(log=null_out())
    part = result["r_factors"][name]
    assert (part["r_work"], part["r_free"]) == pytest.approx((manager.r_work(), manager.r_free()), abs=1e-6)
    assert part["n_used"] == manager.f_obs().size()
    assert result["r_factors"]["deposited"] == {"r_work": 0.181, "r_free": 0.190}


def test_own_scaling_stands_beside_mmtbx(result, demo):
    """Same R factors and reflections from the same structure factors, in both tables and with both times."""
    for r in (result, demo[1]):
        part = r["r_factors"]
        for name in ("sfdiff", "mmtbx"):
            assert part["sfdiff_scaling"][name] == pytest.approx(part[name], abs=1e-6), name
        assert 0 < r["timing_s"]["scaling"]["sfdiff"] < 60 and 0 < r["timing_s"]["scaling"]["mmtbx"] < 60
    rows = [row for row in table.rows_of_r_factors(result) if "scales of mmtbx_sfdiff" in row[0]]
    assert [row[1] for row in rows] == [f"{result['r_factors'][name]['r_work']:.4f}" for name in ("sfdiff", "mmtbx")]


def test_gradients(result):
    assert result["gradients"]["relative_l2_vs_direct"] < 1e-12
    assert 1e-3 < result["gradients"]["mmtbx_fft_relative_l2_vs_direct"] < 0.1


def test_times_were_measured(result):
    for step in ("f_protein", "f_mask", "gradients"):
        assert 0 < result["timing_s"][step]["sfdiff"] < 60 and 0 < result["timing_s"][step]["mmtbx"] < 60
    assert result["timing_s"]["conditions"]["threads_sfdiff"] == torch.get_num_threads()


def test_kernels_are_compiled_before_anything_is_timed(tmp_path, demo):
    """In a fresh cache, by the suite's way in: not even a first call, which counts where it is slow, has a compilation in it."""
    program = """
import sys
from mmtbx_sfdiff.comparison import Settings, bench, measure
from mmtbx_sfdiff.comparison.settings import kernels_for
from mmtbx_sfdiff.files import load_entry
from mmtbx_sfdiff.kernels import compilation

compiled = []
first, compile_one = bench.Bench._first, compilation._compile_one
compilation._compile_one = lambda task: compiled.append(task) or compile_one(task)

def noted(self, function):
    result, seconds = first(self, function)
    assert self.compiling.finished or seconds == 0
    return result, seconds

bench.Bench._first = noted
timed = bench.side_by_side
bench.side_by_side = lambda functions, first_times, *rest: print("timed", len(compiled)) or timed(functions, first_times, *rest)
settings = Settings(n_timing=1, reference_step=0.6, direct_terms=1e5, gradient_terms=1e5)
measure(load_entry(*sys.argv[1:]), settings)
assert compiled and compilation.start(kernels_for(settings)).finished
"""
    files = demo[0] / "demo_files"
    model, data = (next(files.glob(pattern)) for pattern in ("*.pdb", "*.mtz"))
    done = subprocess.run(
        [sys.executable, "-c", program, model, data],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    numbers = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("timed")}
    assert len(numbers) == 1 and int(numbers.pop()) > 5


def test_reference_on_a_part_of_the_reflections(entry, result):
    """Where direct summation would take too long, a random part of the reflections stands for all."""
    n_atoms, order = result["n_atoms"], entry.model.xray_structure.space_group().order_z()
    part = measure(
        entry,
        Settings(mask="binary", method="direct", n_timing=1, reference_step=0.6, direct_terms=100 * n_atoms * order),
    ).result
    assert part["f_protein"]["n_reflections"] == 100 and part["f_protein"]["relative_l2_vs_direct"] < 1e-12
    assert sum(shell["n"] for shell in part["f_protein"]["shells"]) == 100
    assert part["r_factors"]["mmtbx_direct"] is None and schema.errors(part) == []
    assert part["r_factors"]["sfdiff"] == result["r_factors"]["sfdiff"]
    assert "direct summation" not in [row[0] for row in table.rows_of_r_factors(part)]


def test_limits_and_no_free_flags(files_1yjp, tmp_path):
    """Without reflections to 3 Å there is no F_mask, without flags no R-free; neither is an error."""
    assert (
        run(
            [
                *files_1yjp,
                "d_max=2.9",
                "d_min=2",
                "read_free_flags=False",
                "n_timing=1",
                "reference_step=0.6",
                "dtype=float32",
                f"directory={tmp_path}",
            ]
        )
        == 0
    )
    result = strict_json(tmp_path / "1yjp_compare.json")
    assert 2 <= result["d_min"] and result["d_max"] <= 2.9
    assert result["n_free"] is None and result["r_factors"]["sfdiff"]["r_free"] is None
    assert result["f_mask"]["cc"] is None and result["f_mask"]["shells"] == []
    assert 1e-9 < result["f_protein"]["relative_l2_vs_direct"] < 1e-5
    assert (tmp_path / "1yjp_compare.png").stat().st_size > 10000


def test_measuring_changes_nothing_and_tells_what_it_does(entry):
    def state():
        structure, f_obs = entry.model.xray_structure, entry.data.f_obs
        return (
            [(s.site, s.occupancy, s.u_iso, s.flags.bits) for s in structure.scatterers()],
            list(f_obs.data()),
            list(f_obs.indices()),
            structure.scattering_type_registry().last_table(),
        )

    before, steps = state(), []
    comparison = measure(
        entry, Settings(n_timing=1, reference_step=0.6), lambda step, fraction=None: steps.append((step, fraction))
    )
    assert state() == before
    assert any("direct summation" in step and fraction == 1 for step, fraction in steps)
    assert any("scaling" in step for step, _ in steps)
    # mmtbx's default against itself.
    assert comparison.result["f_mask"]["mmtbx_default"]["relative_l2"] == 0
    assert comparison.section.ours.shape == comparison.section.mmtbx.shape


@pytest.mark.gpu
def test_cuda(files_1yjp, tmp_path):
    assert run([*files_1yjp, "device=cuda", "n_timing=1", f"directory={tmp_path}"]) == 0
    result = strict_json(tmp_path / "1yjp_compare.json")
    assert result["f_protein"]["relative_l2_vs_direct"] < 1e-4
    assert result["timing_s"]["conditions"]["device_name"] == torch.cuda.get_device_name(0)


# the pieces of the reference


def test_portions_give_the_same_numbers(entry, monkeypatch):
    structure, f_obs = entry.model.xray_structure, entry.data.f_obs
    whole = reference.f_calc_direct(structure, f_obs)
    d_target = whole * np.exp(1j * np.arange(len(whole)))
    gradient = reference.site_gradients(structure, f_obs, d_target, "direct")
    monkeypatch.setattr(reference, "_TERMS_PER_CALL", 66 * 2 * 100)
    fractions = []
    np.testing.assert_array_equal(reference.f_calc_direct(structure, f_obs, fractions.append), whole)
    assert fractions == sorted(fractions) and len(fractions) == 5 and fractions[-1] == 1
    parts = reference.site_gradients(structure, f_obs, d_target, "direct")
    assert np.linalg.norm(parts - gradient) < 1e-12 * np.linalg.norm(gradient)


def test_gradients_of_the_reference_are_those_of_its_structure_factors(entry):
    structure, f_obs = entry.model.xray_structure, entry.data.f_obs
    weights = np.exp(1j * np.arange(f_obs.size()))
    gradient = reference.site_gradients(structure, f_obs, weights, "direct")

    def target(shift):
        moved = structure.deep_copy_scatterers()
        sites = moved.sites_cart()
        sites[7] = tuple(x + dx for x, dx in zip(sites[7], shift))
        moved.set_sites_cart(sites)
        return (reference.f_calc_direct(moved, f_obs) * weights.conj()).real.sum()

    for axis in range(3):
        step = np.eye(3)[axis] * 1e-4
        assert (target(step) - target(-step)) / 2e-4 == pytest.approx(gradient[7, axis], rel=1e-5)


def test_mask_map_of_the_reference_has_the_symmetry_of_its_structure_factors(entry):
    structure = entry.model.xray_structure
    f_obs = entry.data.f_obs.resolution_filter(d_min=3)
    values = reference.f_mask(structure, f_obs, 0.6)
    grid = mmtbx.masks.asu_mask(xray_structure=structure).n_real
    mask = reference.mask_map(structure, grid)
    assert set(np.unique(mask)) == {0.0, 1.0}
    transformed = f_obs.structure_factors_from_map(flex.double(mask), use_scale=True, use_sg=False).data()
    assert np.linalg.norm(transformed.as_numpy_array() - values) < 1e-12 * np.linalg.norm(values)


def test_affordable_mask_step(entry):
    symmetry = entry.data.f_obs.crystal_symmetry()
    assert reference.affordable_mask_step(symmetry, 0.15) == 0.15
    step = reference.affordable_mask_step(symmetry, 0.15, max_points=20000)
    assert 0.45 < step < 0.6 and symmetry.unit_cell().volume() / step**3 < 25000


# statistics and timing


def test_statistics():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 500))
    assert statistics.correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert statistics.correlation(x, np.ones(500)) is None and statistics.correlation(x[:2], y[:2]) is None
    assert statistics.relative_l2(x, np.zeros(500)) is None
    assert statistics.relative_l2(1.1 * x, x) == pytest.approx(0.1)
    # Sparse at both ends: shells are joined, none is lost.
    d = np.concatenate([[30, 25, 20], rng.uniform(2.5, 8, 2000), [2.0, 1.9, 1.8]])
    shells = statistics.by_shell(d, rng.normal(size=len(d)), rng.normal(size=len(d)))
    assert sum(shell["n"] for shell in shells) == len(d) and min(shell["n"] for shell in shells) >= 100
    assert len(shells) > 3 and (shells[0]["d_max"], shells[-1]["d_min"]) == (30, 1.8)
    assert all(a["d_min"] == b["d_max"] for a, b in zip(shells, shells[1:]))
    assert statistics.by_shell([], [], []) == []


def test_times_are_taken_in_turns_and_slow_calls_once(monkeypatch):
    # The clock goes on where a call says so, and only there.
    now, calls = [100.0], []

    def take(seconds, result=None):
        now[0] += seconds
        return result

    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    lasting = iter([3.0, 1.0, 2.0])
    functions = {
        "a": lambda: calls.append("a"),
        "b": lambda: calls.append("b") or take(next(lasting)),
        "slow": lambda: calls.append("slow"),
    }
    seconds = timing.side_by_side(functions, {"a": 1.0, "b": 1.0, "slow": 2 * timing.SLOW}, 3)
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": 0.0, "b": 2.0, "slow": 2 * timing.SLOW}
    # What is prepared is passed on and not timed.
    prepare = {"a": lambda: take(5.0, "made")}
    seconds = timing.side_by_side({"a": lambda x: take(0.5, calls.append(x))}, {"a": 0.0}, 1, prepare)
    assert calls[-1] == "made" and seconds == {"a": 0.5}


# schema and files


def test_schema_finds_faults(result):
    def broken(change):
        copy = json.loads(json.dumps(result))
        change(copy)
        return schema.errors(copy)

    assert schema.errors(result) == []
    assert broken(lambda r: r.pop("f_mask")) == ["$: 'f_mask' is a required property"]
    assert "cc" in broken(lambda r: r["f_protein"].update(cc=1.5))[0]
    assert "r_work" in broken(lambda r: r["r_factors"]["sfdiff"].update(r_work=None))[0]
    assert "n_atoms" in broken(lambda r: r.update(n_atoms=True))[0]
    assert "unit_cell" in broken(lambda r: r["unit_cell"].pop())[0]
    assert "shells[0].n" in broken(lambda r: r["f_mask"]["shells"][0].update(n="many"))[0]
    assert broken(lambda r: r.update(schema_version=99))
    assert broken(lambda r: r["f_mask"].update(equal_radii=3))
    assert "unit_cell" in broken(lambda r: r["unit_cell"].__setitem__(0, 0))[0]


def test_json_has_no_nan_and_a_wrong_result_is_not_written(result):
    copy = json.loads(json.dumps(result))
    copy["f_mask"]["cc"] = math.nan
    assert json.loads(output.json_text(copy))["f_mask"]["cc"] is None
    del copy["timing_s"]
    with pytest.raises(ValueError, match="timing_s"):
        output.json_text(copy)


def test_files_are_replaced_but_folders_are_not(tmp_path):
    paths = output.paths(tmp_path, "a", ["json", "png"])
    output.write_all({paths["json"]: b"1", paths["png"]: b"2"})
    assert paths["png"].read_bytes() == b"2" and paths["png"].stat().st_mode & 0o444
    output.check_writable(list(paths.values()))
    output.write_all({paths["json"]: b"3"})
    assert paths["json"].read_bytes() == b"3" and sorted(tmp_path.iterdir()) == sorted(paths.values())
    (tmp_path / "b_compare.json").mkdir()
    with pytest.raises(Sorry, match="is a folder"):
        output.check_writable([tmp_path / "b_compare.json"])


def test_pipes_are_written_to_and_links_followed(tmp_path):
    pipe, target, link = (tmp_path / name for name in ("pipe", "target", "link"))
    os.mkfifo(pipe)
    target.write_bytes(b"0")
    link.symlink_to(target)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    output.write_all({pipe: b"1", link: b"2"})
    assert reader.communicate(timeout=600)[0] == b"1" and pipe.is_fifo()
    assert link.is_symlink() and target.read_bytes() == b"2"


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of files, in a process of its own, stands in for the disk."""
    script = """if True:
        import resource, signal, sys
        from pathlib import Path
        import mmtbx_sfdiff
        from libtbx.utils import Sorry
        from mmtbx_sfdiff.comparison import output
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        folder = Path(sys.argv[1])
        try:
            output.write_all({folder / "a.json": b"x" * 100, folder / "a.png": b"x" * 100000})
        except Sorry as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "Cannot write" in done.stdout and "a.png" in done.stdout, done
    assert list(tmp_path.iterdir()) == []


# figure and page


def test_section_of_an_oblique_cell():
    ours, mmtbx_mask = np.zeros((2, 8, 4, 6))
    mmtbx_mask[:, 2] = 1
    section = mask_section(ours, mmtbx_mask, (40, 10, 30, 90, 120, 90))
    assert (section.axes, section.normal) == (("a", "c"), "b")
    # 24 % of this cell is solvent; the sections hold all or nothing, and the first is nearest.
    assert section.position == 0 and section.ours.shape == (6, 8)
    edge_a = np.array([section.x[0, -1] - section.x[0, 0], section.y[0, -1] - section.y[0, 0]])
    edge_c = np.array([section.x[-1, 0] - section.x[0, 0], section.y[-1, 0] - section.y[0, 0]])
    assert np.linalg.norm(edge_a) == pytest.approx(40) and np.linalg.norm(edge_c) == pytest.approx(30)
    assert edge_a @ edge_c == pytest.approx(40 * 30 * math.cos(math.radians(120)))


class Tags(html.parser.HTMLParser):
    """Elements, links and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.names, self.links, self.words, self.handlers = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        linking = ("src", "href", "srcset", "action", "data")
        self.links += [value for name, value in attributes if name in linking]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.words.append(data)


def test_page_is_self_contained(demo):
    folder, result, _ = demo
    tags = Tags((folder / "demo_compare.html").read_text())
    assert tags.links and all(link.startswith("data:image/svg+xml;base64,") for link in tags.links)
    assert "script" not in tags.names and "link" not in tags.names and tags.names.count("table") == 5
    text = " ".join(tags.words)
    assert f"{result['r_factors']['sfdiff']['r_work']:.4f}" in text
    assert f"{result['f_mask']['density_cutoff']['cc']:.4f}" in text
    style = (folder / "demo_compare.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_page_escapes_text_from_files(demo):
    result = json.loads(json.dumps(demo[1]))
    evil = '<script>alert(1)</script><img src=x onerror="alert(2)">&copy;'
    result["entry"] = result["files"]["labels"] = result["files"]["model"] = result["space_group"] = evil
    result["messages"] = [evil]
    tags = Tags(page.render(result, None))
    assert "script" not in tags.names and "img" not in tags.names and not tags.handlers and not tags.links
    assert " ".join(tags.words).count(evil) >= 5


def overlapping(drawing):
    """Pairs of texts of a figure that touch."""
    renderer = drawing.canvas.get_renderer()
    drawing.draw(renderer)
    beyond = set()  # labels of ticks outside the axis, which are not drawn
    for axes in drawing.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            beyond |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in drawing.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in beyond
    ]
    return [(a, b) for n, (a, one) in enumerate(boxes) for b, other in boxes[:n] if one.overlaps(other)]


def test_figure_says_what_it_shows(demo, tmp_path):
    """Text, units and size of the figure, made anew from what was stored."""
    ours, mmtbx_mask = np.random.default_rng(0).random((2, 12, 10, 8))
    comparison = Comparison(demo[1], mask_section(ours, mmtbx_mask.round(), demo[1]["unit_cell"]))
    drawing = figure.draw(comparison)
    drawn = [text for text in drawing.findobj(Text) if text.get_text().strip()]
    texts, sizes = [text.get_text() for text in drawn], [text.get_fontsize() for text in drawn]
    assert min(sizes) >= 7
    assert any("SIMULATED" in text for text in texts)
    for needle in ("resolution $d$ (Å)", "correlation", "wall time (s)", "along a (Å)", "density cutoff"):
        assert any(needle in text for text in texts), needle
    assert overlapping(drawing) == []
    files = figure.render(comparison, ("png", "svg"))
    assert files["png"] == figure.render(comparison, ("png",))["png"]
    assert b"<svg" in files["svg"]


# the command line


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nosuch.pdb"], "nosuch.pdb is not a file that exists"),
        (["demo", "bogus=1"], "not recognized"),
        (["demo", "d_min=abc"], 'd_min="abc"'),
        (["demo", "d_min=-1"], "d_min=-1"),
        (["demo", "d_min=3", "d_max=2"], "No reflection is between"),
        (["demo", "accuracy=2"], "accuracy=2"),
        (["demo", "grid_step=0"], "grid_step=0"),
        (["demo", "grid_step=nan"], "grid_step"),
        (["demo", "n_timing=0"], "n_timing=0"),
        (["demo", "method=fast"], "method"),
        (["demo", "mask=none_such"], "mask"),
        (["demo", "device=tpu"], "device=tpu"),
        (["demo", "device=mps"], "device=mps"),
        (["demo", "mirrors=nowhere"], "mirrors=nowhere"),
        (["demo", "prefix=a/b"], "holds a folder"),
        (["demo", "1yjp"], "Give only one of"),
        (["1yjp", "1dur"], "Two values"),
        (["n_timing=1"], "Give one of"),
        (["zz9z", "download=False"], "zz9z"),
        (["9zzz", "download=False"], "downloading is off"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMTBX_SFDIFF_CACHE_DIR", str(tmp_path / "cache"))
    assert run(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("Sorry: ") and words in error and "Traceback" not in error
    assert not list(tmp_path.glob("*_compare.*"))


def test_bad_files(files_1yjp, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, data = files_1yjp
    (tmp_path / "empty.pdb").touch()
    (tmp_path / "bad.eff").write_text("compare { d_min = ")
    (tmp_path / "1yjp_compare.json").write_text("kept")
    (tmp_path / "plain").write_text("a file")
    for arguments, words in [
        ([model], "data file is missing"),
        ([data], "model file is missing"),
        (["empty.pdb", data], "empty.pdb is empty"),
        ([model, "bad.eff", data], "bad.eff"),
        ([model, data, "directory=plain/below"], "Cannot write to the folder"),
        ([model, data, "labels=XX"], "XX"),
        ([model, data, "prefix=y", "labels=XX"], "XX"),
        ([model, data, "prefix=y", "d_min=0.5"], "0.5"),
        ([model, data, "prefix=y", "scattering_table=neutron", "d_max=2", "d_min=1.9999"], ""),
    ]:
        assert run(arguments) == 1, arguments
        error = capsys.readouterr().err
        assert error.startswith("Sorry: ") and words in error and "Traceback" not in error, arguments
    assert (tmp_path / "1yjp_compare.json").read_text() == "kept"
    assert not list(tmp_path.glob("y_*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["demo", "device=cuda"]) == 1
    assert "device=cuda needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--help", "--show-defaults", "--version"])
def test_options_that_only_tell(option, capsys):
    assert run([option]) == 0
    out = capsys.readouterr().out
    assert "0.1" in out if option == "--version" else "entry_id" in out


def test_wrong_option(capsys):
    assert run(["demo", "--nonsense"]) == 2


def test_every_parameter_has_help_and_a_caption():
    from mmtbx_sfdiff.programs.compare import Program

    import iotbx.phil

    definitions = iotbx.phil.parse(Program.master_phil_str).all_definitions()
    assert len(definitions) > 20
    for definition in definitions:
        assert definition.object.help and definition.object.short_caption, definition.path


def test_dry_run_and_quiet(files_1yjp, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run([*files_1yjp, "--dry-run", "--quiet"]) == 0
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def test_ctrl_c_while_libraries_are_loaded(tmp_path):
    """A second after the start nothing is there yet that could answer: the process ends, without a traceback."""
    program = (
        "import sys; sys.argv[0] = '/usr/bin/mmtbx_sfdiff.compare'; "
        "from mmtbx_sfdiff.command_line.compare import run; sys.exit(run(['demo', 'n_timing=1000']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "torch" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=600)
    assert process.returncode in (-signal.SIGINT, 130) and output == "" and "Traceback" not in error, error
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c(tmp_path):
    """In the middle of the work: one sentence, exit code 130, nothing left behind."""
    process = subprocess_run(["demo", "n_timing=1000"], cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("Starting job"):
            break
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 130, (process.returncode, error)
    assert error.strip() == "Interrupted: nothing was written." and list(tmp_path.iterdir()) == []
