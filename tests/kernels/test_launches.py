"""How many launches a call takes on a GPU, and that the host waits for none: counted on the CPU.

The limits are a ratchet: a change may lower them.  Before these kernels (commit 211ebba) *F*, with gradients, the
mask, with its gradient, and a step of least squares took 355, 822, 122, 263 and 1126 launches, and the host waited 7, 16, 8, 14
and 30 times.
"""

import json

from tests.support.interpreter import interpreted, with_triton

#: Launches besides those of Fourier transforms; a copy of findings to the host, without waiting, counts.  A target alone is that
#: of structure factors that are there; "step" is F, mask, scales, least squares and all gradients.
LIMITS = {
    "F": 7,
    "F and gradients": 14,
    "mask": 8,
    "mask and gradients": 15,
    "least_squares and gradients": 4,
    "maximum_likelihood and gradients": 4,
    "step and gradients": 41,
    "step of maximum likelihood and gradients": 41,
}


@with_triton
def test_launches_stay_within_their_limits_and_nothing_waits():
    printed = interpreted("-m", "tests.kernels.launch_counts")
    found = json.loads(printed.splitlines()[-1])
    assert {name: found[name] for name, limit in LIMITS.items() if found[name]["launches"] > limit} == {}
    # The first call of everything, which makes plans, may look at numbers.
    later = {name: count for name, count in found.items() if "first" not in name}
    assert {name: count for name, count in later.items() if count["waits"] or count["several"]} == {}
    # As many for a batch.
    for name in ("F", "F and gradients", "mask", "mask and gradients"):
        of_batch = name.replace("F", "F of 2", 1).replace("mask", "mask of 2", 1)
        assert found[of_batch]["launches"] == found[name]["launches"], of_batch
