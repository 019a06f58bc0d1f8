"""What rows of several topics share: the type of a row, and parameters under one spelling."""

from __future__ import annotations

from tpack.layerdef.nodes import Expression

#: Name, parameters, spelling, what it computes, and perhaps traits and a version of the format.
Row = (
    tuple[str, str, str | Expression, str]
    | tuple[str, str, str | Expression, str, str]
    | tuple[str, str, str | Expression, str, str, int]
)
Rows = tuple[Row, ...]

#: How a window moves over the dims of a picture or a signal.
WINDOWS = "*stride:window=1 *padding:window=0 *dilation:window=1 *groups:int=1"
