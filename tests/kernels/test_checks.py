"""Numbers that nothing can be computed with are found, and named."""

import pickle

import torch
from mmtbx_sfdiff.kernels import checks, deferred

import pytest


def parameters(n_models=3, n_atoms=5):
    return {
        "sites_cart": torch.ones(n_models, n_atoms, 3, dtype=torch.float64),
        "u_iso": torch.zeros(n_models, n_atoms),
        "u_star": torch.zeros(1, 1, 6).expand(n_models, n_atoms, 6),
        "occupancies": torch.ones(2 * n_models, n_atoms)[::2],
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
@pytest.mark.parametrize("name", ["sites_cart", "u_iso", "u_star", "occupancies"])
def test_the_first_bad_atom_is_named(name, value):
    given = parameters()
    checks.check_numbers(given)
    given[name] = given[name].clone()
    given[name][1, 3] = value
    given[name][2, 0] = value
    with pytest.raises(
        checks.BadAtom, match=rf"^{name} of atom 3 in model 1 of the batch is .*{value:g}".replace("+", ".")
    ):
        checks.check_numbers(given)


def test_the_label_is_added_where_it_is_known():
    given = parameters(1)
    given["u_iso"][0, 2] = float("nan")
    with pytest.raises(checks.BadAtom, match=r"^u_iso of atom 2 \(CA  ALA A  3\) is nan: it must be") as caught:
        with checks.naming(lambda: ["", "", "CA  ALA A  3 ", "", ""]):
            checks.check_numbers(given)
    assert isinstance(caught.value, ValueError) and "model" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.atom, again.model) == (2, 0)


def test_empty_and_large_but_meaningful_numbers_pass():
    checks.check_numbers(parameters(0))
    checks.check_numbers(parameters(2, 0))
    given = parameters()
    given["sites_cart"] *= 9e5
    checks.check_numbers(given)


def test_tensors_must_agree():
    one, two = torch.ones(1), torch.ones(1, dtype=torch.float64)
    checks.check_same("the atoms", {"a": one, "b": one}, (torch.float32,))
    with pytest.raises(TypeError, match="a and b of the atoms are torch.float32 and torch.float64"):
        checks.check_same("the atoms", {"a": one, "b": two}, (torch.float32, torch.float64))
    with pytest.raises(TypeError, match="float16"):
        checks.check_same("the atoms", {"a": one.half()}, (torch.float32, torch.float64))
    with pytest.raises(ValueError, match="cpu and meta"):
        checks.check_same("the atoms", {"a": one, "b": one.to("meta")}, (torch.float32,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_sums_of_squares_read_memory_as_it_is(dtype):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, dtype=dtype, generator=generator) for shape in ((), (0, 3), (7,), (2, 5, 3))]
    expected = sum(float(x.abs().to(torch.float64).square().sum()) for x in values)
    assert abs(checks.square_sum(values) - expected) <= 1e-6 * expected
    # A part of a larger tensor begins elsewhere; what does not lie together is not read.
    assert abs(checks.square_sum([values[3][1]]) - float(values[3][1].abs().to(torch.float64).square().sum())) < 1e-5
    assert checks.square_sum([values[3].transpose(-1, -2)]) is None
    assert (
        checks.square_sum([values[2].to(torch.int64) if not dtype.is_complex else torch.zeros(3, dtype=torch.bool)])
        is None
    )
    values[2][3] = float("nan")
    assert not checks.square_sum(values) <= 1e300
    assert checks.square_sum([values[0]] * 99) is None


def test_restraints_and_others_outside_an_operation_name_the_atom_where_numbers_are_seen():
    sites = torch.zeros((2, 4, 3), dtype=torch.float64)
    sites[1, 2, 0] = float("nan")
    with pytest.raises(checks.BadAtom, match="sites_cart of atom 2 in model 1 of the batch is .nan, 0, 0."):
        checks.check_where_seen("sites_cart", sites)
    with deferred.everywhere():
        checks.check_where_seen("sites_cart", sites)
    torch.func.vmap(lambda x: (checks.check_where_seen("sites_cart", x), x)[1])(sites)
