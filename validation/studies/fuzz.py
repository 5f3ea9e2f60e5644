"""Mutated models and data files: read to the same numbers, read with a word about what changed, or refused in one sentence.

    python -m validation.studies.fuzz [--models 500] [--data 500] [--seed 0]

Each file is one that is good, with one or two things done to it that happen to files: cut short, columns removed, ``?`` or
``NaN`` or ``1e400`` where a number was, types swapped, another encoding, a byte-order mark, other line ends, bz2, xz or ``.Z``
by content, gzip under another name.  What must hold:

* no exception but ``Sorry``, whose text is one line, ends with a full stop and names the file;
* a reason that is not empty;
* where nothing that a file says was changed (line ends, encodings, packing, names, a column with a default), and where a number
  became something that is none, numbers that were read without a message are those of the good file;
* F of a model whose content was changed is that of the atoms that gemmi reads in it.

The exit status is 1 where something does not hold; the mutations of each such file are printed, and the seed makes it again.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import gzip
import io
import lzma
import random
import re
import sys
import tempfile
import warnings
from pathlib import Path

import mmtbx_sfdiff  # noqa: F401  the runtime comes first
from mmtbx_sfdiff.files import read_model
from mmtbx_sfdiff.files.content import read_content
from mmtbx_sfdiff.files.observations import read_observations
from mmtbx_sfdiff.files.symmetry import Symmetry

import gemmi
import numpy as np
from cctbx import crystal, xray
from cctbx.array_family import flex
from libtbx.utils import Sorry

CELL = (28.0, 31.0, 36.0, 90.0, 90.0, 90.0)
GROUP = gemmi.SpaceGroup("P 21 21 21")
WORDS = ("?", ".", "NaN", "inf", "1e400", "-1e400", "abc", "''", "1,5", "--3", "9" * 400, "\u00e4", "x" * 90)


def main(arguments=None):
    """Run the study; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m validation.studies.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--data", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faults = []
        for kind, n in (("model", options.models), ("data", options.data)):
            found, outcomes = fuzz(kind, n, options.seed, Path(folder))
            faults += found
            counts = ", ".join(f"{outcomes.count(name)} {name}" for name in ("read", "said", "refused"))
            print(f"{n} {kind} files: {counts}; {len(found)} faults", flush=True)
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def fuzz(kind, n, seed, folder):
    """(faults as text, outcomes) of so many mutated files of a kind."""
    goods = good_models() if kind == "model" else good_data(folder)
    expected = {name: outcome(kind, content, name, folder)[1] for name, content in goods.items()}
    faults, outcomes = [], []
    for number in range(n):
        rng = random.Random(f"{seed} {kind} {number}")
        name = rng.choice(sorted(goods))
        content, new_name, done = mutated(goods[name], name, rng)
        result, value, text = outcome(kind, content, new_name, folder)
        outcomes.append(result)
        fault = _fault(result, value, text, expected[name], _literal(kind, content, done))
        if fault:
            faults.append(f"{kind} {number} (seed {seed}), {name}, {' then '.join(done)}: {fault}")
    return faults, outcomes


def _literal(kind, content, done):
    """What the numbers have to be where the content was changed: None for those of the good file, else gemmi's, or "any"."""
    content_changed = any(what.startswith(_CONTENT) for what in done)
    content_changed |= any("utf-16" in what for what in done[:-1])  # bytes were put between pairs of bytes
    if kind == "data":
        return "any" if content_changed else None
    if not content_changed and not any(what.endswith(_WORD_DONE) or _WORD_DONE in what for what in done):
        return None
    try:
        text = read_content_bytes(content)
        if text.lstrip().startswith("data_"):
            structure = gemmi.make_structure_from_block(gemmi.cif.read_string(text)[0])
        else:
            structure = gemmi.read_pdb_string(text.encode("ascii", errors="replace").decode())  # a letter is a column
        return _f_of(structure) if structure and structure[0].count_atom_sites() else "any"  # gemmi needs _atom_site.id
    except (RuntimeError, ValueError, IndexError, KeyError):
        return "any"


def read_content_bytes(content):
    """The text that a packed or encoded file holds."""
    with tempfile.NamedTemporaryFile(suffix=".x") as file:
        file.write(content)
        file.flush()
        return read_content(file.name, "model").text


