"""cctbx computing with this package: by name, everywhere, and as before once it is taken back."""

import copy
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import mmtbx_sfdiff
from mmtbx_sfdiff.cctbx_backend.entry_points import ENTRY_POINTS, spy
from mmtbx_sfdiff.files.demo import shipped_model, simulate
from mmtbx_sfdiff.files.model import read_model

import cctbx.xray.structure_factors as xray_structure_factors
import iotbx.phil
import mmtbx.f_model
import mmtbx.masks
import numpy as np
import pytest
from cctbx import crystal, maptbx, miller, sgtbx, xray
from cctbx.array_family import flex
from cctbx.development import random_structure
from cctbx.xray.structure_factors.algorithm import algorithms
from libtbx import easy_mp
from libtbx.utils import Sorry

import mmtbx_sfdiff_startup

D_MIN = 2.0
SF_PHIL = mmtbx.f_model.f_model.sf_and_grads_accuracy_master_params
MASK_PHIL = mmtbx.masks.mask_master_params
KINDS = ("site_frac", "site_cart", "u_iso", "u_star", "u_cart", "occupancy", "fp", "fdp")


@pytest.fixture(autouse=True)
def clean():
    """Every test starts and ends with cctbx as it is."""
    assert "sfdiff" not in algorithms
    yield
    mmtbx_sfdiff.unregister()
    assert "sfdiff" not in algorithms


@pytest.fixture(scope="module")
def demo():
    """(structure, f_obs, flags) of a small crystal, with simulated amplitudes."""
    structure = read_model(shipped_model(), d_min=D_MIN).xray_structure
    f_obs, flags = simulate(structure, D_MIN)
    random.seed(0)
    flex.set_random_seed(0)
    structure.shake_sites_in_place(mean_distance=0.1)
    return structure, f_obs, flags.customized_copy(data=flags.data() == 1)


def make_manager(demo, algorithm="sfdiff", mask="binary", method="direct", twin_law=None, **extra):
    structure, f_obs, flags = demo
    parameters, mask_params = SF_PHIL.extract(), MASK_PHIL.extract()
    parameters.algorithm = algorithm
    if algorithm == "sfdiff":
        parameters.extra.sfdiff.method = method
        for name, value in extra.items():
            setattr(parameters.extra.sfdiff, name, value)
        mask_params.algorithm = "sfdiff"
        mask_params.sfdiff.method = mask
    return mmtbx.f_model.manager(
        f_obs=f_obs,
        r_free_flags=flags,
        xray_structure=structure.deep_copy_scatterers(),
        twin_law=twin_law,
        sf_and_grads_accuracy_params=parameters,
        mask_params=mask_params,
    )


def with_solvent(manager):
    """Scales of the simulation: what would be fitted is next to nothing with another mask than the simulated one."""
    manager.update_core(k_mask=[0.35 * flex.exp(-50 * manager.ss)])
    return manager


def relative(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300)


def random_flags(structure, mixed, rng):
    dispersion = rng.random() < 0.5
    for scatterer in structure.scatterers():
        wanted = (lambda: rng.random() < 0.5) if mixed else (lambda: True)
        flags = scatterer.flags
        flags.set_grad_site(wanted())
        flags.set_grad_u_iso(wanted() and flags.use_u_iso())
        flags.set_grad_u_aniso(wanted() and flags.use_u_aniso())
        flags.set_grad_occupancy(wanted())
        # cctbx packs f' and f'' of all scatterers or of none.
        flags.set_grad_fp(dispersion)
        flags.set_grad_fdp(dispersion)
    if structure.n_parameters() == 0:
        structure.scatterers()[0].flags.set_grad_site(True)


def random_model(symbol, rng):
    structure = random_structure.xray_structure(
        sgtbx.space_group_info(symbol),
        elements=["C", "N", "O", "Fe"] * 2,
        volume_per_atom=60,
        general_positions_only=False,
        use_u_iso=True,
        use_u_aniso=True,
        random_u_iso=True,
        random_occupancy=True,
    )
    # One on the origin, which is a special position of most groups.
    structure.add_scatterer(xray.scatterer("S0", site=(0, 0, 0), u=0.1, scattering_type="S"))
    for number, scatterer in enumerate(structure.scatterers()):
        scatterer.fp, scatterer.fdp = rng.uniform(-2, 1), rng.uniform(0, 2) if number % 2 else 0
        if scatterer.flags.use_u_aniso() and number % 3 == 0:
            scatterer.flags.set_use_u_iso(True)  # both at once, as TLS models have it
            scatterer.u_iso = 0.05
    return structure


