"""An mmCIF model as every reader understands it: columns that are missing filled in or refused, in one sentence.

The dictionary gives defaults for some items (occupancy 1, model 1); ``label_`` and ``auth_`` names stand for each other;
an element follows from the atom's name.  Displacement parameters given as U or as B[i][j] are turned into what readers
look for.  gemmi reads the file first, so a loop without rows or a broken file never reaches a parser that would stop
without a word.  What is changed is changed in the text of the file, so that cctbx and gemmi read the same.

Reference: the ``atom_site`` and ``atom_site_anisotrop`` categories of the PDBx/mmCIF dictionary.
"""

from __future__ import annotations

import re
from typing import Any

import gemmi

from ..atom_arrays import EIGHT_PI_SQ
from .atom_site import MISSING, AtomSite
from .cif_symmetry import complete_cell
from .errors import Sorry
from .model_header import is_tls_residual, tls_added, tls_missing
from .ncs_operators import mended_operators
from .reflection_file import read_cif_document
from .tls import Incomplete, whole_cif

_LONGEST = 8  # characters of a name, which is what cctbx holds
_PAIRS = tuple((f"auth_{name}", f"label_{name}") for name in ("asym_id", "seq_id", "comp_id", "atom_id"))
_NUMBERS = ("Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv")
_TENSOR = ("[1][1]", "[2][2]", "[3][3]", "[1][2]", "[1][3]", "[2][3]")
# Two-letter elements that are told from carbon, nitrogen, ... by the name of the atom, in residues that are not amino
# acids or nucleotides.
_CHARGED = re.compile(r"([A-Za-z]{1,2})(\d?)([-+])(\d?)")  # O1-, Zn+2
_SIGNED = re.compile(r"['\"]?(\d+)([-+])['\"]?")
_TWO_LETTERS = (
    "BR",
    "CL",
    "FE",
    "MG",
    "MN",
    "NA",
    "NI",
    "SE",
    "ZN",
    "CU",
    "CO",
    "CD",
    "HG",
    "PT",
    "AU",
    "AG",
    "LI",
    "SI",
    "SR",
    "RB",
    "CS",
    "BA",
    "AL",
    "PB",
    "YB",
    "GD",
)


def normalized_cif(text: str, path: object) -> tuple[str, Any, list[str]]:
    """The text with one block, the block, and what was filled in.

    Parameters
    ----------
    text : str
        Of the file.
    path : path
        For messages.

    Raises
    ------
    Sorry
        Not a CIF; no atoms; an item that is missing, with its name; a value that is missing, with the atom's name.
    """
    document = read_cif_document(text, path)
    block = next((b for b in document if _loop(b, "_atom_site.") is not None), None)
    if block is None:
        _refuse_small_molecules(document, path)
        raise Sorry(f"{path} contains no atoms: give a PDB or mmCIF file with coordinates.")
    loop = _loop(block, "_atom_site.")
    if loop.length() == 0:
        raise Sorry(f"{path} contains no atoms: give a PDB or mmCIF file with coordinates.")
    atoms = AtomSite(loop)
    messages = _fill(atoms, path)
    others = [b.name for b in document if b is not block and _loop(b, "_atom_site.") is not None]
    if others:
        messages.append(f"atoms of the block {block.name} only; not read: {', '.join(others)}")
    tensors, more = _tensors(atoms, _loop(block, "_atom_site_anisotrop."), path)
    messages += more
    messages += _displacements(atoms, tensors, path)
    if is_tls_residual(text, block):
        try:
            tensors, n = whole_cif(block, atoms, tensors)
            more = [*more, tls_added(n)]
            messages.append(tls_added(n))
        except Incomplete as error:
            messages.append(tls_missing(error))
    messages += mended_operators(block)
    has_part, more_said = complete_cell(block)
    messages += more_said
    changed = bool(messages) or has_part or atoms.changed or len(document) > 1 or _has_empty_loops(block)
    if not changed:
        return text, block, []
    if atoms.changed:
        _write(block, "_atom_site.", atoms.columns)
    if tensors is not None and more:
        _write_tensors(block, atoms, tensors)
    _drop_empty_loops(block)
    return block_text(block), block, messages


