"""The engine for CPUs: kernels compiled by numba."""
