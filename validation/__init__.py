"""The validation suite: uses the package as any user does.  ``python -m validation --help``."""
