"""Targets, alpha and beta, sigma-A, normalized structure factors, and the Bessel functions in them."""
