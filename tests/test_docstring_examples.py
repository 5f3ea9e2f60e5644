"""Every public name has an example in its docstring, and it runs.

Public are ``mmtbx_sfdiff.__all__``, that of the rooms below and the names in ``DOORS``, with the public members of their classes.
An example may take as given the names of :func:`tests.support.example_names.example_names`.  A member of a class has an example of its own, or one of
the docstrings of its class uses it (``.name``) in a line that runs: properties and one-line methods need no section each.
"""

import doctest
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.geometry import find_library

import pytest

from tests.support.example_names import example_names
from tests.support.torch_versions import FROM, VERSION

ROOMS = (
    "",
    "bulk_solvent",
    "files",
    "geometry",
    "kernels",
    "latent",
    "likelihood",
    "plans",
    "real_space",
    "rules",
    "scaling",
    "structure_factors",
    "targets",
)
# Public names elsewhere; the members of these classes are another program's interface, which docs/ describe.
DOORS = (
    "comparison.measure.measure",
    "comparison.settings.Settings",
    "interop.jax.structure_factors",
    "interop.rewards.StructureFactorReward",
    "interop.sfcalculator.PDBParser",
    "interop.sfcalculator.SFcalculator",
    "interop.sfcalculator.install",
    "versions.versions",
)
# What torch and Python call, not a user.
HOOKS = {"get_extra_state", "set_extra_state", "extra_repr"}


def _public():
    """(name, object) of everything public that is documented: no constants, no modules."""
    found = {}
    for room in ROOMS:
        module = importlib.import_module(f"mmtbx_sfdiff.{room}".rstrip("."))
        for name in module.__all__:
            try:
                thing = getattr(module, name)
            except ImportError:
                if importlib.util.find_spec("cctbx") is not None:
                    raise
                continue
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__.startswith("mmtbx_sfdiff"):
                found.setdefault(thing, name)
    for door in DOORS:
        module, _, name = door.rpartition(".")
        needs = {"interop.jax": "jax", "comparison.settings": "cctbx", "comparison.measure": "cctbx"}.get(module)
        if needs and importlib.util.find_spec(needs) is None:
            continue
        found.setdefault(getattr(importlib.import_module(f"mmtbx_sfdiff.{module}"), name), name)
    return [(name, thing) for thing, name in found.items()]


def _members(thing):
    """(name, function) of the public methods and properties that a class and its bases of this package define."""
    found = {}
    for base in thing.__mro__:
        if base.__module__.startswith("mmtbx_sfdiff"):
            for name, member in vars(base).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if not name.startswith("_") and name not in HOOKS and inspect.isfunction(function):
                    found.setdefault(name, function)
    return found


def _examples(docstring):
    """The examples of an Examples section that run."""
    section = inspect.cleandoc(docstring or "").partition("Examples\n--------\n")[2]
    return [one for one in doctest.DocTestParser().get_examples(section) if not one.options.get(doctest.SKIP)]


def _docstrings(thing):
    """(qualified name, docstring) of a function, or of a class and its members."""
    own = [(thing.__qualname__, thing.__doc__)]
    if inspect.isclass(thing):
        own += [(f"{thing.__qualname__}.{name}", function.__doc__) for name, function in _members(thing).items()]
    return own


PUBLIC = _public()
CASES = {
    f"{thing.__module__.removeprefix('mmtbx_sfdiff.')}.{name}": (thing, doc)
    for _, thing in PUBLIC
    for name, doc in _docstrings(thing)
    if _examples(doc)
}


@pytest.mark.parametrize(("name", "thing"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_every_public_name_has_an_example_that_runs(name, thing):
    assert _examples(thing.__doc__), f"{name} has no Examples section with a line that runs"
    if inspect.isclass(thing) and ".interop" not in thing.__module__:
        shown = "\n".join(one.source for _, doc in _docstrings(thing) for one in _examples(doc))
        lacking = [
            member
            for member, function in _members(thing).items()
            if not _examples(function.__doc__) and not re.search(rf"\.{member}\b", shown)
        ]
        assert not lacking, f"no example of {name} uses {', '.join(lacking)}"


@pytest.mark.parametrize("name", CASES)
def test_the_example_runs(name, tmp_path, monkeypatch):
    thing, doc = CASES[name]
    source = "".join(one.source for one in _examples(doc))
    if re.search(r"cctbx|\bmmtbx\b|register|takeover|files\.demo|\bmiller_set\(|write_model", source):
        pytest.importorskip("cctbx", reason="needs cctbx")
    if "fmodel.compile(" in source and VERSION < FROM:
        pytest.skip("torch.compile of an FModel wants a newer torch")
    if "reciprocalspaceship" in source:
        pytest.importorskip("reciprocalspaceship")
    if re.search(r"\b(GeometryRestraints|find_library)\b", source):
        try:
            find_library()
        except ValueError:
            pytest.skip("no monomer library")
    monkeypatch.chdir(tmp_path)
    names = vars(inspect.getmodule(thing)) | example_names()
    if thing.__module__.startswith("mmtbx_sfdiff.latent") and "gemmi" not in source and "TorsionTree" not in source:
        for library in ("cctbx", "openmm", "pdbfixer", "normflows"):
            pytest.importorskip(library, reason=f"needs {library}")
        from tests.support.latent_example_names import latent_example_names

        names |= latent_example_names()
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(doc), names, name, None, None)
    said = []
    with torch.random.fork_rng():
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert result.attempted and not result.failed, "".join(said)


@pytest.mark.parametrize("page", ["README.md", "docs/index.rst"])
def test_the_lines_that_a_reader_sees_first_run(page):
    text = (Path(__file__).resolve().parent.parent / page).read_text()
    if page.endswith(".md"):
        blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    else:
        found = re.findall(r"code-block:: python\n\n((?:   .*\n|\n)+)", text)
        blocks = ["".join(line[3:] if line.strip() else line for line in block.splitlines(True)) for block in found]
    assert len(blocks) == 2
    names = example_names()
    sites = names["atoms"].sites_cart.clone().requires_grad_()
    names |= {"sites": sites, "miller_indices": names["data"].miller_indices, "mmtbx_sfdiff": sfdiff}
    exec(compile(blocks[0], page, "exec"), names)
    assert sites.grad.shape == sites.shape and bool(names["loss"].isfinite())
    if importlib.util.find_spec("cctbx") is not None:
        try:
            exec(compile(blocks[1], page, "exec"), names)
        finally:
            sfdiff.unregister()
