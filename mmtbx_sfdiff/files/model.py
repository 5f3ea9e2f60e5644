"""Reading an atomic model into ``mmtbx.model.manager``, with everything refused that no calculation can use.

The scattering-type registry is set by ``mmtbx.model.manager.setup_scattering_dictionaries``, the call that
``DataManager.get_fmodel`` and ``mmtbx.model_vs_data`` make, because the Gaussians of the ``n_gaussian`` table
depend on the resolution.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import iotbx.pdb
import iotbx.pdb.mmcif
import mmtbx.model
import numpy as np
from cctbx import crystal, sgtbx, uctbx
from cctbx.array_family import flex
from cctbx.eltbx import xray_scattering
from libtbx.utils import Sorry as CctbxSorry
from libtbx.utils import null_out

from ..atom_arrays import EIGHT_PI_SQ
from ..numerics import symmetric
from ..numerics.tensors import number_of
from ..rules import radiation_messages
from ..symmetry.frame import Frame, frame_of, scale_of_block, scale_of_pdb
from .cif_symmetry import symmetry_of_block
from .content import read_content
from .entry_id import entry_id_in_model
from .errors import Sorry
from .model_header import methods, published_statistics
from .model_text import MAX_B, MAX_COORDINATE, MAX_OCCUPANCY, normalized, said_of_atoms, said_of_models
from .odd_atoms import AtomTable, said_of_odd
from .reflection_table import one_line

SCATTERING_TABLES = ("n_gaussian", "it1992", "wk1995", "electron", "neutron")

_DUMMY_CELL_VOLUME = 10.0  # Å³; electron microscopy and NMR files carry a cell of 1 x 1 x 1 Å


@dataclass(frozen=True)
class Model:
    """An atomic model, ready for structure factors.

    Attributes
    ----------
    path : pathlib.Path
    manager : mmtbx.model.manager
        Without restraints.
    xray_structure : cctbx.xray.structure
        The manager's own.
    crystal_symmetry : cctbx.crystal.symmetry
    entry_id : str or None
        What the file says it is.
    r_work, r_free : float or None
        R factors in the header.
    d_min : float or None
        High-resolution limit in the header, Å.
    scattering_table : str
    frame : Frame or None
        The frame of the file's coordinates, where it is not the standard one; the manager's is.
    messages : tuple of str
        What a reader of the results should know.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import read_model
    >>> from mmtbx_sfdiff.files.demo import shipped_model
    >>> model = read_model(shipped_model())
    >>> model.scattering_table, model.with_scattering("it1992", None).scattering_table
    ('n_gaussian', 'it1992')
    """

    path: Path
    manager: Any
    xray_structure: Any
    crystal_symmetry: Any
    entry_id: str | None = None
    r_work: float | None = None
    r_free: float | None = None
    d_min: float | None = None
    scattering_table: str = "n_gaussian"
    frame: Frame | None = None
    messages: tuple[str, ...] = field(default_factory=tuple)

    def with_scattering(self, table: str, d_min: float | None) -> Model:
        """The same model with form factors of another table or resolution.

        Parameters
        ----------
        table : str
            One of :data:`SCATTERING_TABLES`.
        d_min : float or None
            Resolution for which the ``n_gaussian`` table chooses its Gaussians, Å.

        Returns
        -------
        Model
            With a manager of its own; this one is not changed.

        Raises
        ------
        libtbx.utils.Sorry
            If the table is unknown or lacks an element of the model.
        """
        manager = self.manager.deep_copy()
        set_scattering(manager, table, d_min, self.path)
        return replace(self, manager=manager, xray_structure=manager.get_xray_structure(), scattering_table=table)


def read_model(
    path: str | Path,
    scattering_table: str = "n_gaussian",
    d_min: float | None = None,
    crystal_symmetry: Any = None,
    space_group: Any = None,
    unit_cell: Any = None,
    shift: Any = None,
) -> Model:
    """Read a model in PDB or mmCIF format, plain or compressed with gzip.

    Parameters
    ----------
    path : path
    scattering_table : str
        One of :data:`SCATTERING_TABLES`.
    d_min : float, optional
        Resolution of the data, Å, for the ``n_gaussian`` table.
    crystal_symmetry : cctbx.crystal.symmetry, optional
        Used when the file has none.
    space_group : str, optional
        Instead of the file's.
    unit_cell : (6,) floats, optional
        Instead of the file's; coordinates in Å stay what they are.
    shift : (3,) floats, optional
        Fractions of the cell by which the model is moved.

    Returns
    -------
    Model

    Raises
    ------
    libtbx.utils.Sorry
        In one sentence that names the file: unreadable, no cell, no atoms, impossible coordinates or
        displacement parameters, unknown elements, no occupied atoms.

    Examples
    --------
    >>> from mmtbx_sfdiff.files import read_model
    >>> from mmtbx_sfdiff.files.demo import shipped_model
    >>> model = read_model(shipped_model())
    >>> model.entry_id, model.xray_structure.scatterers().size(), model.r_work
    ('2erl', 638, 0.129)
    """
    content = read_content(path, "model")
    path = content.path
    text = content.text
    lower = text.lower() if content.kind == "cif" else ""
    if content.kind == "mtz" or "\n_refln.index_h" in lower or "\n_refln_index_h" in lower:
        if "\n_atom_site" not in lower:
            raise Sorry(f"{path} holds reflections, not atoms: give the model file here and this one as data.")
    text, block, messages = normalized(text, content.kind, path)
    messages = [*content.end, *messages]
    pdb_input, hierarchy = _parse(text, content.kind, path)
    atoms = hierarchy.atoms()
    if atoms.size() == 0:
        raise Sorry(f"{path} contains no atoms: give a PDB or mmCIF file with coordinates.")
    _check_atoms(atoms, path)
    symmetry = _symmetry(pdb_input, block, crystal_symmetry, path)
    symmetry, asked = _as_asked(symmetry, space_group, unit_cell, path)
    messages += asked
    scale = scale_of_pdb(text) if block is None else scale_of_block(block)
    frame, more = frame_of(scale, symmetry.unit_cell().parameters())
    messages += [
        *more,
        *said_of_models(hierarchy.models_size()),
        *radiation_messages(methods(text, block), scattering_table),
    ]
    try:
        manager = _manager(pdb_input, symmetry, messages)
        _restore_digits(manager, pdb_input)
        if frame is not None:
            turn(manager.get_hierarchy().atoms(), frame)
        if shift is not None and any(shift):
            messages.append(_move(manager.get_hierarchy().atoms(), symmetry.unit_cell(), shift))
        structure = manager.get_xray_structure()
    except (CctbxSorry, RuntimeError, ValueError) as error:
        raise Sorry(f"{path} has an atom that cctbx cannot use ({one_line(error)}): correct the file.") from None
    set_scattering(manager, scattering_table, d_min, path)
    occupancies = structure.scatterers().extract_occupancies()
    bad = structure.is_positive_definite_u().count(False)
    messages += said_of_atoms(bad, (occupancies < 0).count(True), (occupancies == 0).count(True))
    messages += said_of_odd(_table(manager.get_hierarchy()))
    published = published_statistics(pdb_input, text)
    return Model(
        path=path,
        manager=manager,
        xray_structure=manager.get_xray_structure(),
        crystal_symmetry=symmetry,
        entry_id=entry_id_in_model(text),
        r_work=published[0],
        r_free=published[1],
        d_min=published[2],
        scattering_table=scattering_table,
        frame=frame,
        messages=tuple(messages),
    )


def turn(atoms: Any, frame: Any, back: bool = False) -> None:
    """Turn the atoms of a hierarchy into the standard frame, or back; changes them."""
    sites = atoms.extract_xyz().as_double().as_numpy_array().reshape(-1, 3)
    sites = frame.to_file(sites) if back else frame.to_standard(sites)
    atoms.set_xyz(flex.vec3_double(flex.double(np.ascontiguousarray(sites.ravel()))))
    tensors = np.array(list(atoms.extract_uij())).reshape(-1, 6)
    some = ~(tensors == -1).all(axis=1)
    turned = symmetric.packed(frame.turned(symmetric.full(tensors), back))
    for atom, tensor, has in zip(atoms, turned.tolist(), some.tolist()):
        if has:
            atom.uij = tuple(tensor)


def _parse(text: str, kind: str, path: str | Path) -> tuple[Any, Any]:
    """cctbx's input object and hierarchy; whatever its parsers raise becomes one sentence."""
    lines = flex.std_string(text.splitlines())
    try:
        if kind == "cif":
            pdb_input = iotbx.pdb.mmcif.cif_input(source_info=str(path), lines=lines)
        elif any(line.startswith(("ATOM  ", "HETATM", "CRYST1", "HEADER", "REMARK")) for line in lines):
            pdb_input = iotbx.pdb.pdb_input(source_info=str(path), lines=lines)
        else:
            raise Sorry(f"{path} is neither a PDB nor an mmCIF file: give a model in one of these formats.")
        return pdb_input, pdb_input.construct_hierarchy(sort_atoms=False)
    except CctbxSorry as error:
        if str(path) in str(error):
            raise
        raise Sorry(f"{path} is not a readable model ({one_line(error)}): correct or replace it.") from None
    except (ValueError, RuntimeError, AssertionError, LookupError, AttributeError, TypeError) as error:
        raise Sorry(f"{path} is not a readable model ({one_line(error)}): correct or replace it.") from None


