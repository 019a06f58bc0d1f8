"""The experts of a mixture, some or all of their matrices packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpack.codec import Scale
from tpack.nn import (
    PackedModule,
    expert_linear,
    expert_matmul,
    packed_zeros,
    ternary_expert_linear,
    ternary_expert_matmul,
)
from tpack.nn.modules import scale_ones
from tpack.nn.reference import routed


class PackedExperts(PackedModule):
    """Compute what the experts of a layer of transformers do, from packed matrices.

    Each expert has two matrices: the first, of its gate and what it gates, and ``down_proj``. All
    experts have theirs in one stack, as floats or packed, until ``pack_stack`` or ``take_apart``
    says otherwise. Everything else is that of the plain module: biases, norms and the gating.

    Only the experts that some token chose are computed, each on its own tokens.

    Args:
        plain: the module that is replaced, of a class with ``use_experts_implementation``.
    """

    def __init__(self, plain: Any) -> None:
        super().__init__()
        # in a tuple, so that it is not a child: the children are shared with it
        self._plain = (plain,)
        self.first = "gate_up_proj" if plain.has_gate else "up_proj"
        self.count = int(getattr(plain, self.first).shape[0])
        self.ternary_shapes = {}  # type: ignore[misc]
        self.ternary_layouts = {}  # type: ignore[misc]
        self.ternary_groups = {}  # type: ignore[misc]
        #: The layers of each expert, by the stack that they are joined to in the plain model.
        self.parts: dict[str, tuple[str, ...]] = {}
        for name, parameter in plain.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, child in plain.named_children():
            self.add_module(name, child)

    def pack_stack(self, name: str, scale: str, layout: str, scale_dtype: torch.dtype) -> None:
        """Put packed bytes in the place of the floats of a stack, on the meta device."""
        shape = tuple(getattr(self, name).shape)
        delattr(self, name)
        self.ternary_shapes[name] = shape
        self.ternary_layouts[name] = layout
        self.ternary_groups[name] = Scale.parse(scale).group_size
        with torch.device("meta"):
            self.register_buffer(f"{name}_packed", packed_zeros(*shape, split=2, layout=layout))
            ones = scale_ones(scale, *shape, split=2, dtype=scale_dtype)
        self.register_parameter(f"{name}_scale", ones)

    def take_apart(self, name: str, parts: Sequence[str], layers: Sequence[nn.Module]) -> None:
        """Put a layer for each part of each expert in the place of a stack.

        Args:
            name: of the stack.
            parts: names in an expert of the layers whose results are joined to that of the stack.
            layers: those of the first expert, of the second, and so on.
        """
        delattr(self, name)
        self.parts[name] = tuple(parts)
        rest = iter(layers)
        for expert in range(self.count):
            if str(expert) not in self._modules:
                self.add_module(str(expert), nn.ModuleDict())
            for part in parts:
                self._modules[str(expert)].add_module(part, next(rest))  # type: ignore[union-attr]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum what the chosen experts make of each token.

        Args:
            hidden_states: ``(tokens, features)``.
            top_k_index: ``(tokens, chosen)``, integers.
            top_k_weights: ``(tokens, chosen)``.
        """
        (plain,) = self._plain
        tokens, chosen = top_k_index.shape
        ids = top_k_index.reshape(-1)
        inner = self.product(self.first, hidden_states.repeat_interleave(chosen, dim=0), ids)
        inner = plain._apply_gate(inner) if plain.has_gate else plain.act_fn(inner)  # noqa: SLF001
        outer = self.product("down_proj", inner, ids)
        if plain.has_post_expert_norm:
            outer = plain.post_expert_norm(outer)
        weighted = outer * top_k_weights.reshape(-1, 1)
        return weighted.view(tokens, chosen, outer.shape[-1]).sum(dim=1).to(hidden_states.dtype)

    def product(self, name: str, x: Tensor, ids: Tensor) -> Tensor:
        """Multiply each row of x (n, in) by the matrix of its expert: (n, out)."""
        (plain,) = self._plain
        if name in self.parts:
            y = routed(x, ids, self.count, self._by(name))
        elif name in self.ternary_shapes:
            packed, scale, options = self._stored(name)
            if plain.is_transposed:
                shape = self.ternary_shapes[name]
                y = ternary_expert_matmul(x, packed, scale, ids, shape, **options)
            else:
                y = ternary_expert_linear(x, packed, scale, ids, **options)
        else:
            product = expert_matmul if plain.is_transposed else expert_linear
            y = product(x, getattr(self, name), ids)
        return y + getattr(self, f"{name}_bias")[ids] if plain.has_bias else y

    def _by(self, name: str) -> Any:
        """Return the product with the matrices of one expert."""
        return lambda i, rows: torch.cat(
            [self.get_submodule(f"{i}.{part}")(rows) for part in self.parts[name]], -1
        )

    def _stored(self, name: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
        options = {
            "layout": self.ternary_layouts[name],
            "group_size": self.ternary_groups[name],
        }
        return getattr(self, f"{name}_packed"), getattr(self, f"{name}_scale"), options

    def extra_repr(self) -> str:
        """Return the number of experts, for ``print(module)``."""
        return f"{self.count} experts"
