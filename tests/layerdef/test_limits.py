"""What programs and bodies of layers may say: each limit from both of its sides."""

import pytest
from trees import INPUT, NORM, X, Y, call, holding, returning

from tpack import LayerDefError
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
    validate,
)

WEIGHT = Param("w", "TernaryTensor", [4, 4])


def check(layer, *more):
    validate(Program([*more, layer], layer.name))


def refusal(layer, *more):
    """The node of an error, and its text."""
    with pytest.raises(LayerDefError) as caught:
        check(layer, *more)
    return caught.value.node, caught.value.message


def layer_with(*params, body=None, name="L"):
    return LayerDef(name, [*params, INPUT], [Return(X)] if body is None else body)


# ---- names of parameters


def child(name):
    return Param(name, "Layer", **NORM)


@pytest.mark.parametrize(
    "names",
    [
        ["a.0", "a.1", "a.7"],
        ["a.left", "a.right"],
        ["a.0.left", "a.0.right", "a.1.left"],
        ["0", "1"],
        ["a.b", "ab"],
        ["a.pop_", "b.pop_"],
        [".".join("a" * 64)],
    ],
)
def test_lists_and_dicts_of_children(names):
    check(layer_with(*map(child, names)))


@pytest.mark.parametrize(
    ("names", "node"),
    [
        (["a", "a.0"], "L.a"),
        (["a.0", "a"], "L.a"),
        (["a.b", "a.b.c"], "L.a.b"),
        (["a.0", "a.b"], "L.a"),
        (["a.b.0", "a.b.c"], "L.a.b"),
        *((["a." + name], "L.a") for name in ("clear", "items", "keys", "update", "values")),
        (["a.b.keys"], "L.a.b"),
        (["a.b", "a.items"], "L.a"),
    ],
)
def test_children_that_no_list_and_no_dict_holds(names, node):
    assert refusal(layer_with(*map(child, names)))[0] == node


@pytest.mark.parametrize("depth", [65, 66, 500])
def test_names_of_children_are_nested_no_deeper_than_64(depth):
    node, message = refusal(layer_with(child(".".join("a" * depth))))
    assert "deeper than 64" in message
    assert len(node) <= 200


def test_what_is_stored_of_a_weight_has_names_too():
    check(layer_with(WEIGHT, Param("w_packed_", "Tensor", [2]), Param("_", "Tensor", [2])))
    check(layer_with(Param("w", "Tensor", [2]), Param("w_scale", "Tensor", [2])))
    for name in ("w", "w_packed", "w_scale"):
        assert refusal(layer_with(WEIGHT, Param(name, "Tensor", [2])))[0] == "L.params[1]"
    assert refusal(layer_with(Param("_", "TernaryTensor", [2])))[0] == "L.params[0]"


@pytest.mark.parametrize("name", ["a", "w", "w_packed", "w_scale"])
def test_variables_take_no_name_of_what_is_stored(name):
    body = [Assignment(name, X), Return(X)]
    node, message = refusal(layer_with(child("a.0"), WEIGHT, body=body))
    assert node == "L.body[0]"
    assert "assigns to parameter" in message
    body = [Unpack(["z", name], call("chunk", X, Literal(2))), Return(X)]
    assert refusal(layer_with(child("a.0"), WEIGHT, body=body))[0] == "L.body[0]"


def test_inputs_may_be_assigned_to():
    check(layer_with(body=[Assignment("x", call("relu", X)), Return(X)]))
    check(
        layer_with(
            body=[Unpack(["x", "y"], call("chunk", X, Literal(2))), Return(BinaryOp("+", X, Y))]
        )
    )


# ---- programs


def whole(name, *params):
    """A layer of these parameters alone, not even an input."""
    return LayerDef(name, params, [Unspecified()])


