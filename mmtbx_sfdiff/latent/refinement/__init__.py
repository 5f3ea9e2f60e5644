"""Refinement against data in a prior's latent variables, and the baselines beside it."""
