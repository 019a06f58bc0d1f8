"""Programs drawn from bytes, as JSON data: mostly valid, and now and then hostile in one place."""

from __future__ import annotations

from typing import Any

from drawing import Draw

from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.ops import BINARY, OPS, UNARY, OpParam, has_trait

#: Strings that must reach no source, beside some that may.
STRINGS = (
    *("x", "w", "weight", "h", "blocks", "0", "1", "a.b", "blocks.0", "a.0.b", "Net", "Block"),
    *(
        "float32",
        "tensor",
        "row",
        "column",
        "group:4",
        "t2",
        "t5",
        "inf",
        "-inf",
        "tanh",
        "bi,ij->bj",
    ),
    *("", "_", "__class__", "__init__", "_tpack_x", "self", "class", "lambda", "match", "print"),
    *("eval", "forward", "state_dict", "torch", "nn", "F", "super", "value", "layer", "value2"),
    *("x\n", "x\r", "x\x0cy", "a b", "a;b", "a=b", "x)", 'x"', "x'", 'x"""', "x\\", "#", "x#"),
    *("# -*- coding: utf-7 -*-", "{x}", "%s", "${x}", "../x", "/etc", "\u2028", "\uff46oo", "ſelf"),
    *("nn.Module", "torch.load", "w.T", "x.y.z", "99999", "100000", "00", "-1", "١", "a" * 65),
)
_NAMES = ("x", "y", "w", "v", "h", "bias", "a", "b", "blocks", "weight", "shape", "data")
_PLACES = ("0", "1", "c.d", "e.0", "e.1", "layers.2", "LayerNorm", "f", "g", "embed", "norm")
_LAYERS = ("Net", "Block", "Mlp", "Cell")
_DTYPES = ("float32", "float16", "bfloat16", "int64", "float64", "bool", "float8_e4m3fn")
_FLOATS = ("float32", "float16", "bfloat16")
_NUMBERS = (0, 1, 2, 3, 4, 8, -1, 0.5, 1e-5, 1e30, 5e-324, -0.0, 2**63 - 1, 64, 16, 100_000)
_ODD = (2**63, -(2**63), None, True, [])


def program(draw: Draw) -> dict[str, Any]:
    """A program of one to four layers, the first of them the root."""
    names = _LAYERS[: 1 + draw.below(4)]
    layers = [_layer(draw, name, names[i + 1 :]) for i, name in enumerate(names)]
    return {"root": draw.one(STRINGS) if draw.chance(64) else names[0], "layers": layers}


def _layer(draw: Draw, name: str, below: tuple[str, ...]) -> dict[str, Any]:
    drawn = [_param(draw, below) for _ in range(draw.below(6))]
    params = drawn if draw.chance(16) else list({p["name"]: p for p in drawn}.values())
    # what nothing uses is refused
    params += [
        {"name": f"{child.lower()}_", "param_type": "Layer", "layer": child} for child in below[:1]
    ]
    data = {"name": draw.one(STRINGS) if draw.chance(64) else name, "params": params}
    if draw.byte() % 4:
        known = [str(p["name"]) for p in params if p.get("param_type") != "Layer"] or ["x"]
        children = [str(p["name"]) for p in params if p.get("param_type") == "Layer"]
        data["body"] = _Body(draw, known, children).statements()
    elif draw.chance(3):
        data["body"] = [{"node": "Unspecified"}]
    return data


def _shape(draw: Draw, rank: int | None = None) -> list[Any]:
    count = 1 + draw.below(4) if rank is None else rank
    odd = (0, -1, 2**40, 2**63) if draw.chance(16) else (4,)
    return [draw.one((4, 4, 4, 2, 8, 1, 3, *odd)) for _ in range(count)]


def _sizes(draw: Draw) -> list[Any]:
    """A shape as a reader is told it."""
    odd = STRINGS if draw.chance(8) else ("n",)
    return [draw.one(("batch", 4, 0, *odd)) for _ in range(draw.below(3))]


