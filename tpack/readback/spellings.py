"""Other ways to write what an op of the table computes: ``torch.relu``, ``x.relu()``, ``x.shape``.

Generated source has one spelling for each op. Whoever edits it may use another.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.operator_schemas import get_signature_for_torch_op

from tpack.layerdef.ops import OPS, Op

#: Methods and functions that give the values they take.
_SAME = ("contiguous", "clone", "detach")
#: Functions that do so in eval mode, and layers that call one.
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")
_DROPOUT_LAYERS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
#: Methods that change the dtype, which they have in their name.
_CASTS = {
    "float": "float32", "double": "float64", "half": "float16", "bfloat16": "bfloat16",
    "long": "int64", "int": "int32", "bool": "bool",
}  # fmt: skip
_OTHER_NAMES = {"view": "reshape"}
#: Operators by the name of the method or function.
_OPERATORS = {"bmm": "@", "mm": "@", "neg": "-"}
_BY_NAME = {
    op.spelling.rpartition(".")[2]: op
    for op in OPS.values()
    if op.spelling.startswith(("torch.", "F.", ".")) and "cache" not in op.name
}


def passes_on(module: nn.Module) -> bool:
    """Return whether a layer gives what it takes: an Identity, or a dropout in eval mode."""
    return type(module) is nn.Identity or type(module) in _DROPOUT_LAYERS


def name_of(target: Any) -> str:
    """Return the name of a function of torch, or of a method; empty for another function."""
    if isinstance(target, str):
        return target
    name = getattr(target, "__name__", "")
    known = any(getattr(home, name, None) is target for home in (torch, F)) if name else False
    return name if known else ""


def keeps_values(target: Any) -> bool:
    """Return whether a function or method only gives the values of its first argument."""
    return name_of(target) in _SAME


def is_idle_dropout(target: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether a call is a dropout in eval mode; arguments by name."""
    return name_of(target) in _DROPOUTS and arguments.get("training", True) is False


def cast_of(target: Any) -> str | None:
    """Return the dtype that a method without arguments casts to; None for another method."""
    return _CASTS.get(target) if isinstance(target, str) else None


def operator_of(target: Any) -> str | None:
    """Return the operator that a function or a method stands for."""
    return _OPERATORS.get(name_of(target))


def op_of(target: Any) -> Op | None:
    """Return the op that a function of torch, or a method, computes; None if there is none."""
    name = name_of(target)
    return _BY_NAME.get(_OTHER_NAMES.get(name, name))


def bound(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a call by the names that torch gives them, the first as ``input``.

    Arguments at their default are left out. None if torch's signatures do not tell.
    """
    name = name_of(target)
    functions = (getattr(torch, name, None), getattr(F, name, None), getattr(Tensor, name, None))
    function = target if callable(target) else next((f for f in functions if f is not None), None)
    found: list[dict[str, Any]] = []
    for signature in _signatures(function):
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            continue
        first, *others = given.items()
        defaults = {key: one.default for key, one in signature.parameters.items()}
        rest = {key: arg for key, arg in others if not _equal(arg, defaults[key])}
        found.append({"input": first[1], **rest})
    names = {tuple(one) for one in found}
    return found[0] if len(names) == 1 else None


def _equal(arg: Any, default: Any) -> bool:
    return type(arg) is type(default) and bool(arg == default)


def _signatures(function: Callable[..., Any] | None) -> list[inspect.Signature]:
    if function is None:
        return []
    if inspect.isfunction(function):
        return [inspect.signature(function)]
    return get_signature_for_torch_op(function) or []


def dropped(target: Any, kwargs: Mapping[str, Any]) -> str | None:
    """Return an argument of a call that is not at its default; None if all are.

    Args:
        kwargs: those that the row of the op does not have.
    """
    defaults: Mapping[str, Any] = {}
    if inspect.isfunction(target):
        defaults = {name: p.default for name, p in inspect.signature(target).parameters.items()}
    for name, arg in kwargs.items():
        if name not in defaults or not _equal(arg, defaults[name]):
            return name
    return None


def called(target: Any, args: tuple[Any, ...]) -> str:
    """Return what messages call a function, a method or an attribute."""
    if target is getattr:
        return f"the attribute {args[1]!s:.60}"
    return f"{getattr(target, '__name__', target)!s:.60}"