def test_programs_unfold_to_no_more_than_100000_modules():
    most = Param("n", "Layer", repeat=99_999, **NORM)
    check(layer_with(most, WEIGHT))
    for more in (child("m"), Param("m", "Layer", layer="Leaf"), Param("m.0", "Layer", **NORM)):
        node, message = refusal(
            layer_with(most, more), *([layer_with(name="Leaf")] if more.layer == "Leaf" else [])
        )
        assert (node, "unfolds to over 100000 modules" in message) == ("L", True)
    leaf, block = layer_with(name="Leaf"), holding("B", "Leaf", repeat=199)
    check(holding("A", "B", repeat=499), block, leaf)  # 1 + 499 · (1 + 199)
    assert refusal(holding("A", "B", repeat=500), block, leaf)[0] == "A"


def test_places_of_a_list_that_no_child_fills_are_modules_too():
    check(layer_with(child("a.99998")))
    check(layer_with(child("a.b.99998")))
    check(layer_with(child("99998"), child("5")))
    check(layer_with(child("a.5"), child("a.49998"), child("b.49998")))
    refused = (["99999"], ["a.99999"], ["a.b.99999"], ["a.99998", "b"], ["a.49999", "b.49999"])
    for names in refused:
        node, message = refusal(layer_with(*map(child, names)))
        assert (node, "unfolds to over" in message) == ("L", True)


def test_programs_unfold_to_no_more_than_a_million_parameters():
    leaf = whole("Leaf", *(Param(f"b{i}", "Buffer", [1]) for i in range(1000)))
    leaves = Param("n", "Layer", layer="Leaf", repeat=1000)
    check(whole("L", leaves, child("m")), leaf)
    for more in (Param("b", "Buffer", [1]), INPUT):
        node, message = refusal(whole("L", leaves, more), leaf)
        assert (node, "or 1000000 parameters" in message) == ("L", True)


def test_programs_have_no_more_than_20000_layers():
    leaves = [whole(f"L{i}") for i in range(20_000)]
    params = [Param(f"c{i}", "Layer", layer=leaf.name) for i, leaf in enumerate(leaves)]
    check(whole("A", *params[1:]), *leaves[1:])
    assert refusal(whole("A", *params), *leaves) == ("program", "has over 20000 layers.")


def tower(name, height, *below):
    """Layers in each other, and below them others; the topmost first."""
    above = [holding(f"{name}{i}", f"{name}{i - 1}") for i in range(height, 0, -1)]
    return [*above, holding(f"{name}0", *below)]


def test_layers_are_nested_no_deeper_than_64():
    check(*tower("L", 64))
    check(*tower("L", 63, "M"), layer_with(name="M"))
    for layers in (tower("L", 65), tower("L", 66), tower("L", 3000)):
        assert refusal(*layers)[1] == "is nested deeper than 64."


def test_layers_that_were_measured_higher_up_are_measured_further_down():
    def shared(height):
        """The tower of M is a child of the root, and of the lowest layer of L."""
        return [holding("A", "M30", f"L{height}"), *tower("L", height, "M30"), *tower("M", 30)]

    check(*shared(32))  # A, 33 of L, 31 of M
    assert refusal(*shared(33)) == ("A", "is nested deeper than 64.")


def test_a_program_of_several_layers():
    check(holding("A", "B", "C"), holding("B", "C"), layer_with(name="C"))
    assert refusal(holding("A", "B"), holding("B"), layer_with(name="C")) == (
        "C",
        "is not used by root 'A'. Remove it.",
    )
    assert refusal(holding("A", "B"), holding("B", "A")) == ("A", "contains itself through A → B.")


@pytest.mark.parametrize("name", ["print", "int", "list", "None_", "class", "Linear"])
def test_names_of_layers(name):
    if name == "None_":
        check(layer_with(name=name))
    else:
        assert refusal(layer_with(name=name))[0] == "program.layers[0].name"


# ---- bodies


