"""The tensors that a program stores: the keys of its state dict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tpack.layerdef.builtin import BUILTIN, stored_by
from tpack.layerdef.nodes import LayerDef, Param, Program


@dataclass(frozen=True)
class Slot:
    """One stored tensor of a model.

    Attributes:
        name: before packing, e.g. ``blocks.0.fc.weight``.
        param: what is stored.
        home: where the tree says so: the LayerDef, its parameter, and for a built-in layer
            the tensor of it. Slots of a repeated layer share one home.
    """

    name: str
    param: Param
    home: tuple[str, str, str] = ("", "", "")


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
                yield Slot(prefix + param.name, param, (layer.name, param.name, ""))
            elif param.param_type == "Layer":
                positions = [""] if param.repeat is None else [f".{i}" for i in range(param.repeat)]
                for position in positions:
                    below = f"{prefix}{param.name}{position}."
                    if param.layer in BUILTIN:
                        for stored in stored_by(param):
                            home = (layer.name, param.name, stored.name)
                            yield Slot(below + stored.name, stored, home)
                    else:
                        yield from walk(layers[param.layer or ""], below)

    yield from walk(layers[program.root], "")
