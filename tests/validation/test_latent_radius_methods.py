"""Every method of the study of the radius of convergence runs, at a tiny size; what limits the search is told apart."""

import torch
from mmtbx_sfdiff import Atoms, Crystal, FModel, Reflections
from mmtbx_sfdiff.latent import ElasticNetwork
from mmtbx_sfdiff.latent.refinement.rebuild import RebuildSettings
from mmtbx_sfdiff.latent.refinement.search import SearchSettings, Start

import pytest

from tests.support.monomers import library_or_skip
from tests.support.peptide import peptide
from validation.studies.latent_radius import generators, limits, methods
from validation.studies.latent_radius.__main__ import in_turn
from validation.studies.latent_radius.starts import main_chain, rms, sites_of, with_sites

TINY, FEW = (
    SearchSettings(starts=(Start(),), rigid_steps=2, steps=8),
    RebuildSettings(evaluations=12, cycles=1, steps=3),
)


def reflections_of(structure, d_min=2.2):
    """Amplitudes of the structure itself, a tenth of them free."""
    crystal = Crystal.from_gemmi(structure)
    reach = [torch.arange(-n, n + 1) for n in (11, 10, 13)]
    indices = torch.cartesian_prod(*reach)
    indices = indices[(indices[:, 2] > 0) | (indices[:, 0] > 0) & (indices[:, 2] == 0)]
    d = crystal.d_star_sq(indices).rsqrt()
    indices = indices[(d > d_min) & (d < 15.0) & (indices[:, 1] >= 0)]
    indices = indices[~((indices[:, 0] == 0) & (indices[:, 2] == 0) & (indices[:, 1] % 2 == 1))]
    blank = Reflections.from_arrays(crystal, indices, torch.ones(len(indices)).double())
    f = FModel(Atoms.from_gemmi(structure), blank, method="direct").f_calc().detach().abs()
    free = torch.rand(len(indices), generator=torch.Generator().manual_seed(2)) < 0.1
    return Reflections.from_arrays(crystal, indices, f, sigmas=0.03 * f + 0.1, free=free)


@pytest.fixture
def subject(monkeypatch):
    pytest.importorskip("openmm")
    pytest.importorskip("pdbfixer")
    library_or_skip()
    for module, values in (
        (
            methods,
            {
                "SEARCH": TINY,
                "REBUILD": FEW,
                "BUDGET": 16,
                "RIGID_STEPS": 2,
                "STAGES": 2,
                "POLISH_CYCLES": 2,
                "POLISH_STEPS": 2,
            },
        ),
        (methods, {"POLISH_STAGES": 2}),
        (generators, {"SHORT": 0.4, "LONG": 0.8, "SKIP": 0.1, "INTERVAL": 0.024, "LIKELIHOOD_STEPS": 2}),
        (generators, {"ENERGY_STEPS": 2, "ENERGY_SAMPLES": 2}),
    ):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    structure = peptide(("ALA", "SER", "ALA", "SER", "ALA"))
    prior = ElasticNetwork.from_gemmi(structure, rms=0.4)
    bent = prior.sample(1, 1.0, torch.Generator().manual_seed(4))[0]
    return methods.Subject(with_sites(structure, bent, 12.0), reflections_of(structure), None)


