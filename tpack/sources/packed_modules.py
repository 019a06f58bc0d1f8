"""The packed weights of a live module: of ``tpack.nn``, loaded, generated, or a mix of these.

They are found by their attributes, which standalone source has too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tpack import codec
from tpack.codec import Scale, rows_and_columns
from tpack.container import Origin
from tpack.dtypes import SCALE_DTYPES
from tpack.errors import UsageError
from tpack.quantize import Rounding
from tpack.sources.source import PackedTensor


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight that a module holds packed, or as a float master that stands for a packed one.

    Attributes:
        owner: the module with the weight.
        attribute: the name of the weight there: its bytes are in ``<attribute>_packed``.
        packed: uint8 (rows, row bytes), in ``layout``.
        scale: as stored.
        shape: logical shape of the weight.
        split: leading dims that index rows.
        layout: of the bytes.
        granularity: which weights share a scale.
        rounding: the rule of a float master that is another weight than it was when unfrozen.
    """

    owner: nn.Module
    attribute: str
    packed: Tensor
    scale: Tensor
    shape: tuple[int, ...]
    split: int
    layout: str
    granularity: Scale
    rounding: Rounding | None = None

    @property
    def dtype(self) -> str:
        """Dtype of the scale."""
        return str(self.scale.dtype).removeprefix("torch.")

    @property
    def rounds_inputs(self) -> bool:
        """Whether its layer rounds inputs to int8 per token."""
        return any(kind.__name__ == "BitLinear" for kind in type(self.owner).__mro__)

    def placeholder(self) -> Tensor:
        """Return a tensor in the shape of the weight, without its values and almost no memory."""
        return torch.zeros((), dtype=self.scale.dtype, device=self.scale.device).expand(self.shape)

    def as_source(self, name: str) -> PackedTensor:
        """Return the weight as a tensor of a source; its bytes are read when they are wanted."""
        columns = rows_and_columns(self.shape, self.split)[1]
        scale = self.scale.detach().cpu().contiguous()
        bits = scale.view(torch.uint16) if scale.dtype == torch.bfloat16 else scale
        width = self.packed.shape[-1]

        def rows(first: int, last: int) -> npt.NDArray[np.uint8]:
            found = self.packed.detach().reshape(-1, width)[first:last].cpu().contiguous().numpy()
            # both ways, so that codes are checked and the padding is the one of the format
            return codec.pack(codec.unpack(found, columns, self.layout))

        return PackedTensor(
            name,
            self.dtype,
            self.shape,
            rows,
            bits.numpy(),
            self.dtype,
            self.granularity,
            self.packed.numel() + scale.numel() * scale.element_size(),
            column_dims=len(self.shape) - self.split,
            layout=self.layout,
            method=None,
        )


def packed_weights(module: nn.Module) -> dict[str, PackedWeight]:
    """Return the packed weights of a module by name; names of one weight give the same object.

    Raises:
        InputError: a master has NaN or infinity.
        UsageError: the module holds the part of one process.
    """
    found: dict[str, PackedWeight] = {}
    known: dict[tuple[int, str], PackedWeight] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for name in getattr(owner, "ternary_shapes", {}):
            if getattr(owner, "is_part", False):
                raise UsageError(
                    f"{path} holds the part of one process, expected whole weights. Load the "
                    "checkpoint without device_mesh."
                )
            key = id(owner), name
            if key not in known and (weight := _weight(owner, name)) is not None:
                known[key] = weight
            if key in known:
                found[f"{path}.{name}" if path else name] = known[key]
    return found


def _weight(owner: Any, name: str) -> PackedWeight | None:
    shape = tuple(owner.ternary_shapes[name])
    layout = getattr(owner, "ternary_layouts", {}).get(name, "t2")
    group_size = getattr(owner, "ternary_groups", {}).get(name, 0)
    frozen = getattr(owner, "_tpack_frozen", {}).get(name)
    if frozen is not None:
        packed, scale = frozen.pack(owner._parameters[name].detach())  # noqa: SLF001
        same, rule = packed is frozen.packed, frozen.rule
        granularity = frozen.granularity if same else rule.granularity
        rounding = None if same else Rounding(rule.method, str(rule.granularity))
        split = packed.dim() - 1
        return PackedWeight(owner, name, packed, scale, shape, split, layout, granularity, rounding)
    packed, scale = owner._buffers.get(f"{name}_packed"), getattr(owner, f"{name}_scale", None)  # noqa: SLF001
    if packed is None or not isinstance(scale, Tensor):
        return None
    split = packed.dim() - 1
    if str(scale.dtype).removeprefix("torch.") not in SCALE_DTYPES:
        raise UsageError(
            f"has a scale of {scale.dtype}, expected {', '.join(SCALE_DTYPES)}. Cast the module "
            "back: module.float().",
            tensor=f"{name}_scale",
        )
    granularity = Scale.of(scale.shape, shape, split, group_size)
    return PackedWeight(owner, name, packed, scale, shape, split, layout, granularity)


def origin_of(module: nn.Module) -> Origin:
    """Return what the packed weights of a module remember of the checkpoints they came from."""
    whole = Origin()
    for path, child in module.named_modules():
        origin: Origin | None = getattr(child, "_tpack_origin", None)
        if origin is None:
            continue
        if not path:
            whole = origin
            continue
        whole = replace(
            whole,
            tensors={**_below(path, origin.tensors), **whole.tensors},
            dtypes={**_below(path, origin.dtypes), **whole.dtypes},
        )
    return whole


def _below(path: str, names: Any) -> dict[str, Any]:
    return {f"{path}.{name}": value for name, value in names.items()}


def aliases_of(module: nn.Module) -> dict[str, str]:
    """Return the other names of tensors that the files of loaded modules had."""
    return {
        f"{prefix}{alias}": f"{prefix}{name}"
        for prefix, child in _prefixed(module)
        for alias, name in getattr(child, "ternary_aliases", {}).items()
    }


def _prefixed(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, child in module.named_modules():
        yield (f"{path}." if path else ""), child
