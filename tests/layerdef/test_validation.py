"""Every rule of a tree is refused with the path of the node that breaks it."""

import pytest
from hypothesis import given, settings
from strategies import UNSHRUNK, Runnable, layer_defs, runnables
from trees import INPUT, NORM, X, call, holding, returning

from tpack import LayerDefError
from tpack.build import build_module
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Dict,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Tuple,
    UnaryOp,
    Unpack,
    Unspecified,
    as_program,
    validate,
)

WEIGHT = Param("w", "TernaryTensor", [4, 4])
LINEAR = {"in_features": 4, "out_features": 4}


def refused(tree, node):
    with pytest.raises(LayerDefError) as caught:
        validate(tree if isinstance(tree, Program) else Program([tree], tree.name))
    assert caught.value.node == node
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    for reading in (generate_pytorch_code, build_module):
        with pytest.raises(LayerDefError):
            reading(tree)


@settings(max_examples=60, phases=UNSHRUNK)
@given(runnables())
def test_runnable_programs_are_valid(example: Runnable):
    validate(example.program)


@given(layer_defs)
def test_any_tree_is_valid_or_refused(layer: LayerDef):
    """Never another exception, and what is valid can be printed and parsed."""
    try:
        program = as_program(layer)
    except LayerDefError:
        return
    try:
        compile(generate_pytorch_code(program), "generated", "exec")
    except LayerDefError:
        assert not layer.body or "takes a weight of" in str(layer)


EXPRESSIONS = [
    (Identifier("y"), ""),
    (Identifier("class"), ""),
    (call("relu", Identifier("y")), ".x"),
    (call("nothing", X), ""),
    (call("relu"), ""),
    (call("relu", X, X), ""),
    (FunctionCall("relu", [X], {"x": X}), ""),
    (call("relu", X, y=X), ""),
    (FunctionCall("add", [X], {"y": Literal("one")}), ".y"),
    (call("relu", Literal(1)), ".x"),
    (call("relu", Literal(None)), ".x"),
    (call("linear", X, Literal(None)), ".weight"),
    (call("linear", X, Identifier("w"), Literal(1)), ".bias"),
    (call("softmax", X, dim=Literal(1.0)), ".dim"),
    (call("softmax", X, dim=Literal(True)), ".dim"),
    (call("softmax", X, dim=Literal(2**63)), ".dim"),
    (call("softmax", X), ""),
    (call("gelu", X, approximate=Literal("fast")), ".approximate"),
    (call("gelu", X, approximate=X), ".approximate"),
    (call("to", X, Literal("float33")), ".dtype"),
    (call("to", X, X), ".dtype"),
    (call("mean", X, Literal(0), keepdim=Literal(1)), ".keepdim"),
    (call("clamp", X, min=Literal(float("nan"))), ".min"),
    (call("clamp", X, min=Literal(float("inf"))), ".min"),
    (call("cat", X), ".tensors"),
    (call("cat", Tuple([])), ".tensors"),
    (call("cat", Tuple([X, Literal("a")])), ".tensors.items[1]"),
    (call("reshape", X, Tuple([Literal(2), Literal(0.5)])), ".shape.items[1]"),
    (call("reshape", X, Literal("4")), ".shape"),
    (call("bit_linear", X, X), ".weight"),
    (call("bit_linear", X, call("relu", Identifier("w"))), ".weight"),
    (BinaryOp("+", X, Identifier("y")), ".right"),
    (BinaryOp("and", X, X), ""),
    (BinaryOp("", X, X), ""),
    (UnaryOp("+", X), ""),
    (UnaryOp("not ", X), ""),
    (UnaryOp("-", Literal(True)), ".operand"),
    (BinaryOp("*", X, Literal(float("nan"))), ".right"),
    (BinaryOp("*", X, Literal(-float("inf"))), ".right"),
    (BinaryOp("*", X, Literal(2**63)), ".right"),
    (BinaryOp("*", X, Literal("x")), ".right"),
    (BinaryOp("*", X, Literal(None)), ".right"),
    (BinaryOp("*", X, Tuple([X])), ".right"),
    (LayerCall("nothing", [X]), ""),
    (LayerCall("w", [X]), ""),
    (LayerCall("norm", []), ""),
    (LayerCall("norm", [Identifier("norm")]), ".args[0]"),
    (Identifier("norm"), ""),
    (Tuple([X, Identifier("y")]), ".items[1]"),
    (Tuple([Tuple([X, Identifier("y")])]), ".items[0].items[1]"),
    (Tuple([X, Tuple([])]), ".items[1]"),
    (Dict({}), ""),
    (Dict({"a b": X}), ""),
    (Dict({'"': X}), ""),
    (Dict({"a": Identifier("y")}), ".a"),
    (BinaryOp("+", X, Tuple([X])), ".right"),
    (BinaryOp("+", X, Dict({"a": X})), ".right"),
    (BinaryOp("<>", X, X), ""),
    (call("slice", X, dim=Literal(17)), ".dim"),
    (call("einsum", Literal("ij"), Tuple([X])), ".equation"),
    (call("einsum", Literal('ij->"); import os; ("'), Tuple([X])), ".equation"),
    (call("einsum", X, Tuple([X])), ".equation"),
    (call("slice", X, dim=X), ".dim"),
    (call("slice", X), ""),
    (call("arange", Literal(3), device=Literal("cpu")), ".device"),
    (call("masked_fill", X, X, Literal("nan")), ".value"),
    (call("masked_fill", X, X, Literal("1; import os")), ".value"),
    (call("chunk", X, Literal(2)), ""),
    (Identifier("norm.scale"), ""),
    (Identifier("norm.weight.data"), ""),
    (Identifier("x.weight"), ""),
]


