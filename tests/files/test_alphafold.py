"""Predicted models, from a server of the test's own on the loopback interface."""

import gzip

from mmtbx_sfdiff.files import find_predicted_model, normalize_accession

import pytest
from libtbx.utils import Sorry

from tests.files.test_fetch import QUICK
from tests.support.server import Site

MODEL = b"data_AF-Q07157-F1\n_entry.id AF-Q07157-F1\nloop_\n_atom_site.id\n" + b"1\n" * 500


@pytest.fixture
def site(monkeypatch, tmp_path):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    site = Site({"/AF-Q07157-F1-model_v6.cif": MODEL})
    monkeypatch.setenv("MMTBX_SFDIFF_ALPHAFOLD_URL", site.url)
    monkeypatch.setenv("MMTBX_SFDIFF_CACHE_DIR", str(tmp_path / "cache"))
    yield site
    site.close()


def test_download_then_cache(site):
    path = find_predicted_model("q07157", timeouts=QUICK)
    assert gzip.decompress(path.read_bytes()) == MODEL and path.name == "Q07157.cif.gz"
    assert find_predicted_model("Q07157", download_allowed=False) == path
    assert len(site.asked) == 1


def test_an_older_version_of_the_database(site):
    site.answers = {"/AF-Q07157-F1-model_v4.cif": MODEL}
    assert find_predicted_model("Q07157", timeouts=QUICK).exists()
    assert site.asked == ["/AF-Q07157-F1-model_v6.cif", "/AF-Q07157-F1-model_v4.cif"]


@pytest.mark.parametrize(
    "text", ["", "1abc", "../etc", "Q0715", "Q07157/..", "Q07157\n1", "A0A0B4J2F01", None, "Q0715É"]
)
def test_nothing_else_is_an_accession(site, text):
    with pytest.raises(Sorry, match="is not a UniProt accession"):
        find_predicted_model(text)
    assert site.asked == []


def test_accessions():
    assert [normalize_accession(t) for t in (" p04637 ", "A0A0B4J2F0")] == ["P04637", "A0A0B4J2F0"]


@pytest.mark.parametrize(
    "answer, said",
    [
        (404, "has no model of Q07157"),
        (b"<html>sorry</html>", "web page"),
        (MODEL.replace(b"Q07157", b"P04637"), "AF-P04637-F1"),
        (b"data_AF-Q07157-F1\n", "without atoms"),
        (500, "answered 500"),
    ],
)
def test_bad_answers(site, answer, said, tmp_path):
    site.answers = {f"/AF-Q07157-F1-model_v{v}.cif": answer for v in (6, 4)}
    with pytest.raises(Sorry, match=said):
        find_predicted_model("Q07157", timeouts=QUICK)
    assert not list((tmp_path / "cache").rglob("*.gz"))


def test_download_off(site):
    with pytest.raises(Sorry, match="downloading is off"):
        find_predicted_model("Q07157", download_allowed=False)
    assert site.asked == []
