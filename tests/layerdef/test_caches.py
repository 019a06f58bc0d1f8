"""Programs that take a cache: their checks, and their readings decode alike."""

import pytest
import torch
from running import from_source, readings

import tpack
from tpack.errors import LayerDefError
from tpack.layerdef import (
    Assignment,
    Dict,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Unpack,
    validate,
)
from tpack.nn import KeyValueCache
from tpack.readback import read_program

X, IDS, PAST, CACHE = map(Identifier, ("x", "ids", "past", "cache"))


def call(op, *args):
    return FunctionCall(op, args)


def linear(name, out=8):
    return Param(name, "Layer", layer="Linear", args={"in_features": 8, "out_features": out})


def attention(*before):
    heads = {name: call("unsqueeze", LayerCall(name, [X]), Literal(1)) for name in "qkv"}
    return LayerDef(
        "Attention",
        [*map(linear, "qkv"), Param("x", "Tensor"), Param("past", "Cache")],
        [
            *before,
            Assignment("query", heads["q"]),
            Unpack(["keys", "values"], call("cache_extend", PAST, heads["k"], heads["v"])),
            Assignment(
                "heads", call("causal_attention", *map(Identifier, ("query", "keys", "values")))
            ),
            Return(call("squeeze", Identifier("heads"), Literal(1))),
        ],
    )


def decoder(*statements, children=None):
    layers = [Param("layers", "Layer", layer="Attention", repeat=3)]
    size = Assignment("positions", call("arange", call("size", IDS, Literal(1))))
    moved = FunctionCall("add", [Identifier("positions"), call("cache_length", CACHE)])
    return LayerDef(
        "Decoder",
        [
            Param(
                "embed", "Layer", layer="Embedding", args={"num_embeddings": 11, "embedding_dim": 8}
            ),
            Param(
                "places",
                "Layer",
                layer="Embedding",
                args={"num_embeddings": 40, "embedding_dim": 8},
            ),
            *(children or layers),
            linear("head", 11),
            Param("ids", "Tensor"),
            Param("cache", "Cache"),
        ],
        [
            size,
            Assignment("h", call("add", LayerCall("embed", [IDS]), LayerCall("places", [moved]))),
            *(statements or [Assignment("h", LayerCall("layers", [Identifier("h"), CACHE]))]),
            Return(Dict({"logits": LayerCall("head", [Identifier("h")])})),
        ],
    )


LOOP = Program([attention(), decoder()], "Decoder")
ONE_BY_ONE = Program(
    [
        attention(),
        decoder(
            *(
                Assignment(
                    "h",
                    LayerCall(
                        f"layers.{i}", [Identifier("h"), call("cache_layer", CACHE, Literal(1 - i))]
                    ),
                )
                for i in range(2)
            ),
            children=[Param(f"layers.{i}", "Layer", layer="Attention") for i in range(2)],
        ),
    ],
    "Decoder",
)


@pytest.mark.parametrize("tree", [LOOP, ONE_BY_ONE])
def test_readings_decode_as_without_a_cache(tree):
    ids = torch.tensor([[1, 2, 3, 4, 5], [5, 5, 0, 7, 9]])
    for name, module in readings(tree).items():
        cache = KeyValueCache()
        steps = [module(part, cache)["logits"] for part in ids.split([2, 1, 2], 1)]
        whole = module(ids)["logits"]
        torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-5, atol=1e-5)
        assert cache.length() == 5, name
        assert torch.equal(module(ids=ids, cache=KeyValueCache())["logits"], whole)


@pytest.mark.parametrize("tree", [LOOP, ONE_BY_ONE])
@pytest.mark.parametrize("standalone", [False, True])
def test_its_source_is_read_back(tree, standalone):
    again = read_program(from_source(tree, standalone))
    validate(again)
    assert tpack.generate_pytorch_code(again) == tpack.generate_pytorch_code(tree)
    assert {p.name for p in again.by_name["Decoder"].params if p.is_cache} == {"cache"}


def test_json_gives_the_same_program():
    assert Program.from_dict(LOOP.to_dict()) == LOOP
    assert {"name": "cache", "param_type": "Cache", "shape": None} in LOOP.to_dict()["layers"][1][
        "params"
    ]


def test_a_loop_prints_the_part_of_each_layer():
    source = tpack.generate_pytorch_code(LOOP)
    assert (
        "for i, layer in enumerate(self.layers):\n            h = layer(h, cache.layer(i))"
        in source
    )
    assert "def forward(self, x: Tensor, past: KeyValueCache = NO_CACHE) -> Tensor:" in source
    assert "from tpack.nn import NO_CACHE, KeyValueCache, causal_attention\n" in source


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            Program([attention(Assignment("y", call("relu", PAST)))], "Attention"),
            "a cache, expected a tensor",
        ),
        (
            Program([attention(Assignment("y", call("cache_length", X)))], "Attention"),
            "a tensor, expected a cache",
        ),
        (
            Program(
                [attention(), decoder(Assignment("h", LayerCall("layers", [CACHE, X])))], "Decoder"
            ),
            "is a cache, expected a tensor",
        ),
        (
            Program(
                [LayerDef("L", [Param("cache", "Cache"), Param("x", "Tensor")], [Return(X)])], "L"
            ),
            "Put the cache last",
        ),
        (
            Program(
                [
                    LayerDef(
                        "L", [Param("x", "Tensor"), Param("c", "Cache")], [Return(Identifier("c"))]
                    )
                ],
                "L",
            ),
            "is a cache, expected a tensor",
        ),
        (
            Program(
                [LayerDef("L", [Param("c", "Cache", [2]), Param("x", "Tensor")], [Return(X)])], "L"
            ),
            "is a Cache",
        ),
    ],
)
def test_a_cache_stands_only_where_one_is_taken(program, message):
    with pytest.raises(LayerDefError, match=message):
        validate(program)


def test_a_cache_of_another_batch_or_after_a_failed_forward_is_refused():
    module = readings(LOOP)["build"]
    cache = KeyValueCache()
    module(torch.ones(2, 3, dtype=torch.int64), cache)
    with pytest.raises(
        ValueError, match=r"batch and heads \(2, 1\), found torch.float32 of \(1, 1\)"
    ):
        module(torch.ones(1, 1, dtype=torch.int64), cache)
    cache.layer(0).extend(torch.ones(2, 1, 1, 8), torch.ones(2, 1, 1, 8))
    with pytest.raises(RuntimeError, match="did not finish"):
        cache.length()
