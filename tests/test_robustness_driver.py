"""The driver of the robustness tests: what it calls a fault, and that it goes on after one."""

import ctypes
import time

from tests.support.robustness import run


def worker(case):
    if case == "crash":
        ctypes.string_at(0)
    if case == "hang":
        while True:
            time.sleep(1)
    if case == "refusal":
        raise ValueError("This is what is wrong.")
    if case == "two lines":
        raise ValueError("one\ntwo")
    if case == "error":
        raise RuntimeError("stack expects a non-empty TensorList")
    print("in between")
    return {"finite": case != "nan"}


def test_faults_are_told_from_answers():
    cases = ["ok", "crash", "ok", "refusal", "two lines", "error", "nan", "ok"]
    outcomes = run("tests.test_robustness_driver:worker", cases, seconds=60)
    assert [o.case for o in outcomes] == cases
    assert [o.kind for o in outcomes] == [
        "value",
        "crash",
        "value",
        "refused",
        "error",
        "error",
        "value",
        "value",
    ]
    assert [o.fault for o in outcomes] == [False, True, False, False, True, True, True, False]


def test_what_hangs_is_ended_and_begun_anew():
    outcomes = run("tests.test_robustness_driver:worker", ["hang", "hang"], seconds=1, patience=1)
    assert [o.kind for o in outcomes] == ["hang", "hang"] and all(o.fault for o in outcomes)
