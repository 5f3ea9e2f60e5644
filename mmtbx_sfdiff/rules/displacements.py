"""Whether B factors are what a TLS refinement left over, by the words of a header: one rule for every door."""

from __future__ import annotations

import re

_WHOLE = re.compile(r"SUM OF TLS AND RESIDUAL|WITH TLS ADDED", re.IGNORECASE)
# REFMAC's sentence, its "U VALUES : RESIDUAL ONLY", and what people write.
_RESIDUAL = re.compile(
    r"RESIDUAL [BU][- ]?(FACTORS?|VALUES?)? ONLY|(VALUES?|FACTORS?|ADPS?) ?(:|ARE) ?(THE )?RESIDUALS?\b", re.IGNORECASE
)


def b_is_residual(header: str) -> bool:
    """Whether a header says so, and does not say that the TLS part was added.

    Parameters
    ----------
    header : str
        REMARK 3 of a PDB file, or ``_refine.details``; lines may be broken anywhere.

    Examples
    --------
    >>> b_is_residual("REMARK   3  ATOM RECORD CONTAINS RESIDUAL B\\nREMARK   3  FACTORS ONLY")
    True
    >>> b_is_residual("U VALUES      : RESIDUAL ONLY"), b_is_residual("U VALUES      : WITH TLS ADDED")
    (True, False)
    """
    words = " ".join(re.sub(r"^REMARK +\d+", " ", header, flags=re.MULTILINE).split())
    return bool(_RESIDUAL.search(words)) and not _WHOLE.search(words)
