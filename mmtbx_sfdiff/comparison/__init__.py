"""One entry, measured side by side: this package and mmtbx.

:mod:`.measure` computes the numbers (on :mod:`.bench`, with :mod:`.scaled`), :mod:`.schema` says what they look like, and :mod:`.table`,
:mod:`.figure` and :mod:`.page` show them.  :mod:`.output` writes files, all or none.
"""

from .measure import measure
from .settings import Comparison, Settings

__all__ = ["Comparison", "Settings", "measure"]
