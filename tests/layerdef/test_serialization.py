"""Trees to JSON and back, strictly."""

import json
import re

import pytest
from hypothesis import given, settings
from strategies import UNSHRUNK, Runnable, layer_defs, programs, runnables

from tpack import LayerDefError
from tpack.layerdef import (
    BinaryOp,
    Dict,
    FunctionCall,
    Identifier,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Tuple,
    UnaryOp,
    Unpack,
    Unspecified,
)


@given(layer_defs)
def test_layer_round_trip(layer: LayerDef):
    data = json.loads(json.dumps(layer.to_dict(), allow_nan=False))
    again = LayerDef.from_dict(data)
    assert again == layer
    assert repr(again) == repr(layer)
    assert again.to_dict() == layer.to_dict()


@given(programs)
def test_program_round_trip(program: Program):
    again = Program.from_dict(json.loads(json.dumps(program.to_dict(), allow_nan=False)))
    assert again == program
    assert repr(again) == repr(program)


@settings(max_examples=30, phases=UNSHRUNK)
@given(runnables())
def test_runnable_round_trip(example: Runnable):
    data = json.loads(json.dumps(example.program.to_dict()))
    assert repr(Program.from_dict(data)) == repr(example.program)


@pytest.mark.parametrize("value", [1, 1.0, True, 0, 0.0, -0.0, False, None, "", "tanh", 2**63 - 1])
def test_kinds_of_literals_survive(value):
    layer = LayerDef("L", [], [Return(Literal(value))])
    again = LayerDef.from_dict(json.loads(json.dumps(layer.to_dict())))
    assert repr(again) == repr(layer)


def full():
    return {
        "root": "L",
        "layers": [
            {
                "name": "L",
                "params": [
                    {
                        "name": "w",
                        "param_type": "TernaryTensor",
                        "shape": [4, 2],
                        "dtype": "float16",
                        "scale": "group:2",
                        "layout": "t5",
                        "split": 1,
                    },
                    {"name": "x", "param_type": "Tensor", "shape": None, "sizes": ["batch", 2]},
                    {
                        "name": "c",
                        "param_type": "Layer",
                        "shape": None,
                        "layer": "LayerNorm",
                        "repeat": 2,
                        "args": {"normalized_shape": [2], "eps": 0.5, "bias": False},
                    },
                ],
                "body": [
                    {
                        "node": "Assignment",
                        "target": "y",
                        "value": {
                            "node": "FunctionCall",
                            "function": "cat",
                            "args": [
                                {"node": "Tuple", "items": [{"node": "Identifier", "name": "x"}]}
                            ],
                            "kwargs": {"dim": {"node": "Literal", "value": 0}},
                        },
                    },
                    {
                        "node": "Assignment",
                        "target": "y",
                        "value": {
                            "node": "LayerCall",
                            "layer": "c",
                            "args": [{"node": "Identifier", "name": "y"}],
                        },
                        "sizes": ["batch", 2],
                    },
                    {
                        "node": "Return",
                        "value": {
                            "node": "BinaryOp",
                            "operator": "+",
                            "left": {
                                "node": "UnaryOp",
                                "operator": "-",
                                "operand": {"node": "Identifier", "name": "y"},
                            },
                            "right": {"node": "Literal", "value": 1.5},
                        },
                        "sizes": [["batch", 2]],
                    },
                ],
            }
        ],
    }


def test_golden_data():
    program = Program.from_dict(full())
    assert program.to_dict() == full()
    assert program.by_name["L"].params[0] == Param(
        "w", "TernaryTensor", [4, 2], dtype="float16", scale="group:2", layout="t5", split=1
    )
    assert program.by_name["L"].body[2] == Return(
        BinaryOp("+", UnaryOp("-", Identifier("y")), Literal(1.5)), [["batch", 2]]
    )
    assert program.by_name["L"].body[0].value == FunctionCall(
        "cat", [Tuple([Identifier("x")])], {"dim": Literal(0)}
    )


