"""Files of the cases through every door, one after the other; a line of JSON for each door."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import warnings
from pathlib import Path

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.interop.rewards import StructureFactorReward
from mmtbx_sfdiff.interop.sfcalculator import SFcalculator

import gemmi
import numpy as np

HAVE_CCTBX = importlib.util.find_spec("cctbx") is not None
HAVE_DATASET = importlib.util.find_spec("reciprocalspaceship") is not None
_D_MIN = 3.0
_ABSURD = 0.12  # R-work of a case's own model beside its data, which are exact but for a few per cent of noise
_SAME = 0.9999  # correlation of amplitudes


def main(limit, folder, *names):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, wherever it hangs
    for name in names:
        one_file(int(limit), Path(folder), Path(folder) / name)
        print(json.dumps({"done": name}), flush=True)


def one_file(limit, folder, path):
    head = path.read_bytes()[:300000]
    is_model = path.suffix in (".pdb", ".ent") or (b"_atom_site" in head.lower() and b"_refln" not in head.lower())
    for door, call in (model_doors if is_model else data_doors)(folder, path).items():
        signal.alarm(limit)
        print(json.dumps({"door": door} | outcome(call)), flush=True)
        signal.alarm(0)


def outcome(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = call()
        except (ValueError, TypeError) as error:
            found = {"refused": str(error)} | _no_sentence(str(error))
        except Exception as error:  # whatever it is, it is a fault
            found = {"refused": "", "fault": f"{type(error).__name__}: {error}"}
    said = [str(w.message) for w in caught if not issubclass(w.category, DeprecationWarning)]
    found["said"] = list(dict.fromkeys(found.pop("messages", []) + said))
    if found.pop("unlike", False) and not found["said"]:
        found["fault"] = "differs from what an independent reader finds in the file, without a word"
    return found


def _no_sentence(text):
    lines = text.strip().splitlines()
    if len(lines) != 1 or not text.rstrip().endswith((".", "?")) or "()" in text:
        return {"fault": f"no sentence: {text[:200]!r}"}
    return {}


# models


def amplitudes(atoms):
    crystal = atoms.crystal
    return sfdiff.structure_factors(atoms, crystal, crystal.build_miller_indices(d_min=_D_MIN), method="direct").abs()


def plain_readers(path):
    """F of the file by readers that know nothing of this package's rules; those that can read it."""
    found = []
    try:
        structure = gemmi.read_structure(str(path))
        if not any(model.count_atom_sites() for model in structure):
            return []  # iotbx may not survive it
        structure.expand_ncs(gemmi.HowToNameCopiedChain.Dup)
        found.append(amplitudes(sfdiff.Atoms.from_gemmi(structure)))
    except (RuntimeError, ValueError):
        pass
    if HAVE_CCTBX:
        import iotbx.pdb

        try:
            structure = iotbx.pdb.input(str(path)).xray_structure_simple()
            structure.scattering_type_registry(table="n_gaussian", d_min=0)
            found.append(amplitudes(sfdiff.Atoms.from_cctbx(structure)))
        except BaseException:  # Sorry, NameError, IndexError ...: it is the package's own reader that is judged
            pass
    return found


def described(atoms, plain):
    f = amplitudes(atoms)
    same = [float(np.corrcoef(f.numpy(), p.numpy())[0, 1]) for p in plain if p.shape == f.shape]
    scale = [float(p.norm() / f.norm()) for p in plain if p.shape == f.shape]
    best = max(same, default=float("nan"))
    return {
        "n_atoms": atoms.n_atoms,
        "n_aniso": int(atoms.use_u_aniso.sum()),
        "cc": round(best, 5),
        "mean_f": round(float(f.mean()), 3),
        "unlike": bool(same) and (best < _SAME or not any(abs(s - 1) < 0.01 for s in scale)),
    }


