"""Twinned data: laws, mates, scales, fraction, gradients; beside cctbx's and mmtbx's own."""

import dataclasses

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.numerics.residual import r_factor
from mmtbx_sfdiff.plans.twin import parse_law, twin_laws, twin_mates
from mmtbx_sfdiff.scaling.twin import fit_fraction, mixed_amplitude, update_twin_scales

import gemmi
import pytest

pytest.importorskip("cctbx")

import mmtbx.utils  # noqa: F401  mmtbx's twin model needs it loaded
from cctbx import crystal, miller, sgtbx, xray
from cctbx.array_family import flex

from tests.support.scaling_data import manager

LAW = "-h-k,k,-l"


def operator(law):
    """cctbx's, of a law's text."""
    return sgtbx.rt_mx(sgtbx.rot_mx([int(x) for x in parse_law(law).ravel()]), sgtbx.tr_vec([0, 0, 0]))


def twinned(fraction, incomplete=True, noise=0.02, **options):
    """A model, and data of its twin: calculated with scales of their own, some mates not measured."""
    single = FModel.from_cctbx(
        manager("P 3", n_atoms=30, d_min=2.0, seed=2), method="direct", mask=options.pop("mask", {"method": "binary"})
    )
    single.update_scales(remove_outliers=False)
    mates = twin_mates(single.reflections.crystal, single.reflections.miller_indices, LAW)
    n = len(single.reflections)
    assert len(mates.extra) == 0  # complete data
    f_model = single.f_model().detach()
    amplitudes = mixed_amplitude(f_model.abs().square(), f_model[mates.rows].abs().square(), fraction)
    generator = torch.Generator().manual_seed(0)
    amplitudes = amplitudes * (1 + noise * torch.randn(n, generator=generator, dtype=amplitudes.dtype)).clamp(min=0.5)
    free = torch.rand(n, generator=generator) < 0.1
    data = dataclasses.replace(
        single.reflections, f_obs=amplitudes, sigmas=torch.full_like(amplitudes, 0.5), r_free_flags=free
    )
    if incomplete:
        data = data.select(torch.rand(n, generator=generator) < 0.9)
    return single.with_(reflections=data, **options)


@pytest.mark.parametrize(
    "symbol, cell",
    [
        ("P 43", (53.9, 53.9, 77.4, 90, 90, 90)),
        ("P 61", (60, 60, 80, 90, 90, 120)),
        ("P 3", (50, 50, 60, 90, 90, 120)),
        ("P 1 21 1", (40, 50, 60, 90, 90.5, 90)),
        ("F 2 3", (90, 90, 90, 90, 90, 90)),
        ("P 21 21 21", (40, 50, 60, 90, 90, 90)),
        ("C 1 2 1", (100, 50, 60, 90, 110, 90)),
        ("R 3 :H", (70, 70, 100, 90, 90, 120)),
        ("P 21 21 21", (50, 50.2, 60, 90, 90, 90)),
    ],
)
def test_laws_are_mmtbx_own(symbol, cell):
    """As many, each the same but for a symmetry of the crystal: the same mates."""
    from mmtbx_sfdiff import Crystal

    from mmtbx.scaling.twin_analyses import twin_laws as of_mmtbx

    symmetry = crystal.symmetry(cell, symbol)
    every = miller.build_set(symmetry, False, d_min=6)
    data = every.array(data=flex.random_double(every.size())).set_observation_type_xray_amplitude()
    ours = Crystal.from_cctbx(symmetry)
    indices = torch.tensor(list(data.indices()))

    def mates(law):
        rows = twin_mates(ours, indices, law).rows
        return tuple(rows[rows < len(indices)].tolist())

    theirs = {
        mates(law.operator.r().as_hkl()) for law in of_mmtbx(data).operators if "/" not in law.operator.r().as_hkl()
    }
    assert {mates(law) for law in twin_laws(ours)} == theirs


@pytest.mark.parametrize("law", [LAW, "-h,-k,l"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5])
def test_amplitudes_and_r_are_cctbx_own(law, fraction):
    """R of hemihedral_r_values at the same F and fraction, mates that were not measured included."""
    fmodel = twinned(0.3)
    reflections = fmodel.reflections
    mates = twin_mates(reflections.crystal, reflections.miller_indices, law)
    assert len(mates.extra) > 10
    indices = torch.cat([reflections.miller_indices, mates.extra])
    from mmtbx_sfdiff import structure_factors

    f = structure_factors(fmodel.atoms, reflections.crystal, indices, method="direct")
    f_obs, _ = reflections.to_cctbx()
    every = miller.set(f_obs.crystal_symmetry(), flex.miller_index(indices.tolist()), False).map_to_asu()
    oracle = xray.hemihedral_r_values(
        hkl_obs=f_obs.map_to_asu().indices(),
        hkl_calc=every.indices(),
        space_group=f_obs.space_group(),
        anomalous_flag=False,
        twin_law=operator(law).as_double_array()[0:9],
    )
    theirs = oracle.r_amplitude_abs(
        f_obs.data(), flex.complex_double(f.abs().to(torch.complex128).numpy()), None, fraction
    )
    square = f.abs().square()
    own = mixed_amplitude(square[: len(reflections)], square[mates.rows], fraction)
    assert float(r_factor(reflections.f_obs, own, 1.0)) == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("fraction", [0.2, 0.3, 0.45])