@pytest.mark.parametrize(
    "symbol",
    ["P1", "P21", "C2", "I4122", "P3121", "R3:H", "R3:R", "P6122", "F432", "P-1", "C2/c", "Pnma", "Fddd:1", "Ia-3d"],
)
def test_structure_factors_and_gradients_equal_direct_summation(symbol):
    rng = random.Random(symbol)
    random.seed(symbol)
    flex.set_random_seed(1)
    mmtbx_sfdiff.register()
    extra = SF_PHIL.extract().extra
    extra.sfdiff.method = "direct"
    for packed, mixed in ((True, False), (True, True), (False, True)):
        structure = random_model(symbol, rng)
        random_flags(structure, mixed, rng)
        miller_set = miller.build_set(structure.crystal_symmetry(), True, d_min=1.6)
        expected = miller_set.structure_factors_from_scatterers(structure, algorithm="direct").f_calc()
        found = miller_set.structure_factors_from_scatterers(structure, algorithm="sfdiff", extra_params=extra).f_calc()
        assert relative(found.data(), expected.data()) < 1e-12
        d_target = flex.complex_double([complex(rng.gauss(0, 1), rng.gauss(0, 1)) for _ in range(miller_set.size())])
        factory = xray.structure_factors.gradients(miller_set=miller_set)
        arguments = dict(
            xray_structure=structure,
            u_iso_refinable_params=None,
            miller_set=miller_set,
            d_target_d_f_calc=d_target,
            n_parameters=structure.n_parameters() if packed else 0,
        )
        expected = factory(algorithm="direct", **arguments)
        found = factory(algorithm="sfdiff", extra_params=extra, **arguments)
        if packed:
            assert found.packed().size() == expected.packed().size() > 0
            assert relative(found.packed(), expected.packed()) < 1e-9
            continue
        assert found.packed().size() == 0
        for kind in KINDS:
            try:
                reference = getattr(expected, f"d_target_d_{kind}")()
            except AssertionError:  # cctbx has none where no scatterer is flagged for it
                continue
            value = getattr(found, f"d_target_d_{kind}")()
            if not isinstance(value, flex.double):
                value, reference = value.as_double(), reference.as_double()
            assert relative(value, reference) < 1e-9, kind


def test_special_positions_keep_their_weight_in_p1():
    random.seed(4)
    whole = xray.structure(
        crystal_symmetry=crystal.symmetry((11, 11, 15, 90, 90, 90), "P 4"),
        scatterers=flex.xray_scatterer(
            [
                xray.scatterer("C", site=(0, 0, 0.1), u=0.1),
                xray.scatterer("N", site=(0.5, 0, 0.4), u=0.2),
                xray.scatterer("O", site=(0.1, 0.3, 0.7), u=0.15),
            ]
        ),
    )
    structure = whole.asymmetric_unit_in_p1()  # with the site symmetries of P 4
    assert structure.site_symmetry_table().special_position_indices().size()
    mmtbx_sfdiff.register()
    xray.set_scatterer_grad_flags(scatterers=structure.scatterers(), site=True, u_iso=True, occupancy=True)
    miller_set = miller.build_set(structure, False, d_min=2)
    d_target = flex.complex_double([complex(random.gauss(0, 1), random.gauss(0, 1)) for _ in range(miller_set.size())])
    results = [
        (
            miller_set.structure_factors_from_scatterers(structure, algorithm=algorithm).f_calc().data(),
            xray.structure_factors.gradients(miller_set=miller_set)(
                structure, None, miller_set, d_target, structure.n_parameters(), algorithm=algorithm
            ).packed(),
        )
        for algorithm in ("sfdiff", "direct")
    ]
    for found, expected in zip(*results):
        assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("accuracy", [1e-3, 1e-5])
