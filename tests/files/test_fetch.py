"""Finding and downloading entries, against a server of the test's own on the loopback interface."""

import base64
import gzip
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from mmtbx_sfdiff.files import Timeouts, fetch, find_entry, is_entry_id, normalize_entry_id

import pytest
from libtbx.utils import Sorry

from tests.support.processes import heed_interrupts
from tests.support.server import only_site

# Tries again at once, and has time: the server's threads are this process's, and other processes have the cores, too.
QUICK = Timeouts(connect=60.0, total=600.0, retries=2, backoff=0.01)
MODEL = b"data_9ABC\n_entry.id   9ABC\nloop_\n_atom_site.id\n_atom_site.type_symbol\n" + b"1 C\n" * 2000
DATA = b"data_r9abcsf\n_cell.entry_id 9abc\nloop_\n_refln.index_h\n_refln.F_meas_au\n" + b"1 2.0\n" * 2000
GOOD = {"/download/9abc.cif.gz": gzip.compress(MODEL), "/download/9abc-sf.cif.gz": gzip.compress(DATA)}


@pytest.fixture
def site(monkeypatch, tmp_path):
    """A server that stands for all three sites; nothing else can be reached, nothing is cached before."""
    with only_site(monkeypatch, tmp_path / "cache", dict(GOOD)) as site:
        yield site


def cached_files(tmp_path):
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    return sorted(path.name for path in files if path.name != ".lock")


def test_download_then_cache(site, tmp_path):
    files = find_entry("9ABC", timeouts=QUICK)
    assert (files.entry, files.source) == ("9abc", "rcsb")
    assert gzip.decompress(files.model.read_bytes()) == MODEL
    assert gzip.decompress(files.data.read_bytes()) == DATA
    again = find_entry("9abc", download=False)
    assert again.source == "cache" and again.model == files.model
    assert len(site.asked) == 2
    assert cached_files(tmp_path) == ["9abc-sf.cif.gz", "9abc.cif.gz"]


def test_extended_identifier_is_the_same_entry(site):
    assert find_entry("PDB_00009ABC", timeouts=QUICK).entry == "9abc"


@pytest.mark.parametrize(
    "text, name",
    [
        ("1YJP", "1yjp"),
        (" 3tsv ", "3tsv"),
        ("pdb_00003tsv", "3tsv"),
        ("pdb_10003tsv", "pdb_10003tsv"),
        ("PDB_0002ABCD", "pdb_0002abcd"),
    ],
)
def test_identifiers(text, name):
    assert is_entry_id(text) and normalize_entry_id(text) == name


def test_names_of_the_older_spelling_go_on_working_and_say_so():
    from mmtbx_sfdiff import files

    for old, new in (("normalise_entry_id", "normalize_entry_id"), ("normalise_accession", "normalize_accession")):
        with pytest.warns(DeprecationWarning, match=new):
            assert getattr(files, old) is getattr(files, new)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0abc",
        "12345",
        "abc",
        "../1",
        "1a/c",
        "../../etc/passwd",
        "1abc/..",
        "1ab.",
        "pdb_0000../..",
        "pdb_1234567",
        "pdb_00000abc",
        "1ab\nc",
        "١abc",
        "1abç",
        None,
        1234,
    ],
)
def test_nothing_else_is_an_identifier(site, text):
    assert not is_entry_id(text)
    with pytest.raises(Sorry, match="is not a PDB entry"):
        find_entry(text)
    assert site.asked == []


def test_other_sites_are_asked_in_turn(site):
    site.answers.clear()
    site.answers["/europe/pdbe/entry-files/download/9abc.cif"] = MODEL
    path = "/japan/pub/pdb/data/structures/divided/structure_factors/ab/r9abcsf.ent.gz"
    site.answers[path] = gzip.compress(DATA)
    files = find_entry("9abc", timeouts=QUICK)
    assert files.source == "pdbe+pdbj"
    assert gzip.decompress(files.model.read_bytes()) == MODEL  # stored compressed though it came plain
    assert len(site.asked) == 2 + 3  # a 404 is not asked for twice


