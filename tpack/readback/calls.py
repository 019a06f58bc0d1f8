"""Calls of functions and methods of torch on stand-ins, noted as ops of LayerDef."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tpack.capturing.aten import ATEN, naming
from tpack.codec import Scale
from tpack.layerdef.ops import BINARY, OPS, Op, PackedOp, has_trait
from tpack.readback import code
from tpack.readback.binding import (
    CASTS,
    DROPOUTS,
    BindingError,
    aten_call,
    named,
    python_call,
    spelled,
    views,
)
from tpack.readback.named_calls import NamedCalls
from tpack.readback.values import (
    Cache,
    Device,
    Memory,
    Node,
    Pair,
    Several,
    Size,
    Traced,
)

#: What may be read of a stored tensor, whose shape and dtype are known.
_KNOWN = {"size", "dim", "shape", "dtype", "ndim", "numel", "is_floating_point", "is_contiguous"}
_KNOWN |= {"__len__", "element_size", "ndimension", "layout", "requires_grad", "stride"}
#: Functions that make a constant of numbers.
_MAKERS = {"tensor", "as_tensor", "linspace", "logspace", "eye", "from_numpy", "scalar_tensor"}
#: Methods that return the tensor itself, or a copy of it.
_SAME = {"contiguous", "clone", "detach", "requires_grad_", "detach_", "cpu", "cuda", "data"}
#: Names of methods → the op of ATen.
_OTHERS = {
    "concat": "cat",
    "concatenate": "cat",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "true_divide": "div",
    "negative": "neg",
    "absolute": "abs",
    "greater": "gt",
    "less": "lt",
    "view": "view",
    "__rsub__": "rsub",
    "__rpow__": "rpow",
    "__abs__": "abs",
    "__floordiv__": "floor_divide",
}


class Calls(NamedCalls):
    """Takes the calls that a tracer sees."""

    def __init__(self, tracer: Any) -> None:
        super().__init__(tracer)
        self.spelled = spelled()
        self.views = views()

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note a call, and return a stand-in for its result."""
        name = getattr(func, "__name__", str(func))
        if name in ("__get__", "__set__"):
            name = f"{'' if name == '__get__' else 'set '}{func.__self__.__name__}"
        first = args[0] if args else None
        traced = any(isinstance(one, Traced) for one in _leaves((args, kwargs)))
        sized = any(isinstance(one, torch.SymInt) for one in _leaves((args, kwargs)))
        if not traced and name in _KNOWN and isinstance(first, Tensor):
            return func(*args, **kwargs)
        if not traced and not sized and name in _MAKERS:
            return func(*args, **kwargs)
        if name in ("_set_grad_enabled", "set_grad_enabled"):
            return func(*args, **kwargs)
        try:
            return self.dispatch(func, name, args, kwargs)
        except BindingError as error:
            return self.tracer.refuse(f"{error}, which LayerDef cannot express")

    def dispatch(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else None
        special = getattr(self, f"take_{name.strip('_')}", None)
        if special is not None and (isinstance(x, Tensor) or name in ("arange", "einsum")):
            return special(args, kwargs)
        if "out" in kwargs:
            raise BindingError(f"calls {name} with out")
        if name in DROPOUTS:
            return self.dropout(func, args, kwargs)
        if name in _SAME:
            return self.same(x)
        if name in CASTS and len(args) == 1:
            return self.op("to", {"x": x, "dtype": CASTS[name]}, x)
        change = bool(kwargs.get("inplace")) or (
            name.endswith("_") and not name.endswith("__") and name not in ATEN
        )
        plain = name.rstrip("_") if change else name
        op, given = self.bound(func, plain, args, kwargs)
        result = self.made(op, given, x if isinstance(x, Tensor) else None)
        if change or (inspect.isfunction(func) and self.inplace(func, args, kwargs)):
            return self.stored(x, result, name)
        return result

    def inplace(self, func: Any, args: Any, kwargs: Any) -> bool:
        try:
            return bool(named(func, args, kwargs).get("inplace", (False,))[0])
        except BindingError:
            return False

    def bound(self, func: Any, name: str, args: Any, kwargs: Any) -> tuple[str, dict[str, Any]]:
        """Return the op that a function is, and its arguments."""
        own = self.spelled.get(func)
        functional = getattr(func, "__module__", "") == "torch.nn.functional"
        if inspect.isfunction(func) and functional:
            op = own or OPS.get(name)
            if op is not None and (own is not None or name in op.spelling):
                return op.name, python_call(func, op, args, kwargs)
            values = [value for value, _ in named(func, args, kwargs).values()]
            row, given = aten_call(name, tuple(values[: 1 + len(args[1:])]), {})
            return row.op, given
        row, given = aten_call(_OTHERS.get(name, name), args, kwargs)
        if own is not None and set(given) <= {param.name for param in own.params}:
            takes = any(param.kind == "device" for param in own.params)
            if takes and type(device := kwargs.get("device")) is Device:
                given["device"] = device
            return own.name, given
        return row.op, given

    def made(self, op: str, given: dict[str, Any], x: Any) -> Any:
        """Note an op of the table of ATen."""
        if op in OPS:
            if has_trait(op, "several"):
                return self.results(op, given)
            return self.op(op, given, x)
        if op in BINARY:
            return self.tracer.binary(op, given["x"], given["y"])
        match op:
            case "neg" | "~":
                return self.tracer.unary("-" if op == "neg" else "~", given["x"])
            case "same":
                return self.same(given["x"])
            case "reciprocal":
                return self.tracer.binary("/", 1, given["x"])
            case "addmm":
                product = self.tracer.binary("@", given["x"], given["y"])
                return self.tracer.binary("+", product, given["bias"])
            case "t":
                return self.op("transpose", {"x": given["x"], "dim0": 0, "dim1": 1}, x)
            case "max" | "min":
                return self.extreme(f"a{op}", given)
        raise BindingError(f"calls {op}")

    def extreme(self, op: str, given: dict[str, Any]) -> Any:
        if given.get("keepdim") or op != "amax":
            raise BindingError(f"calls {op[1:]} with dim")
        at = {"x": given["x"], "dim": given["dim"]}
        return Pair((self.op("amax", at, given["x"]), self.op("argmax", at, given["x"])))

    def op(self, op: str, given: dict[str, Any], x: Any = None) -> Any:
        """Note an op with one result."""
        tracer = self.tracer
        node = tracer.note("op", op, {k: tracer.argument(v) for k, v in given.items()})
        shared = isinstance(x, Traced) and op in self.views
        return tracer.tensor(node, x.memory if shared else self.memory(x, op))

    def memory(self, x: Any, op: str) -> Memory:
        if op in self.views and isinstance(x, Tensor) and not isinstance(x, Traced):
            return Memory("a stored tensor")
        return Memory()

    def results(self, op: str, given: dict[str, Any]) -> Any:
        """Note an op with several results."""
        if op == "meshgrid":
            return self.unpacked(op, given, len(given["tensors"]))
        if has_trait(op, "recurrent"):
            return self.unpacked(op, given, 3 if op == "lstm" else 2)
        if op not in ("chunk", "split", "unbind"):  # values, and where they were
            return Pair(self.unpacked(op, given, 2))
        sizes = given.get("sizes")
        if op == "chunk" and isinstance(given["chunks"], int):
            return self.unpacked(op, given, given["chunks"])
        if isinstance(sizes, tuple | list):
            return self.unpacked(op, given, len(sizes))

        def one(index: int) -> Any:
            x, dim = given["x"], given.get("dim", 0)
            if op == "unbind":
                return self.op("select", {"x": x, "dim": dim, "index": index}, x)
            if op == "split" and isinstance(sizes, int) and index >= 0:
                ends = {"start": index * sizes, "end": (index + 1) * sizes}
                return self.op("slice", {"x": x, "dim": dim, **ends}, x)
            raise BindingError(f"takes one result of {op}")

        return Several(self.tracer, lambda count: self.unpacked(op, given, count), one)

    def unpacked(self, op: str, given: dict[str, Any], count: int) -> tuple[Any, ...]:
        """Note an op with so many results."""
        tracer = self.tracer
        names = code.stored_names(tracer.frame.code)
        node = tracer.note("op", op, {k: tracer.argument(v) for k, v in given.items()})
        if count == 1:
            raise BindingError(f"takes one result of {op}")
        x: Any = given.get("x")
        made = []
        for i in range(count):
            item = tracer.note("item", i, (node,))
            item.wish = names[i] if len(names) == count else ""
            shared = isinstance(x, Traced) and op in self.views
            made.append(tracer.tensor(item, x.memory if shared else self.memory(x, op)))
        return tuple(made)

    def same(self, x: Any) -> Any:
        """Return the same value as another object, which shares its memory."""
        if not isinstance(x, Traced):
            return x
        return self.tracer.tensor(self.tracer.read(x), x.memory)

    def stored(self, target: Any, result: Any, name: str) -> Any:
        """Let a tensor that is changed in place have the result from here on."""
        self.tracer.changed(target, code.place(), name)
        target.node, target.seen = result.node, target.memory.version
        return target

    def dropout(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = named(func, args, kwargs) if inspect.isfunction(func) else {}
        train = given["training"][0] if given else (args[2] if len(args) > 2 else True)
        if "training" not in given and given:
            train = True
        if train:
            raise BindingError("calls dropout with training=True, as its default is")
        return self.same(args[0])

    # ---- functions of tpack.nn, and caches

    def own(self, op: Op, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note a call of a function of tpack.nn."""
        try:
            given = python_call(function, op, args, kwargs)
            if "layers" in given:
                given["layers"] = self.list_of(given["layers"], given["x"])
            return self.packed(op, given) if isinstance(op, PackedOp) else self.op(op.name, given)
        except BindingError as error:
            return self.tracer.refuse(str(error))

    def list_of(self, layers: Any, x: Any) -> str:
        """Return the name of a list of layers, whose forwards are read with x."""
        names = []
        for layer in layers:
            names.append(self.tracer.frame.children.get(id(layer), ""))
            layer(x)
        name = names[0].rpartition(".")[0] if names else ""
        if not name or names != [f"{name}.{i}" for i in range(len(names))]:
            raise BindingError("takes layers that are not one list of this layer")
        return name

    def packed(self, op: PackedOp, given: dict[str, Any]) -> Any:
        """Note an op on packed bytes as the op on the weight that it stands for."""
        tracer = self.tracer
        packed, scale = given.pop("packed"), given.pop("scale")
        names = [tracer.frame.tensors.get(id(one), "") for one in (packed, scale)]
        name = names[0].removesuffix("_packed")
        owner, _, own = name.rpartition(".")
        holder = tracer.frame.module.get_submodule(owner)
        shape = getattr(holder, "ternary_shapes", {}).get(own)
        if names != [f"{name}_packed", f"{name}_scale"] or shape is None:
            tracer.refuse(
                f"gives {op.name} tensors that are not the packed bytes and the scale of a weight",
                "Pass both as self.name_packed and self.name_scale.",
            )
        declared = {
            "shape": tuple(shape or ()),
            "layout": getattr(holder, "ternary_layouts", {}).get(own, "t2"),
            "group_size": getattr(holder, "ternary_groups", {}).get(own, 0),
        }
        fallback = {"layout": "t2", "group_size": 0}
        for key, wanted in declared.items():
            found = given.pop(key, fallback.get(key, wanted))
            found = tuple(found) if isinstance(found, list) else found
            if key == "group_size" and found == 0 and _shows_groups(holder, own, wanted):
                continue
            if found != wanted:
                tracer.refuse(
                    f"gives {op.name} {key}={found}, expected {wanted} as the class declares",
                    f"Correct it, or ternary_{'shapes' if key == 'shape' else key}.",
                )
        weight = tracer.named_tensor(name)
        if not op.plain:
            return tracer.tensor(weight, Memory("a stored tensor"))
        taken = {k: tracer.argument(v) for k, v in given.items() if v is not None}
        taken[op.weight] = weight
        row = [one.name for one in OPS[op.plain].params if one.name in taken]
        return tracer.tensor(tracer.note("op", op.plain, {name: taken[name] for name in row}))

    def cache_method(self, cache: Cache, name: str, args: tuple[Any, ...]) -> Any:
        """Note a call of a method of a cache."""
        op = OPS.get(f"cache_{name}")
        tracer = self.tracer
        if op is None or len(args) != len(op.params) - 1:
            return tracer.refuse(f"uses {name} of a cache", "Use layer, length or extend.")
        given = dict(zip((p.name for p in op.params), (cache, *args), strict=True))
        if has_trait(op.name, "several"):
            return self.unpacked(op.name, given, 2)
        node = tracer.note("op", op.name, {k: tracer.argument(v) for k, v in given.items()})
        return Cache(tracer, node) if has_trait(op.name, "part") else Size(tracer, node)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _leaves(item)]
    if isinstance(value, dict):
        return _leaves(tuple(value.values()))
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    return [value]


def fallback_name(node: Node) -> str:
    """Return a name for a value that the source gives none."""
    if node.kind in ("op", "binary"):
        noun = naming(str(node.target))
        if noun.isidentifier():
            return noun
        return str(node.target) if str(node.target).isidentifier() else "value"
    return "value"


def _shows_groups(holder: Any, name: str, size: int) -> bool:
    """Return whether the shape of a weight's scale shows its group size, so that no call must."""
    shape, scale = holder.ternary_shapes[name], getattr(holder, f"{name}_scale")
    split = getattr(holder, f"{name}_packed").dim() - 1
    return Scale.of(scale.shape, shape, split).group_size == size
