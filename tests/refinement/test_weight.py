"""The weight of a prior by cross-validation inside the work set."""

import torch
from mmtbx_sfdiff import FModel
from mmtbx_sfdiff.refinement.weight import WEIGHTS, choose_weight, with_test_set

import pytest


@pytest.fixture(scope="module")
def files_1yjp(pdb_dir):
    return [str(pdb_dir / "1yjp" / name) for name in ("1yjp.pdb.gz", "1yjp-sf.cif.gz")]


@pytest.fixture(scope="module")
def reflections(files_1yjp):
    return FModel.from_files(*files_1yjp).reflections


def names(reflections):
    return {tuple(h) for h in reflections.miller_indices.tolist()}


def test_the_test_set_is_of_the_work_set_only(reflections):
    part = with_test_set(reflections, 0.1, seed=3)
    assert names(part) == names(reflections.select(reflections.work))
    assert int(part.r_free_flags.sum()) == round(0.1 * int(reflections.work.sum()))
    assert torch.equal(part.r_free_flags, with_test_set(reflections, 0.1, seed=3).r_free_flags)
    assert not torch.equal(part.r_free_flags, with_test_set(reflections, 0.1, seed=4).r_free_flags)
    with pytest.raises(ValueError, match="too few"):
        with_test_set(reflections.select(torch.arange(100)))


@pytest.mark.parametrize("best", WEIGHTS)
def test_it_walks_downhill_from_the_middle(reflections, best):
    seen = []

    def trial(part, weight):
        assert part.r_free_flags.any()
        seen.append(weight)
        return abs(WEIGHTS.index(weight) - WEIGHTS.index(best))

    choice = choose_weight(reflections, trial)
    assert choice.weight == best and sorted(seen) == list(choice.tests) and len(seen) == len(set(seen))
    assert len(seen) <= 2 + abs(WEIGHTS.index(best) - WEIGHTS.index(3.0)) + 1
