"""Modules for the tests of training."""

import torch
from running import randomize
from trees import INPUT, X, call

from tpack.layerdef import Identifier, LayerCall, LayerDef, Param, Program, Return
from tpack.nn import (
    BitLinear,
    TernaryConv2d,
    TernaryEmbedding,
    TernaryLinear,
)

SCALES = ["tensor", "row", "column", "group:5", "group:32"]


def layer_of(kind, **options):
    """A layer with random bytes and scales, and an input for it."""
    generator = torch.Generator().manual_seed(1)
    if kind == "embedding":
        layer, x = TernaryEmbedding(9, 33, **options), torch.tensor([[1, 2, 8], [1, 0, 1]])
    elif kind == "conv2d":
        layer = TernaryConv2d(4, 6, 3, padding=1, groups=2, stride=2, **options)
        x = torch.randn(2, 4, 7, 7, generator=generator)
    else:
        layer = {"linear": TernaryLinear, "bit_linear": BitLinear}[kind](33, 6, **options)
        x = torch.randn(2, 5, 33, generator=generator)
    randomize(layer)
    with torch.no_grad():
        layer.weight_scale.abs_().add_(0.1)
    return layer, x


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def states_equal(first, second):
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert second[name].dtype == tensor.dtype
        assert torch.equal(second[name], tensor)


def network():
    """Digits of 16 pixels: a block that is repeated, a norm and a head."""
    block = LayerDef(
        "Block",
        [
            Param("up", "TernaryTensor", [16, 16], scale="row"),
            Param("shift", "Tensor", [16]),
            INPUT,
        ],
        [Return(call("relu", call("linear", X, Identifier("up"), Identifier("shift"))))],
    )
    head = {"in_features": 16, "out_features": 4, "scale": "group:32"}
    root = LayerDef(
        "Net",
        [
            Param("blocks", "Layer", layer="Block", repeat=2),
            Param("norm", "Layer", layer="LayerNorm", args={"normalized_shape": 16}),
            Param("head", "Layer", layer="BitLinear", args=head),
            INPUT,
        ],
        [Return(LayerCall("head", [LayerCall("norm", [LayerCall("blocks", [X])])]))],
    )
    return Program([block, root], "Net")