def _param(draw: Draw, below: tuple[str, ...]) -> dict[str, Any]:
    kind = draw.below(8)
    name = draw.one(_PLACES if kind > 5 else _NAMES)
    data: dict[str, Any] = {"name": draw.one(STRINGS) if draw.chance(32) else name}
    if kind < 2:
        data |= {"param_type": "TernaryTensor", "shape": _shape(draw, 2)}
        if draw.chance(2):
            data |= {"scale": draw.one(("tensor", "row", "column", "group:2", "group:4"))}
        if draw.chance(3):
            data |= {"layout": draw.one(("t5", "t2")), "dtype": draw.one(_FLOATS)}
        if draw.chance(4):
            data |= {"split": draw.below(2), "shape": _shape(draw)}
    elif kind == 2:
        data |= {"param_type": "Tensor", "shape": _shape(draw), "dtype": draw.one(_FLOATS)}
    elif kind == 3:
        data |= {"param_type": "Buffer", "shape": _shape(draw), "dtype": draw.one(_DTYPES)}
    elif kind == 4:
        data |= {"param_type": "Tensor", "shape": None}
        if draw.chance(3):
            data["sizes"] = _sizes(draw)
    elif kind == 5:
        data |= _constant(draw)
    elif kind == 6 and below:
        data |= {"param_type": "Layer", "layer": draw.one(below)}
    else:
        data |= _builtin(draw)
    if data["param_type"] == "Layer" and draw.chance(4):
        data["repeat"] = draw.one((1, 2, 3, 0, 100_001) if draw.chance(8) else (2, 3))
    if draw.chance(32):
        field = draw.one(("dtype", "scale", "layout", "layer", "formula", "param_type", "split"))
        data[field] = draw.one(STRINGS)
    return data


