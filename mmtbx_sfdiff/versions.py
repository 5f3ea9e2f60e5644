"""What computed a number: the versions that every report carries."""

import importlib
import platform

__version__ = "0.1.0"


def versions() -> dict[str, str | None]:
    """Versions of this package and of what it computes with.

    Returns
    -------
    dict of str to str or None
        Keys ``mmtbx_sfdiff``, ``python``, ``platform``, ``cctbx``, ``torch``, ``gemmi``, ``numpy`` and
        ``scipy``; None for a package that cannot be imported.

    Examples
    --------
    >>> import mmtbx_sfdiff
    >>> from mmtbx_sfdiff.versions import versions
    >>> versions()["mmtbx_sfdiff"] == mmtbx_sfdiff.__version__
    True
    """
    result: dict[str, str | None] = {
        "mmtbx_sfdiff": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in ("cctbx", "torch", "gemmi", "numpy", "scipy"):
        try:
            result[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            result[name] = None
    return result
