"""The program of a checkpoint in float32, since ONNX Runtime computes little in half precision."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from tpack.build import build_module
from tpack.layerdef import (
    Assignment,
    Expression,
    Literal,
    Param,
    Program,
    Return,
    Statement,
    Unpack,
)
from tpack.layerdef.walking import with_parts

#: Dtypes that become float32.
HALVES = ("float16", "bfloat16")

_Value = TypeVar("_Value")


def widened(program: Program) -> Program:
    """Return a program whose weights, constants and casts of half precision are float32."""
    layers = [
        replace(
            layer,
            params=tuple(map(_param, layer.params)),
            body=tuple(map(_statement, layer.body)),
        )
        for layer in program.layers
    ]
    return replace(program, layers=tuple(layers))


def _wide(value: _Value) -> _Value | str:
    return "float32" if value in HALVES else value


def _param(param: Param) -> Param:
    args = tuple((name, _wide(value)) for name, value in param.args)
    return replace(param, dtype=_wide(param.dtype), args=args)


def _statement(statement: Statement) -> Statement:
    if isinstance(statement, Assignment | Unpack | Return):
        return replace(statement, value=_expression(statement.value))
    return statement


def _expression(node: Expression) -> Expression:
    if isinstance(node, Literal):
        return Literal(_wide(node.value))
    return with_parts(node, _expression)


def wide_module(program: Program, tensors: dict[str, Tensor], *, values: bool) -> nn.Module:
    """Make the module of a widened program.

    Args:
        tensors: as stored.
        values: whether those of half precision get their values; else memory for them is only
            reserved, which is enough for a trace.
    """
    module = build_module(program, device="meta")
    wide = {name: _as_wide(tensor, values=values) for name, tensor in tensors.items()}
    module.load_state_dict(wide, strict=True, assign=True)
    return module.requires_grad_(requires_grad=False)


def _as_wide(tensor: Tensor, *, values: bool) -> Tensor:
    if tensor.dtype not in (torch.float16, torch.bfloat16):
        return tensor
    return tensor.float() if values else torch.empty(tensor.shape, dtype=torch.float32)
