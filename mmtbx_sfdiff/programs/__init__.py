"""The programs: one ``libtbx.program_template.ProgramTemplate`` each, started by ``mmtbx_sfdiff.command_line``."""