def block_text(block: Any) -> str:
    """A document of one block."""
    document = gemmi.cif.Document()
    document.add_copied_block(block)
    return str(document.as_string())


def _loop(block: Any, category: str) -> Any:
    return next(
        (
            item.loop
            for item in block
            if item.loop is not None and item.loop.tags[0].lower().startswith(category.lower())
        ),
        None,
    )


def _refuse_small_molecules(document: Any, path: object) -> None:
    for block in document:
        if _loop(block, "_atom_site_") is not None:
            raise Sorry(
                f"{path} is a CIF of a small molecule (_atom_site_label, _atom_site_fract_x), without the items "
                "_atom_site.Cartn_x, y and z: give the model in PDB or mmCIF format."
            )
        if block.find_value("_atom_site.id") is not None or block.find_value("_atom_site.Cartn_x") is not None:
            raise Sorry(f"{path} lists its atoms without a loop: write _atom_site as a loop.")


def _fill(atoms: AtomSite, path: object) -> list[str]:
    """Defaults and stand-ins."""
    messages = []
    for name in ("Cartn_x", "Cartn_y", "Cartn_z"):
        if atoms.get(name) is None:
            raise Sorry(f"{path} lacks the item _atom_site.{name}: give an mmCIF file with Cartesian coordinates.")
    _strip_uncertainties(atoms)
    for name in ("Cartn_x", "Cartn_y", "Cartn_z"):
        for i, text in enumerate(atoms.columns[name]):
            if text in MISSING:
                raise Sorry(
                    f"{path}: atom {atoms.name(i)} has no coordinate (_atom_site.{name} is {text}): give or remove it."
                )
    for name in (
        *(name for pair in _PAIRS for name in pair),
        "type_symbol",
        "label_alt_id",
        "pdbx_PDB_ins_code",
        "pdbx_PDB_model_num",
    ):
        long = next(
            (i for i, text in enumerate(atoms.get(name) or ()) if len(gemmi.cif.as_string(text)) > _LONGEST), None
        )
        if long is not None:
            raise Sorry(
                f"{path}: atom number {long + 1} has an impossible _atom_site.{name} of {len(atoms.columns[name][long])} characters: correct it."
            )
    for auth, label in _PAIRS:
        for one, other in ((auth, label), (label, auth)):
            texts, stand_in = atoms.get(one), atoms.get(other)
            if texts is None and stand_in is not None:
                atoms.set(one, _numbered(atoms, stand_in) if one == "auth_seq_id" else list(stand_in))
                if one.endswith(("asym_id", "seq_id")):
                    messages.append(f"_atom_site.{one} is missing: {other} was taken for it")
        if atoms.get(auth) is None:
            raise Sorry(f"{path} lacks the items _atom_site.{auth} and {label}: give one of them.")
        nameless = next(
            (i for i, text in enumerate(atoms.columns[auth]) if not gemmi.cif.as_string(text) and text not in MISSING),
            None,
        )
        if nameless is not None:
            raise Sorry(f"{path}: atom number {nameless + 1} has an empty _atom_site.{auth}: give it.")
    occupancy = atoms.get("occupancy")
    if occupancy is None:
        atoms.set("occupancy", ["1.00"] * atoms.n)
        messages.append("_atom_site.occupancy is missing: 1 for all atoms")
    elif any(text in MISSING for text in occupancy):
        n = sum(text in MISSING for text in occupancy)
        atoms.set("occupancy", ["1.00" if text in MISSING else text for text in occupancy])
        messages.append(f"atoms without an occupancy, taken as 1: {n}")
    for name, default in (("pdbx_PDB_model_num", "1"), ("group_PDB", "ATOM")):
        texts = atoms.get(name)
        if texts is None or any(text in MISSING for text in texts):
            atoms.set(name, [default if text in MISSING else text for text in texts or ["?"] * atoms.n])
    for name, default in (("label_alt_id", "."), ("pdbx_PDB_ins_code", "?"), ("label_entity_id", "?")):
        if atoms.get(name) is None:
            atoms.set(name, [default] * atoms.n)
    if atoms.get("id") is None:
        atoms.set("id", [str(i + 1) for i in range(atoms.n)])
    messages += _elements(atoms, path)
    return messages


