"""The rows of the table of ops, by topic; ``ops`` says how they are written."""

from __future__ import annotations

from tpack.layerdef.op_rows import caching, elementwise, reductions, shapes, weights

#: All rows, in the order of the manual.
ROWS = (*weights.ROWS, *caching.ROWS, *elementwise.ROWS, *shapes.ROWS, *reductions.ROWS)
