"""The types with which the CPU kernels are called, for :func:`mmtbx_sfdiff.kernels.compile` to compile them ahead.

A tiny crystal is put through every calculation of each group, and what numba compiles for it is listed, functions that are
called before those that call them.

    python -m validation.studies.kernel_signatures            # write mmtbx_sfdiff/kernels/cpu/signatures.json anew
    python -m validation.studies.kernel_signatures --check    # exit status 1, and their names, if some are not listed

After a kernel's arguments have changed, write it anew and commit it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import sys
import tempfile
from pathlib import Path

CHECK = "--check" in sys.argv
if not CHECK:
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="signatures")

import mmtbx_sfdiff as sfdiff  # noqa: E402
import torch  # noqa: E402
from mmtbx_sfdiff import kernels  # noqa: E402
from mmtbx_sfdiff.kernels import cpu  # noqa: E402
from mmtbx_sfdiff.kernels.compilation import ALL_GROUPS, read_signatures  # noqa: E402

TABLE = Path(cpu.__file__).parent / "signatures.json"


def _atoms(anisotropic):
    """Some thirty atoms, of more than one kind, enough for two threads."""
    crystal = sfdiff.Crystal((31.0, 33.0, 35.0, 90.0, 101.0, 90.0), "P 1 21 1")
    sites = torch.rand((3000, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 30
    given = {"u_cart": [[0.2, 0.22, 0.24, 0.01, 0.0, 0.02]] * 3000} if anisotropic else {"b_iso": [20.0] * 3000}
    return sfdiff.Atoms.from_arrays(crystal, ["C", "N", "O"] * 1000, sites, **given)


def _moved(atoms):
    return atoms.replace(
        sites_cart=atoms.sites_cart.detach().clone().requires_grad_(),
        occupancies=atoms.occupancies.detach().clone().requires_grad_(),
    )


def calls(group):
    """Call everything of a group, as the programs do."""
    double = group == "double"
    accuracy = 2e-8 if double else 1e-4
    torch.set_num_threads(2)
    for anisotropic in (False, True):
        atoms = _atoms(anisotropic)
        few = atoms.crystal.build_miller_indices(d_min=12.0)
        indices = atoms.crystal.build_miller_indices(d_min=3.0)
        if group in ("structure_factors", "double"):
            sfdiff.structure_factors(atoms, atoms.crystal, indices, method="fft", accuracy=accuracy)
        if group in ("gradients", "double"):
            f = sfdiff.structure_factors(_moved(atoms), atoms.crystal, indices, method="fft", accuracy=accuracy)
            f.abs().sum().backward()
        if group == "direct":
            sfdiff.structure_factors(_moved(atoms), atoms.crystal, few, method="direct").abs().sum().backward()
    if group == "masks":
        for options in ({}, {"softness": 0.0}):
            mask = sfdiff.solvent_mask(atoms, atoms.crystal, grid_step=0.9, **options)
            sfdiff.mask_structure_factors(mask, atoms.crystal, indices)
            sfdiff.solvent_structure_factors(atoms, atoms.crystal, indices, grid_step=0.9, **options)
    if group == "mask_gradients":
        sfdiff.solvent_mask(_moved(atoms), atoms.crystal, grid_step=0.9).sum().backward()
        f = sfdiff.solvent_structure_factors(_moved(atoms), atoms.crystal, indices, grid_step=0.9)
        f.abs().sum().backward()


def _short(text):
    """numba's name of a type as it can be read back."""
    text = re.sub(r"Array\((\w+), (\d+), '(\w)', (True|False), aligned=True\)", _array, repr(text))
    return re.sub(r"\bbool\b", "boolean", text)


def _array(found):
    kind, n, order, readonly = found[1], int(found[2]), found[3], found[4] == "True"
    if readonly:
        return f"Array({kind}, {n}, '{order}', readonly=True)"
    axes = [":"] * n
    if order == "C":
        axes[-1] = "::1"
    elif order == "F":
        axes[0] = "::1"
    return f"{kind}[{', '.join(axes)}]"


def _signature(args):
    return ", ".join(_short(a) for a in args)


def record():
    """[(group, function, arguments)] as numba compiles them."""
    from numba.core import event

    rows, group = [], ""

    class Listener(event.Listener):
        def on_start(self, _):
            pass

        def on_end(self, one):
            function = one.data["dispatcher"].py_func
            prefix = kernels.__name__ + "."
            # A type that is a number belongs to one call of another kernel, and is made with that.
            if function.__module__.startswith(prefix) and "Literal" not in repr(one.data["args"]):
                rows.append(
                    (group, f"{function.__module__[len(prefix) :]}.{function.__name__}", _signature(one.data["args"]))
                )

    with event.install_listener("numba:compile", Listener()):
        for group in ALL_GROUPS:
            calls(group)
    return rows


def unlisted():
    """Signatures with which kernels were called in this process that the table lacks."""
    listed = {(name, signature) for _, name, signature in read_signatures()}
    found = []
    for info in pkgutil.walk_packages(kernels.__path__, kernels.__name__ + "."):
        if ".cuda" in info.name:
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if hasattr(value, "nopython_signatures") and value.py_func.__module__ == info.name:
                key = info.name[len(kernels.__name__) + 1 :] + "." + name
                for signature in value.nopython_signatures:
                    if "Literal" not in repr(signature.args) and (key, _signature(signature.args)) not in listed:
                        found.append(f"{key}({_signature(signature.args)})")
    return found


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say what the table lacks")
    if parser.parse_args(args).check:
        for group in ALL_GROUPS:
            calls(group)
        lacking = unlisted()
        print("\n".join(lacking) or "every signature is listed")
        return int(bool(lacking))
    rows = record()
    TABLE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
    print(f"{len(rows)} signatures written to {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