def test_server_error_is_tried_again(site):
    site.answers["/download/9abc.cif.gz"] = lambda handler, n: 503 if n < 3 else GOOD["/download/9abc.cif.gz"]
    assert find_entry("9abc", timeouts=QUICK).source == "rcsb"
    assert site.asked.count("/download/9abc.cif.gz") == 3


def test_retries_end(site, tmp_path):
    site.answers = {"/download/9abc.cif.gz": 503}
    said = r"rcsb answered 503 \(3 attempts\); pdbe answered 404; pdbj answered 404"
    with pytest.raises(Sorry, match=said):
        find_entry("9abc", timeouts=QUICK)
    assert cached_files(tmp_path) == []


def stall(handler, n):
    # Silent until the client hangs up: however busy the machine is, it is the client who has had enough.
    handler.rfile.read(1)


def reset(handler, n):
    # a linger time of zero makes close() send RST
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


def cut(handler, n):
    body = GOOD["/download/9abc.cif.gz"]
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def trickle(handler, n):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while True:  # until the client hangs up
        try:
            handler.wfile.write(b"x")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.02)


def damaged():
    body = bytearray(gzip.compress(MODEL))
    body[-6] ^= 0xFF  # in the checksum: only a reader that goes to the end notices
    return bytes(body)


@pytest.mark.parametrize(
    "answer, said",
    [
        (stall, "rcsb (stopped answering|did not answer in time)"),
        (reset, "rcsb broke the connection"),
        (cut, r"rcsb sent \d+ of \d+ bytes"),
        (trickle, "rcsb sent data too slowly"),
        (damaged(), "rcsb sent a damaged gzip file"),
        (gzip.compress(MODEL)[:60], "rcsb sent a damaged gzip file"),
        (b"<!DOCTYPE html><html><body>Please log in</body></html>", "rcsb sent a web page"),
        (gzip.compress(b"<html>maintenance</html>"), "rcsb sent a web page"),
        (b"", "rcsb sent an empty file"),
        (b"\0\1\2" * 100, "rcsb sent binary data"),
        (b"hello\n" * 10, "rcsb sent something that is not a CIF"),
        (gzip.compress(MODEL.replace(b"9ABC", b"9ABD")), "rcsb sent a file of 9abd"),
        (gzip.compress(DATA.replace(b"9abc", b"xxxx")), "rcsb sent a file that does not name the entry"),
        (418, "rcsb answered 418"),
    ],
    ids=[
        "stall",
        "reset",
        "cut",
        "trickle",
        "checksum",
        "short-gzip",
        "html",
        "html-gz",
        "empty",
        "binary",
        "text",
        "other-entry",
        "no-entry",
        "418",
    ],
)
def test_bad_answer_is_refused_and_the_next_site_is_asked(site, tmp_path, answer, said):
    site.answers["/download/9abc.cif.gz"] = answer
    # Short where it has to run out; the other sites have to answer within it, too.
    limits = Timeouts(
        connect=1.0 if answer is stall else 60.0, total=1.5 if answer is trickle else 600.0, retries=1, backoff=0.01
    )
    with pytest.raises(Sorry, match=said) as caught:
        find_entry("9abc", timeouts=limits)
    message = str(caught.value)
    assert "\n" not in message and "pdbj answered 404" in message and "MMTBX_SFDIFF_PDB_DIR" in message
    assert cached_files(tmp_path) == []
    site.answers["/europe/pdbe/entry-files/download/9abc.cif"] = MODEL
    assert find_entry("9abc", timeouts=limits).source == "pdbe+rcsb"


def test_data_of_another_entry_are_refused(site):
    site.answers["/download/9abc-sf.cif.gz"] = gzip.compress(DATA.replace(b"r9abcsf", b"r9abdsf"))
    with pytest.raises(Sorry, match="rcsb sent a file of 9abd"):
        find_entry("9abc", timeouts=QUICK)