def test_bodies_of_one_statement():
    check(layer_with(body=[]))
    check(layer_with(body=[Unspecified()]))
    check(layer_with(body=[Return(X)]))
    check(LayerDef("L", [WEIGHT], [Unspecified()]))
    check(LayerDef("L", [WEIGHT]))


@pytest.mark.parametrize(
    ("body", "node", "message"),
    [
        ([Unspecified(), Unspecified()], "L.body[0]", "is Unspecified, expected an Assignment."),
        ([Assignment("y", X)], "L.body[0]", "is Assignment, expected a Return."),
        ([Return(X), Return(X)], "L.body[0]", "is Return, expected an Assignment."),
        ([Unpack("yz", call("unbind", X))], "L.body[0]", "is Unpack, expected a Return."),
        ([Return(X), Unspecified()], "L.body[0]", "is Return, expected an Assignment."),
    ],
)  # fmt: skip
def test_bodies_end_with_their_only_return(body, node, message):
    assert refusal(layer_with(body=body)) == (node, message)


def test_bodies_have_at_most_20000_statements():
    body = [Assignment("x", X)] * 20_000
    check(layer_with(body=[*body[1:], Return(X)]))
    assert refusal(layer_with(body=[*body, Return(X)])) == ("L.body", "has over 20000 statements.")


@pytest.mark.parametrize(
    ("targets", "value"),
    [
        (["a", "b"], call("chunk", X, Literal(2))),
        (["a", "_"], call("topk", X, Literal(2))),
        (["_", "_", "a"], call("unbind", X)),
        (["x", "b"], call("split", X, Literal(2))),
        (["a", "b", "c"], LayerCall("n", [X])),
    ],
)
def test_unpacking(targets, value):
    names = [Identifier(target) for target in targets if target != "_"]
    check(layer_with(child("n"), body=[Unpack(targets, value), Return(Tuple(names))]))


HALVES = call("chunk", X, Literal(2))


@pytest.mark.parametrize(
    ("targets", "value", "where"),
    [
        ([], HALVES, ""),
        (["a"], HALVES, ""),
        (["_"], HALVES, ""),
        (["_", "_"], HALVES, ""),
        (["a", "a"], HALVES, ""),
        (["a", "b", "a"], HALVES, ""),
        (["a", "class"], HALVES, ""),
        (["forward", "b"], HALVES, ""),
        (["a", "b"], X, ".value"),
        (["a", "b"], call("relu", X), ".value"),
        (["a", "b"], Tuple([X, X]), ".value"),
        (["a", "b"], call("chunk", Y, Literal(2)), ".value.x"),
        (["a", "b"], call("chunk", Identifier("a"), Literal(2)), ".value.x"),
        (["a", "b"], LayerCall("m", [X]), ".value"),
    ],
)
def test_what_is_no_unpacking(targets, value, where):
    body = [Unpack(targets, value), Return(X)]
    assert refusal(layer_with(child("n"), body=body))[0] == f"L.body[0]{where}"


def test_what_is_unpacked_is_known_from_then_on():
    check(layer_with(body=[Unpack(["a", "_"], HALVES), Return(Identifier("a"))]))
    body = [Unpack(["a", "_"], HALVES), Return(BinaryOp("+", X, Identifier("b")))]
    assert refusal(layer_with(body=body))[0] == "L.body[1].value.right"
    body = [Unpack(["a", "_"], HALVES), Return(Identifier("_"))]
    assert refusal(layer_with(body=body))[0] == "L.body[1].value"


# ---- expressions


