"""Packed weights while a module is traced, and in the graph that is read from the trace.

Every op on packed bytes also takes the floats of a weight in training. So while a module is
traced, each packed weight is a float parameter in its logical shape, without values and almost
without memory. Its forward, also that of standalone source, then computes with plain ops, and the
graph has a stored tensor for the weight, as that of any other model has. ``with_whole_ops`` puts
the ops of packed layers together again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tpack.capturing.graph import STORED, Arg, Graph, Value, same_sizes
from tpack.capturing.rounding import divided_product
from tpack.sources.packed_modules import PackedWeight, packed_weights


@contextmanager
def as_floats(module: nn.Module) -> Iterator[Mapping[str, PackedWeight]]:
    """While tracing, let each packed weight of a module be a float parameter without values.

    Yields:
        The packed weights by name. Afterwards the module is as it was, to its tensors.

    Raises:
        InputError: a float master has NaN or infinity.
        UsageError: the module holds the part of one process.
    """
    weights = packed_weights(module)
    owners: dict[int, list[PackedWeight]] = {}
    for weight in dict.fromkeys(weights.values()):
        owners.setdefault(id(weight.owner), []).append(weight)
    before = []
    try:
        for some in owners.values():
            owner: Any = some[0].owner
            before.append((owner, owner.__class__, owner._parameters, owner._buffers))  # noqa: SLF001
            _let_be_floats(owner, some)
        yield weights
    finally:
        for owner, kind, parameters, buffers in before:
            owner.__class__ = kind
            owner.__dict__.update(_parameters=parameters, _buffers=buffers)


def _let_be_floats(owner: Any, weights: Collection[PackedWeight]) -> None:
    """Give a module a float parameter for each packed weight, and a class that reads it."""
    base = getattr(owner, "_tpack_class", type(owner))  # an unfrozen module has a class of its own
    members: dict[str, Any] = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    names = {f"{one.attribute}_scale": one.attribute for one in weights}
    hidden = {f"{one.attribute}_packed" for one in weights}
    parameters = {names.get(name, name): value for name, value in owner._parameters.items()}  # noqa: SLF001
    for one in weights:
        stands = nn.Parameter(one.placeholder(), requires_grad=False)
        parameters[one.attribute] = stands
        members[f"{one.attribute}_packed"] = property(_rows(one.attribute, one.split))
        members[f"{one.attribute}_scale"] = property(_one(one.attribute))
    owner.__class__ = type(base.__name__, (base,), members)
    buffers = {name: value for name, value in owner._buffers.items() if name not in hidden}  # noqa: SLF001
    owner.__dict__.update(_parameters=parameters, _buffers=buffers)


def _rows(name: str, split: int) -> Any:
    def rows(owner: nn.Module) -> Tensor:
        weight = owner._parameters[name]  # noqa: SLF001
        assert weight is not None
        return weight if weight.dim() == split + 1 else weight.flatten(split)

    return rows


def _one(name: str) -> Any:
    def one(owner: nn.Module) -> Tensor:
        weight = owner._parameters[name]  # noqa: SLF001
        assert weight is not None
        return torch.ones(1, dtype=weight.dtype, device=weight.device)

    return one


# ---- in the graph


def with_whole_ops(graph: Graph, packed: Collection[str]) -> None:
    """Put the ops of packed layers together: their casts, lookups and rounding of inputs.

    Args:
        graph: is changed.
        packed: names of the weights that are packed.
    """
    rules = {
        "index_select": _lookup,
        "reshape": _whole_lookup,
        "unflatten": _whole_lookup,
        "/": _bit_linear,
        "+": _with_bias,
        "to": _narrow_bit_linear,
    } | dict.fromkeys(_WEIGHTED, _without_casts)

    def change(value: Value) -> Value | None:
        rule = rules.get(value.op)
        return None if rule is None else rule(value, packed)

    graph.rewrite(change)


#: Ops that take a packed weight in the dtype of their input: op → its arguments for weight, bias.
_WEIGHTED = {
    "linear": ("weight", "bias"),
    "bit_linear": ("weight", "bias"),
    "conv1d": ("weight", "bias"),
    "conv2d": ("weight", "bias"),
    "matmul": ("y", ""),
    "expert_linear": ("weight", ""),
    "expert_matmul": ("weight", ""),
}


def _without_casts(value: Value, packed: Collection[str]) -> Value | None:
    """Leave out casts to the dtype of x, in which packed ops compute anyway."""
    weight_name, bias_name = _WEIGHTED[value.op]
    weight, bias = value.args[weight_name], value.args.get(bias_name)
    inner = _uncast(weight, value.dtype)
    if not (inner.op == STORED and inner.name in packed):
        return None
    args = value.args | {weight_name: inner}
    if bias is not None:
        args[bias_name] = _uncast(bias, value.dtype)
    same = inner is weight and args.get(bias_name) is bias
    return None if same else value.like(value.op, args)


def _uncast(arg: Arg, dtype: torch.dtype) -> Any:
    """Return the stored tensor whose cast to a dtype an argument is; another argument as it is."""
    if isinstance(arg, Value) and arg.op == "to" and arg.dtype == dtype:
        inner: Value = arg.args["x"]
        return inner if inner.op == STORED else arg
    return arg


def _lookup(value: Value, packed: Collection[str]) -> Value | None:
    """Write ``index_select(weight, 0, ids)`` as an embedding."""
    table, ids = value.args["x"], value.args["index"]
    if not (table.op == STORED and table.name in packed and len(table.shape) == 2):
        return None
    return value.like("embedding", {"ids": ids, "weight": table}) if not value.args["dim"] else None


def _whole_lookup(value: Value, packed: Collection[str]) -> Value | None:
    """Look ids up as they are, not flattened."""
    found = value.args["x"]
    if (
        not _is_packed(found, packed)
        or found.op != "embedding"
        or found.args["ids"].op not in ("reshape", "flatten")
    ):
        return None
    ids = found.args["ids"].args["x"]
    if not same_sizes(value.shape, (*ids.shape, found.shape[-1])):
        return None
    return value.like("embedding", found.args | {"ids": ids})


def _bit_linear(value: Value, packed: Collection[str]) -> Value | None:
    """Write the product of rounded inputs, divided by their gain, as one op."""
    found = divided_product(value)
    if found is None or not _is_packed(found[0], packed) or value.dtype != found[1].dtype:
        return None
    return value.like("bit_linear", found[0].args | {"x": found[1]})


def _with_bias(value: Value, packed: Collection[str]) -> Value | None:
    """Let ``bit_linear`` add its bias."""
    for product, bias in ((value.args["x"], value.args["y"]), (value.args["y"], value.args["x"])):
        if (
            isinstance(product, Value)
            and isinstance(bias, Value)
            and product.op == "bit_linear"
            and _is_packed(product, packed)
            and product.args.get("bias") is None
            and product.dtype == value.dtype
            and bias.op == STORED
            and bias.shape == product.args["weight"].shape[:1]
        ):
            return value.like("bit_linear", product.args | {"bias": bias})
    return None


def _narrow_bit_linear(value: Value, packed: Collection[str]) -> Value | None:
    """Let ``bit_linear`` take and give the dtype of a model, as it does in float32 inside."""
    found = value.args["x"]
    if found.op != "bit_linear" or not _is_packed(found, packed):
        return None
    x = found.args["x"]
    if x.op != "to" or x.args["x"].dtype != value.dtype or found.dtype != torch.float32:
        return None
    return value.like("bit_linear", found.args | {"x": x.args["x"]})


def _is_packed(value: Value, packed: Collection[str]) -> bool:
    """Return whether an op takes a packed weight."""
    weight = value.args.get("weight")
    return isinstance(weight, Value) and weight.op == STORED and weight.name in packed
