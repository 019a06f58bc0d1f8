"""Functions of torch that are one op in a trace, so that a size stays free.

torch traces an LSTM or GRU as so many steps as the example has, and ``max_pool1d`` for the length
of the example only. So while it traces, these functions are ops that know no more than the
shapes of their results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tpack.capturing.aten import parse_row
from tpack.errors import LayerDefError

#: Functions that run a recurrent network → the number of states that it keeps.
_RECURRENT = {"lstm": 2, "gru": 1, "rnn_tanh": 1, "rnn_relu": 1}
#: Functions that make a PackedSequence, or a tensor of one.
_PACKING = ("_pack_padded_sequence", "_pad_packed_sequence")
_OPTIONS = "has_biases num_layers dropout train bidirectional batch_first"
_TYPES = "bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, "
_TYPES += "bool batch_first"
#: The ops in a trace, with their rows: no ops of ATen.
MARKS = {
    f"tpack.{kind}.default": parse_row(kind, f"x state weights {_OPTIONS}") for kind in _RECURRENT
} | {
    "tpack.max_pool1d.default": parse_row(
        "max_pool1d", "x kernel_size stride padding dilation ceil_mode"
    )
}


class Marked(TorchFunctionMode):
    """While tracing, let each of these functions be one op."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the op in the place of a function of torch.

        Raises:
            LayerDefError: sequences are packed by their lengths.
        """
        name = getattr(func, "__name__", "")
        given = dict(kwargs or {})
        if name in _PACKING or (name in _RECURRENT and _is_packed(args, given)):
            raise LayerDefError(
                "forward packs sequences by their lengths (PackedSequence), which LayerDef cannot "
                "express. Let it take padded sequences as they are."
            )
        if name in _RECURRENT:
            return getattr(torch.ops.tpack, name)(*args, **_renamed(given))
        return _pooled(*args, **given) if name == "max_pool1d" else func(*args, **given)


def _is_packed(args: Sequence[Any], given: Mapping[str, Any]) -> bool:
    """Return whether the arguments are those for sequences that are packed."""
    return "batch_sizes" in given or (len(args) > 3 and not isinstance(args[3], bool))


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of a function of torch under the names of the op."""
    names = {"input": "x", "hx": "state", "params": "weights"}
    return {names.get(name, name): value for name, value in given.items()}


def _pooled(
    input: Tensor,  # noqa: A002  # as torch calls it
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    assert not return_indices  # that function has another name
    sizes = (kernel_size, stride or kernel_size, padding, dilation)
    given = [list(one) if isinstance(one, Sequence) else [one] for one in sizes]
    pooled: Tensor = torch.ops.tpack.max_pool1d(input, *given, ceil_mode)
    return pooled


# ---- the shapes of results


def _network(count: int) -> Callable[..., tuple[Tensor, ...]]:
    """Return what gives the shapes of the results of a network with so many states."""

    def fake(
        x: Tensor,
        state: Any,
        weights: Any,  # noqa: ARG001
        has_biases: bool,  # noqa: ARG001
        num_layers: int,
        dropout: float,  # noqa: ARG001
        train: bool,  # noqa: ARG001
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        states = [state] if count == 1 else list(state)
        sides = 2 if bidirectional else 1
        for one in states:
            torch._check(one.shape[0] == num_layers * sides)  # noqa: SLF001
            torch._check(one.shape[1] == x.shape[0 if batch_first else 1])  # noqa: SLF001
        first = x.new_empty((*x.shape[:-1], states[0].shape[-1] * sides))
        return (first, *(x.new_empty(one.shape) for one in states))

    return fake


def _pool(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Tensor:
    flat = x.unsqueeze(-2)
    one, two, three, four = (
        (other, *sizes)
        for sizes, other in ((kernel_size, 1), (stride, 1), (padding, 0), (dilation, 1))
    )
    return torch.max_pool2d(flat, one, two, three, four, ceil_mode).squeeze(-2)


_POOL = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode"
_LIBRARY = globals().get("_LIBRARY") or torch.library.Library("tpack", "FRAGMENT")


def _define(name: str, schema: str, fake: Any) -> None:
    if not hasattr(torch.ops.tpack, name):  # else it is loaded again
        _LIBRARY.define(f"{name}{schema}")
        torch.library.register_fake(f"tpack::{name}", fake, lib=_LIBRARY)


_define("max_pool1d", f"(Tensor x, {_POOL}) -> Tensor", _pool)
for _kind, _count in _RECURRENT.items():
    _state, _results = "Tensor" if _count == 1 else "Tensor[]", ", ".join(["Tensor"] * (1 + _count))
    _schema = f"(Tensor x, {_state} state, Tensor[] weights, {_TYPES}) -> ({_results})"
    _define(_kind, _schema, _network(_count))
