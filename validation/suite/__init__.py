"""Any number of entries, each held against mmtbx: select, run, report, audit."""
