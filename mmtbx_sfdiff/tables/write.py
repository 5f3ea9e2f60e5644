"""Write the tables of this folder from cctbx: ``python -m mmtbx_sfdiff.tables.write``.

Numbers are written so that reading them gives the same bits.  ``tests/test_tables.py`` compares every one with cctbx.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import gemmi

from .._cctbx_loading import require_cctbx

FOLDER = Path(__file__).parent
_AS_HYDROGEN = ("D", "T")  # what cctbx knows without listing them


def main() -> int:
    """Write all tables into this folder."""
    require_cctbx("Writing the tables")
    for name, table in (
        ("n_gaussian", n_gaussian()),
        ("it1992", analytical("it1992")),
        ("wk1995", analytical("wk1995")),
        ("electron", electron()),
        ("neutron", neutron()),
        ("van_der_waals_radii", van_der_waals_radii()),
    ):
        rows = (f"{json.dumps(label)}: {json.dumps(value)}" for label, value in table.items())
        (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    with open(FOLDER / "space_group_settings.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("hall", "number", "cctbx_hall", "cctbx_symbol", "to_reference", "box_min", "box_max"))
        writer.writerows(space_group_settings())
    return 0


def _labels(iterator: object) -> list[str]:
    return [entry.label() for entry in iterator]  # type: ignore[attr-defined]


def n_gaussian() -> dict[str, list[list[object]]]:
    """Type -> [sin(theta)/lambda up to which it holds, a, b] for each number of terms, fewest first."""
    from cctbx.eltbx import xray_scattering

    result: dict[str, list[list[object]]] = {}
    for label in (*_labels(xray_scattering.wk1995_iterator()), *_AS_HYDROGEN):
        entries = []
        for n_terms in range(1, 7):
            entry = xray_scattering.n_gaussian_table_entry(label, n_terms)
            gaussian = entry.gaussian()
            assert not gaussian.use_c() and gaussian.n_terms() == n_terms
            entries.append([entry.max_stol(), list(gaussian.array_of_a()), list(gaussian.array_of_b())])
        result[label] = entries
    return result


def _terms(gaussian: object) -> list[object]:
    return [
        list(gaussian.array_of_a()),  # type: ignore[attr-defined]
        list(gaussian.array_of_b()),  # type: ignore[attr-defined]
        gaussian.c() if gaussian.use_c() else 0.0,  # type: ignore[attr-defined]
    ]


def analytical(name: str) -> dict[str, list[object]]:
    """Type -> [a, b, c] of ``it1992`` or ``wk1995``."""
    from cctbx.eltbx import xray_scattering

    table = getattr(xray_scattering, name)
    labels = [*_labels(getattr(xray_scattering, f"{name}_iterator")()), *_AS_HYDROGEN]
    return {label: _terms(table(label, True).fetch()) for label in labels}


def electron() -> dict[str, list[object]]:
    """Type -> [a, b, c] of the International Tables C (2011), 4.3.2.2."""
    from cctbx.eltbx import e_scattering

    labels = e_scattering.ito_vol_c_2011_table_4_3_2_2_elements()
    entry = e_scattering.ito_vol_c_2011_table_4_3_2_2_entry_as_gaussian
    return {label: _terms(entry(label=label, exact=True)) for label in labels}


def neutron() -> dict[str, list[object]]:
    """Type -> [[], [], bound coherent scattering length in fm]: the real part, as cctbx takes it."""
    from cctbx.eltbx import neutron as table

    return {
        entry.label(): [[], [], entry.bound_coh_scatt_length().real]
        for entry in table.neutron_news_1992_table_iterator()
    }


def van_der_waals_radii() -> dict[str, float]:
    """Element -> radius in Å."""
    from cctbx.eltbx import van_der_waals_radii as table

    return dict(table.vdw.table)


def space_group_settings() -> list[tuple[object, ...]]:
    """Hall symbol, number, cctbx's symbols, its change to the reference setting, and the box of its asymmetric unit."""
    from cctbx import sgtbx

    rows: dict[str, tuple[object, ...]] = {}
    for setting in gemmi.spacegroup_table():
        group = sgtbx.space_group(setting.hall)
        info = sgtbx.space_group_info(group=group)
        unit = info.direct_space_asu()
        corners = (" ".join(map(str, corner())) for corner in (unit.box_min, unit.box_max))
        change = info.type().cb_op().c().as_xyz()
        rows.setdefault(
            setting.hall, (setting.hall, info.type().number(), info.type().hall_symbol(), str(info), change, *corners)
        )
    return list(rows.values())


if __name__ == "__main__":
    sys.exit(main())
