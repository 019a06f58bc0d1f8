"""The tensors of an instance of a generated class, and the arguments of its layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tpack.capturing.known import constant_param
from tpack.codec.shapes import Scale
from tpack.dtypes import elements_of
from tpack.layerdef import Param
from tpack.layerdef.ops import OpParam
from tpack.layerdef.tensors import kept_param, ternary_param


def stored_params(module: nn.Module) -> list[Param]:
    """Describe the tensors that a module itself holds.

    Raises:
        LayerDefError: a constant that has too many elements, or values that are not finite.
    """
    shapes: dict[str, tuple[int, ...]] = getattr(module, "ternary_shapes", {})
    layouts: dict[str, str] = getattr(module, "ternary_layouts", {})
    groups: dict[str, int] = getattr(module, "ternary_groups", {})
    hidden = {f"{name}_{part}" for name in shapes for part in ("packed", "scale")}
    found = []
    for name, shape in shapes.items():
        packed, scale = getattr(module, f"{name}_packed"), getattr(module, f"{name}_scale")
        split = packed.dim() - 1
        granularity = Scale.of(scale.shape, shape, split, groups.get(name, 0))
        layout = layouts.get(name, "t2")
        found.append(ternary_param(name, shape, _dtype(scale), granularity, layout, split))
    unsaved = module._non_persistent_buffers_set  # noqa: SLF001
    for trained, tensors in (
        (True, module.named_parameters(recurse=False)),
        (False, module.named_buffers(recurse=False)),
    ):
        for name, tensor in tensors:
            if name in unsaved:
                found.append(constant_param(tensor.detach().cpu(), name))
            elif name not in hidden:
                dtype, shape = elements_of(_dtype(tensor), tuple(tensor.shape))
                found.append(kept_param(name, shape, dtype, trained=trained))
    return found


def constructed_with(module: nn.Module, param: OpParam) -> Any:
    """Return an argument that a built-in layer was made with, read from the instance."""
    if param.name == "bias" and param.kind == "bool":
        return module.bias is not None
    weight = getattr(module, "weight_scale", None)
    bias = getattr(module, "bias", None)
    if param.name == "scale":
        shape = module.shape
        assert isinstance(weight, Tensor)
        size = module.group_size
        return str(Scale.of(weight.shape, shape, len(shape[:1]), size))  # type: ignore[index, arg-type]
    if param.name == "layout":
        return module.ternary_layouts["weight"]  # type: ignore[index]
    if param.name == "scale_dtype":
        return _dtype(weight) if isinstance(weight, Tensor) else None
    if param.name == "dtype":
        first = bias if isinstance(bias, Tensor) else weight
        return _dtype(first if first is not None else module.weight)
    if param.name in ("in_channels", "out_channels", "kernel_size") and weight is not None:
        out, inner, *kernel = module.shape  # type: ignore[misc]
        sizes = {"out_channels": out, "in_channels": inner * module.groups}
        return sizes.get(param.name, _one(tuple(kernel)))
    return _one(getattr(module, param.name))


def _one(value: Any) -> Any:
    """Turn a tuple of equal sizes into one size, as generated source spells it."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    return value


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