def test_fft_meets_the_accuracy_asked_for(demo, accuracy):
    structure, f_obs = demo[0].deep_copy_scatterers(), demo[1]
    structure.convert_to_isotropic()
    mmtbx_sfdiff.register()
    extra = SF_PHIL.extract().extra
    extra.sfdiff.method, extra.sfdiff.accuracy = "fft", accuracy
    xray.set_scatterer_grad_flags(scatterers=structure.scatterers(), site=True, u_iso=True)
    expected = f_obs.structure_factors_from_scatterers(structure, algorithm="direct").f_calc()
    found = f_obs.structure_factors_from_scatterers(structure, algorithm="sfdiff", extra_params=extra).f_calc()
    assert relative(found.data(), expected.data()) < accuracy
    rng = np.random.default_rng(0)
    d_target = flex.complex_double(rng.standard_normal(f_obs.size()) + 1j * rng.standard_normal(f_obs.size()))
    arguments = dict(
        xray_structure=structure,
        u_iso_refinable_params=None,
        miller_set=f_obs,
        n_parameters=0,
        d_target_d_f_calc=d_target,
    )
    factory = xray.structure_factors.gradients(miller_set=f_obs)
    expected, found = (
        factory(algorithm="direct", **arguments),
        factory(algorithm="sfdiff", extra_params=extra, **arguments),
    )
    assert relative(found.d_target_d_site_cart().as_double(), expected.d_target_d_site_cart().as_double()) < accuracy
    assert relative(found.d_target_d_u_iso(), expected.d_target_d_u_iso()) < accuracy


def test_what_does_not_ask_for_it_keeps_its_bits(demo):
    def bits():
        manager = make_manager(demo, "fft")
        manager.update_all_scales()
        xray.set_scatterer_grad_flags(scatterers=manager.xray_structure.scatterers(), site=True)
        gradient = manager.one_time_gradients_wrt_atomic_parameters().packed()
        return [
            list(x) for x in (manager.f_calc().data(), manager.f_masks()[0].data(), manager.f_model().data(), gradient)
        ]

    before = bits()
    mmtbx_sfdiff.register()
    assert bits() == before
    with mmtbx_sfdiff.takeover():
        pass
    assert bits() == before


def test_registering_is_idempotent_and_reversible():
    def state():
        manager_class = mmtbx.f_model.manager
        return (
            sorted(algorithms),
            SF_PHIL.as_str(attributes_level=3),
            MASK_PHIL.as_str(attributes_level=3),
            manager_class.__dict__["structure_factor_gradients_w"],
            manager_class.update_xray_structure,
            manager_class.update_all_scales,
            mmtbx.masks.manager.compute_f_mask,
            mmtbx.masks.atom_mask,
            mmtbx.masks.bulk_solvent,
            xray_structure_factors.from_scatterers_direct,
        )

    before = state()
    mmtbx_sfdiff.register()
    once = state()
    mmtbx_sfdiff.register()
    assert state() == once != before
    with mmtbx_sfdiff.takeover(scaling=True):
        assert state() != once
        with pytest.raises(RuntimeError, match="leave that first"):
            mmtbx_sfdiff.unregister()
    assert state() == once
    mmtbx_sfdiff.register(scaling=True)
    mmtbx_sfdiff.unregister()
    assert state() == before
    mmtbx_sfdiff.unregister()
    with pytest.raises(ZeroDivisionError), mmtbx_sfdiff.takeover():
        1 / 0
    assert state() == before


def test_the_words_reach_programs_that_include_the_parameters():
    text = (
        "structure_factors_accuracy { include scope mmtbx.f_model.f_model.sf_and_grads_accuracy_master_params }\n"
        "mask { include scope mmtbx.masks.mask_master_params }"
    )
    wish = iotbx.phil.parse(
        "structure_factors_accuracy { algorithm=sfdiff\n extra.sfdiff.accuracy=1e-5 }\n"
        "mask { algorithm=sfdiff\n sfdiff.softness=0 }"
    )
    with pytest.raises(Sorry, match="sfdiff"):
        iotbx.phil.parse(text, process_includes=True).fetch(wish).extract()
    mmtbx_sfdiff.register()
    params = iotbx.phil.parse(text, process_includes=True).fetch(wish).extract()
    assert params.structure_factors_accuracy.extra.sfdiff.accuracy == 1e-5
    assert params.mask.sfdiff.softness == 0
    for wrong in ("accuracy=0", "method=exact", "memory=0"):
        with pytest.raises((RuntimeError, Sorry)):
            iotbx.phil.parse(text, process_includes=True).fetch(
                iotbx.phil.parse(f"structure_factors_accuracy.extra.sfdiff.{wrong}")
            ).extract()


