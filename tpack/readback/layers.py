"""The children of a module: which are layers of their own, and which are written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

import tpack.nn
from tpack.dtypes import elements_of
from tpack.errors import LayerDefError
from tpack.layerdef import Param
from tpack.layerdef.builtin import BUILTIN, Builtin, stored_by
from tpack.layerdef.ops import OPS, PACKED_OPS, Op
from tpack.nn import modules as packed_modules, reference
from tpack.readback.code import same_code
from tpack.readback.stored import constructed_with

_CLASSES: dict[type, Builtin] = {}
for _row in BUILTIN.values():
    _home: Any = nn if _row.spelling.startswith("nn.") else tpack.nn
    _CLASSES[getattr(_home, _row.spelling.removeprefix("nn."))] = _row


def children_of(module: nn.Module, above: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that a module holds, those in lists and dicts under dotted names."""
    for name, child in module._modules.items():  # noqa: SLF001
        if child is None:
            continue
        if type(child) in (nn.ModuleList, nn.ModuleDict):
            yield from children_of(child, f"{above}{name}.")
        elif not is_inlined(child):
            yield f"{above}{name}", child


def is_inlined(module: nn.Module) -> bool:
    """Return whether a module is a function of torch that stores nothing: written out."""
    if not type(module).__module__.startswith("torch.nn.") or type(module) is nn.Module:
        return False
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    if any(True for _ in (*module.parameters(), *module.buffers())):
        return False
    return type(module) not in _CLASSES


def builtin_param(name: str, module: nn.Module, forward: Callable[..., Any]) -> Param | None:
    """Describe a layer for which torch or tpack has a class; None if it is another one.

    Args:
        forward: of the instance: another one than its class has makes it another layer.
    """
    row = _row_of(module)
    function = getattr(forward, "__func__", None)
    if row is None or function is not getattr(type(module), "forward", None):
        return None
    try:
        args = {param.name: constructed_with(module, param) for param in row.params}
    except (AttributeError, TypeError, ValueError, AssertionError):
        return None
    if getattr(module, "padding_mode", "zeros") != "zeros" or isinstance(args.get("padding"), str):
        return None
    if getattr(module, "max_norm", None) is not None:
        return None
    defaults = {param.name: param.default for param in row.params}
    if args.get("scale_dtype") == args.get("dtype"):
        args.pop("scale_dtype", None)
    kept = {key: value for key, value in args.items() if value != defaults[key]}
    param = Param(name, "Layer", layer=row.name, args=kept)
    return param if _holds(module, param) else None


def _row_of(module: nn.Module) -> Builtin | None:
    row = _CLASSES.get(type(module))
    if row is not None or type(module).__module__.startswith("torch."):
        return row
    own = BUILTIN.get(type(module).__name__)
    if own is None or own.spelling.startswith("nn."):
        return None
    return own if _same_class(type(module), getattr(packed_modules, own.spelling)) else None


def _same_class(found: type, ours: type) -> bool:
    """Return whether a class of standalone source is that of tpack, word for word."""
    for one, other in zip(found.__mro__, ours.__mro__, strict=False):
        if other is nn.Module:
            return one is nn.Module
        if one.__name__ != other.__name__:
            return False
        for name, value in vars(other).items():
            if callable(value) and not same_code(vars(one).get(name), value):
                return False
        for name, value in vars(one).items():
            if callable(value) and name not in vars(other):
                return False
        for function in vars(one).values():
            names = getattr(function, "__globals__", {})
            for used in getattr(getattr(function, "__code__", None), "co_names", ()):
                ours_too = getattr(reference, used, None) or getattr(packed_modules, used, None)
                if used in names and ours_too is not None and not isinstance(ours_too, type):
                    known = getattr(names[used], "__wrapped__", names[used])
                    if callable(ours_too) and not is_ours(known, used):
                        return False
    return True


def _holds(module: nn.Module, param: Param) -> bool:
    """Return whether a layer stores the tensors that its arguments say."""
    wanted: dict[str, tuple[tuple[int, ...] | None, str]] = {}
    try:
        for one in stored_by(param):
            if one.param_type == "TernaryTensor":
                wanted[f"{one.name}_packed"] = (one.packed_shape, "uint8")
                wanted[f"{one.name}_scale"] = (one.scale_shape, one.dtype)
            else:
                wanted[one.name] = (one.shape, one.dtype)
    except (LayerDefError, TypeError, ValueError):  # arguments of an odd kind
        return False
    found = {}
    for name, tensor in module.state_dict().items():
        dtype, shape = elements_of(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        found[name] = (shape, dtype)
    return found == wanted


#: Functions of tpack.nn that are ops, by name.
_OWN: dict[str, Op] = {
    op.spelling: op
    for op in (OPS | PACKED_OPS).values()
    if op.spelling and op.spelling.isidentifier()
}


def is_ours(function: Any, name: str) -> bool:
    """Return whether a function is one of tpack.nn, or its text in standalone source."""
    homes = (tpack.nn, reference, packed_modules)
    known = [getattr(home, name) for home in homes if hasattr(home, name)]
    return any(function is one or same_code(function, one) for one in known)


def own_functions(
    modules: list[nn.Module],
) -> Iterator[tuple[dict[str, Any], str, Any, Op]]:
    """Yield where the code of modules holds functions of tpack.nn: names, name, function, op."""
    seen: set[int] = set()
    for module in modules:
        for cls in type(module).__mro__:
            if cls.__module__.startswith("torch."):
                continue
            for function in [*vars(cls).values(), vars(module).get("forward")]:
                function = getattr(function, "__func__", function)  # noqa: PLW2901
                names = getattr(function, "__globals__", None)
                if names is None or id(names) in seen:
                    continue
                seen.add(id(names))
                yield from _in_names(names)


def _in_names(names: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Any, Op]]:
    for name, value in list(names.items()):
        own = getattr(value, "__name__", None)
        if callable(value) and own in _OWN and not isinstance(value, type) and is_ours(value, own):
            yield names, name, value, _OWN[own]