def test_file_that_is_too_large_is_refused(site, monkeypatch):
    monkeypatch.setattr("mmtbx_sfdiff.files.download.MAX_BYTES", 100)
    with pytest.raises(Sorry, match="more than any entry has"):
        find_entry("9abc", timeouts=QUICK)


def test_no_such_entry(site):
    site.answers.clear()
    with pytest.raises(Sorry, match="There is no entry 9abc .*check the identifier"):
        find_entry("9abc", timeouts=QUICK)


def test_no_structure_factors(site):
    del site.answers["/download/9abc-sf.cif.gz"]
    with pytest.raises(Sorry, match="Entry 9abc exists, but no structure factors were deposited"):
        find_entry("9abc", timeouts=QUICK)


def test_no_network(monkeypatch, tmp_path, site):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    for name in ("RCSB", "PDBE", "PDBJ"):
        monkeypatch.setenv(f"MMTBX_SFDIFF_{name}_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(Sorry) as caught:
        find_entry("9abc", timeouts=QUICK)
    message = str(caught.value)
    assert all(f"{name} no connection" in message for name in ("rcsb", "pdbe", "pdbj"))
    assert "give the names of a model and a data file" in message and "\n" not in message


def test_name_that_does_not_resolve(monkeypatch, site):
    for name in ("RCSB", "PDBE", "PDBJ"):
        monkeypatch.setenv(f"MMTBX_SFDIFF_{name}_URL", "http://no-such-host.invalid")
    with pytest.raises(Sorry, match="rcsb (name not found|no connection)"):
        find_entry("9abc", timeouts=QUICK)


@pytest.mark.parametrize("url", ["file:///etc", "ftp://127.0.0.1"])
def test_other_kinds_of_address_are_refused(monkeypatch, site, url):
    monkeypatch.setenv("MMTBX_SFDIFF_RCSB_URL", url)
    with pytest.raises(Sorry, match="not an http or https address"):
        find_entry("9abc", timeouts=QUICK)


def test_a_proxy_is_asked_with_its_password(site, monkeypatch):
    heard = []

    def asked(handler, n):
        heard.append(handler.headers["Proxy-Authorization"])
        return GOOD["/download/9abc.cif.gz"]

    far = "http://no-such-host.invalid"
    site.answers = {far + "/download/9abc.cif.gz": asked, far + "/download/9abc-sf.cif.gz": DATA}
    monkeypatch.setenv("MMTBX_SFDIFF_RCSB_URL", far)
    monkeypatch.setenv("http_proxy", site.url.replace("http://", "http://me:a%20word@"))
    assert find_entry("9abc", timeouts=QUICK).source == "rcsb"
    assert heard == ["Basic " + base64.b64encode(b"me:a word").decode()]


def test_no_proxy_where_none_is_wanted(site, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://no-such-host.invalid:3128")
    with pytest.raises(Sorry, match="rcsb no connection by the proxy"):
        find_entry("9abc", timeouts=QUICK)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert find_entry("9abc", timeouts=QUICK).source == "rcsb"


def test_redirections_are_followed_and_end(site):
    def elsewhere(path):
        def answer(handler, n):
            handler.send_response(302)
            handler.send_header("Location", path)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        return answer

    site.answers["/moved"] = site.answers["/download/9abc.cif.gz"]
    site.answers["/download/9abc.cif.gz"] = elsewhere("/moved")
    assert find_entry("9abc", timeouts=QUICK).source == "rcsb"
    for target, said in (("/download/9abd.cif.gz", "too many redirects"), ("file:///etc/passwd", "unusable address")):
        site.answers["/download/9abd.cif.gz"] = elsewhere(target)
        with pytest.raises(Sorry, match=said):
            find_entry("9abd", timeouts=QUICK)


def test_download_off(site):
    with pytest.raises(Sorry, match="downloading is off"):
        find_entry("9abc", download=False)
    assert site.asked == []


def test_damaged_cache_is_replaced(site, tmp_path):
    files = find_entry("9abc", timeouts=QUICK)
    files.model.write_bytes(files.model.read_bytes()[:50])
    again = find_entry("9abc", timeouts=QUICK)
    assert gzip.decompress(again.model.read_bytes()) == MODEL
    assert site.asked.count("/download/9abc.cif.gz") == 2


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "model, data",
    [
        ("9abc/9abc.pdb.gz", "9abc/9abc.mtz"),
        ("9abc/9abc.cif", "9abc/9abc-sf.cif"),
        ("9abc.cif.gz", "9abc-sf.cif.gz"),
        ("ab/pdb9abc.ent.gz", "ab/r9abcsf.ent.gz"),
        ("9abc/9abc.pdb", "9abc.mtz"),
    ],
)
def test_own_folder_comes_first(site, monkeypatch, tmp_path, model, data):
    model, data = write(tmp_path / "own" / model, b"x"), write(tmp_path / "own" / data, b"x")
    monkeypatch.setenv("MMTBX_SFDIFF_PDB_DIR", str(tmp_path / "own"))
    files = find_entry("9abc")
    assert files == fetch.EntryFiles("9abc", model, data, "MMTBX_SFDIFF_PDB_DIR")
    assert site.asked == []


def test_phenix_mirrors(site, monkeypatch, tmp_path):
    pdb = write(tmp_path / "pdb/ab/pdb9abc.ent.gz", b"x")
    data = write(tmp_path / "sf/ab/r9abcsf.ent.gz", b"x")
    monkeypatch.setenv("PDB_MIRROR_PDB", str(tmp_path / "pdb"))
    monkeypatch.setenv("PDB_MIRROR_STRUCTURE_FACTORS", str(tmp_path / "sf"))
    assert find_entry("9abc") == fetch.EntryFiles("9abc", pdb, data, "PDB_MIRROR_PDB")
    cif = write(tmp_path / "cif/ab/9abc.cif.gz", b"x")
    monkeypatch.setenv("PDB_MIRROR_MMCIF", str(tmp_path / "cif"))
    assert find_entry("9abc") == fetch.EntryFiles("9abc", cif, data, "PDB_MIRROR_MMCIF")
    assert site.asked == []


def test_only_what_is_missing_is_downloaded(site, monkeypatch, tmp_path):
    model = write(tmp_path / "own/9abc/9abc.pdb", b"x")
    monkeypatch.setenv("MMTBX_SFDIFF_PDB_DIR", str(tmp_path / "own"))
    files = find_entry("9abc", timeouts=QUICK)
    assert files.model == model and files.source == "MMTBX_SFDIFF_PDB_DIR+rcsb"
    assert site.asked == ["/download/9abc-sf.cif.gz"]


def test_progress_is_reported_and_logs_are_quiet(site, capfd):
    seen = []
    find_entry("9abc", timeouts=QUICK, progress=lambda *what: seen.append(what))
    sizes = {name: len(body) for name, body in GOOD.items()}
    assert ("9abc.cif.gz", sizes["/download/9abc.cif.gz"], sizes["/download/9abc.cif.gz"]) in seen
    assert seen[-1][0] == "9abc-sf.cif.gz"
    assert capfd.readouterr() == ("", "")


SCRIPT = """
import sys
import mmtbx_sfdiff
from libtbx.utils import Sorry
from mmtbx_sfdiff.files import Timeouts, find_entry
print("ready", flush=True)
sys.stdin.readline()
try:
    print(find_entry("9abc", timeouts=Timeouts(connect=20)).source, flush=True)
except Sorry as error:
    print("Sorry:", error, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


def start(before=None, **variables):
    """A process of its own that waits for a line before it looks for the entry."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=before,
        cwd=root,
    )
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def test_two_runs_at_once_download_once(site, tmp_path):
    def slowly(handler, n):
        time.sleep(0.5)  # the other one asks meanwhile, or finds it in the cache
        return GOOD["/download/9abc.cif.gz"]

    site.answers["/download/9abc.cif.gz"] = slowly
    runs = [start(), start()]
    for run in runs:
        run.stdin.write("\n")
        run.stdin.flush()
    said = sorted(run.communicate(timeout=600)[0].strip() for run in runs)
    assert all(run.returncode == 0 for run in runs)
    assert "rcsb" in said[1] and "cache" in said[0] + said[1]
    assert sorted(site.asked) == ["/download/9abc-sf.cif.gz", "/download/9abc.cif.gz"]