def test_a_manager_stays_with_it_through_every_copy(demo):
    mmtbx_sfdiff.register()
    manager = make_manager(demo)
    exact = make_manager(demo, "direct")
    for one in (manager, exact):
        one.update_all_scales()
    assert manager.f_obs().size() == exact.f_obs().size() < demo[1].size()  # some were rejected in place
    assert manager.r_work() == pytest.approx(exact.r_work(), abs=1e-6)
    chosen = flex.random_bool(manager.f_obs().size(), 0.8)
    in_place = manager.deep_copy()
    in_place.select(chosen, in_place=True)
    updated = manager.deep_copy()
    updated.update(mask_params=copy.deepcopy(manager.mask_params))  # as phenix.refine does
    copies = [
        manager.deep_copy(),
        manager.select(chosen),
        in_place,
        manager.resolution_filter(d_min=2.5),
        updated,
        pickle.loads(pickle.dumps(manager)),
        copy.deepcopy(manager),
    ]
    for one in copies:
        with spy() as calls:
            one.update_xray_structure(update_f_calc=True, update_f_mask=True, force_update_f_mask=True)
            one.one_time_gradients_wrt_atomic_parameters(site=True)
        assert not calls
        own = manager.f_calc().common_set(one.f_calc()).data()
        assert relative(one.f_calc().data(), own) < 1e-12
        own = manager.f_masks()[0].common_set(one.f_calc()).data()
        assert relative(one.f_masks()[0].data(), own) < 1e-12


def test_binary_mask_leaves_what_mmtbx_leaves(demo):
    mmtbx_sfdiff.register()
    own, expected = make_manager(demo).mask_manager, make_manager(demo, "direct").mask_manager
    assert relative(own.shell_f_masks()[0].data(), expected.shell_f_masks()[0].data()) < 1e-12
    assert own.solvent_content_via_mask == pytest.approx(expected.solvent_content_via_mask, abs=1e-12)
    assert own.layer_volume_fractions == pytest.approx(expected.layer_volume_fractions, abs=1e-12)


@pytest.mark.parametrize("target", ["ls_wunit_k1", "ml"])
def test_gradient_is_that_of_the_whole_model(demo, target):
    mmtbx_sfdiff.register()
    manager = with_solvent(make_manager(demo, mask="probe_shrink"))
    manager.set_target_name(target)
    xray.set_scatterer_grad_flags(scatterers=manager.xray_structure.scatterers(), site=True)
    functor = manager.target_functor()
    gradient = functor(compute_gradients=True).gradients_wrt_atomic_parameters().packed().as_numpy_array()
    manager.sfg_params.extra.sfdiff.mask_gradient = False
    without = functor(compute_gradients=True).gradients_wrt_atomic_parameters().packed().as_numpy_array()
    manager.sfg_params.extra.sfdiff.mask_gradient = True
    assert relative(without, gradient) > 0.005
    rng = np.random.default_rng(3)
    # Amplitudes have a cusp at 0, which least squares sees in weak reflections: only small steps do not cross some.
    step = 0.003 if target == "ml" else 0.00003
    found, differences = [], []
    for _ in range(6):
        direction = rng.standard_normal(gradient.shape)
        values = []
        for sign in (1, -1):
            moved = manager.deep_copy()
            structure = moved.xray_structure
            structure.set_sites_cart(
                structure.sites_cart() + flex.vec3_double(flex.double(np.ascontiguousarray(sign * step * direction)))
            )
            moved.update_xray_structure(xray_structure=structure, update_f_calc=True)  # the mask follows by itself
            functor.manager = moved
            values.append(functor(compute_gradients=False).target_work())
        found.append(gradient @ direction)
        differences.append((values[0] - values[1]) / (2 * step))
    assert relative(found, differences) < 0.02


def test_direct_stays_exact_where_the_mask_is_differentiated(demo):
    def gradient(accuracy):
        with mmtbx_sfdiff.takeover(method="fft", accuracy=accuracy, mask="density_cutoff"):
            manager = with_solvent(make_manager(demo, "direct"))
            xray.set_scatterer_grad_flags(scatterers=manager.xray_structure.scatterers(), site=True)
            return manager.one_time_gradients_wrt_atomic_parameters().packed()

    assert relative(gradient(1e-2), gradient(1e-5)) < 1e-10


def test_gradient_of_some_atoms_is_part_of_the_whole(demo):
    mmtbx_sfdiff.register()
    manager = with_solvent(make_manager(demo, mask="density_cutoff"))
    xray.set_scatterer_grad_flags(scatterers=manager.xray_structure.scatterers(), site=True)
    result = manager.target_functor()(compute_gradients=True)
    whole = result.gradients_wrt_atomic_parameters().packed().as_numpy_array().reshape(-1, 3)
    some = flex.size_t(range(5, 40, 3))
    part = result.gradients_wrt_atomic_parameters(selection=some).packed().as_numpy_array().reshape(-1, 3)
    assert relative(part, whole[list(some)]) < 1e-9


