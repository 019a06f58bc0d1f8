"""LayerDefs are read back from the classes of generated source."""

import pytest
import torch
from running import from_text
from torch import nn
from trees import INPUT, NORM, X, Y, call, layer

import tpack
from tpack import LayerDefError
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Dict,
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
)
from tpack.readback import read_program


def read_again(tree, *, standalone=False):
    """The program of the class that source of a tree defines."""
    source = generate_pytorch_code(tree, standalone=standalone)
    module = from_text(source, tree.root if isinstance(tree, Program) else tree.name)
    found = read_program(module)
    assert generate_pytorch_code(found, standalone=standalone) == source
    return found


SIX = Tuple([Literal(6)])
BODIES = {
    "slice": [Return(call("slice", X, Literal(1), start=Literal(1), end=Literal(3)))],
    "slice from the end": [Return(call("slice", X, Literal(-2), step=Literal(2)))],
    "slice of the first dim": [
        Return(call("slice", X, Literal(0), end=call("size", X, Literal(1))))
    ],
    "index": [Return(call("index", X, Tuple([X, X])))],
    "index by one": [Return(call("index", X, Tuple([X])))],
    "comparison": [Return(BinaryOp("&", BinaryOp("<=", X, Literal(2)), UnaryOp("~", X)))],
    "infinity": [Return(call("masked_fill", X, BinaryOp("!=", X, X), Literal("-inf")))],
    "rotation": [Return(call("rotate_half", X))],
    "device": [Return(call("arange", call("size", X, Literal(0)), device=X))],
    "dict": [Return(Dict({"one": X, "two": Tuple([X, call("relu", X)])}))],
    "unpack": [
        Unpack(["y", "z"], call("chunk", X, Literal(2))),
        Return(BinaryOp("+", Y, Identifier("z"))),
    ],
    "dropped": [Unpack(["_", "y"], call("topk", X, Literal(2))), Return(Y)],
    "moved": [
        Assignment("residual", X),
        Assignment("x", call("relu", X)),
        Return(BinaryOp("+", X, Identifier("residual"))),
    ],
    "moved twice": [
        Assignment("y", call("relu", X)),
        Assignment("residual", X),
        Assignment("x", call("silu", Y)),
        Assignment("residual2", Y),
        Assignment("y", call("sin", X)),
        Return(call("cat", Tuple([X, Y, Identifier("residual"), Identifier("residual2")]))),
    ],
}


@pytest.mark.parametrize("standalone", [False, True], ids=["importing", "standalone"])
@pytest.mark.parametrize("name", BODIES)
def test_bodies(name, standalone):
    tree = layer(*BODIES[name])
    found = read_again(tree, standalone=standalone)
    assert found.by_name["L"] == tree


def test_constants():
    values = Param("c", "Constant", [2], formula="values", args={"values": (1.0, 2.5)})
    formula = {"dim": 8, "base": 10000.0}
    turns = Param("r", "Constant", [4], formula="rotary_frequencies", args=formula)
    body = Return(call("cat", Tuple([X, Identifier("c"), Identifier("r")])))
    assert read_again(layer(body, params=[values, turns])).by_name["L"].params[:2] == (
        values,
        turns,
    )


def test_lists_that_are_no_loops():
    members = [Param(f"m.{i}", "Layer", **NORM) for i in range(2)]
    once = layer(
        Return(BinaryOp("+", LayerCall("m.0", [X]), LayerCall("m.1", [X]))), params=members
    )
    assert read_again(once).by_name["L"] == once
    named = [Param(f"m.{key}", "Layer", **NORM) for key in ("a", "b")]
    body = Return(LayerCall("m.b", [LayerCall("m.a", [X])]))
    assert read_again(layer(body, params=named)).by_name["L"].params[:2] == tuple(named)


@pytest.mark.parametrize(
    "names",
    [
        ("m.1", "m.3"),
        ("m.0.a", "m.1.a"),
        ("m.0.0", "m.0.1", "m.1.0", "m.1.2"),
        ("m.0.a", "m.2.b"),
        ("1", "3"),
    ],
)
def test_lists_with_gaps_and_lists_in_lists(names):
    members = [Param(name, "Layer", **NORM) for name in names]
    body = X
    for name in reversed(names):
        body = LayerCall(name, [body])
    assert read_again(layer(Return(body), params=members)).by_name["L"].params[:-1] == tuple(
        members
    )


def test_loops_in_lists():
    members = [Param(f"m.{i}", "Layer", repeat=2 + i, **NORM) for i in range(2)]
    body = Return(LayerCall("m.1", [LayerCall("m.0", [X])]))
    assert read_again(layer(body, params=members)).by_name["L"].params[:2] == tuple(members)


def test_loops_with_more_arguments_and_twice():
    block = LayerDef(
        "B", [INPUT, Param("y", "Tensor")], [Return(BinaryOp("*", BinaryOp("+", X, Y), X))]
    )
    inner = [Param("m", "Layer", layer="B", repeat=3), INPUT, Param("y", "Tensor")]
    body = [
        Assignment("x", LayerCall("m", [X, Y])),
        Assignment("x", LayerCall("m", [X, Y])),
        Return(X),
    ]
    program = Program([block, LayerDef("L", inner, body)], "L")
    assert read_again(program).by_name["L"] == program.by_name["L"]


def test_tensors_of_children():
    table = Param(
        "table", "Layer", layer="Embedding", args={"num_embeddings": 3, "embedding_dim": 4}
    )
    tree = layer(Return(call("linear", X, Identifier("table.weight"))), params=[table])
    assert read_again(tree).by_name["L"] == tree


def test_what_no_op_says_is_refused_with_its_line(tmp_path):
    class Inverts(nn.Module):
        def forward(self, x):
            return torch.erfinv(x)

    class Decides(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    for module, text in (
        (Inverts(), r"test_readback.py:\d+: Inverts calls erfinv"),
        (Decides(), r"test_readback.py:\d+: Decides decides by sizes or values"),
    ):
        with pytest.raises(LayerDefError, match=text):
            tpack.save(module, tmp_path / "m.tpack.safetensors")
