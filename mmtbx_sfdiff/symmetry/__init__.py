"""Unit cells and space groups without cctbx, in its order and to the same bits.

:mod:`.unit_cell`
    orthogonalization, metric
:mod:`.operators`
    the operators of a Hall symbol
:mod:`.settings`
    which group and setting a symbol means, and the change of basis to the reference setting
:mod:`.miller_sets`
    all Miller indices of the asymmetric unit of reciprocal space
:mod:`.gridding`
    grids that carry the symmetry
:mod:`.sites`
    special positions

Each is tested against ``cctbx.sgtbx`` and ``cctbx.uctbx`` for every tabulated setting.
"""