def _f_of(structure):
    """|F| of all atoms that gemmi found, (n,)."""
    symmetry = crystal.symmetry(CELL, GROUP.hm)
    scatterers = flex.xray_scatterer()
    for chain in (chain for model in structure for chain in model):
        for atom in (atom for residue in chain for atom in residue):
            scatterers.append(
                xray.scatterer(
                    atom.name,
                    symmetry.unit_cell().fractionalize(atom.pos.tolist()),
                    u=atom.b_iso / (8 * np.pi**2),
                    occupancy=atom.occ,
                    scattering_type=atom.element.name,
                )
            )
    structure = xray.structure(crystal_symmetry=symmetry, scatterers=scatterers)
    structure.scattering_type_registry(table="n_gaussian", d_min=0)
    return np.abs(structure.structure_factors(d_min=4.0, algorithm="direct").f_calc().data().as_numpy_array())


_CONTENT = ("cut to", "columns", "words", "1 lines", "3 lines", "20 lines", "1 bytes", "4 bytes", "40 bytes")
_WORD_DONE = "words became"


def _fault(result, value, text, expected, literal):
    if result == "raised":
        return text
    if result == "refused":
        if "\n" in text or not text.rstrip().endswith((".", "?")):
            return f"not one sentence: {text[:300]!r}"
        return f"an empty reason: {text!r}" if " ()" in text or ": :" in text else ""
    if result != "read" or isinstance(literal, str) or _same(value, expected):
        return ""
    if literal is None or not _same(value, literal):
        return "other numbers, without a word"
    return ""