def test_takeover_leaves_nothing_to_cpp(demo):
    structure = demo[0]
    manager = make_manager(demo, "direct")
    manager.update_all_scales()
    expected = manager.r_work(), manager.r_free()
    mask = mmtbx.masks.mask_from_xray_structure(
        xray_structure=structure, p1=True, for_structure_factors=True, n_real=(24, 24, 24)
    ).mask_data
    with mmtbx_sfdiff.takeover(), spy() as calls:
        for algorithm in ("direct", "fft"):
            manager = make_manager(demo, algorithm)
            manager.update_all_scales()
            xray.set_scatterer_grad_flags(scatterers=manager.xray_structure.scatterers(), site=True)
            manager.one_time_gradients_wrt_atomic_parameters().packed()
            assert (manager.r_work(), manager.r_free()) == pytest.approx(expected, abs=3e-4)
        own = mmtbx.masks.mask_from_xray_structure(
            xray_structure=structure, p1=True, for_structure_factors=True, n_real=(24, 24, 24)
        ).mask_data
        assert own.accessor() == mask.accessor()
        assert np.array_equal(own.as_numpy_array(), mask.as_numpy_array())
        mmtbx.masks.bulk_solvent(
            xray_structure=structure,
            ignore_zero_occupancy_atoms=True,
            solvent_radius=1.1,
            shrink_truncation_radius=0.9,
            grid_step=0.8,
        ).structure_factors(demo[1])
        demo[1].structure_factors_from_scatterers(structure, algorithm="direct")
    assert not calls
    with spy() as calls:
        make_manager(demo, "fft")
    assert calls["sampled_model_density"] == 1 and calls["atom_mask"] == 1
    assert {point.name for point in ENTRY_POINTS} >= set(calls)


def test_takeover_with_another_mask_differentiates_it(demo):
    plain = make_manager(demo, "direct")
    with mmtbx_sfdiff.takeover(method="direct", mask="density_cutoff"):
        manager = with_solvent(make_manager(demo, "fft"))
        assert relative(manager.f_masks()[0].data(), plain.f_masks()[0].data()) > 0.05
        xray.set_scatterer_grad_flags(scatterers=manager.xray_structure.scatterers(), site=True)
        with_mask = manager.one_time_gradients_wrt_atomic_parameters().packed()
    with mmtbx_sfdiff.takeover(method="direct", mask="density_cutoff", mask_gradient=False):
        without = manager.one_time_gradients_wrt_atomic_parameters().packed()
    assert relative(without, with_mask) > 0.005


@pytest.mark.parametrize("symbol", ["P21", "C2/c", "P3121"])
def test_mask_of_the_asymmetric_unit_is_cctbxs(symbol):
    random.seed(symbol)
    structure = random_structure.xray_structure(
        sgtbx.space_group_info(symbol), elements=["C", "N", "O"] * 5, volume_per_atom=60
    )

    def masks():
        own = mmtbx.masks.asu_mask(xray_structure=structure)
        return own.asu_mask.mask_data_whole_uc(), own.mask_data_whole_uc(), own.asu_mask.grid_size()

    expected = masks()
    with mmtbx_sfdiff.takeover():
        found = masks()
    assert found[2] == expected[2]
    for own, reference in zip(found[:2], expected[:2]):
        reference = maptbx.copy(reference, flex.grid(reference.focus()))
        assert maptbx.copy(own, flex.grid(own.focus())).as_1d().all_eq(reference.as_1d())


def test_radial_shells_stay_with_cctbx(demo):
    structure, f_obs, _ = demo
    mmtbx_sfdiff.register()
    params = MASK_PHIL.extract()
    params.n_radial_shells, params.algorithm = 2, "sfdiff"
    expected = mmtbx.masks.manager(miller_array=f_obs, xray_structure=structure, mask_params=params).shell_f_masks()
    with mmtbx_sfdiff.takeover():
        found = mmtbx.masks.manager(miller_array=f_obs, xray_structure=structure, mask_params=params).shell_f_masks()
    assert len(found) == len(expected) == 2
    assert all(relative(a.data(), b.data()) == 0 for a, b in zip(found, expected))


