"""The closed table of constants: tensors that a layer computes when it is made.

No file holds them. A row computes one from the numbers that a Param of type Constant gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tpack.choices import FormatRow
from tpack.layerdef.ops import OpParam, parse_params

#: Numbers that a constant may list.
MAX_VALUES = 4096


@dataclass(frozen=True)
class Constant(FormatRow):
    """One row.

    Attributes:
        name: as in the ``formula`` of a Param.
        params: its arguments.
        spelling: a function of ``tpack.nn``, or empty for numbers that are listed.
        doc: what it computes.
    """

    name: str
    params: tuple[OpParam, ...]
    spelling: str
    doc: str


_ROWS = (
    ("values", "values:numbers", "", "the numbers listed, row by row"),
    (
        "rotary_frequencies",
        "dim:int base:float",
        "rotary_frequencies",
        "1 / base ** (2i / dim) for i < dim / 2: the angles of a rotary embedding",
    ),
)

CONSTANTS = {n: Constant(n, parse_params(params), spell, doc) for n, params, spell, doc in _ROWS}


def constant_shape(
    formula: str, args: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the shape of a constant, given the one that its Param declares."""
    return (args["dim"] // 2,) if formula == "rotary_frequencies" else shape
