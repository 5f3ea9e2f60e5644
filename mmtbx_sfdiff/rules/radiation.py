"""Whether form factors fit the radiation that a model's header names: one rule for every door."""

from __future__ import annotations

from collections.abc import Sequence


def radiation_messages(found: Sequence[str], table: str) -> list[str]:
    """What to say of a scattering table.

    Parameters
    ----------
    found : sequence of str
        Experimental methods of the header, upper case.
    table : str
        The scattering table.

    Examples
    --------
    >>> radiation_messages(["X-RAY DIFFRACTION"], "n_gaussian")
    []
    >>> radiation_messages(["NEUTRON DIFFRACTION"], "n_gaussian")
    ['the header says neutron diffraction, but the scattering table is n_gaussian: scattering_table=neutron']
    """
    electron = any("ELECTRON" in method for method in found)
    microscopy = electron and all("MICROSCOPY" in method for method in found if "ELECTRON" in method)
    neutron = any("NEUTRON" in method for method in found)
    xray = any("X-RAY" in method for method in found)
    if neutron and table != "neutron" and not xray:
        return [f"the header says neutron diffraction, but the scattering table is {table}: scattering_table=neutron"]
    if electron and table != "electron" and not xray:
        return [
            f"the header says electron {'microscopy' if microscopy else 'diffraction'}, but the scattering table is {table}: scattering_table=electron gives "
            "electrons' form factors"
        ]
    if found and xray and not electron and not neutron and table in ("electron", "neutron"):
        return [f"the header says X-ray diffraction, but the scattering table is {table}"]
    return []