@pytest.mark.parametrize("remove_outliers", [True, False])
def test_scaling_leaves_the_state_mmtbx_leaves(demo, remove_outliers):
    expected = make_manager(demo, "direct")
    expected.update_all_scales(remove_outliers=remove_outliers)
    mmtbx_sfdiff.register(scaling=True)
    found = make_manager(demo, "direct")
    result = found.update_all_scales(remove_outliers=remove_outliers)
    assert found.f_obs().indices().all_eq(expected.f_obs().indices())
    assert relative(found.f_obs().data(), expected.f_obs().data()) < 1e-9
    for own, reference in (
        (found.k_isotropic(), expected.k_isotropic()),
        (found.k_anisotropic(), expected.k_anisotropic()),
        (found.k_masks()[0], expected.k_masks()[0]),
        (found.f_model().data(), expected.f_model().data()),
    ):
        assert relative(own, reference) < 1e-6
    assert found.r_work() == pytest.approx(expected.r_work(), abs=1e-6)
    assert found.r_free() == pytest.approx(expected.r_free(), abs=1e-6)
    assert len(found.bin_selections) == len(expected.bin_selections)
    assert (result.k_h, result.b_h) == (0, 0) and found.russ is result
    found.set_target_name("ml")
    assert found.target_w() == pytest.approx(expected.target_w(), rel=1e-6)


def test_scaling_with_riding_hydrogens(demo):
    structure, f_obs, flags = demo
    riding = structure.deep_copy_scatterers()
    hydrogens = riding.hd_selection()
    if hydrogens.count(True) == 0:  # a model without any: some atoms become hydrogens
        hydrogens = flex.bool(riding.scatterers().size(), False)
        hydrogens.set_selected(flex.size_t(range(0, riding.scatterers().size(), 4)), True)
        for i in hydrogens.iselection():
            riding.scatterers()[i].scattering_type = "H"
        riding.scattering_type_registry(d_min=D_MIN, table="n_gaussian")
    riding.set_occupancies(value=0, selection=hydrogens)
    expected = make_manager((riding, f_obs, flags), "direct")
    expected.update_all_scales()
    assert expected.russ.k_h > 0
    mmtbx_sfdiff.register(scaling=True)
    found = make_manager((riding, f_obs, flags), "direct")
    found.update_all_scales()
    assert (found.russ.k_h, found.russ.b_h) == pytest.approx((expected.russ.k_h, expected.russ.b_h))
    assert found.r_work() == pytest.approx(expected.r_work(), abs=1e-6)
    assert relative(found.f_part2().data(), expected.f_part2().data()) < 1e-6


def test_twins_are_scaled_by_mmtbx(demo):
    expected = make_manager(demo, "direct", twin_law="-h,-k,l")
    expected.update_all_scales()
    mmtbx_sfdiff.register(scaling=True)
    found = make_manager(demo, twin_law="-h,-k,l", mask="binary")
    found.update_all_scales()
    assert found.r_work() == pytest.approx(expected.r_work(), abs=1e-6)
    assert relative(found.f_calc_twin().data(), expected.f_calc_twin().data()) < 1e-12


class _Child:
    def __init__(self, demo):
        self.demo = demo

    def __call__(self, _):
        manager = make_manager(self.demo, method="fft", mask="probe_shrink")
        manager.one_time_gradients_wrt_atomic_parameters(site=True)
        return list(manager.f_calc().data())


def test_forked_children_compute(demo):
    mmtbx_sfdiff.register()
    parent = make_manager(demo, method="fft")
    parent.one_time_gradients_wrt_atomic_parameters(site=True)

    for found in easy_mp.pool_map(processes=2, fixed_func=_Child(demo), args=[1, 2]):
        assert relative(found, parent.f_calc().data()) < 1e-4


def test_a_refinement_of_mmtbx_runs_on_it(demo):
    import scitbx.lbfgs
    from mmtbx.refinement import minimization

    model = read_model(shipped_model(), d_min=D_MIN).manager
    ends = {}
    for name in ("direct", "sfdiff"):
        if name == "sfdiff":
            mmtbx_sfdiff.register()
        manager = make_manager(demo, name, method="auto")
        manager.update_all_scales(remove_outliers=False)
        xray.set_scatterer_grad_flags(scatterers=manager.xray_structure.scatterers(), site=True)
        minimization.lbfgs(
            fmodels=mmtbx.fmodels(fmodel_xray=manager),
            model=model,
            is_neutron_scat_table=False,
            refine_xyz=True,
            collect_monitor=False,
            lbfgs_termination_params=scitbx.lbfgs.termination_parameters(max_iterations=10),
        )
        ends[name] = manager.r_work()
    assert ends["sfdiff"] == pytest.approx(ends["direct"], abs=0.003)
    assert ends["sfdiff"] < 0.8 * make_manager(demo, "fft").r_work()