def test_interrupt_leaves_nothing_behind(site, tmp_path):
    arrived = threading.Event()

    def begin(handler, n):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        handler.wfile.write(b"\x1f\x8b" + bytes(200000))
        handler.wfile.flush()
        arrived.set()
        handler.rfile.read(1)  # until the client hangs up

    site.answers["/download/9abc.cif.gz"] = begin
    run = start(before=heed_interrupts)
    run.stdin.write("\n")
    run.stdin.flush()
    assert arrived.wait(600)
    assert cached_files(tmp_path)[0].endswith(".part")  # made before anything is asked for
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=600)
    assert (out, run.returncode) == ("interrupted\n", 130), err
    assert cached_files(tmp_path) == []


def test_leftovers_of_a_killed_run_are_removed(site, tmp_path):
    write(tmp_path / "cache/9abc/.9abc.cif.gz123.part", b"half")
    find_entry("9abc", timeouts=QUICK)
    assert cached_files(tmp_path) == ["9abc-sf.cif.gz", "9abc.cif.gz"]


def test_no_space(site, tmp_path):
    """A real error of the system: this process may not write files longer than 1000 bytes."""
    noise = gzip.compress(b"data_9ABC\n_entry.id 9ABC\n" + os.urandom(30000).hex().encode())
    site.answers["/download/9abc.cif.gz"] = noise
    run = start(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)))
    out, err = run.communicate("\n", timeout=600)
    assert out.startswith("Sorry: Cannot write 9abc.cif.gz to") and "no space left" in out, (out, err)
    assert "MMTBX_SFDIFF_CACHE_DIR" in out and out.count("\n") == 1
    assert cached_files(tmp_path) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc, where nobody can create a folder")