def _constant(draw: Draw) -> dict[str, Any]:
    data: dict[str, Any] = {"param_type": "Constant", "dtype": draw.one(_DTYPES)}
    if draw.chance(2):
        dim = draw.one((4, 8, 2, 0, -2, 8192, 2**40) if draw.chance(8) else (4, 6))
        args = {"dim": dim, "base": draw.one((10000.0, 2, 0.0, -1.0, 1e308))}
        return data | {"formula": "rotary_frequencies", "args": args, "shape": [dim // 2]}
    values = [draw.one(_NUMBERS) for _ in range(draw.below(5))]
    return data | {"formula": "values", "args": {"values": values}, "shape": [len(values)]}


def _builtin(draw: Draw) -> dict[str, Any]:
    row = draw.one(tuple(BUILTIN.values()))
    args: dict[str, Any] = {}
    for param in row.params:
        if param.keyword and not draw.chance(4):
            continue
        args[param.name] = _constant_of(draw, param)
    return {"param_type": "Layer", "layer": row.name, "args": args}


def _constant_of(draw: Draw, param: OpParam) -> Any:
    """A value for a parameter that takes a constant."""
    if draw.chance(32):
        return draw.one((*STRINGS, *_NUMBERS, *_ODD))
    match param.kind:
        case "int":
            return draw.one((4, 4, 2, 1, 8, 0, -1) if draw.chance(8) else (4, 2, 1))
        case "float":
            return draw.one((1e-5, 0.5, 1, 0, 1e30))
        case "bool":
            return draw.one((True, False))
        case "dtype":
            return draw.one(_DTYPES)
        case "scale":
            return draw.one(("tensor", "row", "column", "group:4"))
        case "ints" | "window":
            return draw.one((4, 1, [4], [1, 1], [3, 3], []) if draw.chance(4) else (4, 1, 3))
        case "numbers":
            return [draw.one(_NUMBERS)]
        case words if "|" in words:
            return draw.one(words.split("|"))
        case _:
            return draw.one(_NUMBERS)


class _Body:
    """Statements over the names of a layer."""

    def __init__(self, draw: Draw, known: list[str], children: list[str]) -> None:
        self.draw = draw
        self.known = known
        self.children = children

    def statements(self) -> list[dict[str, Any]]:
        draw = self.draw
        found = []
        for _ in range(draw.below(4)):
            target = draw.one(STRINGS) if draw.chance(32) else draw.one(("h", "y", "x", "value"))
            if draw.chance(5):
                wrong = (["_", "_"], ["h"], ["h", "h"]) if draw.chance(8) else ()
                targets = draw.one((["h", "y"], ["_", "y"], ["h", "_", "y"], *wrong))
                value = self.op(draw.one(_SEVERAL), 2)
                found.append({"node": "Unpack", "targets": targets, "value": value})
                self.known += [name for name in targets if name != "_"]
                continue
            sizes = {"sizes": _sizes(draw)} if draw.chance(4) else {}
            value = self.value(3)
            found.append({"node": "Assignment", "target": target, "value": value} | sizes)
            self.known.append(target)
        value = self.value(3)
        if draw.chance(5):
            value = {"node": "Tuple", "items": [value, self.value(1)]}
        elif draw.chance(5):
            key = draw.one(STRINGS) if draw.chance(4) else "logits"
            value = {"node": "Dict", "items": {key: value, "last": self.value(1)}}
        sizes = {"sizes": [_sizes(draw)]} if draw.chance(4) else {}
        return [*found, {"node": "Return", "value": value} | sizes]

    def value(self, fuel: int) -> dict[str, Any]:
        draw = self.draw
        kind = draw.below(8) if fuel > 0 else 0
        if kind < 2:
            name = draw.one(STRINGS) if draw.chance(48) else draw.one(self.known)
            return {"node": "Identifier", "name": name}
        if kind == 2:
            operand = self.value(fuel - 1)
            return {
                "node": "UnaryOp",
                "operator": draw.one(("+", "not") if draw.chance(32) else tuple(UNARY)),
                "operand": operand,
            }
        if kind == 3:
            operator = draw.one(("and", "=") if draw.chance(32) else tuple(BINARY))
            data = {"node": "BinaryOp", "operator": operator, "left": self.value(fuel - 1)}
            return data | {"right": self.number() if draw.chance(3) else self.value(fuel - 1)}
        if kind == 4 and self.children:
            args = [self.value(fuel - 1) for _ in range(1 + draw.below(2))]
            return {"node": "LayerCall", "layer": draw.one(self.children), "args": args}
        return self.op(draw.one(_SEVERAL if draw.chance(48) else _OPS), fuel)

    def number(self) -> dict[str, Any]:
        return {"node": "Literal", "value": self.draw.one(_NUMBERS)}

    def op(self, name: str, fuel: int) -> dict[str, Any]:
        draw = self.draw
        args, kwargs = [], {}
        for param in OPS[name].params:
            if param.default is None or (param.default is not ... and param.keyword):
                if not draw.chance(3):
                    continue
                kwargs[param.name] = self.argument(param, fuel - 1)
            elif kwargs:
                kwargs[param.name] = self.argument(param, fuel - 1)
            else:
                args.append(self.argument(param, fuel - 1))
        if draw.chance(64):
            name = draw.one(STRINGS)
        return {"node": "FunctionCall", "function": name, "args": args, "kwargs": kwargs}

    def argument(self, param: OpParam, fuel: int) -> dict[str, Any]:
        draw = self.draw
        if draw.chance(64):
            return {"node": "Literal", "value": draw.one((*STRINGS, *_NUMBERS, *_ODD[:-1]))}
        match param.kind:
            case "tensor" | "tensor?" | "ternary" | "device" | "cache":
                return self.value(fuel)
            case "tensors":
                items = [self.value(fuel - 1) for _ in range(1 + draw.below(2))]
                return {"node": "Tuple", "items": items}
            case "sizes":
                items = [self.number() for _ in range(draw.below(3))]
                return {"node": "Tuple", "items": items}
            case "ints" | "window" if draw.chance(2):
                sizes = [self.value(0) if draw.chance(4) else self.number() for _ in range(2)]
                return {"node": "Tuple", "items": sizes}
            case "equation":
                return {"node": "Literal", "value": draw.one(("bi,ij->bj", "i->", "ij->ji"))}
            case "value":
                return self.value(fuel) if draw.chance(2) else self.number()
            case "int" if param.name != "dim" and draw.chance(4):
                return self.value(fuel)
            case _:
                value = _constant_of(draw, param)
                if isinstance(value, list):
                    items = [{"node": "Literal", "value": item} for item in value]
                    return {"node": "Tuple", "items": items}
                return {"node": "Literal", "value": value}


_SEVERAL = tuple(sorted(op for op in OPS if has_trait(op, "several")))
_OPS = tuple(sorted(set(OPS) - set(_SEVERAL)))
