"""Small cases through SFcalculator's interface, by the package of that name or by this one; see :mod:`.sfcalculator_cases`.

Imports nothing of this project unless it is asked for: ``python sfcalculator_cases_worker.py published|ours FOLDER OUT.npz``.
"""

import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np

CPU = "cpu"


class Listening(logging.Handler):
    """What the published package writes to its log."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def said(function):
    """(what it returns or None, the error it raises, warnings and lines in the log)."""
    listening = Listening()
    loguru = sys.modules.get("loguru")
    number = loguru.logger.add(lambda line: listening.lines.append(str(line).strip())) if loguru else None
    logging.getLogger().addHandler(listening)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                value, error = function(), None
            except Exception as raised:
                value, error = None, f"{type(raised).__name__}: {raised}"
    finally:
        logging.getLogger().removeHandler(listening)
        if loguru:
            loguru.logger.remove(number)
    return value, error, [str(w.message) for w in caught if issubclass(w.category, UserWarning)] + listening.lines


def main():
    which, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    import torch

    if which == "ours":
        from mmtbx_sfdiff.interop.sfcalculator import SFcalculator
    else:
        from SFC_Torch import SFcalculator
    device = torch.device(CPU)
    arrays, words = {}, {}
    for name in ("special", "ions", "general"):
        sfc = SFcalculator(str(folder / f"{name}.pdb"), dmin=2.0, device=device)
        arrays[f"{name}_indices"] = np.asarray(sfc.Hasu_array)
        arrays[f"{name}_f"] = sfc.calc_fprotein(Return=True).detach().numpy()
    # The second model of a batch, after two different first ones.
    sfc = SFcalculator(str(folder / "general.pdb"), dmin=2.5, device=device)
    sfc.inspect_data()
    sites = sfc.atom_pos_orth.detach()
    centre = sites.mean(0)
    others = {"same": sites, "shrunk": centre + 0.6 * (sites - centre), "swollen": centre + 1.3 * (sites - centre)}
    arrays["batch_indices"] = np.asarray(sfc.Hasu_array)
    for name, first in others.items():
        sfc.calc_fprotein_batch(torch.stack([first, sites]))
        arrays[f"batch_{name}"] = sfc.calc_fsolvent_batch(Return=True)[1].detach().numpy()
    model, data = str(folder / "general.pdb"), str(folder / "data.mtz")
    for name, options in (
        ("test value 0", {"testset_value": 0}),
        ("test value 1", {"testset_value": 1}),
        ("test value 7", {"testset_value": 7}),
        ("no such flag", {"freeflag": "TEST"}),
        ("no such amplitudes", {"expcolumns": ["FOBS", "SIGFP"]}),
    ):
        flags, error, lines = said(
            lambda options=options: SFcalculator(model, data, device=device, **options).free_flag
        )
        words[name] = {"free": None if flags is None else int(np.sum(flags)), "error": error, "said": lines}
    without = str(folder / "noflags.mtz")
    flags, error, lines = said(lambda: SFcalculator(model, without, device=device).free_flag)
    words["FreeR_flag absent"] = {"free": None if flags is None else int(np.sum(flags)), "error": error, "said": lines}
    np.savez_compressed(out, **arrays)
    out.with_suffix(".json").write_text(json.dumps(words))


if __name__ == "__main__":
    main()