def test_structure_without_atoms(demo):
    """As in cctbx (its tst_maptbx does so), nothing scatters nothing."""
    structure, f_obs, _ = demo
    empty = xray.structure(crystal_symmetry=structure.crystal_symmetry())
    with mmtbx_sfdiff.takeover():
        f_calc = f_obs.structure_factors_from_scatterers(empty, algorithm="direct").f_calc()
    assert f_calc.size() == f_obs.size() and flex.max(flex.abs(f_calc.data())) == 0


def test_bad_input_is_one_sentence(demo):
    structure, f_obs, _ = demo
    mmtbx_sfdiff.register()
    extra = SF_PHIL.extract().extra

    def compute(**wishes):
        own = copy.deepcopy(extra)
        for name, value in wishes.items():
            setattr(own.sfdiff, name, value)
        return f_obs.structure_factors_from_scatterers(structure, algorithm="sfdiff", extra_params=own)

    for device in ("cuda:99", "tpu", "meta"):
        with pytest.raises(Sorry, match="extra.sfdiff.device"):
            compute(device=device)
        with pytest.raises(Sorry, match="^device="):
            mmtbx_sfdiff.takeover(device=device)
    unknown = structure.deep_copy_scatterers()
    unknown.scatterers()[0].scattering_type = "Xq"
    with pytest.raises((Sorry, RuntimeError)):
        f_obs.structure_factors_from_scatterers(unknown, algorithm="sfdiff", extra_params=extra)
    with pytest.raises(ValueError, match="choose from"):
        with mmtbx_sfdiff.takeover(mask="flat"):
            pass
    with pytest.raises(ValueError, match="choose from"):
        with mmtbx_sfdiff.takeover(method="exact"):
            pass
    assert "sfdiff" in algorithms
    params = MASK_PHIL.extract()
    params.algorithm, params.step, params.n_real = "sfdiff", None, [5, 7, 11]
    with pytest.raises(Sorry):
        mmtbx.masks.manager(miller_array=f_obs, xray_structure=structure, mask_params=params)


def run_program(*arguments, cwd, **environment):
    root = Path(mmtbx_sfdiff.__file__).parents[1]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=900,
        env=dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS="1", **environment),
    )


def test_programs_run_unmodified(tmp_path):
    model = str(shipped_model())
    done = run_program(
        "-m",
        "mmtbx_sfdiff.command_line.run",
        "mmtbx.fmodel",
        model,
        "high_resolution=3",
        "structure_factors_accuracy.algorithm=sfdiff",
        "mask.algorithm=sfdiff",
        f"output.file_name={tmp_path / 'by_name.mtz'}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "by_name.mtz").is_file()
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom cctbx.xray.structure_factors.algorithm import algorithms\n"
        "print(sys.argv, algorithms['fft'].from_scatterers)\nsys.exit(3)\n"
    )
    done = run_program("-m", "mmtbx_sfdiff.command_line.run", "--takeover", str(script), "--a", "b=c", cwd=tmp_path)
    assert done.returncode == 3
    assert "sfdiff" in done.stdout and "'--a', 'b=c'" in done.stdout


@pytest.mark.parametrize(
    "words, said",
    [
        (["mmtbx.no_such_program"], "There is no program mmtbx.no_such_program"),
        (["nowhere.py"], "There is no script nowhere.py"),
        (["rm -rf"], "is not the name of a program"),
        (["--takeover", "--accuracy", "2", "mmtbx.model_vs_data"], "accuracy must be between 0 and 1"),
        (["--mask", "probe_shrink", "mmtbx.model_vs_data"], "--mask has no effect without --takeover"),
        (["--method", "fft", "--accuracy", "1e-5", "x.py"], "--method, --accuracy has no effect without --takeover"),
        ([], "Say which program"),
        (["--install-startup", "mmtbx.model_vs_data"], "run no program"),
    ],
)
def test_run_says_what_is_wrong(capsys, words, said):
    from mmtbx_sfdiff.programs.run import run

    assert run(words) == 1
    assert said in capsys.readouterr().err


