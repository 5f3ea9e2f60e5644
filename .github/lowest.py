"""Constraints that pin every requirement of pyproject.toml to the lowest version it declares.

    python .github/lowest.py [already installed ...] > lowest.txt

Requirements without a lower end, and those named on the command line, are left alone.
"""

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib


def lowest(requirements, left_alone=()):
    """``["numba>=0.59,<0.70"]`` -> ``["numba==0.59.*"]``; pre-releases keep their exact number."""
    found = []
    for requirement in requirements:
        name, versions = re.fullmatch(r"\s*([\w.-]+)\s*([^;]*).*", requirement).groups()
        lower = re.search(r">=\s*([\w.]+)", versions)
        if lower and name not in left_alone:
            exact = lower[1] if re.search(r"[a-z]", lower[1]) else f"{lower[1]}.*"
            found.append(f"{name}=={exact}")
    return found


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
    extras = [item for name in ("cctbx", "latent", "test") for item in project["optional-dependencies"].get(name, [])]
    names = {re.match(r"[\w.-]+", argument)[0] for argument in sys.argv[1:]}
    print("\n".join(sorted(set(lowest(project["dependencies"] + extras, names)))))
