"""Studies of refinement in latent space."""
