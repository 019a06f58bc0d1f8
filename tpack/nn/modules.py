"""Modules that keep their weights packed.

Standalone generated source contains the classes it needs from this file word for word.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tpack.nn.functional import (
    ternary_bit_linear,
    ternary_conv2d,
    ternary_embedding,
    ternary_linear,
)
from tpack.nn.reference import pack_trits, unpack_trits


def packed_zeros(*shape: int, split: int | None = None, layout: str = "t2") -> Tensor:
    """The packed bytes of a weight of trits 0: uint8 ``(*shape[:split], bytes)``."""
    split = min(1, len(shape) - 1) if split is None else split
    per_byte, empty = (4, 0x55) if layout == "t2" else (5, 0x80)
    width = -(-math.prod(shape[split:]) // per_byte)
    return torch.full((*shape[:split], width), empty, dtype=torch.uint8)


def scale_ones(
    scale: str,
    *shape: int,
    split: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Parameter:
    """A scale of ones for ``tensor``, ``row``, ``column`` or ``group:N``."""
    split = min(1, len(shape) - 1) if split is None else split
    if scale == "tensor":
        return nn.Parameter(torch.ones(1, dtype=dtype))
    columns = math.prod(shape[split:])
    if scale == "column":
        return nn.Parameter(torch.ones(*(1,) * split, columns, dtype=dtype))
    kind, _, size = scale.partition(":")
    groups = 1 if kind == "row" else -(-columns // int(size))
    return nn.Parameter(torch.ones(*shape[:split], groups, dtype=dtype))


def repack_trits(
    packed: Tensor, shape: tuple[int, ...], split: int, layout: str = "t2"
) -> Tensor:
    """Bring what ``pack_ternary`` made of a weight to stored rows.

    Args:
        packed: of the weight in its shape, or flattened.
        shape: logical shape of the weight.
        split: leading dims that index rows.

    Raises:
        ValueError: it holds another number of trits.
    """
    count = math.prod(shape)
    whole = (*shape[:-1], -(-shape[-1] // 4))
    if packed.shape == whole:
        trits = unpack_trits(packed, shape[-1])
    elif packed.shape == (-(-count // 4),):
        trits = unpack_trits(packed, count)
    else:
        raise ValueError(
            f"packed tensor has shape {tuple(packed.shape)}, expected {whole} for a "
            f"weight of shape {shape}. Pack it with pack_ternary(weight)."
        )
    return pack_trits(trits.reshape(*shape[:split], -1), layout)


class PackedModule(nn.Module):
    """A module with packed weights.

    A weight ``p`` is a uint8 buffer ``p_packed`` and a parameter ``p_scale``;
    ``ternary_shapes`` maps ``p`` to its logical shape, ``ternary_layouts`` to its
    layout, t2 if it is not there, and ``ternary_groups`` to its group size, if columns
    share a scale in groups. Assigning ``module.p_packed = pack_ternary(weight)``
    replaces the weight; its shape is checked. Bytes of the stored shape are taken as
    they are, in the layout of the weight.
    """

    ternary_shapes: ClassVar[dict[str, tuple[int, ...]]] = {}
    ternary_layouts: ClassVar[dict[str, str]] = {}
    ternary_groups: ClassVar[dict[str, int]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a packed buffer is brought to its stored shape."""
        current = self.__dict__.get("_buffers", {}).get(name)
        weight = name.removesuffix("_packed")
        if (
            current is not None
            and weight in self.ternary_shapes
            and isinstance(value, Tensor)
        ):
            if value.dtype != torch.uint8:
                raise ValueError(
                    f"{name} is uint8, not {value.dtype}: use pack_ternary(weight)."
                )
            if value.shape != current.shape:
                shape = self.ternary_shapes[weight]
                layout = self.ternary_layouts.get(weight, "t2")
                value = repack_trits(value, shape, current.dim() - 1, layout)
        super().__setattr__(name, value)


