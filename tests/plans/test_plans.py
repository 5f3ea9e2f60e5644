"""Plans are values, and what is kept of crystals and indices is bounded."""

import gc
import resource

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.plans import crystal_plan, plan_of
from mmtbx_sfdiff.plans.cache import Kept, TensorCache

import pytest

from tests.support.structures import random_xray_structure


def test_a_plan_is_not_changed_by_its_indices():
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21"))
    indices = torch.tensor([[1, 2, 3], [0, 1, 4]])
    plan = sfdiff.plan(atoms.crystal, indices)
    expected = sfdiff.structure_factors(atoms, plan)
    indices[0, 0] = 5
    assert torch.equal(sfdiff.structure_factors(atoms, plan), expected)
    with pytest.raises(ValueError, match="own Miller indices"):
        sfdiff.structure_factors(atoms, plan, indices)
    with pytest.raises(ValueError, match="Give miller_indices"):
        sfdiff.structure_factors(atoms, atoms.crystal)
    other = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21 21 21"))
    with pytest.raises(ValueError, match="atoms belong to"):
        sfdiff.structure_factors(other, plan)


def test_the_same_tensor_gives_the_same_plan_until_it_changes():
    crystal = sfdiff.Crystal.from_cctbx(random_xray_structure("P 21"))
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            indices = torch.tensor([[1, 2, 3], [0, 1, 4]])
            first = plan_of(crystal, indices)
            assert plan_of(crystal, indices) is first
            indices[0, 0] = 3
            assert plan_of(crystal, indices) is not first


def test_a_bounded_number_of_things_is_kept():
    kept, cache = Kept(3), TensorCache(3)
    tensors = [torch.tensor([i]) for i in range(10)]
    for i in range(10):
        kept.get(i, lambda: object())
        cache.get(tensors[i], "key", lambda: object())
    assert len(kept) == len(cache) == 3
    del tensors
    gc.collect()
    cache.get(torch.tensor([0]), "key", lambda: object())
    assert len(cache) == 1


def test_a_thousand_crystals_do_not_grow_memory():
    atoms = sfdiff.Atoms.from_cctbx(random_xray_structure("P 21 21 21", n=2))
    indices = atoms.crystal.build_miller_indices(4.0)

    def use(n, method):
        for _ in range(n):
            sfdiff.structure_factors(atoms, atoms.crystal, indices.clone(), method=method)
        gc.collect()

    use(20, "fft")
    use(100, "direct")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    use(40, "fft")
    use(1000, "direct")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024
    assert len(crystal_plan._PLANS) <= crystal_plan._PLANS.size
