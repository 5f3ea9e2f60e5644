"""Monomer libraries: where one is, and what it says of the residues of a model.

A library is a folder in CCP4's layout: ``list/mon_lib_list.cif`` (links and modifications), ``ener_lib.cif`` (energy
types, radii) and ``a/ALA.cif`` ... (monomers). gemmi reads it; nothing of it is part of this package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import gemmi

_VARIABLES = ("CLIBD_MON", "MMTBX_CCP4_MONOMER_LIB")
_WHEEL = "coot-headless-api"
_LIST = Path("list") / "mon_lib_list.cif"
HOW_TO_GET_ONE = (
    'No monomer library was found: pip install "mmtbx_sfdiff[refine]" brings one, or set CLIBD_MON (or '
    "MMTBX_CCP4_MONOMER_LIB) to the folder of CCP4's."
)


@dataclasses.dataclass(frozen=True)
class MonomerLibrary:
    """A library and where it was found.

    Attributes
    ----------
    path : pathlib.Path
    source : str
        "named", an environment variable, or the package that brought it.

    Examples
    --------
    >>> monomers, missing = find_library().read(["ALA", "XYZ"])
    >>> "ALA" in monomers.monomers, missing
    (True, ['XYZ'])
    """

    path: Path
    source: str

    def read(
        self, names: Iterable[str], ligands: Sequence[str | os.PathLike[str]] = ()
    ) -> tuple[gemmi.MonLib, list[str]]:
        """Links, modifications, energy types and some monomers.

        Parameters
        ----------
        names : iterable of str
            Residue names.
        ligands : sequence of path
            CIF files of further monomers; they come before those of the library.

        Returns
        -------
        gemmi.MonLib, list of str
            And the names that are in neither.

        Raises
        ------
        ValueError
            A file that cannot be read.
        """
        try:
            library = _lists(str(self.path).rstrip("/") + "/")
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(
                f"The monomer library {self.path} cannot be read ({_one_line(error)}): repair or replace it."
            ) from None
        for path in ligands:
            before = len(library.monomers)
            try:
                library.read_monomer_cif(str(path))
            except (RuntimeError, ValueError, OSError, IndexError) as error:
                raise ValueError(
                    f"The ligand file {path} cannot be read ({_one_line(error)}): give a monomer's restraints as CIF."
                ) from None
            if len(library.monomers) == before:
                raise ValueError(
                    f"The ligand file {path} holds no monomer: give its restraints as CIF (data_comp_...)."
                )
        missing = []
        for name in sorted(set(names)):
            if name not in library.monomers and Path(library.path(name)).is_file():
                # A damaged file: as if it were not there, and the name is given back.
                with contextlib.suppress(RuntimeError, ValueError, IndexError):
                    library.read_monomer_cif(library.path(name))
            if name not in library.monomers:
                missing.append(name)
        return library, missing


def find_library(folder: str | os.PathLike[str] | None = None) -> MonomerLibrary:
    """The monomer library to use.

    Parameters
    ----------
    folder : path, optional
        The one to take. Without it the environment's (``CLIBD_MON``, then ``MMTBX_CCP4_MONOMER_LIB``), then the one
        inside the package coot-headless-api, which is read as data and never imported.

    Raises
    ------
    ValueError
        When there is none, or the folder is not one.

    Examples
    --------
    >>> find_library().path.is_dir()
    True
    """
    if folder is not None:
        return MonomerLibrary(_checked(Path(folder).expanduser(), "the folder given"), "named")
    for name in _VARIABLES:
        if os.environ.get(name):
            return MonomerLibrary(_checked(Path(os.environ[name]), name), name)
    try:
        files = importlib.metadata.distribution(_WHEEL).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.parts[-2:] == _LIST.parts:
            path = Path(str(file.locate())).resolve().parent.parent
            if (path / _LIST).is_file():
                return MonomerLibrary(path, _WHEEL)
    raise ValueError(HOW_TO_GET_ONE)


def _checked(path: Path, where: str) -> Path:
    for part in (_LIST, Path("ener_lib.cif")):
        if not (path / part).is_file():
            raise ValueError(
                f"{path} ({where}) is no monomer library, it has no {part}: name the folder that has, "
                'or unset it and pip install "mmtbx_sfdiff[refine]".'
            )
    return path.resolve()


def _lists(folder: str) -> gemmi.MonLib:
    """Everything but monomers: gemmi 0.7 has a method for it, 0.6 a function."""
    library = gemmi.MonLib()
    if hasattr(library, "read_monomer_lib"):
        try:
            library.read_monomer_lib(folder, [])
            return library
        except TypeError:
            pass
    return gemmi.read_monomer_lib(folder, [], ignore_missing=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