@pytest.mark.parametrize(
    "value",
    [
        Literal(0.5),
        BinaryOp("**", X, Literal(2)),
        BinaryOp("-", Literal(1), X),
        UnaryOp("~", X),
        LayerCall("n", [X]),
        LayerCall("n", [X, X]),
        Identifier("n.weight"),
        Identifier("w"),
        call("relu", Identifier("w")),
        call("linear", X, Identifier("w"), Literal(None)),
        call("linear", X, Identifier("w"), X),
        call("linear", X, Identifier("n.weight")),
        call("bit_linear", X, Identifier("w")),
        call("bit_linear", X, weight=Identifier("packed.weight")),
        call("add", X, Literal("inf")),
        call("add", X, Literal(2)),
        call("add", X, X),
        call("where", X, Literal("-inf"), X),
        call("arange", Literal(3)),
        call("arange", call("size", X, Literal(0)), device=X),
        call("arange", Literal(3), device=Literal(None)),
        call("reshape", X, Literal(-1)),
        call("reshape", X, call("size", X, Literal(0))),
        call("reshape", X, Tuple([Literal(2), call("size", X, Literal(1))])),
        call("reshape", X, Tuple([])),
        call("zeros", Tuple([Literal(2), call("size", X, Literal(1))])),
        call("slice", X, Literal(16)),
        call("slice", X, Literal(-16)),
        call("slice", X, Literal(0), Literal(17), call("size", X, Literal(0))),
        call("slice", X, Literal(0), Literal(0), Literal(None)),
        call("mean", X, Tuple([Literal(0), Literal(1)]), keepdim=Literal(True)),
        call("mean", X, Literal(None)),
        call("mean", X),
        call("cat", Tuple([X, X])),
        call("clamp", X, max=Literal(1)),
        call("to", X, Literal("int64")),
        call("gelu", X, approximate=Literal("tanh")),
    ],
    ids=lambda v: repr(v)[:80],
)
def test_expressions(value):
    packed = {"layer": "TernaryLinear", "args": {"in_features": 4, "out_features": 4}}
    check(returning(value, WEIGHT, child("n"), Param("packed", "Layer", **packed)))


FLOAT = Param("f", "Tensor", [4, 4])
WIDE = Param("v", "TernaryTensor", [4, 4, 4], split=2)
FLAT = Param("u", "TernaryTensor", [4])


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (call("bit_linear", X, Identifier("f")), ".weight"),
        (call("bit_linear", X, Identifier("v")), ".weight"),
        (call("bit_linear", X, Identifier("u")), ".weight"),
        (call("bit_linear", X, BinaryOp("+", Identifier("w"), Identifier("w"))), ".weight"),
        (call("bit_linear", X, Identifier("n.weight")), ".weight"),
        (call("zeros", Literal(2)), ".shape"),
        (call("zeros", X), ".shape"),
        (call("zeros", call("size", X, Literal(0))), ".shape"),
        (call("reshape", X, Y), ".shape"),
        (call("reshape", X, call("size", Y, Literal(0))), ".shape.x"),
        (call("reshape", X, Tuple([Literal(True)])), ".shape.items[0]"),
        (call("reshape", X, Tuple([Literal("inf")])), ".shape.items[0]"),
        (call("reshape", X, Tuple([Literal(2), Y])), ".shape.items[1]"),
        (call("slice", X, Literal(0), Y), ".start"),
        (call("slice", X, Literal(0), Literal(0.5)), ".start"),
        (call("slice", X, Literal(-17)), ".dim"),
        (call("softmax", X, dim=X), ".dim"),
        (call("mean", X, X), ".dim"),
        (call("arange", Literal(3), device=Literal(0)), ".device"),
        (call("arange", Literal(3), device=Y), ".device"),
        (call("arange", Literal(2.5)), ".end"),
        (call("add", X, Y), ".y"),
        (call("add", X, Literal("nan")), ".y"),
        (call("add", X, Literal(True)), ".y"),
        (call("add", X, Literal(None)), ".y"),
        (call("linear", X, Identifier("w"), Y), ".bias"),
        (call("linear", X, Identifier("w"), Literal(0)), ".bias"),
        (call("linear", Y, Identifier("w")), ".x"),
        (call("cat", Literal(1)), ".tensors"),
        (call("cat", Tuple([X, Tuple([X])])), ".tensors.items[1]"),
        (call("mean", X, keepdim=X), ".keepdim"),
        (call("clamp", X, max=X), ".max"),
        (BinaryOp("+", Y, X), ".left"),
        (UnaryOp("-", Y), ".operand"),
        (LayerCall("n", [X, Y]), ".args[1]"),
        (LayerCall("x", [X]), ""),
        (Dict({"a": X, "b": Dict({"c": Y})}), ".b.c"),
        (Tuple([]), ""),
        (Dict({"a": Tuple([])}), ".a"),
        (Dict({"1": X}), ""),
        (Identifier("n"), ""),
        (Identifier("n.scale"), ""),
        (Identifier("w.weight"), ""),
        (Literal("x"), ""),
        (Identifier(".".join(["a"] * 100_000)), ""),
    ],
    ids=lambda v: repr(v)[:80],
)
def test_what_is_no_expression(value, where):
    node, message = refusal(returning(value, WEIGHT, FLOAT, WIDE, FLAT, child("n")))
    assert node == f"L.body[0].value{where}"
    assert message.endswith(".")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (call("relu", X, X), "gives relu 2 arguments, expected at most 1."),
        (FunctionCall("relu", [X], {"x": X}), "gives relu argument 'x' twice."),
        (call("relu", X, y=X), "gives relu argument 'y' which it does not take."),
        (call("relu"), "gives relu no argument 'x'."),
        (FunctionCall("relu", [], [("x", X), ("x", X)]), "gives relu argument 'x' twice."),
    ],
)
def test_arguments_that_do_not_fit(value, message):
    assert refusal(returning(value)) == ("L.body[0].value", message)


