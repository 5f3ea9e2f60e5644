"""Every engine against the reference: {dtype, space group, anisotropic, batch, atoms at the edges of tiles and cells}."""

import mmtbx_sfdiff  # noqa: F401
from mmtbx_sfdiff.kernels import engines

import pytest

from tests.kernels.conformance import CASES, CHECKS
from tests.support.interpreter import interpreted, with_triton


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu_engine_conforms(case, check):
    check(engines.engine("cpu", "cpu"), case)


@with_triton
@pytest.mark.parametrize(
    "cases",
    (("2",), *(pytest.param((f"L{i}",), marks=pytest.mark.slow) for i in range(14))),
    ids=str,
)
def test_triton_engine_conforms_in_the_interpreter(cases):
    assert "conforms" in interpreted("-m", "tests.kernels.conformance", "triton", *cases)


@pytest.mark.parametrize("device, name", (("cuda", "cpu"), ("cpu", "fortran")))
def test_an_engine_that_cannot_be_used_is_refused_in_a_sentence(device, name):
    with pytest.raises(ValueError, match=f"engine='{name}' cannot be used here"):
        engines.engine(device, name)
