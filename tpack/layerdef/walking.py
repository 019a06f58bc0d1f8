"""Walk the expressions of a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count

from tpack.layerdef.nodes import (
    BinaryOp,
    Dict,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    Tuple,
    UnaryOp,
)


def parts(node: Expression) -> tuple[Expression, ...]:
    """Return the direct parts of an expression, first to last.

    Example:
        >>> parts(BinaryOp("+", Identifier("x"), Identifier("y")))
        (Identifier(name='x'), Identifier(name='y'))
    """
    match node:
        case UnaryOp(_, operand):
            return (operand,)
        case BinaryOp(_, left, right):
            return (left, right)
        case FunctionCall(_, args, kwargs):
            return (*args, *(value for _, value in kwargs))
        case LayerCall(_, args) | Tuple(args):
            return args
        case Dict(pairs):
            return tuple(value for _, value in pairs)
        case _:
            return ()


def with_parts(node: Expression, change: Callable[[Expression], Expression]) -> Expression:
    """Change each direct part of an expression, first to last."""
    match node:
        case UnaryOp(operator, operand):
            return UnaryOp(operator, change(operand))
        case BinaryOp(operator, left, right):
            return BinaryOp(operator, change(left), change(right))
        case FunctionCall(function, args, kwargs):
            return FunctionCall(
                function,
                [change(part) for part in args],
                [(name, change(part)) for name, part in kwargs],
            )
        case LayerCall(layer, args):
            return LayerCall(layer, [change(part) for part in args])
        case Tuple(items):
            return Tuple([change(item) for item in items])
        case Dict(pairs):
            return Dict([(name, change(item)) for name, item in pairs])
        case _:
            return node


def with_part(node: Expression, path: Sequence[int], new: Expression) -> Expression:
    """Put a new expression in the place of a part.

    Args:
        path: number of the part among ``parts(node)``, of its part among the parts of that, …

    Example:
        >>> with_part(BinaryOp("+", Identifier("x"), Identifier("y")), [1], Identifier("z"))
        BinaryOp(operator='+', left=Identifier(name='x'), right=Identifier(name='z'))
    """
    if not path:
        return new
    numbers = count()
    return with_parts(
        node, lambda part: with_part(part, path[1:], new) if next(numbers) == path[0] else part
    )


def results(value: Expression, name: str = "") -> Iterator[tuple[str, Expression]]:
    """Yield the values that a Return gives, in order, each with its key if it is in a Dict.

    Example:
        >>> list(results(Dict({"logits": Identifier("x")})))
        [('logits', Identifier(name='x'))]
    """
    match value:
        case Tuple(items):
            for item in items:
                yield from results(item, name)
        case Dict(pairs):
            for key, item in pairs:
                yield from results(item, key)
        case _:
            yield name, value


def identifiers(node: Expression) -> Iterator[str]:
    """Yield every name in an expression, as often as it occurs."""
    if isinstance(node, Identifier):
        yield node.name
    for part in parts(node):
        yield from identifiers(part)


def renamed(node: Expression, names: Mapping[str, str]) -> Expression:
    """Replace names in an expression."""
    if isinstance(node, Identifier):
        return Identifier(names.get(node.name, node.name))
    return with_parts(node, lambda part: renamed(part, names))
