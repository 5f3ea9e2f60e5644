"""The validation suite and the studies: uses the package as any user does.  ``python -m validation --help``."""

from pathlib import Path

# Studies go by their short names too: ``python -m validation.timing``, ``python -m validation.latent.cpu_study``.
__path__.append(str(Path(__file__).parent / "studies"))
