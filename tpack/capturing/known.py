"""Layers for which torch or tpack has a class, and constants that a formula gives."""

from __future__ import annotations

import math
from typing import Any

import torch

from tpack.capturing.scopes import Scope
from tpack.errors import LayerDefError
from tpack.layerdef import FunctionCall, Identifier, Literal, Param, Return, Tuple
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.constants import MAX_VALUES
from tpack.layerdef.ops import OPS
from tpack.layerdef.validation import bind
from tpack.nn.reference import rotary_frequencies


def builtin_layer(
    params: list[Param], body: Any, scope: Scope | None, *, embedding: bool = False
) -> tuple[str, dict[str, Any]] | None:
    """Find the built-in layer, with its arguments, that computes the same as a layer.

    Args:
        params: of the layer; with a child or a constant it is no built-in one.
        body: its forward.
        scope: a call of it; None if it is never called, so that only its params decide.
        embedding: whether a matrix that is never called is an embedding.
    """
    held = {param.name: param for param in params}
    if any(param.param_type in ("Layer", "Constant") for param in params):
        return None
    if scope is None:
        matrix = set(held) <= {"weight", "bias"} and len(held.get("weight", _NONE).shape or ()) == 2
        if not matrix or held["weight"].param_type == "Buffer":
            return None
        return _finished("Embedding" if embedding else "Linear", held, {})
    if len(body.statements) != 1 or not isinstance(body.statements[0], Return):
        return None
    call = body.statements[0].value
    if len(body.inputs) != 1 or not isinstance(call, FunctionCall):
        return None
    if call.function not in _NAMES:
        return None
    op = OPS[call.function]
    given = {param.name: value for param, value in bind(op, call, "")}
    first, *others = (param for param in op.params if param.is_tensor)
    if given.pop(first.name) != Identifier(body.inputs[0]):
        return None
    wanted = {param.torch_name: given.pop(param.name, Literal(None)) for param in others}
    if any(
        passed != (Identifier(name) if name in held else Literal(None))
        for name, passed in wanted.items()
    ):
        return None
    extra = held.keys() - wanted.keys()
    if extra - ({"num_batches_tracked"} if call.function == "batch_norm" else set()):
        return None
    name = _NAMES[call.function]
    if call.function == "batch_norm":
        if "num_batches_tracked" not in held:
            return None
        name = {4: "BatchNorm2d", 5: "BatchNorm3d"}.get(len(scope.inputs[0].shape), "BatchNorm1d")
    return _finished(name, held, {key: _constant(value) for key, value in given.items()})


_NONE = Param("", "Tensor")
_AFFINE = ("weight", "bias")
#: Op → the layer that holds the tensors of the op and computes it.
_NAMES = {
    "linear": "Linear",
    "bit_linear": "BitLinear",
    "embedding": "Embedding",
    "conv2d": "Conv2d",
    "layer_norm": "LayerNorm",
    "rms_norm": "RMSNorm",
    "batch_norm": "BatchNorm2d",
    "group_norm": "GroupNorm",
}


def _constant(value: Any) -> Any:
    if isinstance(value, Tuple):
        return tuple(_constant(item) for item in value.items)
    return value.value if isinstance(value, Literal) else value


def _finished(
    name: str, held: dict[str, Param], options: dict[str, Any]
) -> tuple[str, dict[str, Any]] | None:
    """Complete the arguments of a built-in layer; None if it does not fit after all."""
    weight, bias = held.get("weight"), held.get("bias")
    ternary = weight is not None and weight.param_type == "TernaryTensor"
    if ternary and name != "BitLinear":
        name = f"Ternary{name}"
    if name not in BUILTIN:
        return None
    args = dict(options)
    shape = () if weight is None else weight.shape or ()
    if name.endswith("Linear"):
        args |= {"out_features": shape[0], "in_features": shape[1], "bias": bias is not None}
    elif name.endswith("Embedding"):
        args |= {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    elif name.endswith("Conv2d"):
        kernel = shape[2] if shape[2] == shape[3] else shape[2:]
        groups = args.get("groups", 1)
        args |= {"out_channels": shape[0], "in_channels": shape[1] * groups}
        args |= {"kernel_size": kernel, "bias": bias is not None}
    elif name in ("LayerNorm", "RMSNorm"):
        size = args.pop("shape")
        if any(not isinstance(one, int) for one in size):
            return None
        args["normalized_shape"] = size[0] if len(size) == 1 else size
        args["elementwise_affine"] = weight is not None
        if name == "LayerNorm" and weight is not None:
            args["bias"] = bias is not None
    else:
        if (weight is None) != (bias is None):
            return None
        held_size = held.get("running_mean", weight)
        if held_size is None:
            return None
        channels = (held_size.shape or ())[0]
        args["affine"] = weight is not None
        if name == "GroupNorm":
            args |= {"num_groups": args.pop("groups"), "num_channels": channels}
        else:
            args["num_features"] = channels
    floats = {p.dtype for n, p in held.items() if n != "num_batches_tracked"}
    if ternary and weight is not None:
        dtype = weight.dtype if bias is None else bias.dtype
        if weight.dtype != dtype:
            args["scale_dtype"] = weight.dtype
        args |= {"scale": weight.scale, "layout": weight.layout}
        floats = {dtype}
    if len(floats) > 1 or any(p.param_type == "Buffer" for n, p in held.items() if n in _AFFINE):
        return None
    args["dtype"] = next(iter(floats), "float32")
    declared = {param.name: param.default for param in BUILTIN[name].params}
    if set(args) - set(declared):
        return None
    return name, {key: value for key, value in args.items() if value != declared[key]}


def constant_param(data: torch.Tensor, name: str) -> Param:
    """Describe a tensor that is in no state dict as a Constant.

    Raises:
        LayerDefError: it has too many elements, or values that are not finite.
    """
    dtype = str(data.dtype).removeprefix("torch.")
    shape = tuple(data.shape)
    if (base := _rotary_base(data)) is not None:
        args = {"dim": 2 * shape[0], "base": base}
        return Param(name, "Constant", shape, dtype=dtype, formula="rotary_frequencies", args=args)
    if data.numel() > MAX_VALUES:
        raise LayerDefError(
            f"holds {data.numel()} numbers that are not in the state dict, expected at most "
            f"{MAX_VALUES}. Register the buffer as persistent.",
            node=name,
        )
    numbers = data.double() if data.dtype.is_floating_point else data.long()
    values = tuple(numbers.reshape(-1).tolist())
    if not all(map(math.isfinite, values)):
        raise LayerDefError("holds infinity or NaN, expected finite numbers.", node=name)
    return Param(name, "Constant", shape, dtype=dtype, formula="values", args={"values": values})


def _rotary_base(data: torch.Tensor) -> float | None:
    """Find the base whose rotary frequencies these are, bit for bit."""
    if data.dim() != 1 or data.dtype != torch.float32 or data.numel() < 2 or data[1] <= 0:
        return None
    dim = 2 * data.numel()
    power = -dim / 2 * math.log(float(data[1]))
    if not 0 < power < 50:  # bases are a million or so
        return None
    exact = math.exp(power)
    for digits in (1, 2, 3, 4, 5, 6):
        base = float(f"{exact:.{digits}g}")
        if base > 1 and torch.equal(rotary_frequencies(dim, base), data):
            return base
    return None