def test_law_and_fraction_are_found(fraction):
    fmodel = twinned(fraction, twin_law="auto", mask={"method": "binary"}, noise=0.02)
    scales = fmodel.update_scales()
    laws = {LAW, *(law for law in twin_laws(fmodel.reflections.crystal) if _same(fmodel, law, LAW))}
    assert fmodel.twin_law in laws and scales.twin_fraction == pytest.approx(fraction, abs=0.02)
    r_work, r_free = fmodel.r_factors()
    assert r_work < 0.045 and r_free < 0.06
    single = fmodel.with_(twin_law=None)
    single.update_scales(remove_outliers=False)
    assert single.r_factors()[0] > r_work + 0.02
    assert scales.r_work == pytest.approx(r_work, abs=1e-6)  # what the scales say is what the model has


def _same(fmodel, a, b):
    crystal, h = fmodel.reflections.crystal, fmodel.reflections.miller_indices
    return bool((twin_mates(crystal, h, a).rows == twin_mates(crystal, h, b).rows).all())


def test_single_crystals_stay_single():
    fmodel = twinned(0.0, twin_law="auto")
    fmodel.update_scales()
    assert fmodel.twin_law is None and fmodel.scales.twin_fraction is None
    plain = fmodel.with_(twin_law=None)
    plain.update_scales()
    assert torch.equal(plain.f_model(), fmodel.f_model())


def test_a_fraction_of_zero_is_a_single_crystal():
    fmodel = twinned(0.3, twin_law=LAW, twin_fraction=0.0)
    fmodel.update_scales()
    single = fmodel.with_(twin_law=None, twin_fraction=None)
    single.update_scales(remove_outliers=False)
    torch.testing.assert_close(fmodel.f_model(), single.f_model(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("target", ["least_squares", "maximum_likelihood", "intensity_least_squares"])
@pytest.mark.parametrize("mask", ["binary", "probe_shrink"])
def test_gradients_are_differences(target, mask):
    """Through the mixture of both domains, and a mask that has a gradient."""
    fmodel = twinned(0.3, twin_law=LAW, mask={"method": mask})
    shifts = torch.randn(fmodel.atoms.sites_cart.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    fmodel.replace(sites_cart=fmodel.atoms.sites_cart + 0.05 * shifts)
    fmodel.update_scales()
    fmodel.alpha_beta()
    fixed = fmodel.f_mask(mates=True) if mask == "binary" else None
    x = fmodel.atoms.sites_cart.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fmodel.target(target, sites_cart=x, f_mask=fixed), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    step = 1e-4 if mask == "binary" else 2e-3
    with torch.no_grad():
        up, down = (fmodel.target(target, sites_cart=x + s * step * direction, f_mask=fixed) for s in (1, -1))
    found = float((up - down) / (2 * step))
    assert float((gradient * direction).sum()) == pytest.approx(found, rel=1e-6 if mask == "binary" else 2e-2)


def test_gradient_where_the_intensity_is_zero():
    a = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    mixed_amplitude(a, a, 0.3).sum().backward()
    assert torch.equal(a.grad, torch.zeros(3, dtype=torch.float64))


def test_the_fraction_is_that_of_least_squares():
    generator = torch.Generator().manual_seed(0)
    own, mate = torch.rand(2, 500, generator=generator, dtype=torch.float64)
    f_obs = 3 * mixed_amplitude(own, mate, 0.27)
    assert fit_fraction(f_obs, own, mate) == pytest.approx(0.27, abs=1e-4)


def test_maps_are_of_detwinned_data():
    """Of exact data the map is that of one domain."""
    fmodel = twinned(0.4, incomplete=False, noise=0.0, twin_law=LAW, mask={"method": "binary"})
    fmodel.update_scales()
    domain = fmodel.f_model(twinned=False)[fmodel.selection] / fmodel.scales.k_total[fmodel.selection]
    size = float(fmodel.map_coefficients()["mFo-DFc"].abs().mean() / domain.abs().mean())
    single = fmodel.with_(twin_law=None)
    single.update_scales(remove_outliers=False)
    without = float(single.map_coefficients()["mFo-DFc"].abs().mean() / domain.abs().mean())
    assert size < 0.04 < 0.2 < without


def test_what_moves_and_what_is_kept():
    fmodel = twinned(0.3, twin_law=LAW)
    fmodel.update_scales()
    state = fmodel.state_dict()
    again = fmodel.with_()
    again.load_state_dict(state)
    assert torch.equal(again.f_model(), fmodel.f_model()) and again.scales.twin_fraction == fmodel.scales.twin_fraction
    single = fmodel.with_().float()
    single.update_scales()
    assert single.scales.twin_fraction == pytest.approx(fmodel.scales.twin_fraction, abs=1e-3)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"twin_law": "h,k,l"}, "symmetry of the crystal"),
        ({"twin_law": "x,y"}, "no twin law"),
        ({"twin_law": "l,h,k"}, "lattice"),
        ({"twin_law": LAW, "twin_fraction": 1.5}, "between 0 and 1"),
        ({"twin_fraction": 0.2}, "goes with twin_law"),
        ({"twin_law": LAW, "follow_scales": True}, "follow_scales"),
        ({"twin_law": "2h,k,l"}, "no twin law"),
    ],
)
def test_impossible_twins_are_one_sentence(options, words):
    fmodel = twinned(0.3)
    with pytest.raises(ValueError, match=words):
        fmodel.with_(**options)