def _numbered(atoms: AtomSite, label: list[str]) -> list[str]:
    """Residue numbers from label_seq_id, which waters and ligands lack: they follow the last one of their chain."""
    if not any(text in MISSING for text in label):
        return list(label)
    chains = atoms.get("label_asym_id") or atoms.get("auth_asym_id") or ["A"] * atoms.n
    residues = atoms.get("label_comp_id") or ["?"] * atoms.n
    names = atoms.get("label_atom_id") or ["?"] * atoms.n
    last: dict[str, int] = {}
    for chain, text in zip(chains, label):
        if text.lstrip("-").isdigit():
            last[chain] = max(last.get(chain, 0), int(text))
    result = []
    before: tuple[str, str, set[str]] = ("", "", set())
    for chain, residue, name, text in zip(chains, residues, names, label):
        if text not in MISSING:
            result.append(text)
            continue
        if (chain, residue) != before[:2] or name in before[2]:
            last[chain] = last.get(chain, 0) + 1
            before = (chain, residue, set())
        before[2].add(name)
        result.append(str(last[chain]))
    return result


def _strip_uncertainties(atoms: AtomSite) -> None:
    for name in _NUMBERS + ("U_iso_or_equiv",):
        texts = atoms.get(name)
        if texts is not None and any("(" in text for text in texts):
            atoms.set(
                name, [text.split("(", 1)[0] if text.endswith(")") and text[0] != "_" else text for text in texts]
            )


def _charges(atoms: AtomSite) -> None:
    """Formal charges as whole numbers: 2+ is 2."""
    given = atoms.get("pdbx_formal_charge")
    if given is not None and any(_SIGNED.fullmatch(text) for text in given):
        atoms.set("pdbx_formal_charge", [_SIGNED.sub(r"\2\1", text).removeprefix("+") for text in given])


def _elements(atoms: AtomSite, path: object) -> list[str]:
    _charges(atoms)
    symbols = atoms.get("type_symbol")
    if symbols is not None and any(text.islower() for text in symbols):
        symbols = [text.upper() if text.islower() else text for text in symbols]
        atoms.set("type_symbol", symbols)
    charged = [_CHARGED.fullmatch(text) for text in symbols or []]
    if symbols is not None and any(charged):
        charges = list(atoms.get("pdbx_formal_charge") or ["?"] * atoms.n)
        symbols = list(symbols)
        for i, match in enumerate(charged):
            if match:
                symbols[i] = match.group(1)
                size = match.group(2) or match.group(4) or "1"
                if charges[i] in MISSING:
                    charges[i] = size if "+" in match.group(0) else f"-{size}"
        atoms.set("type_symbol", symbols)
        atoms.set("pdbx_formal_charge", charges)
    long = next((i for i, text in enumerate(symbols or ()) if len(gemmi.cif.as_string(text)) > 2), None)
    if symbols is not None and long is not None:
        raise Sorry(
            f"{path}: atom {atoms.name(long)} is of the unknown element {symbols[long]!r} (_atom_site.type_symbol): correct it."
        )
    if symbols is not None and not any(text in MISSING for text in symbols):
        return []
    result = list(symbols or ["?"] * atoms.n)
    names, residues = atoms.columns["label_atom_id"], atoms.columns["label_comp_id"]
    missing = [i for i, text in enumerate(result) if text in MISSING]
    for i in missing:
        result[i] = element_from_name(gemmi.cif.as_string(names[i]), gemmi.cif.as_string(residues[i]))
        if not result[i]:
            raise Sorry(f"{path}: atom {atoms.name(i)} has no element (_atom_site.type_symbol): give it.")
    atoms.set("type_symbol", result)
    return [f"atoms without _atom_site.type_symbol, whose element is taken from their names: {len(missing)}"]


