"""A script by cctbx alone, with its direct summation wherever it asks for its FFT.

    python -m validation.studies.exact script.py

What a script then does otherwise than with cctbx's FFT is not this package's doing, which is not imported.
"""

import runpy
import sys
from pathlib import Path


def main():
    (script,) = sys.argv[1:]
    from cctbx.xray import structure_factors
    from cctbx.xray.structure_factors.algorithm import Algorithm, algorithms

    direct = algorithms["direct"]
    algorithms["fft"] = Algorithm("fft", "direct summation", _named(direct.from_scatterers), _named(direct.gradients))
    structure_factors.from_scatterers_fft = algorithms["fft"].from_scatterers
    structure_factors.gradients_fft = algorithms["fft"].gradients
    sys.argv = [script]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def _named(function):
    def call(*args, **keywords):
        if "algorithm" in keywords:
            keywords["algorithm"] = "direct"
        return function(*args, **keywords)

    return call


if __name__ == "__main__":
    main()
