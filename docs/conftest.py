"""The examples in these pages run as tests; this puts the one import first that has to be first."""

import mmtbx_sfdiff  # noqa: F401
