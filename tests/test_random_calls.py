"""Anything that public operations may be given, by every engine: numbers, or one sentence; never a crash, a hang, or a NaN.

More of them: ``python -m validation.studies.robustness``.
"""

import importlib.util
import random

import pytest

from tests.support.robustness import run


def outcomes_of(name, n, seconds=60):
    first = random.Random(name).randrange(2**31)
    outcomes = run(f"tests.support.robust_{name}:call", range(first, first + n), seconds)
    assert not [str(o) for o in outcomes if o.fault]
    kinds = [o.kind for o in outcomes]
    assert len(kinds) == n
    return kinds


@pytest.mark.cctbx  # the children make their atoms with it
@pytest.mark.parametrize("name, n", [("density", 50), ("likelihood", 200), ("nouns", 200)])
def test_the_engine_of_the_cpu(name, n):
    kinds = outcomes_of(name, n)
    assert kinds.count("value") > 0.15 * n and kinds.count("refused") > 0.15 * n


@pytest.mark.slow
@pytest.mark.cctbx
def test_the_reference():
    kinds = outcomes_of("reference", 60, seconds=300)
    assert kinds.count("value") > 10 and kinds.count("refused") > 10


@pytest.mark.slow
@pytest.mark.cctbx
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_s_interpreter():
    kinds = outcomes_of("triton", 12, seconds=300)
    assert kinds.count("value") > 3
