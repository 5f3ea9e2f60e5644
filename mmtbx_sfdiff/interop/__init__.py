"""Other people's interfaces over this engine: SFcalculator's, a reward's, JAX's."""
