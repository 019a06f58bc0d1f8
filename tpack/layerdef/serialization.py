"""LayerDef trees to plain JSON data and back: strict, so that equal trees give equal bytes.

Fields at their default are never written and, when reading, never needed; unknown fields
and wrong types are refused with the path of the node.
"""

from __future__ import annotations

from dataclasses import fields as dataclass_fields
from typing import Any

from tpack.errors import LayerDefError
from tpack.layerdef.nodes import (
    Assignment,
    BinaryOp,
    Dict,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Statement,
    Tuple,
    UnaryOp,
    Unpack,
    Unspecified,
)

#: How deep a tree may nest; Python's parser and the printers are safe far beyond it.
MAX_DEPTH = 64
#: Integers of a tree fit 64 bits.
MAX_INT = 2**63 - 1

_PARAM_DEFAULTS = {
    item.name: item.default for item in dataclass_fields(Param) if item.name != "name"
}


# ---- to JSON data


def program_to_dict(program: Program) -> dict[str, Any]:
    """Return ``{"root": …, "layers": […]}``."""
    return {"root": program.root, "layers": [layer_to_dict(layer) for layer in program.layers]}


def layer_to_dict(layer: LayerDef) -> dict[str, Any]:
    """Return ``{"name": …, "params": […], "body": […]}``."""
    return {
        "name": layer.name,
        "params": [_param_to_dict(param) for param in layer.params],
        "body": [_statement_to_dict(statement) for statement in layer.body],
    }


def _param_to_dict(param: Param) -> dict[str, Any]:
    data: dict[str, Any] = {"name": param.name, "param_type": param.param_type}
    data["shape"] = _plain(param.shape)
    for name, default in _PARAM_DEFAULTS.items():
        value = getattr(param, name)
        if value != default:
            data[name] = {k: _plain(v) for k, v in value} if name == "args" else _plain(value)
    return data


def _plain(sizes: Any) -> Any:
    """Turn tuples into the lists of JSON."""
    return [_plain(one) for one in sizes] if isinstance(sizes, tuple) else sizes


def _statement_to_dict(statement: Statement) -> dict[str, Any]:
    data: dict[str, Any] = {"node": type(statement).__name__}
    if isinstance(statement, Unspecified):
        return data
    if isinstance(statement, Assignment):
        data["target"] = statement.target
    elif isinstance(statement, Unpack):
        data["targets"] = list(statement.targets)
    data["value"] = _expression_to_dict(statement.value)
    return data if statement.sizes is None else data | {"sizes": _plain(statement.sizes)}


def _expression_to_dict(node: Expression) -> dict[str, Any]:
    each = _expression_to_dict
    match node:
        case Identifier(name):
            return {"node": "Identifier", "name": name}
        case Literal(value):
            return {"node": "Literal", "value": value}
        case Tuple(items):
            return {"node": "Tuple", "items": [each(item) for item in items]}
        case Dict(items):
            return {"node": "Dict", "items": {name: each(item) for name, item in items}}
        case UnaryOp(operator, operand):
            return {"node": "UnaryOp", "operator": operator, "operand": each(operand)}
        case BinaryOp(operator, left, right):
            return {
                "node": "BinaryOp",
                "operator": operator,
                "left": each(left),
                "right": each(right),
            }
        case FunctionCall(function, args, kwargs):
            data = {"node": "FunctionCall", "function": function, "args": [each(a) for a in args]}
            return data | ({"kwargs": {k: each(v) for k, v in kwargs}} if kwargs else {})
        case LayerCall(layer, args):
            return {"node": "LayerCall", "layer": layer, "args": [each(a) for a in args]}


# ---- from JSON data


class _Fields:
    """Takes the fields of one JSON object by type; what is left at the end is refused."""

    def __init__(self, data: object, path: str) -> None:
        if not isinstance(data, dict):
            raise LayerDefError(f"is {_kind(data)}, expected an object.", node=path)
        self.rest = dict(data)
        self.path = path

    def take(self, name: str, *kinds: type, default: object = ...) -> Any:
        value = self.rest.pop(name, default)
        if value is ...:
            raise LayerDefError(f"field {name!r} is missing.", node=self.path)
        # bool is an int to Python, never to us
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(_NAMES[kind] for kind in kinds)
            raise LayerDefError(
                f"is {_kind(value)}, expected {wanted}.", node=f"{self.path}.{name}"
            )
        if isinstance(value, int) and abs(value) > MAX_INT:
            raise LayerDefError("is beyond 64 bits.", node=f"{self.path}.{name}")
        return value

    def done(self) -> None:
        if self.rest:
            raise LayerDefError(f"unknown field {min(map(str, self.rest))!r}.", node=self.path)


_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a bool",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def _kind(value: object) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def program_from_dict(data: object, path: str = "program") -> Program:
    """Read a program.

    Raises:
        LayerDefError: with the path of the offending node.
    """
    fields = _Fields(data, path)
    root = fields.take("root", str)
    layers = fields.take("layers", list)
    fields.done()
    return Program(
        [layer_from_dict(item, f"{path}.layers[{i}]") for i, item in enumerate(layers)], root
    )


def layer_from_dict(data: object, path: str = "layer") -> LayerDef:
    """Read a LayerDef.

    Raises:
        LayerDefError: with the path of the offending node.
    """
    fields = _Fields(data, path)
    name = fields.take("name", str)
    params = fields.take("params", list)
    body = fields.take("body", list, default=[])
    fields.done()
    return LayerDef(
        name,
        [_param_from_dict(item, f"{path}.params[{i}]") for i, item in enumerate(params)],
        [_statement_from_dict(item, f"{path}.body[{i}]") for i, item in enumerate(body)],
    )


