"""The programs: one ``libtbx.program_template.ProgramTemplate`` each, started by :mod:`..command_line`."""
