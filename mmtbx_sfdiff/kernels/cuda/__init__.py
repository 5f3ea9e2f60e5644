"""The engine for GPUs: Triton kernels."""
