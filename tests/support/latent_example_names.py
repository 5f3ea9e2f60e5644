"""What the examples of the latent package take as given, beside those of all others: alanine dipeptide and frames of it."""

import functools

from mmtbx_sfdiff.latent import MixedTransform, frame_features

from tests.support.latent_systems import dipeptide, dipeptide_system, random_sites


@functools.lru_cache
def latent_example_names():
    """``model`` (PreparedModel), ``system``, ``frames`` (80, 22, 3), their ``transform`` and features ``x``."""
    model, system, frames = dipeptide(), dipeptide_system(), random_sites(dipeptide(), 80, 0.03)
    transform = MixedTransform.from_prepared(model, system, frames=frames)
    return {
        "model": model,
        "system": system,
        "frames": frames,
        "transform": transform,
        "x": frame_features(transform, frames),
    }
