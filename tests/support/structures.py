"""Random structures for tests, made with cctbx."""

import random

import torch

from cctbx import sgtbx, xray
from cctbx.array_family import flex
from cctbx.development import random_structure

# Other origins, axes and centrings than the tables' first choice, and primitive settings of centred groups.
NON_STANDARD_SETTINGS = (
    "P 1 1 21",
    "A 1 1 2",
    "I 1 2 1",
    "R 3 :R",
    "R 3 :H",
    "R -3 m :R",
    "F d d d :1",
    "P n n n :1",
    "P 21 21 21 (a-1/4,b,c)",
    "Hall: P 2y (x,y,z+1/8)",
    "Hall: C 2y (x,y,-x+z)",
    "Hall: I 4 2 3 (-x+y+z,x-y+z,x+y-z)",
    "P 4/n :1",
    "I 41/a :2",
    "C 2 2 21 (a,b,2*c)",
    "P 32 2 1 (b,c,a)",
)


def random_xray_structure(
    symbol,
    anisotropic=False,
    seed=0,
    elements=("C", "N", "O", "S", "Fe2+", "O1-"),
    n=2,
    table="it1992",
    volume_per_atom=60,
):
    """Random sites (special positions too), occupancies, ADPs, and f', f'' for two atoms."""
    random.seed(seed)
    flex.set_random_seed(seed)
    structure = random_structure.xray_structure(
        space_group_info=sgtbx.space_group_info(symbol),
        elements=[e.strip("0123456789+-") for e in elements] * n,
        volume_per_atom=volume_per_atom,
        random_occupancy=True,
        random_u_iso=True,
        use_u_iso=True,
        use_u_aniso=anisotropic,
        general_positions_only=False,
    )
    for scatterer, element in zip(structure.scatterers(), list(elements) * n):
        scatterer.scattering_type = element
    for scatterer in structure.scatterers()[:2]:
        scatterer.fp, scatterer.fdp = random.uniform(-3, 3), random.uniform(0, 4)
    if table == "neutron":
        # The neutron table knows elements, not ions.
        for scatterer in structure.scatterers():
            scatterer.scattering_type = scatterer.element_symbol()
    structure.discard_scattering_type_registry()
    structure.scattering_type_registry(table=table)
    return structure


def random_complex(n, seed=0):
    """(n,) complex128, and the same as flex.complex_double."""
    values = torch.randn(n, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))
    return values, flex.complex_double(values.numpy())


def relative_l2(value, reference):
    """||value - reference|| / ||reference||."""
    value, reference = value.detach(), reference.detach()
    return float(torch.linalg.vector_norm(value - reference) / torch.linalg.vector_norm(reference))


def cctbx_direct(structure, miller_set):
    """F_calc by cctbx's direct summation, (n,) complex128."""
    f_calc = xray.structure_factors.from_scatterers_direct(xray_structure=structure, miller_set=miller_set).f_calc()
    return torch.from_numpy(f_calc.data().as_numpy_array())
