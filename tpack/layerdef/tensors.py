"""The tensors that a program stores: the keys of its state dict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tpack.layerdef.builtin import BUILTIN, stored_by
from tpack.layerdef.nodes import LayerDef, Param, Program


@dataclass(frozen=True)
class Slot:
    """One stored tensor of a model: its name before packing, and its parameter."""

    name: str
    param: Param


def slots(program: Program) -> Iterator[Slot]:
    """Yield the stored tensors of a validated program, in the order of definition.

    Example:
        >>> block = LayerDef("Block", [Param("w", "TernaryTensor", [4, 4])])
        >>> model = LayerDef("Model", [Param("blocks", "Layer", layer="Block", repeat=2)])
        >>> [slot.name for slot in slots(Program([block, model], "Model"))]
        ['blocks.0.w', 'blocks.1.w']
    """
    layers = program.by_name

    def walk(layer: LayerDef, prefix: str) -> Iterator[Slot]:
        for param in layer.params:
            if param.is_stored:
                yield Slot(prefix + param.name, param)
            elif param.param_type == "Layer":
                positions = [""] if param.repeat is None else [f".{i}" for i in range(param.repeat)]
                for position in positions:
                    below = f"{prefix}{param.name}{position}."
                    if param.layer in BUILTIN:
                        for stored in stored_by(param):
                            yield Slot(below + stored.name, stored)
                    else:
                        yield from walk(layers[param.layer or ""], below)

    yield from walk(layers[program.root], "")
