"""The cases of structure factors, densities and masks by the reference engine, in torch operations alone.

An engine is chosen for the whole process: the driver of :mod:`tests.support.robustness` starts one for these cases.
"""

import random

from mmtbx_sfdiff.kernels import engines

from tests.support import robust_density, robust_masks, robust_structure_factors

engines.usable = lambda device: ("torch", "cpu")


def call(seed):
    """One case: whether what came out is finite."""
    return random.Random(seed).choice((robust_structure_factors, robust_density, robust_masks)).call(seed)
