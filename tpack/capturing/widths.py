"""The width of an expression in source, which decides what stands inside a statement."""

from __future__ import annotations

from collections.abc import Mapping

from tpack.layerdef import (
    BinaryOp,
    Dict,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    Literal,
    Tuple,
    UnaryOp,
)
from tpack.layerdef.ops import OPS
from tpack.layerdef.walking import parts

#: Columns that an expression may have in all if it breaks over lines.
_WIDE = 150


def width(node: Expression, names: Mapping[str, str]) -> int:
    """Return about how many columns an expression takes."""
    match node:
        case Identifier(name):
            return len(names.get(name, "hidden")) if name.startswith("%") else len(name) + 5
        case Literal(value):
            return len(str(value))
        case UnaryOp(_, operand):
            return 1 + width(operand, names)
        case BinaryOp(operator, left, right):
            return width(left, names) + len(operator) + 2 + width(right, names)
        case FunctionCall(function, args, kwargs):
            named = sum(len(name) + 1 + width(value, names) for name, value in kwargs)
            named += 7 * any(name == "device" for name, _ in kwargs)
            inner = named + sum(width(arg, names) for arg in args)
            commas = 2 * (len(args) + len(kwargs))
            spelling = OPS[function].spelling or function
            return len(spelling) + inner + commas - 2 * spelling.startswith(".")
        case LayerCall(layer, args):
            return len(layer) + 5 + sum(width(arg, names) + 2 for arg in args)
        case Tuple(items):
            return sum(width(item, names) + 2 for item in items)
        case Dict(pairs):
            return sum(len(name) + width(item, names) + 6 for name, item in pairs)


def _breaks(node: Expression) -> bool:
    """Return whether an expression may go over several lines."""
    if isinstance(node, FunctionCall):
        spelling = OPS[node.function].spelling
        return not spelling.startswith((".", "["))
    return isinstance(node, LayerCall | Tuple | Dict)


def fits(node: Expression, columns: int, names: Mapping[str, str]) -> bool:
    """Return whether an expression fits, with arguments on lines of their own if needed."""
    if width(node, names) <= columns:
        return True
    if not _breaks(node) or width(node, names) > _WIDE:
        return False
    return all(fits(part, columns - 4, names) for part in parts(node))