def model_doors(folder, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = plain_readers(path) if path.stat().st_size < 10**7 else []
    doors = {}
    data = next((p for p in (path.parent / "data.mtz", path.with_suffix(".mtz")) if p.exists()), folder / "data.mtz")

    def by_program():
        from mmtbx_sfdiff.files import read_model

        model = read_model(path)
        return described(sfdiff.Atoms.from_cctbx(model.xray_structure), plain) | {"messages": list(model.messages)}

    def by_files():
        try:
            fmodel = sfdiff.FModel.from_files(path, data)
        except ValueError as error:
            if "differs from the model's" in str(error) or "do not go together" in str(error):
                return {"other crystal": "the folder's data are of another crystal"}
            raise
        found = described(fmodel.atoms, [])
        if data.parent == path.parent:
            fmodel.update_scales()
            found["r_work"] = round(float(fmodel.r_work()), 4)
        return found

    def by_calculator():
        calculator = SFcalculator(str(path), dmin=_D_MIN)
        calculator.calc_fprotein()
        return {
            "n_atoms": len(calculator.atom_pos_orth),
            "mean_f": round(float(calculator.Fprotein_asu.abs().mean()), 3),
        }

    def by_reward():
        structure = gemmi.read_structure(str(path))
        reward = StructureFactorReward(str(folder / "data.mtz"), hydrogens="include")
        reward.prepare(structure)
        sites = torch.tensor([[a.atom.pos.tolist() for m in structure for a in m.all()]])
        return {"n_atoms": int(sites.shape[1]), "reward": round(float(reward(sites)), 3)}

    if HAVE_CCTBX:
        doors["read_model"] = by_program
    doors["from_files"] = by_files
    doors["from_gemmi"] = lambda: described(sfdiff.Atoms.from_gemmi(_structure(path)), plain)
    doors["sfcalculator"] = by_calculator
    doors["rewards"] = by_reward
    return doors


def _structure(path):
    try:
        return gemmi.read_structure(str(path))
    except RuntimeError as error:  # gemmi's own words about a file that it does not read
        raise ValueError(f"gemmi does not read {path.name} ({' '.join(str(error).split())}).") from None


# data


def described_data(reflections):
    free = reflections.r_free_flags
    return {
        "n": len(reflections),
        "free": None if free is None else int(free.sum()),
        "sigmas": reflections.sigmas is not None,
        "sum_f": round(float(reflections.f_obs.sum()), 1),
        "left_out": dict(reflections.left_out),
        "messages": list(reflections.messages),
    }


def data_doors(folder, path):
    model = next(
        iter(sorted(path.parent.glob("*I23.pdb")) + sorted(path.parent.glob("*sum.pdb"))), folder / "model.pdb"
    )
    doors = {}

    def by_program():
        from mmtbx_sfdiff.files import read_model
        from mmtbx_sfdiff.files.data import read_data

        data = read_data(path, read_model(model).crystal_symmetry, strict=False)
        counts = data.reflections
        found = {"n": counts["used"], "free": counts["free"], "left_out": counts["left_out"], "labels": data.labels}
        if counts["read"] != counts["used"] + sum(counts["left_out"].values()):
            found["fault"] = f"rows are neither used nor counted: {counts}"
        return found | {"test_value": data.test_flag_value, "kind": data.kind, "messages": list(data.messages)}

    def by_files():
        fmodel = sfdiff.FModel.from_files(model, path, read={"strict": False})
        found = described_data(fmodel.reflections)
        fmodel.update_scales()
        r_work = float(fmodel.r_work())
        return found | {"r_work": round(r_work, 4), "unlike": r_work > _ABSURD and len(fmodel.reflections) > 200}

    def by_gemmi():
        if path.suffix.lower() == ".mtz":
            data = _mtz(path)
        else:
            blocks = gemmi.as_refln_blocks(gemmi.cif.read(str(path)))
            data = next((b for b in blocks if b.default_loop is not None), blocks[0])
        return described_data(sfdiff.Reflections.from_gemmi(data))

    def by_dataset():
        import reciprocalspaceship

        try:
            data = reciprocalspaceship.read_mtz(str(path))
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"reciprocalspaceship does not read {path.name} ({error}).") from None
        return described_data(sfdiff.Reflections.from_dataset(data))

    def by_calculator():
        columns = ["FP", "SIGFP"] if path.suffix == ".cif" else ["F", "SIGF"]
        calculator = SFcalculator(str(model), str(path), expcolumns=columns, testset_value=0)
        free = int(np.sum(calculator.free_flag)) if hasattr(calculator, "free_flag") else None
        return {
            "n": len(calculator.HKL_array),
            "free": free,
            "sum_f": round(float(torch.as_tensor(calculator.Fo).nansum()), 1),
        }

    if HAVE_CCTBX:
        doors["read_data"] = by_program
    doors["from_files"] = by_files
    if path.suffix.lower() in (".mtz", ".cif"):
        doors["from_gemmi"] = by_gemmi
        doors["sfcalculator"] = by_calculator
    if path.suffix.lower() == ".mtz" and HAVE_DATASET:
        doors["from_dataset"] = by_dataset
    doors["rewards"] = lambda: described_data(StructureFactorReward(str(path)).data)
    return doors


def _mtz(path):
    try:
        return gemmi.read_mtz_file(str(path))
    except RuntimeError as error:
        raise ValueError(f"gemmi does not read {path.name} ({' '.join(str(error).split())}).") from None


if __name__ == "__main__":
    main(*sys.argv[1:])