def element_from_name(name: str, residue: str) -> str:
    """The element that an atom's name begins with; CA is carbon except where the residue is calcium."""
    letters = "".join(c for c in name.upper() if c.isalpha())
    if not letters:
        return ""
    if name.upper() == residue.upper() and gemmi.Element(letters[:2]).atomic_number > 0 and len(letters) <= 2:
        return letters
    info = gemmi.find_tabulated_residue(residue)
    standard = info.is_amino_acid() or info.is_nucleic_acid()
    if letters[:2] in _TWO_LETTERS and (not standard or letters[:2] == "SE"):
        return letters[:2]
    return letters[0] if gemmi.Element(letters[0]).atomic_number > 0 else ""


Tensors = dict[int, list[str]]


def _tensors(atoms: AtomSite, loop: Any, path: object) -> tuple[Tensors | None, list[str]]:
    """U of each atom that has a whole tensor, by row of atom_site, and what had to be changed to get them."""
    own = [atoms.get(f"aniso_U{ij}") for ij in _TENSOR]
    if loop is None or loop.length() == 0:
        if any(column is not None for column in own):
            if any(column is None for column in own):
                raise Sorry(f"{path} lacks one of the six items _atom_site.aniso_U[i][j]: give or remove them all.")
            rows = list(zip(*(column for column in own if column is not None)))
            tensors = {i: list(row) for i, row in enumerate(rows) if not any(text in MISSING for text in row)}
            return tensors, [f"displacement tensors were taken from _atom_site.aniso_U: {len(tensors)}"]
        own_b = [atoms.get(f"aniso_B{ij}") for ij in _TENSOR]
        if all(column is not None for column in own_b):
            rows = list(zip(*(column for column in own_b if column is not None)))
            tensors = {i: _as_u(row, path) for i, row in enumerate(rows) if not any(text in MISSING for text in row)}
            return tensors, [f"displacement tensors were taken from _atom_site.aniso_B: {len(tensors)}"]
        return None, []
    width, values = loop.width(), loop.values
    columns = {_tensor_name(tag.split(".", 1)[1]): values[number::width] for number, tag in enumerate(loop.tags)}
    kind = "U" if "U[1][1]" in columns else "B"
    missing = [f"{kind}{ij}" for ij in _TENSOR if f"{kind}{ij}" not in columns]
    if missing or "id" not in columns:
        raise Sorry(
            f"{path} lacks the item _atom_site_anisotrop.{(missing or ['id'])[0]}: give it, or remove the tensors."
        )
    place = {text: i for i, text in enumerate(atoms.columns["id"])}
    tensors = {}
    incomplete = zero = 0
    for identifier, *row in zip(columns["id"], *(columns[f"{kind}{ij}"] for ij in _TENSOR)):
        if any(text in MISSING for text in row):
            incomplete += 1
        elif not any(text.strip("-+0.") for text in row):
            zero += 1
        elif identifier in place:
            tensors[place[identifier]] = list(row) if kind == "U" else _as_u(row, path)
    messages = []
    if any(tag.lower().endswith(("[2][1]", "[3][1]", "[3][2]")) for tag in loop.tags):
        messages.append("displacement tensors are given by their lower half, which is the same as the upper")
    if kind == "B":
        messages.append("displacement tensors were given as B: U = B / 8 pi^2 was taken")
    if incomplete:
        messages.append(f"atoms whose displacement tensor is incomplete, taken as isotropic: {incomplete}")
    if zero:
        messages.append(f"atoms whose displacement tensor is zero, taken as isotropic: {zero}")
    return tensors, messages


