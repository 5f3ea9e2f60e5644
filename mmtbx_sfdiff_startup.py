"""Registers mmtbx_sfdiff in every program of cctbx and Phenix that is started with ``MMTBX_SFDIFF`` set.

``mmtbx_sfdiff_startup.pth``, which is installed beside this file, calls :func:`install` when Python starts and the
variable is set; nothing is imported then.  The values are ``1`` (the algorithm ``sfdiff`` is known), ``scaling`` (and
this package does ``update_all_scales``) and ``takeover`` (everything goes through this package).

torch has to be loaded right after cctbx's lowest extension module and before the rest of cctbx, so that is when it is
loaded; the registration itself waits for ``mmtbx.f_model``.
"""
import importlib.abc
import importlib.util
import os
import sys

VARIABLE = "MMTBX_SFDIFF"
_VALUES = ("1", "scaling", "takeover")
_held = []


def install():
    """Watch for the two imports; say so on stderr where the variable has another value."""
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value in ("", "0"):
        return
    if value not in _VALUES:
        sys.stderr.write("%s=%s is ignored: set it to %s.\n" % (VARIABLE, value, ", ".join(_VALUES)))
        return
    actions = {"boost_adaptbx.boost.python": _load_torch, "mmtbx.f_model": lambda: _register(value)}
    sys.meta_path.insert(0, _AfterImport(actions))


def _load_torch():
    import torch  # noqa: F401


def _register(value):
    import mmtbx_sfdiff

    if value == "takeover":
        context = mmtbx_sfdiff.takeover()
        context.__enter__()
        _held.append(context)  # for as long as the process lives
    else:
        mmtbx_sfdiff.register(scaling=value == "scaling")


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function once a module of some name has been imported by whoever can."""

    def __init__(self, actions):
        self._actions = actions

    def find_spec(self, name, path=None, target=None):
        action = self._actions.pop(name, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            action()

        spec.loader.exec_module = exec_module
        return spec
