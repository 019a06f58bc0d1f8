"""The closed table of ONNX ops: how torch computes each, in ops that LayerDef has.

A row is the op's name, with its domain if it is not ONNX's own, and a function of ``Arguments``.
One row adds an op. What a row cannot express it refuses by ``args.outside``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tpack.capturing.onnx_graphs.arguments import Arguments, Stored, dtype_of
from tpack.capturing.onnx_graphs.layers import LAYERS
from tpack.capturing.onnx_graphs.shapes import SHAPES

Row = Callable[[Arguments], Any]


def _one(compute: Callable[[Tensor], Tensor]) -> Row:
    return lambda args: compute(args.tensor())


def _two(compute: Callable[[Any, Any], Any]) -> Row:
    def row(args: Arguments) -> Any:
        return compute(args.operand(0, 1), args.operand(1, 0))

    return row


def _tensors(compute: Callable[[Tensor, Tensor], Tensor]) -> Row:
    """Return a row of several inputs that are combined from the left."""

    def row(args: Arguments) -> Tensor:
        first, *others = args.tensors()
        for other in others:
            first = compute(first, other)
        return first

    return row


def _divide(args: Arguments) -> Any:
    x, y = args.operand(0, 1), args.operand(1, 0)
    kinds = [one.dtype.is_floating_point for one in (x, y) if isinstance(one, Tensor)]
    if not any(kinds):
        raise args.outside("of integers rounds towards zero")
    return x / y


def _modulo(args: Arguments) -> Any:
    if args.attribute("fmod", 0):
        raise args.outside("has the sign of the dividend (fmod)")
    return args.operand(0, 1) % args.operand(1, 0)


def _add(args: Arguments) -> Any:
    x, y = args.operand(0, 1), args.operand(1, 0)
    return y + x if isinstance(args.values[0], Stored) else x + y  # a bias is added to the rest


def _power(args: Arguments) -> Any:
    x, y = args.operand(0, 1), args.operand(1, 0)
    found = x ** (int(y) if isinstance(y, float) and y.is_integer() else y)
    kept = args.tensor().dtype if isinstance(x, Tensor) else found.dtype
    return found if found.dtype == kept else found.to(kept)


def _multiply(args: Arguments) -> Any:
    x, y = args.operand(0, 1), args.operand(1, 0)
    return x * y


def _clip(args: Arguments) -> Tensor:
    x = args.tensor()
    low, high = (args.number(place, name, None) for place, name in ((1, "min"), (2, "max")))
    low = None if low is not None and low <= torch.finfo(torch.float32).min else low
    high = None if high is not None and high >= torch.finfo(torch.float32).max else high
    if low == 0 and high is None:
        return F.relu(x)
    if (low, high) == (0, 6):
        return F.relu6(x)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _prelu(args: Arguments) -> Tensor:
    x, slope = args.tensor(), args.tensor(1)
    if slope.dim() > 1 and slope.shape[0] == 1 and slope.dim() == x.dim():
        slope = slope.squeeze(0)
    if any(size != 1 for size in slope.shape[1:]) or slope.dim() not in (0, 1, x.dim() - 1):
        raise args.outside(f"has slopes of shape {tuple(slope.shape)}")
    if slope.dim() == 1 and x.dim() > 2 and slope.shape[0] != 1:
        raise args.outside(f"has slopes of shape {tuple(slope.shape)}")
    return F.prelu(x, slope.reshape(-1) if slope.dim() != 1 else slope)


def _hard_sigmoid(args: Arguments) -> Tensor:
    x, alpha, beta = args.tensor(), args.attribute("alpha", 0.2), args.attribute("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _softmax(compute: Callable[..., Tensor]) -> Row:
    def row(args: Arguments) -> Tensor:
        x, old = args.tensor(), args.opset < 13
        axis = args.attribute("axis", 1 if old else -1)
        if not old or axis in (-1, x.dim() - 1):
            return compute(x, dim=axis)
        axis %= x.dim()  # all dims from there on are one
        return compute(x.flatten(axis), dim=-1).reshape(x.shape)

    return row


def _cast(args: Arguments) -> Tensor:
    x, dtype = args.tensor(), dtype_of(args.attribute("to", 1))
    return x if x.dtype == dtype else x.to(dtype)


def _cast_like(args: Arguments) -> Tensor:
    x, dtype = args.tensor(), args.tensor(1).dtype
    return x if x.dtype == dtype else x.to(dtype)


def _dropout(args: Arguments) -> Tensor:
    if args.has(2) and args.number(2, "", False):  # training_mode
        raise args.outside("drops values as in training")
    return args.tensor()


def _celu(args: Arguments) -> Tensor:
    x, alpha = args.tensor(), float(args.attribute("alpha", 1.0))
    return F.elu(x) if alpha == 1 else F.elu(x / alpha) * alpha


def _selu(args: Arguments) -> Tensor:
    alpha, gamma = args.attribute("alpha", 1.6732632), args.attribute("gamma", 1.050701)
    return F.elu(args.tensor(), alpha) * float(gamma)


def _swish(args: Arguments) -> Tensor:
    x, alpha = args.tensor(), args.attribute("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


def _truth(compute: Callable[[Any, Any], Any]) -> Row:
    return lambda args: compute(args.tensor(0), args.tensor(1))


def _mean(args: Arguments) -> Tensor:
    count = len(args.tensors())
    total: Tensor = ROWS["Sum"](args)
    return total if count == 1 else total / count


def _where(args: Arguments) -> Tensor:
    condition, x, y = args.tensor(0), args.operand(1, 0), args.operand(2, 0)
    known = args.values[1]
    if not isinstance(x, Tensor) and not isinstance(y, Tensor) and isinstance(known, np.ndarray):
        made = torch.where(condition, x, y)
        return made if known.dtype == object else made.to(getattr(torch, str(known.dtype)))
    return torch.where(condition, x, y)


def _is_nan(args: Arguments) -> Tensor:
    x = args.tensor()
    return x != x  # noqa: PLR0124


ROWS: dict[str, Row] = {
    # -- activations
    "Relu": _one(F.relu),
    "Sigmoid": _one(torch.sigmoid),
    "Tanh": _one(torch.tanh),
    "Gelu": lambda args: F.gelu(args.tensor(), approximate=args.attribute("approximate", "none")),
    "LeakyRelu": lambda args: F.leaky_relu(args.tensor(), args.attribute("alpha", 0.01)),
    "Elu": lambda args: F.elu(args.tensor(), args.attribute("alpha", 1.0)),
    "Selu": _selu,
    "Celu": _celu,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _one(F.hardswish),
    "Mish": _one(F.mish),
    "Swish": _swish,
    "Softplus": _one(F.softplus),
    "Softsign": _one(lambda x: x / (1 + x.abs())),
    "Softmax": _softmax(F.softmax),
    "LogSoftmax": _softmax(F.log_softmax),
    "Clip": _clip,
    "Dropout": _dropout,
    # -- elementwise
    "Identity": _one(lambda x: x),
    "Add": _add,
    "Sub": _two(lambda x, y: x - y),
    "Mul": _multiply,
    "Div": _divide,
    "Mod": _modulo,
    "Pow": _power,
    "Sum": _tensors(torch.add),
    "Mean": _mean,
    "Max": _tensors(torch.maximum),
    "Min": _tensors(torch.minimum),
    "Neg": _one(torch.neg),
    "Abs": _one(torch.abs),
    "Sqrt": _one(torch.sqrt),
    "Reciprocal": _one(torch.reciprocal),
    "Exp": _one(torch.exp),
    "Log": _one(torch.log),
    "Sin": _one(torch.sin),
    "Cos": _one(torch.cos),
    "Erf": _one(torch.erf),
    "Floor": _one(torch.floor),
    "Ceil": _one(torch.ceil),
    "Round": _one(torch.round),
    "Sign": _one(torch.sign),
    # -- truths
    "Not": _one(torch.logical_not),
    "And": _truth(torch.logical_and),
    "Or": _truth(torch.logical_or),
    "Xor": _truth(torch.ne),
    "Equal": _two(lambda x, y: x == y),
    "Less": _two(lambda x, y: x < y),
    "LessOrEqual": _two(lambda x, y: x <= y),
    "Greater": _two(lambda x, y: x > y),
    "GreaterOrEqual": _two(lambda x, y: x >= y),
    "IsNaN": _is_nan,
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast_like,
    **LAYERS,
    **SHAPES,
}
