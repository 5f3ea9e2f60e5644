"""For tools that call setup.py; everything about the package stands in pyproject.toml, except the start-up file."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

_STARTUP = "mmtbx_sfdiff_startup.pth"


class BuildWithStartup(build_py):
    """Put the .pth file beside the package, where Python looks for it; pyproject.toml has no word for that."""

    def run(self):
        super().run()
        # An editable wheel takes what lies where "install" would put it, and nothing from build_lib.
        folder = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        self.mkpath(folder)
        self.copy_file(_STARTUP, str(Path(folder) / _STARTUP))

    def get_outputs(self, include_bytecode=1):
        if self.editable_mode:
            return super().get_outputs(include_bytecode)
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib) / _STARTUP)]


setup(cmdclass={"build_py": BuildWithStartup})
