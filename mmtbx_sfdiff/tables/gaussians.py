"""Form factors as sums of Gaussians, by scattering type and table; van der Waals radii.

Reference: ``cctbx.eltbx.xray_scattering``, ``cctbx.eltbx.e_scattering``, ``cctbx.eltbx.neutron``,
``cctbx.eltbx.van_der_waals_radii``.
"""

from __future__ import annotations

import re

from . import read

TABLES = ("n_gaussian", "it1992", "wk1995", "electron", "neutron")

Gaussian = tuple[tuple[float, ...], tuple[float, ...], float]

# Up to where the tables hold, as cctbx asserts it.
_HIGHEST = {"it1992": 1 / 4, "wk1995": 1 / 12, "electron": 1 / 4}
_LABEL = re.compile(r"([A-Za-z]{1,2})(\d*)([+-]?)")


def standard_label(text: str) -> str | None:
    """The scattering type that a text means, as the tables write it; None where it means none.

    Examples
    --------
    >>> from mmtbx_sfdiff.tables.gaussians import standard_label
    >>> [standard_label(text) for text in ("FE", "fe2+", "O-", " C", "Cval", "N1+")]
    ['Fe', 'Fe2+', 'O1-', 'C', 'Cval', None]
    """
    labels = read("wk1995")
    word = text.strip()
    if word in labels or text == "const":
        return word
    match = _LABEL.fullmatch(word)
    if match is None:
        return None
    letters, digits, sign = match.groups()
    label = letters.capitalize()
    if sign:
        label += f"{digits or 1}{sign}"
    return label if label in labels else None


def element_of(scattering_type: str) -> str:
    """Element symbol of a scattering type, as mmtbx reads it for masks; empty where it has none.

    Examples
    --------
    >>> from mmtbx_sfdiff.tables.gaussians import element_of
    >>> element_of("Fe2+"), element_of("Hiso"), element_of("D"), element_of("const")
    ('Fe', 'H', 'D', 'const')
    """
    label = standard_label(scattering_type)
    if label is None:
        return ""
    if label in ("Hiso", "Cval", "Sival"):
        return label[:-3] if label != "Hiso" else "H"
    return label[:-2] if label[-1] in "+-" else label


def gaussian(scattering_type: str, table: str = "n_gaussian", d_min: float = 0.0) -> Gaussian:
    """Coefficients (a, b, c) of one form factor.

    Parameters
    ----------
    scattering_type : str
        "C", "O1-", "Fe3+", ...; "const" scatters 1 everywhere.
    table : str
        One of :data:`TABLES`.
    d_min : float
        Å; with ``n_gaussian`` as few terms as hold to there (2 at 1 Å, 3 at 0.5 Å for most), 6 for 0.

    Raises
    ------
    ValueError
        An unknown table; a scattering type that is not in it; a resolution beyond it.

    Examples
    --------
    >>> from mmtbx_sfdiff.tables.gaussians import gaussian
    >>> len(gaussian("C")[0]), len(gaussian("C", d_min=1.5)[0]), gaussian("H", "neutron")[2]
    (6, 2, -3.739000082015991)
    """
    if table not in TABLES:
        raise ValueError(f"There is no table {table!r} of form factors: choose from {', '.join(TABLES)}.")
    if not (d_min == 0 or d_min >= _HIGHEST.get(table, 0.0)):
        raise ValueError(f"The table {table} holds to {_HIGHEST.get(table, 0.0):.2f} Å, not to {d_min} Å.")
    label = standard_label(scattering_type)
    if label == "const":
        return (), (), 1.0
    entry = read(table).get(label) if label is not None else None
    if entry is None:
        raise ValueError(
            f"No form factor for scattering type {scattering_type!r} in the table {table}: give these atoms another "
            "element or charge."
        )
    if table != "n_gaussian":
        a, b, c = entry
        return tuple(a), tuple(b), c
    reach = 1 / (2 * d_min) if d_min else 0.0
    for stol, a, b in entry if d_min else entry[-1:]:
        if stol >= reach:
            return tuple(a), tuple(b), 0.0
    raise ValueError(f"The table n_gaussian does not hold to {d_min} Å for {label}: use wk1995.")


def van_der_waals_radius(scattering_type: str) -> float | None:
    """Radius in Å as mmtbx's mask takes it; None where the table has none."""
    radius: float | None = read("van_der_waals_radii").get(element_of(scattering_type))
    return radius
