"""Numbers that nothing can be computed with are found, and named."""

import pickle

import torch
from mmtbx_sfdiff.kernels import checks

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
