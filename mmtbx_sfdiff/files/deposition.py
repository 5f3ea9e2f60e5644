"""What a refined model says of its refinement: items of the PDBx/mmCIF dictionary, and REMARK 3 of the PDB format.

Both are made of one dictionary, the record of a refinement:

    entry, program, version, target, restraints, solvent      text
    d_min, d_max                                              Å
    n_reflections, n_work, n_free, n_atoms, n_solvent_atoms   of the reflections and atoms in use; n_free None without flags
    completeness                                              of the range, a fraction
    r_all, r_work, r_free                                     r_free None without flags
    b_mean                                                    Å^2
    free_selection                                            how the test set was chosen, or None
    shells            [{d_max, d_min, n_work, n_free, completeness, r_all, r_work, r_free}], low resolution first
    restraint_types   [(name, number, root mean square deviation, unit)]
    twin              None or {law, fraction}
    tls               [{id, selection, chain, first, last, origin, T, L, S}], tensors as rows: Å^2, degrees^2, Å degrees; first and
                      last residue, or None for all of the chain. B factors and tensors of the atoms are whole, TLS included

References: the PDBx/mmCIF dictionary (categories refine, refine_ls_shell, refine_ls_restr, refine_hist, reflns, software,
pdbx_reflns_twin, pdbx_refine_tls); the PDB format 3.3, REMARK 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gemmi

from ..numerics.symmetric import PAIRS

_METHOD = "X-RAY DIFFRACTION"
#: Categories that speak of a refinement: those of an earlier one go.
REFINEMENT_CATEGORIES = (
    "_refine.",
    "_refine_analyze.",
    "_refine_hist.",
    "_refine_ls_restr.",
    "_refine_ls_restr_ncs.",
    "_refine_ls_shell.",
    "_pdbx_refine_tls.",
    "_pdbx_refine_tls_group.",
    "_pdbx_reflns_twin.",
)
_RESTRAINT_TYPES = {
    "bond": "f_bond_d",
    "angle": "f_angle_d",
    "torsion": "f_dihedral_angle_d",
    "chirality": "f_chiral_restr",
    "plane": "f_plane_restr",
}


def add_to_cif(block: gemmi.cif.Block, record: dict[str, Any]) -> None:
    """Put the items of a record into the block of a model, in the place of those of earlier refinements.

    Parameters
    ----------
    block : gemmi.cif.Block
        It is changed.
    record : dict
        See above.
    """
    for category in REFINEMENT_CATEGORIES:
        block.find_mmcif_category(category).erase()
    entry = gemmi.cif.as_string(block.find_value("_entry.id") or "") or str(record["entry"])
    _pairs(
        block,
        "_refine.",
        {
            "entry_id": entry,
            "pdbx_refine_id": _METHOD,
            "pdbx_diffrn_id": "1",
            "ls_d_res_high": _n(record["d_min"], 2),
            "ls_d_res_low": _n(record["d_max"], 2),
            "ls_number_reflns_obs": record["n_reflections"],
            "ls_number_reflns_R_work": record["n_work"],
            "ls_number_reflns_R_free": record["n_free"],
            "ls_percent_reflns_R_free": _percent_free(record),
            "ls_percent_reflns_obs": _n(_percent(record["completeness"]), 2),
            "ls_R_factor_obs": _n(record["r_all"], 4),
            "ls_R_factor_R_work": _n(record["r_work"], 4),
            "ls_R_factor_R_free": _n(record["r_free"], 4),
            "B_iso_mean": _n(record["b_mean"], 2),
            "pdbx_ls_cross_valid_method": "NONE" if record["n_free"] is None else "FREE R-VALUE",
            "pdbx_R_Free_selection_details": record["free_selection"],
            "pdbx_stereochemistry_target_values": record["target"],
            "pdbx_starting_model": None,
            "solvent_model_details": record["solvent"],
            "details": record["restraints"],
        },
    )
    _pairs(
        block,
        "_refine_hist.",
        {
            "pdbx_refine_id": _METHOD,
            "cycle_id": "LAST",
            "number_atoms_total": record["n_atoms"],
            "number_atoms_solvent": record["n_solvent_atoms"],
            "d_res_high": _n(record["d_min"], 2),
            "d_res_low": _n(record["d_max"], 2),
        },
    )
    shells = block.init_loop(
        "_refine_ls_shell.",
        [
            "pdbx_refine_id",
            "d_res_high",
            "d_res_low",
            "number_reflns_R_work",
            "number_reflns_R_free",
            "percent_reflns_obs",
            "R_factor_all",
            "R_factor_R_work",
            "R_factor_R_free",
        ],
    )
    for shell in reversed(record["shells"]):
        _row(
            shells,
            _METHOD,
            _n(shell["d_min"], 2),
            _n(shell["d_max"], 2),
            shell["n_work"],
            shell["n_free"],
            _n(_percent(shell["completeness"]), 1),
            _n(shell["r_all"], 4),
            _n(shell["r_work"], 4),
            _n(shell["r_free"], 4),
        )
    if record["restraint_types"]:
        restraints = block.init_loop("_refine_ls_restr.", ["pdbx_refine_id", "type", "number", "dev_ideal"])
        for name, number, deviation, _ in record["restraint_types"]:
            _row(restraints, _METHOD, _RESTRAINT_TYPES.get(name, name), number, _n(deviation, 4))
    _software(block, record)
    if not block.find_mmcif_category("_reflns."):
        _pairs(
            block,
            "_reflns.",
            {
                "entry_id": entry,
                "pdbx_ordinal": "1",
                "pdbx_diffrn_id": "1",
                "number_obs": record["n_reflections"],
                "d_resolution_high": _n(record["d_min"], 2),
                "d_resolution_low": _n(record["d_max"], 2),
                "percent_possible_obs": _n(_percent(record["completeness"]), 2),
            },
        )
    if not block.find_mmcif_category("_exptl."):
        _pairs(block, "_exptl.", {"entry_id": entry, "method": _METHOD})
    if record["twin"]:
        _twins(block, record["twin"])
    if record["tls"]:
        _tls(block, record["tls"])


def remark_3(record: dict[str, Any]) -> list[str]:
    """REMARK 3 of a record, as lines of 80 columns.

    Parameters
    ----------
    record : dict
        See above.
    """
    r = record
    lines = [
        "",
        "REFINEMENT.",
        f"  PROGRAM     : {r['program'].upper()} {r['version']}",
        "  AUTHORS     : NULL",
        "",
        f"   REFINEMENT TARGET : {r['target'].upper()}",
        "",
        " DATA USED IN REFINEMENT.",
        f"  RESOLUTION RANGE HIGH (ANGSTROMS) : {_null(r['d_min'], 2)}",
        f"  RESOLUTION RANGE LOW  (ANGSTROMS) : {_null(r['d_max'], 2)}",
        "  DATA CUTOFF            (SIGMA(F)) : NONE",
        f"  COMPLETENESS FOR RANGE        (%) : {_null(_percent(r['completeness']), 2)}",
        f"  NUMBER OF REFLECTIONS             : {r['n_reflections']}",
        "",
        " FIT TO DATA USED IN REFINEMENT.",
        f"  CROSS-VALIDATION METHOD          : {'NONE' if r['n_free'] is None else 'FREE R-VALUE'}",
        f"  FREE R VALUE TEST SET SELECTION  : {(r['free_selection'] or 'NULL').upper()}",
        f"  R VALUE     (WORKING + TEST SET) : {_null(r['r_all'], 4)}",
        f"  R VALUE            (WORKING SET) : {_null(r['r_work'], 4)}",
        f"  FREE R VALUE                     : {_null(r['r_free'], 4)}",
        f"  FREE R VALUE TEST SET SIZE   (%) : {_percent_free(r) or 'NULL'}",
        f"  FREE R VALUE TEST SET COUNT      : {'NULL' if r['n_free'] is None else r['n_free']}",
        "",
        " FIT TO DATA USED IN REFINEMENT (IN BINS).",
        "  BIN  RESOLUTION RANGE  COMPL.    NWORK NFREE   RWORK  RFREE",
    ]
    for number, shell in enumerate(r["shells"], 1):
        lines.append(
            f"  {number:3d} {shell['d_max']:8.2f} - {shell['d_min']:6.2f}  {_null(shell['completeness'], 2):>5}  "
            f"{shell['n_work']:7d} {_null(shell['n_free'], 0):>5}  {_null(shell['r_work'], 4):>6} {_null(shell['r_free'], 4):>6}"
        )
    lines += ["", " B VALUES.", f"  MEAN B VALUE      (OVERALL, A**2) : {_null(r['b_mean'], 2)}", ""]
    if r["restraint_types"]:
        lines += [" DEVIATIONS FROM IDEAL VALUES.", "                RMSD               COUNT"]
        lines += [
            f"  {name.upper():<11}: {_null(deviation, 3):>7} {unit:<10} {'NULL' if number is None else number:>6}"
            for name, number, deviation, unit in r["restraint_types"]
        ]
        lines.append("")
    if r["tls"]:
        lines += _tls_lines(r["tls"])
    if r["twin"]:
        lines += [
            " TWINNING INFORMATION.",
            f"  FRACTION: {r['twin']['fraction']:.3f}",
            f"  OPERATOR: {r['twin']['law'].upper()}",
            "",
        ]
    lines += [" BULK SOLVENT MODELLING.", f"  METHOD USED : {r['solvent'].upper()}", ""]
    lines += [" OTHER REFINEMENT REMARKS:"] + [f"  {part}" for part in _wrapped(r["restraints"].upper() or "NULL", 64)]
    return [f"REMARK   3 {line}".rstrip()[:80].ljust(80) for line in lines]


def _tls_lines(groups: Sequence[dict[str, Any]]) -> list[str]:
    lines = [" TLS DETAILS.", f"  NUMBER OF TLS GROUPS  : {len(groups)}"]
    for group in groups:
        lines += ["", f"  TLS GROUP : {group['id']}"]
        lines += [f"   SELECTION: {part}" for part in _wrapped(group["selection"], 56)]
        lines.append("   ORIGIN FOR THE GROUP (A): " + " ".join(f"{x:8.4f}" for x in group["origin"]))
        for name in "TLS":
            m = group[name]
            lines.append(f"   {name} TENSOR")
            pairs = (
                (("11", "22"), ("33", "12"), ("13", "23"))
                if name != "S"
                else (("11", "12", "13"), ("21", "22", "23"), ("31", "32", "33"))
            )
            for row in pairs:
                lines.append("    " + " ".join(f"{name}{ij}: {m[int(ij[0]) - 1][int(ij[1]) - 1]:8.4f}" for ij in row))
    # Without this, programs add the TLS part once more.
    lines += [
        "",
        "  ATOM RECORD CONTAINS SUM OF TLS AND RESIDUAL B FACTORS",
        "  ANISOU RECORD CONTAINS SUM OF TLS AND RESIDUAL U FACTORS",
    ]
    return [*lines, ""]


def _software(block: gemmi.cif.Block, record: dict[str, Any]) -> None:
    """Earlier programs stay, but for those that refined."""
    others = []
    table = block.find("_software.", ["name", "?version", "?classification"])
    for row in table:
        name, version, kind = (gemmi.cif.as_string(row[i]) if row.has(i) else "" for i in range(3))
        if "refine" not in kind.lower():
            others.append((kind, name, version))
    block.find_mmcif_category("_software.").erase()
    loop = block.init_loop("_software.", ["pdbx_ordinal", "classification", "name", "version"])
    for number, values in enumerate([*others, ("refinement", record["program"], record["version"])], 1):
        _row(loop, number, *(value or None for value in values))


def _twins(block: gemmi.cif.Block, twin: dict[str, Any]) -> None:
    loop = block.init_loop(
        "_pdbx_reflns_twin.", ["diffrn_id", "crystal_id", "domain_id", "type", "operator", "fraction"]
    )
    for number, (law, fraction) in enumerate((("h,k,l", 1 - twin["fraction"]), (twin["law"], twin["fraction"])), 1):
        _row(loop, 1, 1, number, None, law, _n(fraction, 3))


def _tls(block: gemmi.cif.Block, groups: Sequence[dict[str, Any]]) -> None:
    names = ["pdbx_refine_id", "id", "method", "origin_x", "origin_y", "origin_z"]
    full = [(i, j) for i in range(3) for j in range(3)]
    tensors = [(name, ij) for name in "TL" for ij in PAIRS] + [("S", ij) for ij in full]
    names += [f"{name}[{i + 1}][{j + 1}]" for name, (i, j) in tensors]
    loop = block.init_loop("_pdbx_refine_tls.", names)
    for group in groups:
        values = [_n(group[name][i][j], 4) for name, (i, j) in tensors]
        _row(loop, _METHOD, group["id"], "refined", *(_n(x, 4) for x in group["origin"]), *values)
    ends = ["beg_auth_asym_id", "beg_auth_seq_id", "end_auth_asym_id", "end_auth_seq_id"]
    loop = block.init_loop(
        "_pdbx_refine_tls_group.", ["pdbx_refine_id", "id", "refine_tls_id", *ends, "selection_details"]
    )
    for group in groups:
        chain = None if group["first"] is None else group["chain"]
        span = (chain, group["first"], chain, group["last"])
        _row(loop, _METHOD, group["id"], group["id"], *span, group["selection"])


def _pairs(block: gemmi.cif.Block, category: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        block.set_pair(category + name, _quoted(value))


def _row(loop: gemmi.cif.Loop, *values: Any) -> None:
    loop.add_row([_quoted(value) for value in values])


def _quoted(value: Any) -> str:
    return "?" if value is None or value == "" else str(gemmi.cif.quote(str(value)))


def _n(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _null(value: float | None, digits: int) -> str:
    return _n(value, digits) or "NULL"


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _percent_free(record: dict[str, Any]) -> str | None:
    return None if record["n_free"] is None else f"{100 * record['n_free'] / max(1, record['n_reflections']):.2f}"


def _wrapped(text: str, width: int) -> Iterable[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    if line:
        yield line