@pytest.mark.slow
def test_priors_of_dynamics_and_sites_with_the_force_field_go_through_the_same_door(subject, tmp_path):
    assert set(methods.WITH_DYNAMICS) == {
        *(f"latent_{kind}" for kind in ("linear", "linear_long", "realnvp", "spline")),
        "sites_ff",
        "average_ff",
    }
    for name in methods.WITH_DYNAMICS:
        fmodel, facts = methods.run(name, subject, 0, folder=tmp_path)
        assert fmodel.atoms.n_atoms == len(sites_of(subject.structure)) and all(0 < r < 1 for r in fmodel.r_factors())
        assert facts["evaluations"] <= TINY.n_steps + FEW.evaluations and facts["seconds"]["method"] > 0
    kept = {path.name for path in tmp_path.glob("*.pt")}
    assert kept == {"linear.pt", "linear_long.pt", "realnvp.pt", "spline.pt"}
    # Dynamics and flows are made once.
    times = {path: path.stat().st_mtime_ns for path in [*tmp_path.glob("*.pt"), *tmp_path.glob("md/*.npz")]}
    methods.run("latent_spline", subject, 0, folder=tmp_path)
    assert times == {path: path.stat().st_mtime_ns for path in [*tmp_path.glob("*.pt"), *tmp_path.glob("md/*.npz")]}


def test_every_start_has_its_turn_and_all_are_mixed():
    found = list(in_turn(["a", "b"], [1.0, 1.5, 2.0], [0, 1, 2]))
    assert len(found) == len(set(found)) == 18
    assert {seed for _, _, seed in found[:3]} == {0, 1, 2} and len({target for _, target, _ in found[:3]}) == 3
    assert {entry for entry, _, _ in found[:2]} == {"a", "b"}


def test_the_nearest_model_of_the_prior_is_found_and_more_modes_come_nearer():
    structure = peptide()
    prior = ElasticNetwork.from_gemmi(structure, rms=1.0)
    truth = prior.sample(1, 1.0, torch.Generator().manual_seed(1))[0]
    main = main_chain(structure)
    rows, z = limits.coverage(prior, truth, main)
    assert rows[-1]["main"] < 0.02 and rms(prior.decode(z)[0], truth, main) == pytest.approx(rows[-1]["main"])
    assert all(a["all"] >= b["all"] for a, b in zip(rows, rows[1:])) and rows[0]["main"] > rows[-1]["main"]
    # What no torsion can do, no latent vector does.
    stretched = truth * torch.tensor([1.15, 1.0, 1.0], dtype=torch.float64)
    assert limits.coverage(prior, stretched, main)[0][-1]["main"] > 0.1


def test_the_first_limit_that_holds_is_named():
    good, bad = {"r_free": 0.25, "main": 0.2}, {"r_free": 0.50, "main": 1.5}

    def record(right, found, near=0.1, gains=(100.0, 50.0), low=None):
        last = {name: {"gain": gain, "penalty": 10.0} for name, gain in zip(("right", "found"), gains)}
        return {
            "benchmark": [0.2, 0.25],
            "coverage": [{"main": near}],
            "targets": [low or last, last],
            "polished": {"right": right, "found": found},
        }

    assert limits.verdict(record(bad, bad, near=0.8)) == "coverage"
    assert limits.verdict(record(bad, bad)) == "polishing"
    assert limits.verdict(record(good, {"r_free": 0.33, "main": 0.3})) == "polishing"
    assert limits.verdict(record(good, bad, gains=(50.0, 100.0))) == "target"
    weak = {"right": {"gain": 20.0, "penalty": 90.0}, "found": {"gain": 15.0, "penalty": 5.0}}
    assert limits.verdict(record(good, bad, low=weak)) == "search"
    assert limits.verdict(record(good, bad)) == "search"
    assert limits.verdict({"benchmark": [0.2, 0.25], "coverage": [{"main": 0.1}]}) == "-"


def test_a_run_of_the_elastic_network_says_where_it_ended(subject):
    _, facts = methods.latent_elastic(subject, 0)
    prior = methods.elastic_prior(subject)
    sites = prior.decode(torch.tensor(facts["z"], dtype=torch.float64))[0]
    main = main_chain(subject.structure)
    searched = torch.tensor(facts["sites_of_search"], dtype=torch.float64)
    assert rms(sites, searched, torch.ones_like(main)) < 1e-3
    assert TINY.n_steps < facts["evaluations"] <= TINY.n_steps + FEW.evaluations and isinstance(facts["built"], list)
