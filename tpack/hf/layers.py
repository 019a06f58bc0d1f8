"""Packed layers that behave like the layers of transformers that they replace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tpack.nn import (
    BitLinear,
    TernaryEmbedding,
    TernaryLinear,
    dequantize,
    ternary_linear,
    ternary_matmul,
)
from tpack.nn.modules import PackedWeight


class NormedBitLinear(BitLinear):
    """A BitLinear that normalizes its input first: ``use_rms_norm`` of bitnet's config.

    Args:
        in_features, out_features, bias, options: see ``BitLinear``.
        eps: epsilon of the norm.
        norm_dtype: dtype of the norm's weight.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        eps: float,
        norm_dtype: torch.dtype,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, **options)
        self.rms_norm = LlamaRMSNorm(in_features, eps=eps).to(norm_dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the dtype of x."""
        self.check_width(x)
        return super().forward(self.rms_norm(x))


class PackedEmbedding(TernaryEmbedding):
    """A TernaryEmbedding that returns the model's dtype, whatever dtype its scale has."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, output: torch.dtype, **options: Any
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, **options)
        # a tensor, whose dtype changes with that of the model
        self.register_buffer("output", torch.empty(0, dtype=output), persistent=False)

    output: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        """Map integers (...) to vectors (..., embedding_dim)."""
        return super().forward(ids).to(self.output.dtype)


class PackedConv1D(PackedWeight):
    """transformers' ``Conv1D``: ``x @ weight + bias`` with a weight ``(nx, nf)``."""

    def __init__(self, nx: int, nf: int, **options: Any) -> None:
        super().__init__((nx, nf), nf, **options)
        self.nx, self.nf = nx, nf

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., nx) to (..., nf), in the dtype of x."""
        product = ternary_matmul(
            x, self.weight_packed, self.weight_scale, self.shape, **self.options
        )
        return product if self.bias is None else product + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(module)``."""
        return f"{self.nx}, {self.nf}"


class Readable(PackedWeight):
    """A packed layer with a ``weight``, for models that read it; each read unpacks it to floats."""

    output: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight in its logical shape, in the dtype of the model; the master, if unfrozen."""
        master = self._parameters.get("weight")
        if master is not None:
            return master
        return dequantize(
            self.weight_packed, self.weight_scale, self.shape, self.output, **self.options
        )

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, even one called ``weight``, which is a property otherwise."""
        if name == "weight":  # else it would count as another attribute
            self._parameters.setdefault(name, None)
        super().register_parameter(name, param)


class ReadableLinear(Readable, TernaryLinear):
    """A TernaryLinear with a ``weight``, in ``dtype``, the dtype of the model."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: torch.dtype,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype=dtype, **options)
        self.register_buffer("output", torch.empty(0, dtype=dtype), persistent=False)


class ReadableEmbedding(Readable, PackedEmbedding):
    """A PackedEmbedding with a ``weight``."""


class Tied(nn.Module):
    """A module that uses the table of a packed embedding elsewhere in the model.

    It has no copy of the table, so that the table is stored and counted once.
    """

    def __init__(self, table: PackedEmbedding) -> None:
        super().__init__()
        self._table = (table,)  # in a tuple, so that it is not a child: the model has it already

    @property
    def table(self) -> PackedEmbedding:
        """The embedding that has the table."""
        return self._table[0]

    @property
    def weight(self) -> Tensor:
        """The table as floats, in the dtype of the model."""
        table = self.table
        return dequantize(
            table.weight_packed, table.weight_scale, table.shape, table.output, **table.options
        )


class TiedEmbedding(Tied):
    """A second embedding with the same table, as encoders and decoders share one."""

    def forward(self, ids: Tensor) -> Tensor:
        """Map integers (...) to vectors (..., embedding_dim)."""
        found: Tensor = self.table(ids)
        return found


class TiedHead(Tied):
    """An output head that multiplies with the table.

    Args:
        table: the embedding with the table.
        bias: the bias of the head, if it has one.
    """

    bias: nn.Parameter | None

    def __init__(self, table: PackedEmbedding, bias: nn.Parameter | None = None) -> None:
        super().__init__(table)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., embedding_dim) to (..., num_embeddings), in the dtype of x."""
        table = self.table
        return ternary_linear(
            x, table.weight_packed, table.weight_scale, self.bias, **table.options
        )