def _symmetry(pdb_input: Any, block: Any, given: Any, path: str | Path) -> Any:
    try:
        symmetry = pdb_input.crystal_symmetry()
        if block is not None and (symmetry is None or symmetry.space_group() is None or symmetry.unit_cell() is None):
            symmetry = symmetry_of_block(block).to_cctbx()
    except (ValueError, RuntimeError, AssertionError) as error:
        raise Sorry(
            f"{path} has an impossible unit cell or space group ({one_line(error)}): correct its "
            "CRYST1 record or mmCIF cell."
        ) from None
    usable = (
        symmetry is not None and symmetry.unit_cell() is not None and symmetry.unit_cell().volume() > _DUMMY_CELL_VOLUME
    )
    if usable and symmetry.space_group() is not None:
        return symmetry
    if given is not None and given.unit_cell() is not None and given.space_group() is not None:
        return given
    missing = "unit cell" if not usable else "known space group"
    raise Sorry(
        f"{path} has no {missing} (CRYST1 record, or mmCIF _cell and _symmetry): add it, or give a crystal symmetry."
    )


def _as_asked(symmetry: Any, space_group: Any, unit_cell: Any, path: str | Path) -> tuple[Any, list[str]]:
    """The symmetry with another group or cell, and what to say of it."""
    if space_group is None and unit_cell is None:
        return symmetry, []
    messages = []
    group = symmetry.space_group()
    cell = symmetry.unit_cell()
    try:
        if space_group is not None:
            group = sgtbx.space_group_info(str(space_group)).group()
            messages.append(
                f"the space group {sgtbx.space_group_info(group=group)} was taken, as asked, for that of the file"
            )
        if unit_cell is not None:
            cell = uctbx.unit_cell([float(x) for x in unit_cell])
            numbers = " ".join(f"{x:g}" for x in cell.parameters())
            messages.append(f"the unit cell {numbers} was taken, as asked, for that of the file")
        return crystal.symmetry(unit_cell=cell, space_group=group), messages
    except (RuntimeError, ValueError, AssertionError) as error:
        raise Sorry(
            f"The space group {space_group or symmetry.space_group_info()} and the cell "
            f"{' '.join(f'{x:g}' for x in unit_cell or symmetry.unit_cell().parameters())} are not possible for {path} "
            f"({one_line(error)}): give others."
        ) from None


