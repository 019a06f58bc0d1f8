"""Complete a program with what only the tensors show: dtypes, layouts, granularities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tpack.codec import Scale
from tpack.errors import LayerDefError
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.nodes import LayerDef, Param, Program
from tpack.layerdef.tensors import Slot, slots
from tpack.wording import spell_exclude


@dataclass(frozen=True)
class Found:
    """What a stored tensor turned out to be: dtype (of the scale, if ternary) and scale."""

    shape: tuple[int, ...]
    dtype: str
    scale: Scale | None = None


def match_slots(program: Program, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
    """Match the tensors of a source with the slots of a program, by name and shape.

    Raises:
        LayerDefError: missing, surplus or differently shaped tensors.
    """
    by_name = {slot.name: slot for slot in slots(program)}
    missing = sorted(set(by_name) - set(shapes))
    surplus = sorted(set(shapes) - set(by_name))
    if missing or surplus:
        parts = [f"lacks {', '.join(missing[:5])}"] if missing else []
        parts += [f"also has {', '.join(surplus[:5])}"] if surplus else []
        raise LayerDefError(f"the source does not match the LayerDefs: it {' and '.join(parts)}.")
    for name, slot in by_name.items():
        if slot.param.shape != shapes[name]:
            raise LayerDefError(
                f"has shape {shapes[name]}, expected {slot.param.shape} by the LayerDefs.",
                tensor=name,
            )
    return by_name


def complete(
    program: Program, found: Mapping[str, Found], layout: str | None = None
) -> tuple[Program, dict[str, Scale]]:
    """Rewrite a program to describe the tensors that were found.

    Copies of one layer share its description: where their scales lie differently, all take
    the coarsest granularity to which each can be repeated, which loses nothing.

    Args:
        program: the description so far.
        found: the tensors, by name before packing.
        layout: of the packed bytes; that of the program, if not given.

    Returns:
        The program, and the granularity of each ternary tensor.

    Raises:
        LayerDefError: copies of one layer have different dtypes, or one has scales per column
            and another per row or group.
    """
    homes: dict[tuple[str, str, str], Found] = {}
    granularity: dict[str, tuple[str, str, str]] = {}
    for slot in slots(program):
        new = found[slot.name]
        old = homes.setdefault(slot.home, new)
        if old.dtype != new.dtype:
            raise LayerDefError(
                f"is {new.dtype}, expected {old.dtype} like the other copies of {slot.home[0]}. "
                "Give it a LayerDef of its own.",
                tensor=slot.name,
            )
        if new.scale is not None and old.scale is not None:
            common = old.scale.common(new.scale)
            if common is None:
                raise LayerDefError(
                    f"has scales per {new.scale}, other copies of {slot.home[0]} per {old.scale}: "
                    "no one description fits both. Give it a LayerDef of its own, or keep it with "
                    f"{spell_exclude(slot.name)}.",
                    tensor=slot.name,
                )
            homes[slot.home] = replace(old, scale=common)
            granularity[slot.name] = slot.home
    layers = [_complete_layer(layer, homes, layout) for layer in program.layers]
    scales = {name: homes[home].scale for name, home in granularity.items()}
    return Program(layers, program.root), {n: s for n, s in scales.items() if s is not None}


def _complete_layer(
    layer: LayerDef, homes: Mapping[tuple[str, str, str], Found], layout: str | None
) -> LayerDef:
    params = []
    for param in layer.params:
        if param.is_stored:
            one = homes[layer.name, param.name, ""]
            ternary: dict[str, Any] = (
                {"scale": str(one.scale), "layout": layout or param.layout} if one.scale else {}
            )
            params.append(replace(param, dtype=one.dtype, **ternary))
        elif param.layer in BUILTIN:
            tensors = {
                key[2]: value for key, value in homes.items() if key[:2] == (layer.name, param.name)
            }
            params.append(_complete_builtin(param, tensors, layout))
        else:
            params.append(param)
    return LayerDef(layer.name, params, layer.body)


def _complete_builtin(param: Param, tensors: Mapping[str, Found], layout: str | None) -> Param:
    weight = tensors.get("weight")
    args: dict[str, Any] = dict(param.args)
    floats = {one.dtype for name, one in tensors.items() if name != "num_batches_tracked"}
    if weight is not None and weight.scale is not None:
        bias = tensors.get("bias", weight)
        args |= {
            "dtype": bias.dtype,
            "scale": str(weight.scale),
            "layout": layout or args.get("layout", "t2"),
            "scale_dtype": weight.dtype if weight.dtype != bias.dtype else None,
        }
    elif len(floats) > 1:
        raise LayerDefError(
            f"{param.layer} has one dtype, found {' and '.join(sorted(floats))}. "
            "Give it a LayerDef of its own.",
            node=param.name,
        )
    elif floats:
        args["dtype"] = floats.pop()
    defaults = {item.name: item.default for item in BUILTIN[param.layer or ""].params}
    return replace(param, args=tuple((k, v) for k, v in args.items() if v != defaults[k]))
