"""What every program's command line does with an interrupt."""

import os
import signal
import subprocess
import sys
import weakref

from mmtbx_sfdiff.programs import fmodel
from mmtbx_sfdiff.programs.runner import _named_shelx, guarded, main

PROGRAM = """
import mmtbx_sfdiff, os, signal, sys, time
from mmtbx_sfdiff.programs import fmodel
from mmtbx_sfdiff.programs.runner import _named_shelx, guarded, main

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

def run():
    Finalised()
    time.sleep(600)
    print("not interrupted")

sys.exit(guarded(run))
"""


def test_ctrl_c_during_a_finaliser_is_not_lost(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr.strip() == "Interrupted."


def test_other_errors_of_finalisers_are_reported_as_ever(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))
    hook = sys.unraisablehook

    def run():
        target = type("Target", (), {})()
        reference = weakref.ref(target, lambda _: 1 / 0)
        del target
        assert reference() is None

    assert guarded(run) == 0
    assert seen == [ZeroDivisionError] and sys.unraisablehook is hook


def test_a_shelx_file_with_its_word_alone_is_the_data(tmp_path):
    path = tmp_path / "x.hkl"
    path.write_text("")
    assert _named_shelx(f"{path}=hklf4") == f"data_file={path}=hklf4"
    for word in (str(path), f"data_file={path}=hklf4", f"{path}=other", "x=amplitudes"):
        assert _named_shelx(word) == word


def test_an_empty_file_is_said_to_be_empty(tmp_path, capsys):
    (tmp_path / "model.pdb").write_text("")
    (tmp_path / "data.mtz").write_bytes(b"")
    for words in (["model.pdb", "data.mtz"], ["data.mtz"]):
        assert main(fmodel.Program, [str(tmp_path / word) for word in words]) == 1
        said = " ".join("".join(capsys.readouterr()).split())
        assert "is empty: download or copy it again" in said and "whole number" not in said
