"""The natural affine map: what an empty body means.

A matrix ``(in, out)`` gives ``x @ W``; a vector after it is added; several matrices are
applied in order. The widths must chain.
"""

from __future__ import annotations

from tpack.errors import LayerDefError
from tpack.layerdef.nodes import (
    Assignment,
    BinaryOp,
    Expression,
    FunctionCall,
    Identifier,
    LayerDef,
    Param,
    Return,
    Statement,
)


def input_names(layer: LayerDef) -> tuple[str, ...]:
    """Return the arguments of forward; ``x`` if the layer declares none."""
    return tuple(param.name for param in layer.params if param.is_input) or ("x",)


def affine_body(layer: LayerDef) -> tuple[Statement, ...]:
    """Return the statements that an empty body stands for.

    Example:
        >>> affine_body(LayerDef("L", [Param("w", "TernaryTensor", [4, 2])]))[-1].value.args
        (Identifier(name='x'), Identifier(name='w'))

    Raises:
        LayerDefError: the shapes do not chain, or there is nothing to chain.
    """
    names = input_names(layer)
    stored = [param for param in layer.params if not param.is_input]
    if len(names) != 1:
        raise LayerDefError(
            f"an empty body takes one input, found {', '.join(names)}. Give the layer a body.",
            node=layer.name,
        )
    if names[0] in {param.name for param in stored}:
        raise LayerDefError(
            f"the input would be called {names[0]!r} like a parameter. Declare an input.",
            node=layer.name,
        )
    x = names[0]
    values: list[Expression] = []
    last: Param | None = None
    for param in stored:
        values.append(_apply(layer, param, last, Identifier(x)))
        last = param if len(param.shape or ()) == 2 else last
    if not values:
        raise LayerDefError(
            "an empty body needs a matrix (in, out). Give the layer a body.", node=layer.name
        )
    return (*(Assignment(x, value) for value in values[:-1]), Return(values[-1]))


def _apply(layer: LayerDef, param: Param, last: Param | None, x: Identifier) -> Expression:
    """Return ``x @ param`` for a matrix, ``x + param`` for a vector."""
    path = f"{layer.name}.{param.name}"
    shape = param.shape or ()
    if param.param_type in ("Layer", "Buffer") or len(shape) not in (1, 2):
        what = param.param_type if param.param_type in ("Layer", "Buffer") else f"shape {shape}"
        raise LayerDefError(
            f"{what} does not fit an empty body, expected matrices (in, out) and vectors (out,). "
            "Give the layer a body.",
            node=path,
        )
    width = last.shape[1] if last is not None and last.shape else None
    if last is None and len(shape) == 1:
        raise LayerDefError(
            f"vector of shape {shape} comes before any matrix. Give the layer a body.", node=path
        )
    if width is not None and shape[0] != width:
        raise LayerDefError(
            f"shape {shape} does not chain with {last.name if last else ''} of shape "
            f"{last.shape if last else ()}, expected {width} "
            f"{'rows' if len(shape) == 2 else 'values'}.",
            node=path,
        )
    if len(shape) == 2:
        return FunctionCall("matmul", (x, Identifier(param.name)))
    return BinaryOp("+", x, Identifier(param.name))