@pytest.mark.parametrize(("value", "where"), EXPRESSIONS, ids=lambda v: repr(v)[:60])
def test_expressions(value, where):
    tree = returning(value, WEIGHT, Param("norm", "Layer", **NORM))
    refused(tree, "L.body[0]" if where is None else f"L.body[0].value{where}")


@pytest.mark.parametrize(
    ("body", "node"),
    [
        ([Assignment("y", X)], "L.body[0]"),
        ([Return(X), Return(X)], "L.body[0]"),
        ([Return(X), Assignment("y", X)], "L.body[0]"),
        ([Unspecified(), Return(X)], "L.body[0]"),
        ([Assignment("y", X), Unspecified()], "L.body[1]"),
        ([Assignment("w", X), Return(X)], "L.body[0]"),
        ([Assignment("forward", X), Return(X)], "L.body[0]"),
        ([Assignment("y", Identifier("y")), Return(X)], "L.body[0].value"),
        ([Assignment("y", Tuple([X])), Return(X)], "L.body[0].value"),
        ([X], "L.body[0]"),
        ([None], "L.body[0]"),
        (["return x"], "L.body[0]"),
        ([Return("x")], "L.body[0].value"),
        ([Return(None)], "L.body[0].value"),
    ],
)
def test_bodies(body, node):
    refused(LayerDef("L", [WEIGHT, INPUT], body), node)