def test_start_up_file_registers_where_asked(tmp_path):
    line = 2 * mmtbx_sfdiff_startup.LINE  # Python 3.11 reads it twice in virtual environments
    script = tmp_path / "program.py"
    script.write_text(
        line + "\nfrom cctbx.array_family import flex\nimport mmtbx.f_model\nimport sys, torch\n"
        "from cctbx.xray.structure_factors.algorithm import algorithms\n"
        "print('sfdiff' in algorithms, 'takeover' if 'sfdiff' in str(algorithms['fft']) else 'table',\n"
        "      mmtbx.f_model.manager.update_all_scales.__module__)\n"
        "torch.fft.rfftn(torch.zeros(4, 4, 4))\n"
    )
    for value, expected in (("1", "True table"), ("scaling", "True table"), ("takeover", "True takeover")):
        done = run_program(str(script), cwd=tmp_path, MMTBX_SFDIFF=value)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(expected) and not done.stderr, done.stderr
    done = run_program(str(script), cwd=tmp_path, MMTBX_SFDIFF="yes")
    assert "MMTBX_SFDIFF=yes is ignored" in done.stderr
    # Programs without mmtbx, at their first structure factors; and one that uses this package itself.
    small = (
        "\nfrom cctbx import miller, sgtbx, xray\n"
        "from cctbx.development import random_structure\n"
        "s = random_structure.xray_structure(sgtbx.space_group_info('P21'), elements=['C'] * 3)\n"
        "m = miller.build_set(s, False, d_min=3)\n"
    )
    for value, use in (
        ("takeover", "print(type(xray.structure_factors.from_scatterers_direct(s, m)))"),
        ("1", "print(type(xray.structure_factors.from_scatterers(miller_set=m)(s, m, algorithm='sfdiff')))"),
        ("1", "import mmtbx_sfdiff\nmmtbx_sfdiff.register()\nprint(mmtbx_sfdiff.takeover.__module__)"),
    ):
        script.write_text(line + small + use)
        done = run_program(str(script), cwd=tmp_path, MMTBX_SFDIFF=value)
        assert done.returncode == 0 and "mmtbx_sfdiff." in done.stdout, (use, done.stdout, done.stderr)


def test_show_backend_counts(capsys):
    from mmtbx_sfdiff.programs.show_backend import run

    assert run([]) == 0
    lines = {
        line.split("|")[0].strip(): [word.strip() for word in line.split("|")[1:4]]
        for line in capsys.readouterr().out.splitlines()
        if line.count("|") == 4
    }
    for point in ENTRY_POINTS:
        by_cctbx, _, taken_over = (int(word) for word in lines[point.name])
        assert taken_over == 0, point.name
    for kind in ("F_calc", "gradients", "masks"):
        as_it_is, by_name, taken_over = (int(word) for word in lines[f"mmtbx_sfdiff: {kind}"])
        assert as_it_is == 0 and 0 < by_name <= taken_over, kind
    assert int(lines["atom_mask"][0]) > 0 and int(lines["sampled_model_density"][0]) > 0


def test_bounded_u_iso_follows_cctbxs_chain_rule():
    from cctbx import adptbx

    random.seed(1)
    structure = random_structure.xray_structure(
        sgtbx.space_group_info("P21"),
        elements=["C", "N", "O"] * 2,
        volume_per_atom=60,
        use_u_iso=True,
        random_u_iso=True,
    )
    xray.set_scatterer_grad_flags(scatterers=structure.scatterers(), u_iso=True)
    refinable = flex.double()
    for scatterer in structure.scatterers():
        scatterer.flags.set_tan_u_iso(True)
        scatterer.flags.param = 100
        refinable.append(np.tan(scatterer.u_iso * np.pi / adptbx.b_as_u(100) - np.pi / 2))
    miller_set = miller.build_set(structure.crystal_symmetry(), False, d_min=2)
    mmtbx_sfdiff.register()
    extra = SF_PHIL.extract().extra
    extra.sfdiff.method = "direct"
    arguments = dict(
        xray_structure=structure,
        u_iso_refinable_params=refinable,
        miller_set=miller_set,
        d_target_d_f_calc=flex.complex_double(miller_set.size(), 1 + 2j),
        n_parameters=0,
    )
    factory = xray.structure_factors.gradients(miller_set=miller_set)
    expected = factory(algorithm="direct", **arguments).d_target_d_u_iso()
    found = factory(algorithm="sfdiff", extra_params=extra, **arguments).d_target_d_u_iso()
    assert relative(found, expected) < 1e-9


@pytest.mark.gpu
def test_gpu_inside_f_model(demo):
    mmtbx_sfdiff.register()
    found = []
    for device in ("cpu", "cuda"):
        manager = with_solvent(make_manager(demo, mask="probe_shrink", method="fft", device=device))
        xray.set_scatterer_grad_flags(scatterers=manager.xray_structure.scatterers(), site=True)
        functor = manager.target_functor()(compute_gradients=True)
        found.append((manager.f_model().data(), functor.gradients_wrt_atomic_parameters().packed()))
    for here, there in zip(*found):
        assert relative(there, here) < 1e-2