class PackedWeight(PackedModule):
    """One packed weight, its scale and perhaps a bias: what the layers below share.

    Args:
        shape: logical shape of the weight.
        bias: size of the bias, 0 for none.
        scale: ``tensor``, ``row``, ``column`` or ``group:N``.
        scale_dtype: of the scale; that of the bias if not given.
        layout: ``t2`` or ``t5``.
        dtype: of the bias and the scale.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: int = 0,
        *,
        scale: str = "tensor",
        scale_dtype: torch.dtype | None = None,
        layout: str = "t2",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.ternary_shapes = {"weight": shape}  # type: ignore[misc]
        self.ternary_layouts = {"weight": layout}  # type: ignore[misc]
        self.group_size = int(scale.partition(":")[2] or 0)
        self.ternary_groups = {"weight": self.group_size}  # type: ignore[misc]
        # what the shapes of the stored tensors do not tell the ops
        self.options = {"layout": layout, "group_size": self.group_size}
        self.register_buffer("weight_packed", packed_zeros(*shape, layout=layout))
        self.weight_scale = scale_ones(scale, *shape, dtype=scale_dtype or dtype)
        if bias:
            self.bias = nn.Parameter(torch.zeros(bias, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    options: dict[str, Any]
    weight_packed: Tensor
    weight_scale: Tensor
    bias: Tensor | None


class TernaryLinear(PackedWeight):
    """``x @ weight.T + bias`` with a packed weight ``(out_features, in_features)``.

    Args:
        in_features: size of the last dim of x.
        out_features: size of the last dim of the result.
        bias: whether there is one.
        options: ``scale``, ``scale_dtype``, ``layout``, ``dtype`` of ``PackedWeight``.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, **options: Any
    ) -> None:
        super().__init__((out_features, in_features), out_features * bias, **options)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features), in the dtype of x."""
        self.check_width(x)
        return ternary_linear(
            x, self.weight_packed, self.weight_scale, self.bias, **self.options
        )

    def check_width(self, x: Tensor) -> None:
        """Refuse an input of another width: padding would hide a small difference.

        Raises:
            ValueError: the last dim of x is not ``in_features``.
        """
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected (..., {self.in_features})."
            )

    def extra_repr(self) -> str:
        """The sizes, for ``print(module)``."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class BitLinear(TernaryLinear):
    """A TernaryLinear whose input is rounded to int8 per token (BitNet b1.58)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features), in the dtype of x."""
        self.check_width(x)
        return ternary_bit_linear(
            x, self.weight_packed, self.weight_scale, self.bias, **self.options
        )


class TernaryEmbedding(PackedWeight):
    """Rows of a packed table ``(num_embeddings, embedding_dim)``."""

    def __init__(self, num_embeddings: int, embedding_dim: int, **options: Any) -> None:
        super().__init__((num_embeddings, embedding_dim), **options)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """Integers (...) → (..., embedding_dim), in the dtype of the scale."""
        return ternary_embedding(
            ids, self.weight_packed, self.weight_scale, self.shape, **self.options
        )

    def extra_repr(self) -> str:
        """The sizes, for ``print(module)``."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


class TernaryConv2d(PackedWeight):
    """Convolution with a packed weight ``(out, in / groups, height, width)``.

    The arguments before ``options`` are those of ``nn.Conv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        **options: Any,
    ) -> None:
        kernel = (
            (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        )
        shape = (out_channels, in_channels // groups, *kernel)
        super().__init__(shape, out_channels * bias, **options)
        self.stride, self.padding, self.dilation, self.groups = (
            stride,
            padding,
            dilation,
            groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) → (batch, out, h', w'), in the dtype of x."""
        return ternary_conv2d(
            x,
            self.weight_packed,
            self.weight_scale,
            self.shape,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            **self.options,
        )

    def extra_repr(self) -> str:
        """The shape of the weight, for ``print(module)``."""
        return f"{self.shape}, stride={self.stride}, padding={self.padding}"
