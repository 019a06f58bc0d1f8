"""Checkpoints of small models."""

import torch
from corpus import make
from trees import INPUT

from tpack.layerdef import (
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Param,
    Program,
    Return,
)

LOADABLE = [name for name in sorted(make.checkpoints()) if name != "names"]


def mlp():
    """A program with a repeated block, and its source."""
    x = Identifier("x")
    block = LayerDef(
        "Block",
        [
            Param("weight", "TernaryTensor", [16, 16]),
            Param("bias", "Tensor", [16]),
            INPUT,
        ],
        [
            Return(
                FunctionCall(
                    "relu",
                    [FunctionCall("linear", [x, Identifier("weight"), Identifier("bias")])],
                )
            )
        ],
    )
    root = LayerDef(
        "Mlp",
        [Param("blocks", "Layer", layer="Block", repeat=3), INPUT],
        [Return(LayerCall("blocks", [x]))],
    )
    generator = torch.Generator().manual_seed(0)
    state = {}
    for i in range(3):
        state[f"blocks.{i}.weight"] = make.trits(16, 16) * (i + 1) / 16
        state[f"blocks.{i}.bias"] = torch.randn(16, generator=generator)
    return Program([block, root], "Mlp"), state