def test_a_mask_without_the_mates_is_refused():
    fmodel = twinned(0.3, twin_law=LAW)
    fmodel.update_scales()
    with pytest.raises(ValueError, match="mates=True"):
        fmodel.f_model(f_mask=fmodel.f_mask())
    with pytest.raises(ValueError, match="mmtbx"):
        fmodel.update_scales(model="exponential")
    with pytest.raises(ValueError, match="fraction"):
        update_twin_scales(fmodel.reflections, *(fmodel.f_calc(),) * 4, fraction=-1)


def test_mmtbx_twin_models_are_taken_over():
    """The law and the fraction of mmtbx's manager."""
    from libtbx.utils import null_out
    from mmtbx.twinning.twin_f_model import twin_model_manager

    fmodel = twinned(0.3)
    f_obs, flags = fmodel.reflections.to_cctbx()
    theirs = twin_model_manager(
        f_obs=f_obs,
        r_free_flags=flags,
        xray_structure=fmodel.atoms.to_cctbx(),
        twin_law=operator(LAW),
        twin_law_str=LAW,
        out=null_out(),
    )
    theirs.update_all_scales(log=null_out())
    ours = FModel.from_cctbx(theirs, method="direct", mask={"method": "binary"})
    assert ours.twin_law == LAW and ours.twin_fraction is None
    ours.update_scales()
    assert ours.scales.twin_fraction == pytest.approx(theirs.twin_fraction_object.twin_fraction, abs=0.03)
    assert ours.r_factors()[0] < theirs.r_work() + 0.003


@pytest.mark.parametrize("entry", ["1l2h", "4tql", "5bmg"])
def test_twins_of_the_archive_are_not_worse_than_in_mmtbx(entry, pdb_dir, monkeypatch):
    """Law found; fraction within 0.03, R within 0.012 of mmtbx's twin model, and R-work not above it."""
    from mmtbx_sfdiff.files import find_entry

    from libtbx.utils import null_out
    from mmtbx.twinning.twin_f_model import twin_model_manager

    monkeypatch.setenv("MMTBX_SFDIFF_PDB_DIR", str(pdb_dir))
    files = find_entry(entry, download=False)
    fmodel = FModel.from_files(files.model, files.data, mask={"method": "binary"}, twin_law="auto")
    fmodel.update_scales()
    assert fmodel.twin_law is not None
    f_obs, flags = fmodel.reflections.to_cctbx()
    if flags is None:
        flags = f_obs.array(data=flex.bool(f_obs.size(), False))
    theirs = twin_model_manager(
        f_obs=f_obs,
        r_free_flags=flags,
        xray_structure=fmodel.atoms.to_cctbx(),
        twin_law=operator(fmodel.twin_law),
        twin_law_str=fmodel.twin_law,
        out=null_out(),
    )
    theirs.update_all_scales(log=null_out())
    r_work, r_free = fmodel.r_factors()
    assert fmodel.scales.twin_fraction == pytest.approx(theirs.twin_fraction_object.twin_fraction, abs=0.03)
    assert theirs.r_work() - 0.012 < r_work < theirs.r_work() + 0.001
    if r_free is not None:
        assert abs(r_free - theirs.r_free()) < 0.02
    assert gemmi.parse_triplet(fmodel.twin_law, "h") is not None
