"""What is kept of a moment ago."""

import torch
from mmtbx_sfdiff.kernels.recent import MOST, Recent


def counted():
    made = []

    def make(*tensors):
        made.append(1)
        return [x * 2 for x in tensors]

    return made, make


def test_the_same_values_are_made_once():
    made, make = counted()
    recent, x = Recent(), torch.arange(3.0)
    first = recent.get([x], "key", make)
    assert recent.get([x.clone()], "key", make) is first and len(made) == 1
    assert recent.get([x], "other", make) is not first
    assert recent.get([x.double()], "key", make) is not first and len(made) == 3


def test_a_tensor_changed_in_place_is_another_and_spoils_nothing():
    made, make = counted()
    recent, x = Recent(), torch.arange(3.0)
    recent.get([x], "key", lambda x: x)
    x.data.add_(1)
    assert recent.get([x], "key", make)[0].tolist() == [2.0, 4.0, 6.0] and len(made) == 1
    # Nor does the result share its memory with what was given.
    x.data.sub_(1)
    assert recent.get([x], "key", make).tolist() == [0.0, 1.0, 2.0] and len(made) == 1


def test_numbers_that_are_none_equal_nothing():
    made, make = counted()
    recent, x = Recent(), torch.tensor([float("nan")])
    for _ in range(2):
        recent.get([x], "key", make)
    assert len(made) == 2


def test_no_more_than_a_few_and_nothing_large_is_kept():
    made, make = counted()
    recent = Recent(2)
    for i in (0, 1, 2, 0):
        recent.get([torch.tensor([float(i)])], "key", make)
    assert len(made) == 4 and len(recent._kept) == 2
    large = torch.zeros(MOST // 4 + 1)
    for _ in range(2):
        recent.get([large], "key", make)
    assert len(made) == 6


def test_nothing_is_kept_of_an_error():
    recent = Recent()

    def fail(x):
        raise ArithmeticError

    for _ in range(2):
        try:
            recent.get([torch.zeros(1)], "key", fail)
            raise AssertionError
        except ArithmeticError:
            pass
    assert not recent._kept
