"""The tensors that a program stores: the keys of its state dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tpack.codec.shapes import Scale, default_split
from tpack.dtypes import BY_NAME
from tpack.layerdef.builtin import BUILTIN, stored_by
from tpack.layerdef.names import is_position
from tpack.layerdef.nodes import LayerDef, Param, Program
from tpack.layerdef.serialization import MAX_DEPTH


@dataclass(frozen=True)
class Slot:
    """One stored tensor of a model.

    Attributes:
        name: before packing, e.g. ``blocks.0.fc.weight``.
        param: what is stored.
        home: where the tree describes it: the LayerDef, its parameter and, for a built-in layer,
            the tensor in it. Slots of a repeated layer share one home.
    """

    name: str
    param: Param
    home: tuple[str, str, str] = ("", "", "")


def kept_param(
    name: str, shape: tuple[int, ...], dtype: str, *, trained: bool | None = None
) -> Param:
    """Describe a stored tensor that is not packed, as a Tensor or as a Buffer.

    Args:
        name: of the tensor; dotted names are read to their last part.
        trained: whether the source has it as a parameter. If None, the name decides: torch's
            norms call their statistics ``running_mean`` and ``running_var``.

    Example:
        >>> kept_param("bn.running_mean", (4,), "float32").param_type
        'Buffer'
        >>> kept_param("running_net.weight", (4,), "float32").param_type
        'Tensor'
    """
    if trained is None:
        trained = "running_" not in name.rpartition(".")[2]
    kind = "Tensor" if trained and BY_NAME[dtype].is_float else "Buffer"
    return Param(name, kind, shape, dtype=dtype)


def ternary_param(
    name: str, shape: tuple[int, ...], dtype: str, scale: Scale, layout: str, split: int
) -> Param:
    """Describe a packed weight; ``dtype`` is that of its scale."""
    usual = split == default_split(len(shape))
    return Param(
        name,
        "TernaryTensor",
        shape,
        dtype=dtype,
        scale=str(scale),
        layout=layout,
        split=None if usual else split,
    )


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
                        yield from walk(layers[str(param.layer)], below)

    yield from walk(layers[program.root], "")


def tensor_of(layer: LayerDef, path: str, layers: Mapping[str, LayerDef]) -> Param | None:
    """Find the tensor of a child that a dotted name means.

    Args:
        layer: where the name is used.
        path: such as ``blocks.0.fc.weight``.
        layers: the LayerDefs of the program.

    Returns:
        The parameter, called by the whole path; None if no child stores it.
    """
    parts = path.split(".", MAX_DEPTH)
    for length in range(1, len(parts)):
        name = ".".join(parts[:length])
        param = layer.by_name.get(name)
        if param is None or param.param_type != "Layer":
            continue
        rest = path[len(name) + 1 :]
        if param.repeat is not None:
            position, _, rest = rest.partition(".")
            if not (is_position(position) and int(position) < param.repeat):
                continue
        if param.layer in BUILTIN:
            found = next((item for item in stored_by(param) if item.name == rest), None)
        else:
            child = layers[str(param.layer)]
            found = child.by_name.get(rest)
            if found is None:
                found = tensor_of(child, rest, layers)
        if found is not None and found.is_stored:
            return replace(found, name=path)
    return None