def _tensor_name(name: str) -> str:
    """An item as the dictionary writes it; U[2][1] is U[1][2]."""
    match = re.fullmatch(r"([ub])\[(\d)\]\[(\d)\]", name.lower())
    return name.lower() if match is None else "{}[{}][{}]".format(match.group(1).upper(), *sorted(match.groups()[1:]))


def _as_u(row: Any, path: object) -> list[str]:
    try:
        return [f"{float(str(text).split('(')[0]) / EIGHT_PI_SQ:.8f}" for text in row]
    except ValueError:
        raise Sorry(f"{path} has a displacement tensor that is no number ({' '.join(row)}): correct it.") from None


def _displacements(atoms: AtomSite, tensors: Tensors | None, path: object) -> list[str]:
    """Isotropic B of all atoms."""
    given, u = atoms.get("B_iso_or_equiv"), atoms.get("U_iso_or_equiv")
    messages = []
    texts = list(given) if given is not None else ["?"] * atoms.n
    if any(text in MISSING for text in texts) and u is not None:
        count = 0
        for i, text in enumerate(texts):
            if text in MISSING and u[i] not in MISSING:
                texts[i] = _as_b(u[i], path, atoms.name(i))
                count += 1
        messages.append(f"atoms whose B is taken from _atom_site.U_iso_or_equiv (B = 8 pi^2 U): {count}")
    for i, text in enumerate(texts):
        if text in MISSING and tensors is not None and i in tensors:
            trace = sum(float(x.split("(")[0]) for x in tensors[i][:3])
            texts[i] = f"{EIGHT_PI_SQ * trace / 3:.4f}"
    missing = [i for i, text in enumerate(texts) if text in MISSING]
    if given is None and len(missing) == atoms.n:
        raise Sorry(f"{path} lacks the item _atom_site.B_iso_or_equiv (or U_iso_or_equiv): give the B factors.")
    if missing:
        raise Sorry(
            f"{path}: atom {atoms.name(missing[0])} has no B factor (_atom_site.B_iso_or_equiv; {len(missing)} atoms in "
            "all): give it."
        )
    if texts != given:
        atoms.set("B_iso_or_equiv", texts)
    return messages


def _as_b(text: str, path: object, atom: str) -> str:
    try:
        return f"{EIGHT_PI_SQ * float(text):.6f}"
    except ValueError:
        raise Sorry(f"{path}: atom {atom} has the impossible U {text}: correct it.") from None


def _has_empty_loops(block: Any) -> bool:
    return any(item.loop is not None and item.loop.length() == 0 for item in block)


def _drop_empty_loops(block: Any) -> None:
    for item in list(block):
        if item.loop is not None and item.loop.length() == 0:
            item.erase()


def _write(block: Any, category: str, columns: dict[str, list[str]]) -> None:
    loop = block.init_loop(category, list(columns))
    loop.set_all_values(list(columns.values()))


def _write_tensors(block: Any, atoms: AtomSite, tensors: Tensors) -> None:
    old = _loop(block, "_atom_site_anisotrop.")
    if old is not None:
        block.find_mmcif_category("_atom_site_anisotrop.").erase()
    if not tensors:
        return
    rows = sorted(tensors)
    columns = {
        "id": [atoms.columns["id"][i] for i in rows],
        "type_symbol": [atoms.columns["type_symbol"][i] for i in rows],
    }
    for number, ij in enumerate(_TENSOR):
        columns[f"U{ij}"] = [tensors[i][number] for i in rows]
    for name in ("auth_atom_id", "label_alt_id", "auth_comp_id", "auth_asym_id", "auth_seq_id", "pdbx_PDB_ins_code"):
        known = atoms.get(name)
        if known is not None:
            key = {"label_alt_id": "pdbx_label_alt_id", "pdbx_PDB_ins_code": "pdbx_PDB_ins_code"}.get(
                name, f"pdbx_{name}"
            )
            columns[key] = [known[i] for i in rows]
    _write(block, "_atom_site_anisotrop.", columns)