# ---- nesting

NESTS = {
    "unary": lambda v: UnaryOp("-", v),
    "left": lambda v: BinaryOp("+", v, X),
    "right": lambda v: BinaryOp("+", X, v),
    "call": lambda v: call("relu", v),
    "value": lambda v: call("add", X, v),
    "layer": lambda v: LayerCall("n", [v]),
    "tensors": lambda v: call("cat", Tuple([v])),
    "size": lambda v: call("reshape", X, v),
    "sizes": lambda v: call("reshape", X, Tuple([v])),
}
#: How many levels each of them adds.
LEVELS = dict.fromkeys(NESTS, 1) | {"tensors": 2, "sizes": 2}
RESULTS = {"tuple": lambda v: Tuple([v]), "dict": lambda v: Dict({"a": v})}


def nested(nest, times):
    value = X
    for _ in range(times):
        value = nest(value)
    return value


@pytest.mark.parametrize("kind", NESTS)
def test_expressions_are_nested_no_deeper_than_64(kind):
    most = 63 // LEVELS[kind]
    check(returning(nested(NESTS[kind], most), child("n")))
    node, message = refusal(returning(nested(NESTS[kind], most + 1), child("n")))
    assert message == "is nested deeper than 64."
    assert node.startswith("L.body[0].value.")
    assert len(node) <= 200


@pytest.mark.parametrize("kind", RESULTS)
def test_results_are_nested_no_deeper_than_64(kind):
    check(returning(nested(RESULTS[kind], 63)))
    step = {"tuple": ".items[0]", "dict": ".a"}[kind]
    for times in (64, 65, 500, 5000):
        node, message = refusal(returning(nested(RESULTS[kind], times)))
        assert message == "is nested deeper than 64."
        assert node == f"L.body[0].value{step * 64}"[:200]


def test_a_value_in_a_statement_is_nested_as_deep_as_one_that_is_returned():
    for times, good in ((63, True), (64, False)):
        value = nested(NESTS["unary"], times)
        halves = call("chunk", nested(NESTS["unary"], times - 1), Literal(2))
        for statement in (Assignment("y", value), Unpack(["y", "z"], halves)):
            tree = layer_with(body=[statement, Return(X)])
            if good:
                check(tree)
            else:
                assert refusal(tree)[1] == "is nested deeper than 64."