PARAMS = [
    Param("w", "Ternary", [4, 4]),
    Param("class", "TernaryTensor", [4, 4]),
    Param("0", "TernaryTensor", [4, 4]),
    Param("w", "TernaryTensor"),
    Param("w", "TernaryTensor", []),
    Param("w", "TernaryTensor", [0, 4]),
    Param("w", "TernaryTensor", [4, -1]),
    Param("w", "TernaryTensor", [True, 4]),
    Param("w", "TernaryTensor", [4.0, 4]),
    Param("w", "TernaryTensor", ["4", 4]),
    Param("w", "TernaryTensor", [1] * 17),
    Param("w", "TernaryTensor", [2**40, 2**40]),
    Param("w", "TernaryTensor", [4, 4], dtype="float64"),
    Param("w", "TernaryTensor", [4, 4], dtype="int8"),
    Param("w", "TernaryTensor", [4, 4], scale="columns"),
    Param("w", "TernaryTensor", [4, 4], scale="group:0"),
    Param("w", "TernaryTensor", [4, 4], scale="group:"),
    Param("w", "TernaryTensor", [4, 4], scale="group:-1"),
    Param("w", "TernaryTensor", [4, 4], scale="group:1_0"),
    Param("w", "TernaryTensor", [4, 4], scale="group:١"),
    Param("w", "TernaryTensor", [4, 4], scale="row\n"),
    Param("w", "TernaryTensor", [4, 4], scale=None),
    Param("w", "TernaryTensor", [4, 4], layout="t3"),
    Param("w", "TernaryTensor", [4, 4], layout=None),
    Param("w", "TernaryTensor", [4, 4], split=2),
    Param("w", "TernaryTensor", [4, 4], split=-1),
    Param("w", "TernaryTensor", [4, 4], split=True),
    Param("w", "TernaryTensor", [4, 4], split=0.5),
    Param("w", "TernaryTensor", [4, 4], repeat=2),
    Param("w", "TernaryTensor", [4, 4], layer="LayerNorm"),
    Param("w", "TernaryTensor", [4, 4], args={"a": 1}),
    Param("w", "Tensor", [4], scale="row"),
    Param("w", "Tensor", [4], layout="t5"),
    Param("w", "Tensor", [4], split=0),
    Param("w", "Tensor", [4], dtype="int64"),
    Param("w", "Tensor", [4], dtype="float"),
    Param("w", "Tensor", [-4]),
    Param("w", "Tensor", [2**62, 4]),
    Param("w", "Buffer"),
    Param("w", "Buffer", [4], dtype="long"),
    Param("w", "Buffer", [4], dtype=None),
    Param("w", "Layer"),
    Param("w", "Layer", layer="Nothing"),
    Param("w", "Layer", [4], **NORM),
    Param("w", "Layer", repeat=0, **NORM),
    Param("w", "Layer", repeat=-1, **NORM),
    Param("w", "Layer", repeat=True, **NORM),
    Param("w", "Layer", repeat=100_001, **NORM),
    Param("01", "Layer", **NORM),
    Param("-1", "Layer", **NORM),
    Param(".b", "Layer", **NORM),
    Param("a..b", "Layer", **NORM),
    Param("0.b", "Layer", **NORM),
    Param("a.01", "Layer", **NORM),
    Param("a.__class__", "Layer", **NORM),
    Param("a.forward", "Layer", **NORM),
    Param("a.b", "Tensor", [2]),
    Param("c", "Constant", [2]),
    Param("c", "Constant", [2], formula="eval"),
    Param("c", "Constant", [2], formula="values"),
    Param("c", "Constant", [2], formula="values", args={"values": [1.0]}),
    Param("c", "Constant", [2], formula="values", args={"values": [1.0, float("nan")]}),
    Param("c", "Constant", [2], formula="values", args={"values": [1.0, 2.0], "more": 1}),
    Param("c", "Constant", [5000], formula="values", args={"values": [1.0] * 5000}),
    Param("c", "Constant", None, formula="values", args={"values": []}),
    Param("c", "Constant", [3], formula="rotary_frequencies", args={"dim": 4, "base": 2.0}),
    Param("c", "Constant", [2], formula="rotary_frequencies", args={"dim": "4", "base": 2.0}),
    Param("c", "Tensor", [2], formula="values", args={"values": [1.0, 2.0]}),
    Param("c", "Layer", formula="values", **NORM),
    Param("w", "Layer", layer="LayerNorm"),
    Param("w", "Layer", layer="TernaryLinear", args={"in_features": 4}),
    Param("w", "Layer", layer="GroupNorm", args={"num_groups": 3, "num_channels": 4}),
    Param("w", "Layer", layer="GroupNorm", args={"num_groups": 0, "num_channels": 4}),
]


@pytest.mark.parametrize("param", PARAMS, ids=lambda p: repr(p)[6:-1])
def test_params(param):
    refused(LayerDef("L", [param, INPUT], [Return(X)]), "L.params[0]")


@pytest.mark.parametrize(
    ("layer", "args", "where"),
    [
        ("LayerNorm", {"normalized_shape": 4, "size": 4}, ""),
        ("LayerNorm", {"normalized_shape": "4"}, ".args.normalized_shape"),
        ("LayerNorm", {"normalized_shape": 4, "eps": True}, ".args.eps"),
        ("LayerNorm", {"normalized_shape": 4, "bias": 1}, ".args.bias"),
        ("LayerNorm", {"normalized_shape": 4, "dtype": "float"}, ".args.dtype"),
        ("TernaryLinear", {**LINEAR, "scale": "rows"}, ".args.scale"),
        ("TernaryLinear", {**LINEAR, "layout": "t1"}, ".args.layout"),
        ("TernaryLinear", {**LINEAR, "in_features": 4.0}, ".args.in_features"),
        ("TernaryLinear", {**LINEAR, "in_features": 0}, ".weight"),
        ("TernaryLinear", {**LINEAR, "out_features": -4}, ".weight"),
        ("TernaryLinear", {**LINEAR, "scale_dtype": "float64"}, ".weight"),
        ("TernaryLinear", {**LINEAR, "in_features": 2**62}, ".weight"),
        ("Linear", {**LINEAR, "dtype": "int64"}, ".weight"),
    ],
)
def test_arguments_of_builtin_layers(layer, args, where):
    tree = LayerDef("L", [Param("c", "Layer", layer=layer, args=args), INPUT], [Return(X)])
    refused(tree, f"L.params[0]{where}")


