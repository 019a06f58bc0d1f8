"""The rows of closed tables that a program uses: they decide which readers understand it."""

from __future__ import annotations

from collections.abc import Iterator

from tpack.choices import FormatRow
from tpack.codec import LAYOUTS, Scale
from tpack.layerdef.builtin import BUILTIN, stored_by
from tpack.layerdef.constants import CONSTANTS
from tpack.layerdef.nodes import Expression, FunctionCall, Param, Program, Unspecified
from tpack.layerdef.ops import OPS
from tpack.layerdef.walking import parts


def rows_of(program: Program) -> Iterator[FormatRow]:
    """Yield the ops, built-in layers, formulas, layouts and granularities of a valid program."""
    layers = program.by_name
    for layer in program.layers:
        for param in layer.params:
            if param.layer is None or param.layer not in layers:
                yield from _rows_of_param(param)
        for statement in layer.body:
            if not isinstance(statement, Unspecified):
                yield from _rows_of_expression(statement.value)


def _rows_of_param(param: Param) -> Iterator[FormatRow]:
    if param.layer is not None:
        yield BUILTIN[param.layer]
        for stored in stored_by(param):
            yield from _rows_of_param(stored)
    elif param.formula is not None:
        yield CONSTANTS[param.formula]
    elif param.param_type == "TernaryTensor":
        yield from rows_of_weight(param.layout, param.scale)


def rows_of_weight(layout: str, scale: str) -> Iterator[FormatRow]:
    """Yield the layout and the granularity of a packed weight."""
    yield LAYOUTS[layout]
    yield Scale.parse(scale).granularity


def _rows_of_expression(node: Expression) -> Iterator[FormatRow]:
    if isinstance(node, FunctionCall):
        yield OPS[node.function]
    for part in parts(node):
        yield from _rows_of_expression(part)
