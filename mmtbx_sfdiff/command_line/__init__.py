"""Thin dispatchers: each starts one program of ``mmtbx_sfdiff.programs`` and returns its exit code."""
