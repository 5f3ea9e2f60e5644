"""What happens when Python starts, where it was asked for.

Nothing calls this unless somebody ran ``mmtbx_sfdiff.run --install-startup``, which puts :data:`LINE` into a file that
Python reads when it starts, ``mmtbx_sfdiff_startup.pth``.  The line calls :func:`start`, and then:

1. It waits for cctbx to be imported and then binds it to the C++ runtime that is loaded, as ``import mmtbx_sfdiff`` does:
   without either, ``import torch`` and then ``from cctbx import xray`` is a segmentation fault where cctbx is a wheel.
   Until then nothing is imported.
2. Where ``MMTBX_SFDIFF`` is set, it registers mmtbx_sfdiff in every program of cctbx and Phenix (:func:`install`).  The
   values are ``1`` (the algorithm ``sfdiff`` is known), ``scaling`` (and this package does ``update_all_scales``) and
   ``takeover`` (everything goes through this package).  torch has to be loaded right after cctbx's lowest extension
   module and before the rest of cctbx, so that is when it is loaded; the registration itself waits for
   ``mmtbx.f_model``, or where that is not imported, for the first structure factors.
"""

import os
import sys

VARIABLE = "MMTBX_SFDIFF"
VALUES = ("1", "scaling", "takeover")
# Silent where the package has been removed since.
LINE = 'import sys; exec("try: import mmtbx_sfdiff_startup as s\\nexcept ImportError: pass\\nelse: s.start()")\n'
_LOWEST = "boost_python_meta_ext"  # cctbx's lowest extension module
_REGISTRY = "mmtbx_sfdiff.cctbx_backend.registry"
_installed: list = []


class _BeforeCctbx:
    """A finder of modules that finds none."""

    def find_spec(self, name, path=None, target=None):
        if name == _LOWEST and self in sys.meta_path:
            sys.meta_path.remove(self)
            _loading().prepare()


def _loading():
    """``mmtbx_sfdiff._cctbx_loading``, without the package around it, which would import torch."""
    name = "mmtbx_sfdiff._cctbx_loading"
    if name not in sys.modules:
        from importlib import util

        package = util.find_spec("mmtbx_sfdiff")
        spec = util.spec_from_file_location(name, os.path.join(os.path.dirname(package.origin), "_cctbx_loading.py"))
        module = util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def start():
    """Called when Python starts; again, it changes nothing.

    Python may read its start-up files twice (3.11 does in virtual environments), and two finders that wait for one module
    would call each other without end.
    """
    if not any(isinstance(finder, _BeforeCctbx) for finder in sys.meta_path) and _LOWEST not in sys.modules:
        sys.meta_path.insert(0, _BeforeCctbx())
    install()


def active():
    """Whether the variable acts on this process."""
    return any(_installed)


def install():
    """Watch for the imports, once; say so on stderr where the variable has another value."""
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value in ("", "0") or _installed:
        return
    if value not in VALUES:
        _installed.append(None)
        sys.stderr.write("%s=%s is ignored: set it to %s.\n" % (VARIABLE, value, ", ".join(VALUES)))
        return
    registration = _Registration(value)
    _installed.append(registration)
    sys.meta_path.insert(
        0,
        _AfterImport(
            {
                "boost_adaptbx.boost.python": _load_torch,
                "cctbx.xray.structure_factors": registration.wait_for_use,
                "mmtbx.f_model": registration.do,
                _REGISTRY: registration.do,
            }
        ),
    )


def _load_torch():
    import torch  # noqa: F401


class _Registration:
    """Registers once.

    Importing this package imports mmtbx, which cannot be done while cctbx is being imported.  What programs without
    mmtbx compute with are these three, so each of them registers before its first call.
    """

    def __init__(self, value):
        self._value = value
        self._undo = []
        self._done = False
        self._context = None

    def do(self):
        import importlib

        registry = importlib.import_module(_REGISTRY)
        if self._done or not hasattr(registry, "takeover"):
            return  # where it imports mmtbx.f_model itself: its own end comes here too
        self._done = True
        while self._undo:
            owner, name, before = self._undo.pop()
            setattr(owner, name, before)
        if self._value == "takeover":
            self._context = registry.takeover()
            self._context.__enter__()  # for as long as the process lives
        else:
            registry.register(scaling=self._value == "scaling")

    def wait_for_use(self):
        module = sys.modules["cctbx.xray.structure_factors"]
        for owner, name in (
            (module.from_scatterers, "__call__"),
            (module.gradients, "__call__"),
            (module, "from_scatterers_direct"),
        ):
            before = getattr(owner, name)
            self._undo.append((owner, name, before))
            setattr(owner, name, self._first(owner, name))

    def _first(self, owner, name):
        def call(*args, **keywords):
            self.do()
            return getattr(owner, name)(*args, **keywords)

        return call


class _AfterImport:
    """Calls a function once a module of some name has been imported by whoever can."""

    def __init__(self, actions):
        self._actions = actions

    def find_spec(self, name, path=None, target=None):
        action = self._actions.pop(name, None)
        if action is None:
            return None
        from importlib import util

        spec = util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            action()

        spec.loader.exec_module = exec_module
        return spec