def test_cache_that_cannot_be_written(site, monkeypatch):
    monkeypatch.setenv("MMTBX_SFDIFF_CACHE_DIR", "/proc/no_cache_here")
    with pytest.raises(Sorry, match="Cannot create the folder .*MMTBX_SFDIFF_CACHE_DIR"):
        find_entry("9abc", timeouts=QUICK)


def test_cache_that_is_a_file(site, monkeypatch, tmp_path):
    write(tmp_path / "taken", b"x")
    with pytest.raises(Sorry, match="Cannot create the folder"):
        find_entry("9abc", cache_dir=tmp_path / "taken", timeouts=QUICK)


def test_lock_held_too_long(tmp_path):
    from mmtbx_sfdiff.files.download import lock

    with lock(tmp_path / ".lock"):
        with pytest.raises(Sorry, match="Another run has been downloading"):
            with lock(tmp_path / ".lock", timeout=0.1):
                pass
    with lock(tmp_path / ".lock", timeout=0.1):
        pass


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MMTBX_SFDIFF_CACHE_DIR", raising=False)
    assert fetch.cache_folder() == tmp_path / "mmtbx_sfdiff"
    monkeypatch.setenv("MMTBX_SFDIFF_CACHE_DIR", str(tmp_path / "mine"))
    assert fetch.cache_folder() == tmp_path / "mine"
    assert fetch.cache_folder(tmp_path / "given") == tmp_path / "given"


def test_unknown_server():
    with pytest.raises(Sorry, match="'rscb' is not a server: choose among rcsb, pdbe, pdbj"):
        find_entry("9abc", mirrors=("rscb",))
