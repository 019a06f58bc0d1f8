"""The operators ``linear``, ``bit_linear`` and ``matmul`` of ``torch.ops.tpack``.

Each has an implementation in C for the CPU, the reference for every other device, a
fake one for tracing, and a gradient for the input, the scale and the bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tpack.nn import extension, reference
from tpack.nn.code_check import check_legal

#: Kept alive, also when this module is loaded again: the registration ends with it.
_LIBRARY = globals().get("_LIBRARY") or torch.library.Library("tpack", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)


def _linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    group_size: int = 0,
) -> Tensor:
    return reference.ternary_linear(x, packed, scale, bias, group_size=group_size)


def _bit_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    group_size: int = 0,
) -> Tensor:
    return reference.ternary_bit_linear(x, packed, scale, bias, group_size=group_size)


def _matmul(
    x: Tensor, packed: Tensor, scale: Tensor, columns: int, *, group_size: int = 0
) -> Tensor:
    shape = (packed.shape[0], columns)
    return reference.ternary_matmul(x, packed, scale, shape, group_size=group_size)


def _cpu_rows(name: str, define: Any) -> Any:
    def run(
        x: Tensor,
        packed: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        *,
        group_size: int = 0,
    ) -> Tensor:
        check_legal(packed)
        if extension.serves(x, packed, scale, "t2"):
            outputs = packed.shape[0]
            found = extension.call(
                name, x, packed, scale, bias, x.shape[-1], outputs, group_size
            )
            if found is not None:
                return found
        result: Tensor = define(x, packed, scale, bias, group_size=group_size)
        return result

    return run


def _cpu_matmul(
    x: Tensor, packed: Tensor, scale: Tensor, columns: int, *, group_size: int = 0
) -> Tensor:
    check_legal(packed)
    if extension.serves(x, packed, scale, "t2"):
        found = extension.call(
            "linear_columns", x, packed, scale, None, columns, columns, group_size
        )
        if found is not None:
            return found
    return _matmul(x, packed, scale, columns, group_size=group_size)


def _fake_rows(x: Tensor, packed: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


def _fake_matmul(x: Tensor, _: Tensor, __: Tensor, columns: int, **___: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], columns))


# ---- gradients


def _save(
    ctx: Any,
    inputs: tuple[Any, ...],
    keyword_only_inputs: Any,
    output: Tensor,  # noqa: ARG001
) -> None:
    x, packed, scale, last = inputs
    ctx.save_for_backward(x, packed, scale)
    ctx.last = last if isinstance(last, int) else None
    ctx.has_bias = isinstance(last, Tensor)
    ctx.bias_dtype = last.dtype if isinstance(last, Tensor) else None
    ctx.group_size = keyword_only_inputs["group_size"]


def _scale_gradient(
    product: Tensor, packed: Tensor, scale: Tensor, columns: int, group_size: int
) -> Tensor:
    """Σ (gradient of the weight · trit) over what each scale belongs to."""
    terms = product * reference.unpack_trits(packed, columns)
    if scale.dim() == 1:
        return terms.sum().reshape(1).to(scale.dtype)
    groups = scale.shape[-1]
    if scale.shape[0] == 1 and groups == columns:
        return terms.sum(0, keepdim=True).to(scale.dtype)
    size = (
        columns
        if groups == 1
        else group_size or reference.infer_group_size(columns, groups)
    )
    padded = torch.nn.functional.pad(terms, (0, groups * size - columns))
    sums: Tensor = padded.unflatten(-1, (groups, size)).sum(-1)
    return sums.to(scale.dtype)


def _rows_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, packed, scale = ctx.saved_tensors
    flat = gradient.reshape(-1, gradient.shape[-1])
    for_x = for_scale = for_bias = None
    if ctx.needs_input_grad[0]:
        for_x = torch.ops.tpack.matmul(
            gradient, packed, scale, x.shape[-1], group_size=ctx.group_size
        )
    if ctx.needs_input_grad[2]:
        values = ctx.rounded(x).reshape(-1, x.shape[-1]).float()
        product = flat.float().T @ values
        for_scale = _scale_gradient(product, packed, scale, x.shape[-1], ctx.group_size)
    if ctx.has_bias and ctx.needs_input_grad[3]:
        for_bias = flat.sum(0).to(ctx.bias_dtype)
    return for_x, None, for_scale, for_bias


def _save_linear(
    ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Tensor
) -> None:
    _save(ctx, inputs, keyword_only_inputs, output)
    ctx.rounded = lambda x: x


def _save_bit_linear(
    ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Tensor
) -> None:
    _save(ctx, inputs, keyword_only_inputs, output)
    ctx.rounded = _rounded


def _matmul_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, packed, scale = ctx.saved_tensors
    for_x = for_scale = None
    if ctx.needs_input_grad[0]:
        for_x = torch.ops.tpack.linear(
            gradient, packed, scale, group_size=ctx.group_size
        )
    if ctx.needs_input_grad[2]:
        flat = gradient.reshape(-1, gradient.shape[-1]).float()
        product = x.reshape(-1, x.shape[-1]).float().T @ flat
        for_scale = _scale_gradient(product, packed, scale, ctx.last, ctx.group_size)
    return for_x, None, for_scale, None


def _rounded(x: Tensor) -> Tensor:
    """The activations as bit_linear computes with them."""
    gain = reference.activation_gain(x)
    return (x.float() * gain).round().clamp(-128, 127) / gain


# ---- registration


_ROWS = (
    "(Tensor x, Tensor packed, Tensor scale, Tensor? bias=None, *, int group_size=0)"
)
_COLUMNS = "(Tensor x, Tensor packed, Tensor scale, int columns, *, int group_size=0)"

for _name, _schema, _define, _cpu, _fake, _setup, _backward in (
    ("linear", _ROWS, _linear, _cpu_rows("linear", _linear), _fake_rows, _save_linear,
     _rows_backward),
    ("bit_linear", _ROWS, _bit_linear, _cpu_rows("bit_linear", _bit_linear), _fake_rows,
     _save_bit_linear, _rows_backward),
    ("matmul", _COLUMNS, _matmul, _cpu_matmul, _fake_matmul, _save_linear,
     _matmul_backward),
):  # fmt: skip
    if hasattr(torch.ops.tpack, _name):  # it is loaded again, or a second copy
        continue
    _LIBRARY.define(f"{_name}{_schema} -> Tensor", tags=_TAGS)
    _LIBRARY.impl(_name, _define, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, _cpu, "CPU")
    torch.library.register_fake(f"tpack::{_name}", _fake, lib=_LIBRARY)
    torch.library.register_autograd(
        f"tpack::{_name}", _backward, setup_context=_setup, lib=_LIBRARY
    )