def paths(value, at=()):
    """Every place of a JSON value."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from paths(value[key], (*at, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from paths(item, (*at, i))


def put(path, value):
    data = full()
    *above, last = path
    place = data
    for step in above:
        place = place[step]
    place[last] = value
    return data


def get(path):
    place = full()
    for step in path:
        place = place[step]
    return place


ALL = [path for path in paths(full()) if path]
OBJECTS = [path for path in paths(full()) if isinstance(get(path), dict) and path[-1:] != ("args",)]
NULLABLE = {"shape", "value"}


def dotted(path):
    text = "program"
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text


@pytest.mark.parametrize("path", ALL, ids=dotted)
@pytest.mark.parametrize("wrong", [1.5, True, 3, "word", [], {}, [[]], None], ids=repr)
def test_wrong_types_are_refused_where_they_are(path, wrong):
    old = get(path)
    same_kind = type(old) is type(wrong)
    literal = path[-1] == "value" and not isinstance(old, dict)
    argument = "args" in path and isinstance(path[-1], str) and path[-2:-1] == ("args",)
    if (
        same_kind
        or literal
        or argument
        or (path[-1] in ("shape", "args") and wrong in ([], {}, None))
    ):
        return
    if wrong is None and path[-1] in ("dtype", "scale", "layout", "split", "layer", "repeat"):
        return
    if path[-1] in ("body", "kwargs") and wrong is None:
        pass
    if "args" in path[:-1] and path[-2:-1] == ("normalized_shape",) and type(wrong) in (int, float):
        return
    if isinstance(old, int) and type(wrong) is int:
        return
    if "sizes" in path[:-1] and wrong in (3, "word") and wrong is not True:
        return  # a number or a name
    if path[-2:-1] == ("sizes",) and isinstance(old, list) and wrong is None:
        return  # a shape that is not told
    with pytest.raises(LayerDefError) as caught:
        Program.from_dict(put(path, wrong))
    named = caught.value.node
    where = dotted(path)
    assert named in (where, dotted(path[:-1])) or named.startswith(where)


@pytest.mark.parametrize(
    "name",
    ["dtype", "scale", "layout", "split", "layer", "repeat", "args", "sizes", "name", "param_type"],
)
def test_null_is_no_value_of_a_field(name):
    data = full()
    data["layers"][0]["params"][0][name] = None
    with pytest.raises(LayerDefError):
        Program.from_dict(data)


@pytest.mark.parametrize("path", OBJECTS, ids=dotted)
def test_unknown_fields_are_refused(path):
    if path[-1:] == ("kwargs",):
        return
    data = full()
    place = data
    for step in path:
        place = place[step]
    place["extra"] = 1
    with pytest.raises(LayerDefError, match="'extra'") as caught:
        Program.from_dict(data)
    assert caught.value.node == dotted(path)


@pytest.mark.parametrize(
    "path",
    [p for p in ALL if isinstance(p[-1], str) and p[-2:-1] not in (("args",), ("kwargs",))],
    ids=dotted,
)
def test_missing_fields(path):
    optional = {"shape", "dtype", "scale", "layout", "split", "layer", "repeat", "args", "kwargs"}
    optional |= {"body", "sizes"}
    data = full()
    *above, last = path
    place = data
    for step in above:
        place = place[step]
    del place[last]
    required = last not in optional or place.get("node") in ("FunctionCall", "LayerCall")
    if last == "kwargs" or not required:
        Program.from_dict(data)
        return
    with pytest.raises(LayerDefError, match=last) as caught:
        Program.from_dict(data)
    assert caught.value.node == dotted(above)


def nested(depth, kind):
    leaf = {"node": "Identifier", "name": "x"}
    for _ in range(depth):
        leaf = {
            "unary": lambda v: {"node": "UnaryOp", "operator": "-", "operand": v},
            "tuple": lambda v: {"node": "Tuple", "items": [v]},
            "call": lambda v: {"node": "FunctionCall", "function": "relu", "args": [v]},
            "kwargs": lambda v: {
                "node": "FunctionCall",
                "function": "relu",
                "args": [],
                "kwargs": {"x": v},
            },
            "layer": lambda v: {"node": "LayerCall", "layer": "c", "args": [v]},
        }[kind](leaf)
    return {"name": "L", "params": [], "body": [{"node": "Return", "value": leaf}]}


@pytest.mark.parametrize("kind", ["unary", "tuple", "call", "kwargs", "layer"])
def test_depth_is_bounded(kind):
    LayerDef.from_dict(nested(63, kind))
    for depth in (64, 900, 20_000):
        with pytest.raises(LayerDefError, match="nested deeper than 64"):
            LayerDef.from_dict(nested(depth, kind))


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400])
def test_integers_are_bounded(value):
    for path in (
        ("layers", 0, "params", 0, "shape", 0),
        ("layers", 0, "params", 0, "split"),
        ("layers", 0, "params", 2, "repeat"),
        ("layers", 0, "params", 2, "args", "eps"),
        ("layers", 0, "params", 2, "args", "normalized_shape", 0),
        ("layers", 0, "body", 2, "value", "right", "value"),
    ):
        with pytest.raises(LayerDefError, match=r"64 bits|expected an integer") as caught:
            Program.from_dict(put(path, value))
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("data", [None, 1, True, "x", [], [{}], 1.5])
def test_roots_that_are_no_objects(data):
    for node in (Program, LayerDef):
        with pytest.raises(LayerDefError, match="expected an object"):
            node.from_dict(data)


@pytest.mark.parametrize("kind", ["Lambda", "", "Return", "__class__", "Unspecified"])
def test_unknown_nodes(kind):
    data = put(("layers", 0, "body", 2, "value", "left", "node"), kind)
    with pytest.raises(LayerDefError, match="unknown expression") as caught:
        Program.from_dict(data)
    assert caught.value.node == "program.layers[0].body[2].value.left"
    if kind not in ("Return", "Unspecified"):
        with pytest.raises(LayerDefError, match="unknown statement"):
            Program.from_dict(put(("layers", 0, "body", 2, "node"), kind))


def every_node():
    """What ``full`` has not: nodes that few layers need."""
    chunk = {"node": "FunctionCall", "function": "chunk", "args": [IDENTIFIER]}
    chunk["kwargs"] = {"chunks": {"node": "Literal", "value": 2}}
    values = [1, 2.5]
    return {
        "name": "L",
        "params": [
            {
                "name": "c",
                "param_type": "Constant",
                "shape": [2],
                "args": {"values": values},
                "formula": "values",
            }
        ],
        "body": [
            {"node": "Unpack", "targets": ["y", "_"], "value": chunk},
            {"node": "Unspecified"},
            {"node": "Return", "value": {"node": "Dict", "items": {"b": IDENTIFIER, "a": chunk}}},
        ],
    }


IDENTIFIER = {"node": "Identifier", "name": "x"}


def test_golden_data_of_every_other_node():
    layer = LayerDef.from_dict(every_node())
    halves = FunctionCall("chunk", [Identifier("x")], {"chunks": Literal(2)})
    assert layer == LayerDef(
        "L",
        [Param("c", "Constant", [2], formula="values", args={"values": [1, 2.5]})],
        [
            Unpack(["y", "_"], halves),
            Unspecified(),
            Return(Dict({"b": Identifier("x"), "a": halves})),
        ],
    )
    assert layer.to_dict() == every_node()
    assert json.dumps(layer.to_dict()["body"]) == json.dumps(every_node()["body"])


def changed(path, value):
    """``every_node`` with another value at a path such as ``body[0].targets[1]``."""
    data = json.loads(json.dumps(every_node()))
    *above, last = [int(n) if n.isdigit() else n for n in re.findall(r"\w+", path)]
    place = data
    for step in above:
        place = place[step]
    place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", {}, "is an object, expected a string."),
        ("body", None, "is null, expected a list."),
        ("body[0].targets", "xy", "is a string, expected a list."),
        ("body[0].targets[1]", None, "is null, expected a string."),
        ("body[2].value", 1.5, "is a number, expected an object."),
        ("body[2].value.items", [], "is a list, expected an object."),
        ("body[2].value.items.b", 1, "is an integer, expected an object."),
        (
            "body[0].value.kwargs.chunks.value",
            [],
            "is a list, expected a bool or an integer or a number or a string or null.",
        ),
        ("params[0].args", [], "is a list, expected an object."),
        (
            "params[0].args.values",
            None,
            "is null, expected a bool or an integer or a number or a string or a list.",
        ),
        ("params[0].args.values[1]", "1", "is '1', expected a number."),
        ("params[0].args.values[0]", True, "is True, expected a number."),
        ("params[0].args.values[1]", 2**63, "is beyond 64 bits."),
        ("params[0].formula", True, "is a bool, expected a string."),
        ("params[0].split", True, "is a bool, expected an integer."),
        ("params[0].split", 2**63, "is beyond 64 bits."),
        ("params[0].shape[0]", 2**63, f"is {2**63}, expected an integer."),
    ],
)
def test_what_is_wrong_is_said_with_the_place(path, value, message):
    with pytest.raises(LayerDefError) as caught:
        LayerDef.from_dict(changed(path, value))
    assert (caught.value.node, caught.value.message) == (f"layer.{path}", message)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("body[1].node", "Pass", "unknown statement 'Pass'."),
        ("body[1].value", 1, "unknown field 'value'."),
        ("body[0].value.name", 1, "unknown field 'name'."),
        ("body[2].value.items.b.node", "x", "unknown expression 'x'."),
        ("params[0].zero", 1, "unknown field 'zero'."),
    ],
)
def test_what_is_no_field_is_said_with_its_object(path, value, message):
    with pytest.raises(LayerDefError) as caught:
        LayerDef.from_dict(changed(path, value))
    assert caught.value.node == f"layer.{path.rpartition('.')[0]}"
    assert caught.value.message == message


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63) + 1])
def test_the_largest_integers(value):
    data = every_node()
    data["params"][0] |= {"shape": [value], "split": value, "args": {"values": [value], "n": value}}
    data["body"][0]["value"]["kwargs"]["chunks"]["value"] = value
    assert LayerDef.from_dict(data).to_dict() == data | {
        "params": [data["params"][0] | {"args": {"n": value, "values": [value]}}]
    }


@pytest.mark.parametrize("kind", ["left", "right", "dict", "unpack", "assign"])
def test_depth_is_bounded_on_every_side(kind):
    def tree(depth):
        value = IDENTIFIER
        for _ in range(depth - 1):
            value = {
                "left": {"node": "BinaryOp", "operator": "+", "left": value, "right": IDENTIFIER},
                "right": {"node": "BinaryOp", "operator": "+", "left": IDENTIFIER, "right": value},
                "dict": {"node": "Dict", "items": {"a": value}},
            }.get(kind, {"node": "UnaryOp", "operator": "-", "operand": value})
        statement = {
            "unpack": {"node": "Unpack", "targets": ["a", "b"], "value": value},
            "assign": {"node": "Assignment", "target": "a", "value": value},
        }.get(kind, {"node": "Return", "value": value})
        return {"name": "L", "params": [], "body": [statement]}

    LayerDef.from_dict(tree(64))
    with pytest.raises(LayerDefError, match="nested deeper than 64") as caught:
        LayerDef.from_dict(tree(65))
    assert caught.value.node.startswith("layer.body[0].value.")
    assert len(caught.value.node) <= 200


def test_what_is_not_given_is_not_written():
    layer = LayerDef("L", [Param("x", "Tensor")], [Return(FunctionCall("relu", [Identifier("x")]))])
    assert layer.to_dict() == {
        "name": "L",
        "params": [{"name": "x", "param_type": "Tensor", "shape": None}],
        "body": [
            {
                "node": "Return",
                "value": {"node": "FunctionCall", "function": "relu", "args": [IDENTIFIER]},
            }
        ],
    }


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        ("body[0].sizes", [None, 3], "[1]", "is an integer, expected a list or null."),
        ("body[2].sizes", [[2, None]], "[0][1]", "is null, expected an integer or a string."),
        ("body[2].sizes", [[True]], "[0][0]", "is a bool, expected an integer or a string."),
        ("params[0].sizes", ["a", 1.5], "[1]", "is a number, expected an integer or a string."),
        ("params[0].sizes", "ab", "", "is a string, expected a list."),
    ],
)
def test_sizes_that_are_none(path, value, where, message):
    with pytest.raises(LayerDefError) as caught:
        LayerDef.from_dict(changed(path, value))
    assert caught.value.node == f"layer.{path}{where}"
    assert caught.value.message == message
