"""Reflections: round trips to miller arrays, selections and shells."""

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.reflections import resolution_shells

import numpy as np
import pytest
from cctbx import miller
from cctbx.array_family import flex

from tests.support.structures import random_xray_structure


@pytest.fixture(params=[False, True], ids=["merged", "anomalous"])
def data(request):
    structure = random_xray_structure("C 1 2 1")
    miller_set = miller.build_set(structure, anomalous_flag=request.param, d_min=1.8)
    n = miller_set.size()
    f_obs = miller_set.array(data=flex.random_double(n) * 100, sigmas=flex.random_double(n) + 1)
    f_obs.set_observation_type_xray_amplitude()
    f_obs.set_info(miller.array_info(source="made.mtz", labels=["FOBS", "SIGFOBS"], wavelength=0.98))
    return f_obs, miller_set.generate_r_free_flags(fraction=0.1, max_free=None)


def test_round_trip(data):
    f_obs, flags = data
    reflections = sfdiff.Reflections.from_cctbx(f_obs, flags)
    f_back, flags_back = reflections.to_cctbx()
    assert f_back.is_similar_symmetry(f_obs) and f_back.anomalous_flag() == f_obs.anomalous_flag()
    assert list(f_back.indices()) == list(f_obs.indices())
    assert list(f_back.data()) == list(f_obs.data()) and list(f_back.sigmas()) == list(f_obs.sigmas())
    assert list(flags_back.data()) == list(flags.data())
    assert f_back.info().labels == ["FOBS", "SIGFOBS"] and f_back.info().wavelength == 0.98
    assert f_back.is_xray_amplitude_array()
    assert int((~reflections.work).sum()) == flags.data().count(True)
    assert reflections.d_min == pytest.approx(f_obs.d_min())


def test_flags_in_another_order_are_matched(data):
    f_obs, flags = data
    shuffled = flags.select(flex.random_permutation(flags.size()))
    reflections = sfdiff.Reflections.from_cctbx(f_obs, shuffled)
    assert list(reflections.to_cctbx()[1].data()) == list(flags.data())


def test_select(data):
    reflections = sfdiff.Reflections.from_cctbx(*data)
    work = reflections.select(reflections.work)
    assert len(work) == int(reflections.work.sum()) and not work.r_free_flags.any()
    bare = sfdiff.Reflections.from_cctbx(data[0].customized_copy(sigmas=None))
    assert bare.sigmas is None and bare.r_free_flags is None and bare.work.all()
    assert bare.to_cctbx()[1] is None


def test_errors(data):
    f_obs, flags = data
    with pytest.raises(ValueError, match="amplitudes"):
        sfdiff.Reflections.from_cctbx(f_obs.f_as_f_sq())
    with pytest.raises(ValueError, match="boolean"):
        sfdiff.Reflections.from_cctbx(f_obs, f_obs)
    with pytest.raises(ValueError, match="lack"):
        sfdiff.Reflections.from_cctbx(f_obs, flags.select(flex.size_t_range(3, flags.size())))


@pytest.mark.parametrize("change", ["generate_bijvoet_mates", "expand_to_p1", "average_bijvoet_mates"])
def test_flags_of_mates_are_matched_by_the_unique_reflection(change):
    """The oracle takes flags of merged reflections, and makes the mates of one or of the other by cctbx."""
    structure = random_xray_structure("P 21 21 21")
    merged = miller.build_set(structure, anomalous_flag=False, d_min=2.0)
    flags = merged.generate_r_free_flags(fraction=0.1, max_free=None)
    f_obs = merged.array(data=flex.random_double(merged.size()) + 1).set_observation_type_xray_amplitude()
    if change == "average_bijvoet_mates":  # flags merged, amplitudes not
        f_obs = f_obs.generate_bijvoet_mates().set_observation_type_xray_amplitude()
        expected, given = flags.generate_bijvoet_mates().common_set(f_obs), flags
    else:
        expected, given = flags, getattr(flags, change)()
    reflections = sfdiff.Reflections.from_cctbx(f_obs, given)
    assert reflections.r_free_flags.tolist() == list(expected.data()) and reflections.messages == ()


def test_flags_of_another_cell_and_unlike_mates_are_said():
    structure = random_xray_structure("P 21 21 21")
    f_obs = structure.structure_factors(d_min=2.0).f_calc().amplitudes().set_observation_type_xray_amplitude()
    flags = f_obs.generate_r_free_flags(fraction=0.1, max_free=None)
    a, b, c = structure.unit_cell().parameters()[:3]
    other = flags.customized_copy(
        crystal_symmetry=structure.crystal_symmetry().customized_copy(unit_cell=(a * 1.2, b, c, 90, 90, 90))
    )
    with pytest.raises(ValueError, match="another crystal"):
        sfdiff.Reflections.from_cctbx(f_obs, other)
    mates = flags.generate_bijvoet_mates()
    changed = mates.customized_copy(data=mates.data().deep_copy())
    changed.data()[list(changed.data()).index(True)] = False
    reflections = sfdiff.Reflections.from_cctbx(f_obs, changed)
    if reflections.messages:  # unless the one that was changed is centric, and alone
        assert "taken as free: 1" in reflections.messages[0]
        assert reflections.r_free_flags.tolist() == list(flags.data())
    else:
        assert int(reflections.r_free_flags.sum()) == int(flags.data().count(True)) - 1


def test_shells_hold_every_reflection_once():
    crystal = sfdiff.Crystal.from_cctbx(random_xray_structure("P 21 21 21"))
    d = crystal.d_spacings(crystal.build_miller_indices(1.2))
    shells = resolution_shells(d)
    rows = torch.cat([rows for _, _, rows in shells])
    assert sorted(rows.tolist()) == list(range(len(d)))
    for (upper, lower, rows), after in zip(shells, shells[1:] + [None]):
        assert float(d[rows].max()) <= upper and float(d[rows].min()) >= lower
        assert after is None or after[0] == lower
    counts = np.array([len(rows) for _, _, rows in shells])
    assert counts.min() > 0.5 * counts.mean()
    edges = resolution_shells(d, d_max_edges=[float("inf"), 3, 2])
    assert sum(len(rows) for _, _, rows in edges) == int((d >= 2).sum())