@pytest.mark.parametrize(
    "args",
    [
        {"in_channels": 4, "out_channels": 4, "kernel_size": (3, 3, 3)},
        {"in_channels": 4, "out_channels": 4, "kernel_size": ()},
        {"in_channels": 4, "out_channels": 5, "kernel_size": 3, "groups": 2},
        {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": -2},
    ],
)
@pytest.mark.parametrize("layer", ["Conv2d", "TernaryConv2d"])
def test_arguments_of_convolutions(layer, args):
    tree = LayerDef("L", [Param("c", "Layer", layer=layer, args=args), INPUT], [Return(X)])
    with pytest.raises(LayerDefError) as caught:
        validate(Program([tree], "L"))
    assert (caught.value.node or "").startswith("L.params[0]")


@pytest.mark.parametrize(
    "names", [("w", "w"), ("w", "w_packed"), ("w", "w_scale"), ("w_scale", "w"), ("w_packed", "w")]
)
def test_names_that_clash(names):
    params = [Param(n, "TernaryTensor" if n == "w" else "Tensor", [4, 4]) for n in names]
    refused(LayerDef("L", [*params, INPUT], [Return(X)]), "L.params[1]")


def test_an_undeclared_input_is_x():
    validate(Program([LayerDef("L", [WEIGHT], [Return(call("linear", X, Identifier("w")))])], "L"))
    refused(
        LayerDef("L", [WEIGHT, Param("y", "Tensor")], [Return(call("linear", X, Identifier("w")))]),
        "L.body[0].value.x",
    )


# ---- programs


@pytest.mark.parametrize(
    ("program", "node"),
    [
        (Program([], "A"), "program"),
        (Program([holding("A")], "B"), "program"),
        (Program([holding("A"), holding("A")], "A"), "A"),
        (Program([holding("A", "A")], "A"), "A"),
        (Program([holding("A", "B"), holding("B", "A")], "A"), "A"),
        (Program([holding("A"), holding("B")], "A"), "B"),
        (Program([holding("class")], "class"), "program.layers[0].name"),
        (Program([holding("A", "C")], "A"), "A.params[0]"),
        (Program([holding("A", "B"), holding("B", repeat=2)], "A2"), "program"),
    ],
)
def test_programs(program, node):
    refused(program, node)


def test_programs_that_unfold_to_too_much():
    layers = [holding("L0")]
    layers += [holding(f"L{i + 1}", f"L{i}", f"L{i}") for i in range(40)]
    with pytest.raises(LayerDefError, match="unfolds to over 100000"):
        validate(Program(layers, "L40"))


@pytest.mark.parametrize("depth", [64, 65, 3000])
def test_depth_of_expressions(depth):
    value = X
    for _ in range(depth - 1):
        value = UnaryOp("-", value)
    tree = returning(value)
    if depth <= 64:
        validate(Program([tree], "L"))
        compile(generate_pytorch_code(tree), "generated", "exec")
    else:
        with pytest.raises(LayerDefError, match="nested deeper than 64") as caught:
            validate(Program([tree], "L"))
        assert len(str(caught.value)) < 300


# ---- shapes that a reader is told


TOLD = ("batch", 4)


def telling(sizes, params=INPUT, results=None):
    return LayerDef("L", [params], [Assignment("y", X, sizes), Return(Identifier("y"), results)])


def test_shapes_are_names_and_numbers():
    validate(Program([telling(TOLD, Param("x", "Tensor", sizes=TOLD), [TOLD])], "L"))
    validate(Program([telling((), Param("x", "Tensor", sizes=()), [None])], "L"))


@pytest.mark.parametrize(
    ("sizes", "end"),
    [
        (("batch", "x)\nimport os"), ".sizes[1]"),
        (("import",), ".sizes[0]"),
        (("été",), ".sizes[0]"),
        ((-1,), ".sizes[0]"),
        ((1 << 63,), ".sizes[0]"),
        ((True,), ".sizes[0]"),
        ((1.5,), ".sizes[0]"),
        ((1,) * 17, ".sizes"),
    ],
    ids=repr,
)
def test_shapes_of_anything_else_are_refused(sizes, end):
    refused(telling(sizes), f"L.body[0]{end}")
    refused(telling(None, Param("x", "Tensor", sizes=sizes)), f"L.params[0]{end}")
    refused(telling(None, results=[sizes]), f"L.body[1].sizes[0]{end.removeprefix('.sizes')}")


def test_shapes_fit_what_they_are_of():
    refused(telling(None, results=[TOLD, TOLD]), "L.body[1]")
    refused(returning(X, Param("b", "Buffer", [2], sizes=[2])), "L.params[0]")
    parts = Unpack(["y", "z"], call("chunk", X, Literal(2)), [TOLD])
    refused(LayerDef("L", [INPUT], [parts, Return(Identifier("y"))]), "L.body[0]")
