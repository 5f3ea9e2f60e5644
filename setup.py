"""For tools that call setup.py; everything about the package stands in pyproject.toml, except the start-up file."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

_STARTUP = "mmtbx_sfdiff_startup.pth"


class BuildWithStartup(build_py):
    """Put the .pth file beside the package, where Python looks for it; pyproject.toml has no word for that."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file(_STARTUP, str(Path(self.build_lib) / _STARTUP))

    def get_outputs(self, include_bytecode=1):
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib) / _STARTUP)]


setup(cmdclass={"build_py": BuildWithStartup})