def _param_from_dict(data: object, path: str) -> Param:
    fields = _Fields(data, path)
    options: dict[str, Any] = {
        "shape": _shape(fields.take("shape", list, type(None), default=None), f"{path}.shape"),
    }
    for name, kind in _PARAM_FIELDS:
        if name in fields.rest:
            options[name] = fields.take(name, kind)
    if "args" in fields.rest:
        args = fields.take("args", dict)
        taken = _Fields(args, f"{path}.args")
        options["args"] = {
            name: _arg(taken.take(name, bool, int, float, str, list), f"{path}.args.{name}")
            for name in list(args)
        }
    options["sizes"] = _sizes(fields)
    param = Param(fields.take("name", str), fields.take("param_type", str), **options)
    fields.done()
    return param


_PARAM_FIELDS = (
    ("dtype", str),
    ("scale", str),
    ("layout", str),
    ("split", int),
    ("layer", str),
    ("repeat", int),
    ("formula", str),
)


def _shape(value: list[Any] | None, path: str) -> list[int] | None:
    for i, size in enumerate(value or ()):
        if type(size) is not int or abs(size) > MAX_INT:
            raise LayerDefError(f"is {size!r:.40}, expected an integer.", node=f"{path}[{i}]")
    return value


def _sizes(fields: _Fields) -> list[Any] | None:
    """Take the shape of one tensor: integers and strings."""
    sizes: list[Any] | None = fields.take("sizes", list) if "sizes" in fields.rest else None
    _check_sizes(sizes, f"{fields.path}.sizes")
    return sizes


def _several_sizes(fields: _Fields) -> list[Any] | None:
    """Take the shapes of several tensors; null where one is not known."""
    several: list[Any] | None = fields.take("sizes", list) if "sizes" in fields.rest else None
    for i, sizes in enumerate(several or ()):
        if not isinstance(sizes, list | None):
            problem = f"is {_kind(sizes)}, expected a list or null."
            raise LayerDefError(problem, node=f"{fields.path}.sizes[{i}]")
        _check_sizes(sizes, f"{fields.path}.sizes[{i}]")
    return several


def _check_sizes(sizes: list[Any] | None, path: str) -> None:
    for i, size in enumerate(sizes or ()):
        if type(size) not in (int, str):
            problem = f"is {_kind(size)}, expected an integer or a string."
            raise LayerDefError(problem, node=f"{path}[{i}]")


def _arg(value: Any, path: str) -> Any:
    for i, item in enumerate(value if isinstance(value, list) else ()):
        if type(item) not in (int, float):
            raise LayerDefError(f"is {item!r:.40}, expected a number.", node=f"{path}[{i}]")
        if abs(item) > MAX_INT:
            raise LayerDefError("is beyond 64 bits.", node=f"{path}[{i}]")
    return value


def _statement_from_dict(data: object, path: str) -> Statement:
    fields = _Fields(data, path)
    kind = fields.take("node", str)
    statement: Statement
    match kind:
        case "Assignment":
            target = fields.take("target", str)
            statement = Assignment(target, _expression(fields, "value", 1), _sizes(fields))
        case "Unpack":
            targets = fields.take("targets", list)
            for i, target in enumerate(targets):
                if not isinstance(target, str):
                    raise LayerDefError(
                        f"is {_kind(target)}, expected a string.", node=f"{path}.targets[{i}]"
                    )
            value = _expression(fields, "value", 1)
            statement = Unpack(targets, value, _several_sizes(fields))
        case "Return":
            statement = Return(_expression(fields, "value", 1), _several_sizes(fields))
        case "Unspecified":
            statement = Unspecified()
        case _:
            raise LayerDefError(f"unknown statement {kind!r:.40}.", node=path)
    fields.done()
    return statement


def _expression(fields: _Fields, name: str, depth: int) -> Expression:
    return _expression_from_dict(fields.take(name, dict), f"{fields.path}.{name}", depth)


def _expressions(fields: _Fields, name: str, depth: int) -> list[Expression]:
    items = fields.take(name, list)
    return [
        _expression_from_dict(item, f"{fields.path}.{name}[{i}]", depth)
        for i, item in enumerate(items)
    ]


def _expression_from_dict(data: object, path: str, depth: int) -> Expression:
    if depth > MAX_DEPTH:
        raise LayerDefError(f"is nested deeper than {MAX_DEPTH}.", node=path[:200])
    fields = _Fields(data, path)
    kind = fields.take("node", str)
    node: Expression
    match kind:
        case "Identifier":
            node = Identifier(fields.take("name", str))
        case "Literal":
            node = Literal(fields.take("value", bool, int, float, str, type(None)))
        case "Tuple":
            node = Tuple(_expressions(fields, "items", depth + 1))
        case "Dict":
            items = _Fields(fields.take("items", dict), f"{path}.items")
            node = Dict({name: _expression(items, name, depth + 1) for name in list(items.rest)})
        case "UnaryOp":
            node = UnaryOp(fields.take("operator", str), _expression(fields, "operand", depth + 1))
        case "BinaryOp":
            operator = fields.take("operator", str)
            left = _expression(fields, "left", depth + 1)
            node = BinaryOp(operator, left, _expression(fields, "right", depth + 1))
        case "FunctionCall":
            function = fields.take("function", str)
            args = _expressions(fields, "args", depth + 1)
            given = fields.take("kwargs", dict, default={})
            named = _Fields(given, f"{path}.kwargs")
            kwargs = {name: _expression(named, name, depth + 1) for name in list(given)}
            node = FunctionCall(function, args, kwargs)
        case "LayerCall":
            layer = fields.take("layer", str)
            node = LayerCall(layer, _expressions(fields, "args", depth + 1))
        case _:
            raise LayerDefError(f"unknown expression {kind!r:.40}.", node=path)
    fields.done()
    return node
