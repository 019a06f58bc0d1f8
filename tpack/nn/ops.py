"""The ops of the ``tpack`` namespace: ``torch.ops.tpack.linear`` and ``bit_linear``.

They are composites of the reference, so autograd, ``torch.compile`` and
``torch.export`` see plain torch ops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpack.nn.reference import ternary_bit_linear, ternary_linear

_SCHEMA = (
    "(Tensor x, Tensor packed, Tensor scale, Tensor? bias=None, *, int group_size=0)"
    " -> Tensor"
)

#: Kept alive: the registration ends with the object.
_LIBRARY = torch.library.Library("tpack", "DEF")


def _linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    group_size: int = 0,
) -> Tensor:
    return ternary_linear(x, packed, scale, bias, group_size=group_size)


def _bit_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    group_size: int = 0,
) -> Tensor:
    return ternary_bit_linear(x, packed, scale, bias, group_size=group_size)


for _name, _function in (("linear", _linear), ("bit_linear", _bit_linear)):
    _LIBRARY.define(_name + _SCHEMA)
    _LIBRARY.impl(_name, _function, "CompositeImplicitAutograd")