def _move(atoms: Any, cell: Any, shift: Any) -> str:
    """Shift the atoms by fractions of the cell; changes them."""
    atoms.set_xyz(atoms.extract_xyz() + cell.orthogonalize(tuple(shift)))
    return f"the model was moved by {', '.join(f'{x:g}' for x in shift)} of the cell, as asked"


def _label(atom: Any) -> str:
    return " ".join(atom.id_str().replace("pdb=", "").replace('"', " ").split())


def _check_atoms(atoms: Any, path: str | Path) -> None:
    """Refuse what makes every structure factor meaningless."""
    xyz = atoms.extract_xyz().as_double()
    for i in _unusable(xyz, -MAX_COORDINATE, MAX_COORDINATE):
        atom = atoms[i // 3]
        place = ", ".join(f"{x:g}" for x in atom.xyz)
        raise Sorry(f"{path}: atom {_label(atom)} has the impossible coordinates ({place}) Å: correct or remove it.")
    for i in _unusable(atoms.extract_b(), 0, MAX_B):
        raise Sorry(
            f"{path}: atom {_label(atoms[i])} has the impossible B factor {atoms[i].b:g} Å²: correct "
            f"or remove it (0 to {MAX_B:g} is accepted)."
        )
    occupancies = atoms.extract_occ()
    for i in _unusable(occupancies, -MAX_OCCUPANCY, MAX_OCCUPANCY):
        raise Sorry(
            f"{path}: atom {_label(atoms[i])} has the impossible occupancy {atoms[i].occ:g}: correct or remove it."
        )
    if occupancies.all_eq(0):
        raise Sorry(f"{path}: all atoms have occupancy 0, so nothing scatters: set the occupancies.")
    elements = [element.strip() for element in atoms.extract_element()]
    for element in set(elements) - {""}:  # blank in older files: cctbx derives it from the atom's name
        if xray_scattering.get_standard_label(label=element, exact=False, optional=True) is None:
            raise Sorry(
                f"{path}: atom {_label(atoms[elements.index(element)])} is of the unknown element "
                f"{element!r}: correct columns 77-78 (mmCIF: _atom_site.type_symbol) or remove it."
            )


def _unusable(values: Any, low: float, high: float) -> Any:
    """Indices of the values outside [low, high]; comparisons are written so that NaN is outside too."""
    return (~((values >= low) & (values <= high))).iselection()


def _manager(pdb_input: Any, symmetry: Any, messages: list[str]) -> Any:
    """mmtbx's manager; where the NCS matrices in the file are no rotations, without applying them."""
    with contextlib.redirect_stdout(io.StringIO()):  # cctbx prints the offending matrices
        try:
            return mmtbx.model.manager(model_input=pdb_input, crystal_symmetry=symmetry, log=null_out())
        except CctbxSorry as error:
            if "rotation matrices" not in str(error):
                raise
            messages.append("the MTRIX records are not proper rotations and were not applied")
            return mmtbx.model.manager(
                model_input=pdb_input, crystal_symmetry=symmetry, log=null_out(), expand_with_mtrix=False
            )


def _restore_digits(manager: Any, pdb_input: Any) -> None:
    """mmtbx copies the input through PDB records, which end at three decimals; an mmCIF may have more."""
    if manager.mtrix_expanded() or not isinstance(pdb_input, iotbx.pdb.mmcif.cif_input):
        return
    atoms, exact = manager.get_hierarchy().atoms(), pdb_input.construct_hierarchy().atoms()
    rows = _rows_by_label(exact, atoms)
    if rows is None:
        return
    exact = exact.select(rows)
    atoms.set_xyz(exact.extract_xyz())
    atoms.set_b(exact.extract_b())
    atoms.set_occ(exact.extract_occ())
    atoms.set_uij(exact.extract_uij())


def _rows_by_label(atoms: Any, wanted: Any) -> Any:
    """Which of the atoms has the label of each wanted one, in the order of the file where labels repeat; None without a match.

    The two hierarchies can differ in order where the conformers or residues of one place take turns in the file.
    """
    found: dict[str, list[int]] = {}
    for row, atom in enumerate(atoms):
        found.setdefault(atom.id_str(suppress_segid=True), []).append(row)
    rows = [found.get(atom.id_str(suppress_segid=True)) for atom in wanted]
    if atoms.size() != wanted.size() or None in rows or sum(map(len, found.values())) != len(rows):
        return None
    counts = {key: iter(places) for key, places in found.items()}
    order = [next(counts[atom.id_str(suppress_segid=True)], None) for atom in wanted]
    return None if None in order else flex.size_t(order)


def set_scattering(manager: Any, table: str, d_min: float | None, path: str | Path) -> None:
    """Give the manager's structure the form factors of a table, as mmtbx does; changes the manager.

    Raises
    ------
    libtbx.utils.Sorry
        If the table is unknown or lacks an element of the model.
    """
    if table not in SCATTERING_TABLES:
        raise Sorry(f"{table!r} is not a scattering table: choose among {', '.join(SCATTERING_TABLES)}.")
    _set_isotopes(manager, table)
    d_min = None if d_min is None else number_of(d_min, "d_min")
    try:
        manager.setup_scattering_dictionaries(scattering_table=table, d_min=d_min)
    except (CctbxSorry, RuntimeError, ValueError) as error:
        raise Sorry(
            f"{path} has an atom without form factor in the {table} table ({one_line(error)}): "
            "correct its element or charge, or choose another table."
        ) from None


def _set_isotopes(manager: Any, table: str) -> None:
    """Electrons do not tell deuterium from hydrogen, and their table has hydrogen only."""
    elements = [element.strip().upper() for element in manager.get_hierarchy().atoms().extract_element()]
    if "D" not in elements:
        return
    structure = manager.get_xray_structure()
    for scatterer, element in zip(structure.scatterers(), elements):
        if element == "D":
            charge = scatterer.scattering_type.strip()[1:]
            scatterer.scattering_type = ("H" if table == "electron" else "D") + charge
    structure.discard_scattering_type_registry()


def _table(hierarchy: Any) -> AtomTable:
    """The atoms for :mod:`.odd_atoms`, in the order of the hierarchy."""
    places, residues, conformers = [], [], []
    for number, model in enumerate(hierarchy.models()):
        for chain in model.chains():
            for group in chain.residue_groups():
                place = (number, chain.id.strip(), group.resid().strip())
                for part in group.atom_groups():
                    places += [place] * part.atoms_size()
                    residues += [part.resname.strip()] * part.atoms_size()
                    conformers += [part.altloc.strip()] * part.atoms_size()
    atoms = hierarchy.atoms()
    tensors = np.array(list(atoms.extract_uij())).reshape(-1, 6)
    some = ~(tensors == -1).all(axis=1)
    return AtomTable(
        places,
        residues,
        conformers,
        [name.strip() for name in atoms.extract_name()],
        [element.strip().upper() for element in atoms.extract_element()],
        atoms.extract_xyz().as_double().as_numpy_array().reshape(-1, 3),
        atoms.extract_occ().as_numpy_array(),
        atoms.extract_b().as_numpy_array(),
        np.where(some, EIGHT_PI_SQ / 3 * tensors[:, :3].sum(axis=1), np.nan),
    )
