"""Calls of functions of torch → ops of LayerDef, with arguments by name.

``torch.relu(x)``, ``x.relu()`` and ``F.relu(x)`` are one op: the table of ATen says which, and how
arguments map. Functions of ``torch.nn.functional`` that are written in Python have the names
of the ops.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tpack.build.steps import op_function
from tpack.capturing.aten import ATEN, Row
from tpack.layerdef.ops import OPS, Op, PackedOp

#: Names that torch also takes for arguments.
_ALIASES = {"input": "self", "axis": "dim", "keepdims": "keepdim", "x": "self", "x2": "other"}
#: Arguments of functions in Python that change no result at inference, with any value.
_FREE = {"inplace", "momentum", "_stacklevel", "padding_idx", "scale_grad_by_freq", "sparse"}
_FREE |= {"norm_type"}
#: Arguments that must have this value.
_FIXED: dict[str, Any] = {
    "training": False,
    "mode": "constant",
    "return_indices": False,
    "divisor_override": None,
    "max_norm": None,
    "dropout_p": 0.0,
}
#: Functions of torch.nn.functional that do nothing at inference.
DROPOUTS = {
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
}
#: Methods that change the dtype only.
CASTS = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "long": torch.int64,
    "int": torch.int32,
    "bool": torch.bool,
}


class BindingError(Exception):
    """A call that no row of a table takes; the text says what is wrong with it."""


def spelled() -> dict[Any, Op]:
    """Return the ops by the function of torch or tpack that spells each."""
    return {
        op_function(op): op
        for op in OPS.values()
        if op.spelling and not op.spelling.startswith((".", "["))
    }


def python_call(
    function: Callable[..., Any], op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Bind the arguments of a function in Python that spells an op.

    Raises:
        BindingError: an argument has no place in the row.
    """
    if isinstance(op, PackedOp):
        return dict(zip((param.name for param in op.params), args, strict=False)) | kwargs
    given = named(function, args, kwargs)
    own = {param.torch_name: param.name for param in op.params}
    own |= {param.name: param.name for param in op.params}
    taken: dict[str, Any] = {}
    for position, (name, (value, default)) in enumerate(given.items()):
        if name in own:
            taken[own[name]] = value
        elif position == 0:
            taken[op.params[0].name] = value
        elif name in _FIXED:
            if value is not None and not (type(value) is not Tensor and value == _FIXED[name]):
                raise BindingError(f"gives {op.name} {name}={value!r:.40}")
        elif name not in _FREE and value is not default and value != default:
            raise BindingError(f"gives {op.name} {name}={value!r:.40}")
    return taken


def named(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return arguments by the names of a function, each with its default.

    Raises:
        BindingError: they do not fit.
    """
    inner = function
    if "boolean_dispatch" in getattr(function, "__qualname__", ""):
        inner = getattr(F, f"_{function.__name__}", function)
    try:
        signature = inspect.signature(inner)
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise BindingError(f"calls {function.__name__} with other arguments: {error}") from None
    return {
        name: (value, signature.parameters[name].default) for name, value in bound.arguments.items()
    }


def overloads(name: str) -> Iterator[tuple[Row, Any]]:
    """Yield the rows of the overloads of an op of ATen, with their schemas."""
    packet = getattr(torch.ops.aten, name, None)
    for overload in packet.overloads() if packet is not None else ():
        if (row := ATEN.get(f"{name}.{overload}")) is not None:
            yield row, getattr(packet, overload)._schema  # noqa: SLF001


def aten_call(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Row, dict[str, Any]]:
    """Bind the arguments of an op of ATen.

    Raises:
        BindingError: no overload of the table takes them.
    """
    problem = ""
    for row, schema in overloads(name):
        bound = _bind(schema.arguments, args, kwargs)
        if bound is None:
            continue
        try:
            return row, _taken(name, row, schema.arguments, bound)
        except BindingError as error:
            problem = str(error)
    raise BindingError(problem or f"calls {name}")


def _taken(name: str, row: Row, schema: Any, bound: dict[str, Any]) -> dict[str, Any]:
    taken = {}
    for item in schema:
        if item.name not in bound or item.name in row.ignored:
            continue
        value = bound[item.name]
        if item.name in row.taken:
            if value is not None:
                taken[row.taken[item.name]] = value
        else:
            wanted = row.fixed.get(item.name, str(item.default_value))
            same = value is None or str(value) == wanted
            if not same and isinstance(value, int | float):
                same = wanted == str(float(value))
            if not same:
                raise BindingError(f"gives {name} {item.name}={value!r:.40}")
    return taken


def _bind(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Return arguments by the names of a schema; None if they do not fit."""
    names = [item.name for item in schema]
    kinds = {item.name: str(item.type) for item in schema}
    placed = [item for item in schema if not item.kwarg_only]
    bound: dict[str, Any] = {}
    rest = list(args)
    for item in placed:
        if not rest:
            break
        several = "List" in kinds[item.name] and "Tensor" not in kinds[item.name]
        if several and _is_int(rest[0]):  # sizes given one by one
            count = len(rest) if all(map(_is_int, rest)) and len(rest) > 1 else 1
            bound[item.name] = tuple(rest[:count]) if count > 1 else rest[0]
            rest = rest[count:]
        else:
            bound[item.name] = rest.pop(0)
    if rest:
        return None
    for key, value in kwargs.items():
        name = key if key in names else _ALIASES.get(key, key)
        if name == "requires_grad" and not value:
            continue
        if name not in names or name in bound:
            return None
        bound[name] = value
    for item in schema:
        if item.name in bound:
            if not _fits(kinds[item.name], bound[item.name], item.name):
                return None
        elif not item.has_default_value():
            return None
    return bound


def _is_int(value: Any) -> bool:
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def _fits(kind: str, value: Any, name: str) -> bool:
    if kind.startswith("Optional["):
        return value is None or _fits(kind[9:-1], value, name)
    if name in ("dtype", "layout", "memory_format", "device"):
        return not isinstance(value, Tensor)
    if kind == "Tensor":
        return isinstance(value, Tensor)
    if kind.startswith("List[") and "Tensor" in kind:
        return isinstance(value, tuple | list) and all(
            item is None or isinstance(item, Tensor) for item in value
        )
    if kind.startswith("List["):
        items = value if isinstance(value, tuple | list) else (value,)
        return all(_is_int(item) for item in items)
    if kind == "int":
        return _is_int(value)
    if kind in ("number", "float"):
        return isinstance(value, int | float | torch.SymInt)
    if kind == "bool":
        return isinstance(value, bool)
    return isinstance(value, str) if kind == "str" else True


def views() -> frozenset[str]:
    """Return the ops whose result may share memory with their argument."""
    found = set()
    for name, row in ATEN.items():
        base, _, overload = name.partition(".")
        schema = getattr(getattr(torch.ops.aten, base), overload)._schema  # noqa: SLF001
        marked = any(item.alias_info is not None for item in schema.returns)
        if row.shared or (marked and not base.endswith("_")):
            found.add(row.op)
    return frozenset(found | {"to", "same", "narrow", "unflatten", "einsum", "cache_extend"})
