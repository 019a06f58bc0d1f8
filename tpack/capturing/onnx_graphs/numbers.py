"""Numbers that a graph computes of constants and sizes, such as the shape of a Reshape."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tpack.capturing.onnx_graphs.arguments import Arguments, Array
from tpack.errors import LayerDefError
from tpack.sources.onnx_files.nodes import Node

#: Known numbers of more elements than this are computed by the program itself.
MOST = 4096

#: Ops that onnx's evaluator computes of known numbers.
FOLDED = frozenset(
    """
    Abs Add And Cast CastLike Ceil Clip Concat Constant Cos Div Equal Erf Exp Flatten Floor Gather
    GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual Log Max Min Mod Mul
    Neg Not Or Pow Reciprocal ReduceMax ReduceMin ReduceProd ReduceSum Reshape Round Shape Sign Sin
    Size Slice Split Sqrt Squeeze Sub Sum Transpose Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905  # words read better than quoted strings
)
_GROWING = frozenset({"ConstantOfShape", "Expand", "Range", "Tile"})


def known_results(args: Arguments) -> tuple[Array, ...] | None:
    """Compute a node whose inputs are all known numbers; None if torch is to do it.

    Raises:
        LayerDefError: it cannot be computed.
    """
    values = [value for value in args.values if value is not None]
    if not all(isinstance(value, np.ndarray) for value in values):
        return None
    if any(value.dtype == object for value in values if isinstance(value, np.ndarray)):
        compute = _SIZES.get(args.node.op)
        found = None if compute is None else compute(args)
        return None if found is None else (_tidy(found),)
    if args.node.op not in FOLDED and not (args.node.op in _GROWING and _small(args)):
        return None
    return _folded(args)


def _value(args: Arguments, place: int) -> Any:
    return args.values[place]


def _tidy(found: Any) -> Array:
    """Return sizes as an array: of integers, where the input decides none of them."""
    array = np.asarray(found, dtype=object)
    items = array.reshape(-1).tolist()
    for kind, dtype in ((bool, np.bool_), (int, np.int64), (float, np.float32)):
        if all(type(item) is kind for item in items):
            return array.astype(dtype)
    return array


def _small(args: Arguments) -> bool:
    """Return whether what a node makes has few elements."""
    if args.node.op == "Range":
        start, limit, delta = (args.numbers(place) or [0] for place in range(3))
        return bool(delta[0]) and abs((limit[0] - start[0]) / delta[0]) <= MOST
    place = 0 if args.node.op == "ConstantOfShape" else 1
    sizes = args.numbers(place) or []
    held = 1 if place == 0 else _value(args, 0).size
    return held * math.prod(max(int(size), 1) for size in sizes) <= MOST


def _folded(args: Arguments) -> tuple[Array, ...]:
    node: Node = args.node
    names = [f"i{n}" if value is not None else "" for n, value in enumerate(args.values)]
    outputs = [f"o{n}" if name else "" for n, name in enumerate(node.outputs)]
    alone = helper.make_node(node.op, names, outputs, domain=node.proto.domain)
    alone.attribute.extend(node.proto.attribute)
    infos = [
        helper.make_value_info(name, helper.make_tensor_type_proto(1, None)) for name in outputs
    ]
    made = helper.make_model(
        helper.make_graph([alone], "g", [], [info for info in infos if info.name]),
        opset_imports=[helper.make_opsetid("", args.opset)],
    )
    given = {name: value for name, value in zip(names, args.values, strict=True) if name}
    try:
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(made).run(None, given)
    except Exception as error:  # numpy raises what it likes
        raise LayerDefError(
            f"{node.op} of constants cannot be computed: {error!s:.100}."
        ) from error
    results = iter(found)
    return tuple(np.asarray(next(results)) if name else np.zeros(0) for name in outputs)


# ---- sizes


def _pairs(compute: Callable[[Any, Any], Any]) -> Callable[[Arguments], Any]:
    def row(args: Arguments) -> Any:
        first, *others = args.values
        for other in others:
            first = np.frompyfunc(compute, 2, 1)(first, other)
        return first

    return row


def _divide(x: Any, y: Any) -> Any:
    whole = isinstance(x, int | torch.SymInt | np.integer)
    return x // y if whole and isinstance(y, int | torch.SymInt | np.integer) else x / y


def _cast(args: Arguments) -> Any:
    if args.attribute("to", 0) in (1, 10, 11, 16):
        return np.frompyfunc(torch.sym_float, 1, 1)(_value(args, 0))
    if args.attribute("to", 0) in (6, 7):
        whole = np.frompyfunc(lambda x: x if isinstance(x, bool) else torch.sym_int(x), 1, 1)
        return whole(_value(args, 0))
    return _value(args, 0)


def _at(place: int) -> Any:
    def found(args: Arguments) -> Any:
        return args.values[place]

    return found


def _take(args: Arguments) -> Any:
    index = _value(args, 1)
    if index.dtype == object:
        return None
    return np.take(_value(args, 0), index, axis=args.attribute("axis", 0))


def _slice(args: Arguments) -> Any:
    value: Any = _value(args, 0)
    starts, ends = args.numbers(1, "starts") or [], args.numbers(2, "ends") or []
    axes = args.numbers(3, "axes") or list(range(len(starts)))
    steps = args.numbers(4, "") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not all(isinstance(one, int) for one in (start, end)):
            return None
        span = slice(start, end if abs(end) < 1 << 30 else None, step)
        value = value[(slice(None),) * (axis % value.ndim) + (span,)]
    return value


def _unsqueeze(args: Arguments) -> Any:
    return np.expand_dims(_value(args, 0), tuple(args.numbers(1, "axes") or ()))


def _squeeze(args: Arguments) -> Any:
    axes = args.numbers(1, "axes")
    return np.squeeze(_value(args, 0), None if axes is None else tuple(axes))


def _reshape(args: Arguments) -> Any:
    return _value(args, 0).reshape(args.numbers(1, "shape"))


def _product(args: Arguments) -> Any:
    value: Any = _value(args, 0)
    if args.numbers(1, "axes") not in (None, [0]) or value.ndim != 1:
        return None
    found = math.prod(value.tolist())
    return [found] if args.attribute("keepdims", 1) else found


def _concat(args: Arguments) -> Any:
    return np.concatenate(
        [_value(args, i) for i in range(len(args.values))], axis=args.attribute("axis", 0)
    )


def _where(args: Arguments) -> Any:
    return np.where(_value(args, 0).astype(bool), _value(args, 1), _value(args, 2))


#: The same ops of arrays with sizes in them.
_SIZES: dict[str, Callable[[Arguments], Any]] = {
    "Identity": _at(0),
    "Cast": _cast,
    "Shape": lambda args: _value(args, 0).shape,
    "Add": _pairs(operator.add),
    "Sub": _pairs(operator.sub),
    "Mul": _pairs(operator.mul),
    "Div": _pairs(_divide),
    "Mod": _pairs(operator.mod),
    "Min": _pairs(torch.sym_min),
    "Max": _pairs(torch.sym_max),
    "Equal": _pairs(lambda x, y: bool(x == y)),
    "Less": _pairs(lambda x, y: bool(x < y)),
    "Greater": _pairs(lambda x, y: bool(x > y)),
    "Neg": lambda args: -_value(args, 0),
    "Floor": lambda args: np.frompyfunc(math.floor, 1, 1)(_value(args, 0)),
    "Ceil": lambda args: np.frompyfunc(math.ceil, 1, 1)(_value(args, 0)),
    "Gather": _take,
    "Concat": _concat,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "ReduceProd": _product,
    "Where": _where,
}
