"""The rows of the table of ATen, by topic; ``aten`` says how they are written."""

from __future__ import annotations

from tpack.capturing.aten_rows import elementwise, reductions, shapes, weights

#: All rows, in the order of the manual.
ROWS = (*weights.ROWS, *elementwise.ROWS, *shapes.ROWS, *reductions.ROWS)
