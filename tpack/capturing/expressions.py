"""Values → expressions of LayerDef."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import sympy
import torch

from tpack.capturing.graph import Arg, Size, Value
from tpack.errors import LayerDefError
from tpack.layerdef import BinaryOp, Expression, FunctionCall, Literal, Tuple, UnaryOp
from tpack.layerdef.ops import BINARY, OPS, REQUIRED, OpParam, takes_device

#: Gives the expression that stands for a value, and for a free size.
Named = Callable[[Value], Expression]
Sized = Callable[[Size], Expression]

_UNARY = {"neg": "-", "~": "~"}


def expression(value: Value, named: Named, sized: Sized, device: Expression | None) -> Expression:
    """Return the expression that computes a value from expressions for its operands.

    Raises:
        LayerDefError: LayerDef does not have its op, or the op does not take an argument.
    """
    if value.op in _UNARY:
        return UnaryOp(_UNARY[value.op], named(value.args["x"]))
    if value.op == "matmul":
        return BinaryOp("@", named(value.args["x"]), named(value.args["y"]))
    if value.op in BINARY:
        left, right = (_operand(value.args[name], named, sized) for name in "xy")
        return BinaryOp(value.op, left, right)
    op = OPS.get(value.op)
    if op is None:
        raise LayerDefError(
            f"computes {value.op}, which LayerDef cannot express.", node=value.calls[-1].path
        )
    given = dict(value.args)
    given.pop("count", None)
    args: list[Expression] = []
    kwargs: dict[str, Expression] = {}
    if device is not None and takes_device(op.name):
        kwargs["device"] = device
    for param in op.params:
        arg = given.pop(param.name, None)
        if arg is None and param.default is not REQUIRED:
            continue
        made = _argument(param, arg, value, named, sized)
        if made == Literal(param.default):
            continue
        if param.default is REQUIRED and not param.keyword:
            args.append(made)
        else:
            kwargs[param.name] = made
    if given:
        raise LayerDefError(
            f"gives {value.op} {', '.join(given)}, which it does not take.",
            node=value.calls[-1].path,
        )
    return FunctionCall(value.op, args, kwargs)


def _operand(arg: Arg, named: Named, sized: Sized) -> Expression:
    if isinstance(arg, Value):
        return named(arg)
    return sized(arg) if isinstance(arg, sympy.Basic) else Literal(_number(arg))


def _number(arg: Any) -> Any:
    """Return a number as it is, infinity as a word."""
    if isinstance(arg, float) and math.isinf(arg):
        return "inf" if arg > 0 else "-inf"
    return arg


def _argument(param: OpParam, arg: Arg, value: Value, named: Named, sized: Sized) -> Expression:
    if param.kind == "dtype":
        return Literal(str(arg).removeprefix("torch."))
    if isinstance(arg, Value):
        return named(arg)
    if isinstance(arg, torch.dtype):
        return Literal(str(arg).removeprefix("torch."))
    if param.kind == "value" and isinstance(arg, sympy.Basic):
        return sized(arg)
    if param.kind in ("ints", "sizes", "window") and isinstance(arg, tuple):
        if param.kind == "window" and len(set(arg)) == 1:
            return sized(arg[0])
        return Tuple([sized(item) for item in arg])
    if param.kind == "floats" and isinstance(arg, tuple):
        if len(set(arg)) == 1:
            return Literal(arg[0])
        return Tuple([Literal(item) for item in arg])
    if param.kind == "equation":
        return Literal(str(arg).replace(" ", ""))
    if param.kind == "tensors":
        if None in arg:
            raise LayerDefError(
                "indexes some dims and skips others before them, which LayerDef cannot express.",
                node=value.calls[-1].path,
            )
        return Tuple([named(item) for item in arg])
    if param.kind == "int" and arg is not None:
        return sized(arg)
    if param.kind == "float" and isinstance(arg, int) and not isinstance(arg, bool):
        arg = arg if param.name in ("min", "max") else float(arg)
    return Literal(_number(arg))


#: Functions of sizes in torch → the operator that computes them; both operands are positive.
_OF_SIZES = {"FloorDiv": "//", "CleanDiv": "//", "Mod": "%", "PythonMod": "%"}


def _extreme(size: Size, kind: str) -> Size | None:
    """Return the operand of a maximum or minimum that it always is; None if that depends."""
    sign = 1 if kind == "Max" else -1
    for one in size.args:
        if all((sign * (one - other)).is_nonnegative for other in size.args):
            return one
    return None


def size_expression(size: Size, known: Mapping[Size, Expression], path: str) -> Expression:
    """Return the expression that computes a size from known sizes.

    Args:
        path: of the module that needs it.

    Raises:
        LayerDefError: no op computes it from the known sizes.
    """
    part = partial(size_expression, known=known, path=path)
    if isinstance(size, int):
        return Literal(size)
    if size in known:
        return known[size]
    if isinstance(size, sympy.Integer):
        return Literal(int(size))
    if isinstance(size, sympy.Add | sympy.Mul):
        sign = "+" if isinstance(size, sympy.Add) else "*"
        terms = sorted(size.args, key=lambda term: (bool(term.is_number), str(term)))
        if isinstance(size, sympy.Mul) and size.args[0] == -1:
            return UnaryOp("-", part(-size))
        made = part(terms[0])
        for term in terms[1:]:
            if sign == "+" and term.could_extract_minus_sign():
                made = BinaryOp("-", made, part(-term))
            else:
                made = BinaryOp(sign, made, part(term))
        return made
    if isinstance(size, sympy.Pow) and isinstance(size.exp, sympy.Integer) and size.exp > 0:
        return part(sympy.Mul(*[size.base] * int(size.exp), evaluate=False))
    kind = type(size).__name__
    if kind in _OF_SIZES:
        left, right = size.args
        return BinaryOp(_OF_SIZES[kind], part(left), part(right))
    if kind in ("Max", "Min") and (only := _extreme(size, kind)) is not None:
        return part(only)
    raise LayerDefError(
        f"needs size {size}, which LayerDef cannot compute from the sizes of tensors.", node=path
    )