def _same(value, expected):
    return value.shape == expected.shape and bool(
        np.allclose(value, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    )


def outcome(kind, content, name, folder):
    """("read" | "said" | "refused" | "raised", numbers or None, text)."""
    path = folder / name
    path.write_bytes(content)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if kind == "model":
                model = read_model(path)
                structure = model.xray_structure
                value = np.abs(
                    structure.structure_factors(d_min=4.0, algorithm="direct").f_calc().data().as_numpy_array()
                )
                said = model.messages
            else:
                data = read_observations(path, Symmetry(CELL, GROUP.operations()), strict=False)
                order = np.lexsort(data.indices.T)
                value, said = data.f_obs[order], data.messages
        return ("said" if said else "read"), value, "; ".join(said)
    except Sorry as error:
        return "refused", None, str(error)
    except Exception as error:  # the point of the study
        return "raised", None, f"{type(error).__name__}: {error}"
    finally:
        path.unlink()


# good files


def _atoms():
    rng = np.random.default_rng(0)
    for number in range(1, 9):
        for i, name in enumerate(("N", "CA", "C", "O", "CB")):
            t = 1.75 * number + 0.35 * i
            yield (
                name,
                number,
                12 + 2.3 * np.cos(t) + 0.5 * i,
                14 + 2.3 * np.sin(t),
                3 + 1.5 * number,
                10 + 10 * rng.random(),
            )


def good_models():
    """{name: bytes} of one model as PDB and mmCIF."""
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(*CELL), GROUP.hm
    model, chain = gemmi.Model(1), gemmi.Chain("A")
    for name, number, x, y, z, b in _atoms():
        if len(chain) < number:
            residue = gemmi.Residue()
            residue.name, residue.seqid = "ALA", gemmi.SeqId(str(number))
            chain.add_residue(residue)
        atom = gemmi.Atom()
        atom.name, atom.element, atom.b_iso, atom.occ = name, gemmi.Element(name[0]), round(b, 2), 1.0
        atom.pos = gemmi.Position(round(x, 3), round(y, 3), round(z, 3))
        chain[number - 1].add_atom(atom)
    model.add_chain(chain)
    structure.add_model(model)
    structure.setup_entities()
    structure.assign_label_seq_id()
    return {
        "m.pdb": structure.make_pdb_string().encode(),
        "m.cif": structure.make_mmcif_document().as_string().encode(),
    }


def good_data(folder):
    """{name: bytes} of data as MTZ and CIF."""
    rng = np.random.default_rng(1)
    indices = np.array(gemmi.make_miller_array(gemmi.UnitCell(*CELL), GROUP, 4.0))
    f = np.round(10 + 90 * rng.random(len(indices)), 3)
    sigma, free = np.round(0.05 * f + 0.1, 3), np.arange(len(f)) % 15 == 0
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = GROUP
    mtz.add_dataset("made")
    for label, kind in (("FP", "F"), ("SIGFP", "Q"), ("FREE", "I")):
        mtz.add_column(label, kind)
    mtz.set_cell_for_all(gemmi.UnitCell(*CELL))
    mtz.set_data(np.column_stack([indices, f, sigma, 1 - free]).astype(np.float32))
    mtz.write_to_file(str(folder / "good.mtz"))
    lines = ["data_r1abcsf"]
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines += [f"_cell.{name} {value}" for name, value in zip(names, CELL)]
    lines += ["_symmetry.space_group_name_H-M 'P 21 21 21'", "loop_"]
    lines += [f"_refln.{t}" for t in ("index_h", "index_k", "index_l", "F_meas_au", "F_meas_sigma_au", "status")]
    lines += [f"{h} {k} {l} {x} {s} {'f' if m else 'o'}" for (h, k, l), x, s, m in zip(indices, f, sigma, free)]
    return {"d.mtz": (folder / "good.mtz").read_bytes(), "d.cif": ("\n".join(lines) + "\n").encode()}


# what happens to files


def mutated(content, name, rng):
    """(content, name, what was done) after one or two mutations."""
    done = []
    text_ways = [_cut, _word, _word, _column, _lines, _swap, _line_ends, _encoding]
    for _ in range(rng.choice((1, 1, 2))):
        way = rng.choice([_cut, _bytes] if content[:4] == b"MTZ " else text_ways)
        content, what = way(content, rng)
        done.append(what)
    if rng.random() < 0.25:
        pack, what = rng.choice(
            [
                (bz2.compress, "bz2"),
                (lzma.compress, "xz"),
                (gzip.compress, "gzip"),
                (lambda c: b"\x1f\x9d\x90" + c, ".Z"),
            ]
        )
        content = pack(content)
        done.append(f"{what} by content")
    if rng.random() < 0.1:
        name = "named" + rng.choice([".txt", ".pdb", ".cif", ".mtz", ".gz", ".hkl", ""])
        done.append(f"under the name {name}")
    return content, name, done


def _cut(content, rng):
    size = rng.randrange(len(content) + 1) if rng.random() < 0.7 else rng.choice((0, 1, 4, 80, len(content) - 1))
    return content[: max(size, 0)], f"cut to {size} of {len(content)} bytes"


def _bytes(content, rng):
    changed = bytearray(content)
    places = [rng.randrange(len(changed)) for _ in range(rng.choice((1, 4, 40)))] if changed else []
    for place in places:
        changed[place] = rng.randrange(256)
    return bytes(changed), f"{len(places)} bytes changed"


def _word(content, rng):
    words = list(re.finditer(rb"\S+", content))
    if not words:
        return content, "nothing"
    n = rng.choice((1, 1, 3, 10))
    new = rng.choice(WORDS).encode()
    for match in sorted(rng.sample(words, min(n, len(words))), key=lambda m: -m.start()):
        content = content[: match.start()] + new + content[match.end() :]
    return content, f"{n} words became {new.decode()[:12]}"


def _column(content, rng):
    lines = content.split(b"\n")
    tags = [i for i, line in enumerate(lines) if line.startswith((b"_atom_site.", b"_refln."))]
    if not tags:
        start = rng.randrange(60)
        width = rng.choice((1, 6, 10))
        lines = [line[:start] + b" " * width + line[start + width :] if line[:4] == b"ATOM" else line for line in lines]
        return b"\n".join(lines), f"columns {start} to {start + width} blank"
    number = rng.randrange(len(tags))
    end = tags[-1] + 1
    width = len(tags)
    rows = [line.split() for line in lines[end:]]
    body = [
        b" ".join(w for i, w in enumerate(r) if i != number) if len(r) == width else line
        for r, line in zip(rows, lines[end:])
    ]
    name = lines[tags[number]].decode()
    return b"\n".join(lines[: tags[number]] + lines[tags[number] + 1 : end] + body), f"{name} removed"


def _lines(content, rng):
    lines = content.split(b"\n")
    start = rng.randrange(len(lines))
    n = rng.choice((1, 3, 20))
    if rng.random() < 0.5:
        return b"\n".join(lines[:start] + lines[start + n :]), f"{n} lines removed at {start}"
    return b"\n".join(lines[: start + n] + lines[start:]), f"{n} lines repeated at {start}"


def _swap(content, rng):
    lines = content.split(b"\n")
    rows = [i for i, line in enumerate(lines) if len(line.split()) > 4]
    if not rows:
        return content, "nothing"
    i = rng.choice(rows)
    words = lines[i].split()
    a, b = rng.sample(range(len(words)), 2)
    words[a], words[b] = words[b], words[a]
    lines[i] = b" ".join(words)
    return b"\n".join(lines), f"words {a} and {b} of line {i} swapped"


def _line_ends(content, rng):
    end = rng.choice((b"\r\n", b"\r", b"\n\n"))
    return content.replace(b"\n", end), f"line ends {end!r}"


def _encoding(content, rng):
    text = content.decode("utf-8", errors="replace")
    encoding = rng.choice(("utf-8-sig", "utf-16", "utf-16-be", "latin-1", "cp037"))
    return text.encode(encoding, errors="replace"), f"as {encoding}"


if __name__ == "__main__":
    sys.exit(main())
