"""The tutorials of the documentation run, and reach what their pages say."""

import importlib
import sys
from pathlib import Path

import mmtbx_sfdiff as sfdiff

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"


@pytest.fixture
def tutorial(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name in ("helix", "network", "ensemble"):
            del sys.modules[name]


def test_the_helix_is_one(tutorial):
    """Right-handed, 1.5 Å a residue, bonds as they should be."""
    helix = tutorial("helix")
    sites = sfdiff.Atoms.from_gemmi(helix.helix()).sites_cart
    ca = sites[1::5]
    a, b, c = ca[1:-2] - ca[:-3], ca[2:-1] - ca[1:-2], ca[3:] - ca[2:-1]
    assert bool(((a.cross(b, dim=-1) * c).sum(-1) > 0).all())
    rise = (ca[-1] - ca[0]).norm() / (len(ca) - 1)
    assert abs(float(rise) - 1.5) < 0.1
    assert float((ca[1:] - ca[:-1]).norm(dim=1).min()) > 3.7


def test_a_network_learns_coordinates_from_data(tutorial, tmp_path):
    before, after, truth, history = tutorial("network").train(tmp_path, n_steps=60)
    assert before.r_factors()[1] > 0.45
    assert max(after.r_factors()) < 0.10 and history[-1][-1] < 0.1


def test_an_ensemble_is_guided(tutorial, tmp_path):
    reward, _, _, _, history = tutorial("ensemble").guide(tmp_path, n_steps=40)
    assert history[-1][1] < history[0][1] - 0.7
    assert history[-1][2] < 0.25 and history[-1][3] < 0.33 and reward.scales.r_free < history[0][3] - 0.12


def test_pictures_can_be_drawn(tutorial, tmp_path):
    pytest.importorskip("matplotlib")
    network, ensemble = tutorial("network"), tutorial("ensemble")
    network.draw(*network.train(tmp_path, n_steps=10), tmp_path / "network.png")
    ensemble.draw(*ensemble.guide(tmp_path, n_steps=5), tmp_path / "ensemble.png")
    assert all((tmp_path / name).stat().st_size > 1e4 for name in ("network.png", "ensemble.png"))
