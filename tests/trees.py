"""Small trees, and the words to write them with."""

from __future__ import annotations

import torch

from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Param,
    Program,
    Return,
    Statement,
    Tuple,
    UnaryOp,
)

X, Y, W = Identifier("x"), Identifier("y"), Identifier("w")
#: What a layer takes, and a child that has parameters of its own.
INPUT = Param("x", "Tensor")
NORM = {"layer": "LayerNorm", "args": {"normalized_shape": 4}}


def call(function, *args, **kwargs):
    return FunctionCall(function, args, kwargs)


def layer(*body, params=(), inputs=("x",), name="L"):
    """A layer of parameters, inputs without a shape, and statements."""
    return LayerDef(name, [*params, *(Param(one, "Tensor") for one in inputs)], body)


def returning(value, *params):
    """A layer that returns a value, with parameters besides its input."""
    return layer(Return(value), params=params)


def holding(name, *children, repeat=None):
    """A layer that holds layers of these classes and returns its input."""
    params = [Param(f"c{i}", "Layer", layer=c, repeat=repeat) for i, c in enumerate(children)]
    return layer(Return(X), params=params, name=name)


def block(width=6):
    return LayerDef(
        "Block",
        [
            Param("norm", "Layer", layer="LayerNorm", args={"normalized_shape": width}),
            Param("up", "TernaryTensor", [2 * width, width], scale="row"),
            Param("down", "TernaryTensor", [width, 2 * width], scale="group:4", dtype="float16"),
            Param("bias", "Tensor", [width]),
            Param("shift", "Buffer", [width], dtype="float32"),
            Param("x", "Tensor"),
        ],
        [
            Assignment(
                "h", call("relu_squared", call("linear", LayerCall("norm", [X]), Identifier("up")))
            ),
            Assignment(
                "h",
                call("linear", Identifier("h"), Identifier("down"), bias=Identifier("bias")),
            ),
            Return(BinaryOp("+", X, BinaryOp("+", Identifier("h"), Identifier("shift")))),
        ],
    )


def network():
    return Program(
        [
            block(),
            LayerDef(
                "Net",
                [
                    Param(
                        "embed",
                        "Layer",
                        layer="TernaryEmbedding",
                        args={"num_embeddings": 11, "embedding_dim": 6, "scale": "row"},
                    ),
                    Param("blocks", "Layer", layer="Block", repeat=3),
                    Param(
                        "head",
                        "Layer",
                        layer="BitLinear",
                        args={"in_features": 6, "out_features": 5, "layout": "t5"},
                    ),
                    Param("ids", "Tensor"),
                ],
                [
                    Assignment("x", LayerCall("embed", [Identifier("ids")])),
                    Assignment("x", LayerCall("blocks", [X])),
                    Return(LayerCall("head", [X])),
                ],
            ),
        ],
        "Net",
    )


IDS = torch.tensor([[1, 2, 10], [0, 5, 5]])


def names_in(node: Expression) -> set[str]:
    """The identifiers of an expression."""
    match node:
        case Identifier(name):
            return {name}
        case Tuple(items):
            parts = list(items)
        case UnaryOp(_, operand):
            parts = [operand]
        case BinaryOp(_, left, right):
            parts = [left, right]
        case FunctionCall(_, given, named):
            parts = [*given, *(value for _, value in named)]
        case LayerCall(_, given):
            parts = list(given)
        case _:
            parts = []
    return set().union(*map(names_in, parts))


def live(body: list[Statement]) -> list[Statement]:
    """The statements whose result is used."""
    kept: list[Statement] = []
    wanted: set[str] = set()
    for statement in reversed(body):
        if isinstance(statement, Assignment):
            if statement.target not in wanted:
                continue
            wanted.discard(statement.target)
        wanted |= names_in(statement.value)
        kept.append(statement)
    return kept[::-1]
