"""One node of an ONNX graph with the values that it takes.

A value is a tensor of torch, a ``Stored`` one that no op has touched, or known numbers: an array
of numpy, of dtype object where sizes are among them that the input decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto
from onnx.helper import get_attribute_value
from torch import Tensor

from tpack.errors import LayerDefError
from tpack.sources.onnx_files.nodes import Node
from tpack.sources.onnx_files.tensors import DTYPES, type_name

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """A tensor of the source, by the name that it has there, and its numbers."""

    name: str
    tensor: Tensor
    read: Callable[[], Array]


#: What a node takes or makes.
Known: TypeAlias = "Tensor | Stored | Array"


def outside(node: Node, text: str) -> LayerDefError:
    """Return the error for a node that LayerDef cannot express; the text completes "uses …"."""
    name = str(node.proto.name)[:80] or node.outputs[0][:80]
    return LayerDefError(f"{node.op} {text}, which LayerDef cannot express.", node=name)


def dtype_of(number: int) -> torch.dtype:
    """Return the dtype of torch for a type of ONNX.

    Raises:
        LayerDefError: torch has none.
    """
    if number == TensorProto.STRING or number not in DTYPES:
        raise LayerDefError(f"has a tensor of type {type_name(number)}, which torch does not have.")
    found: torch.dtype = getattr(torch, DTYPES[number])
    return found


@dataclass
class Arguments:
    """A node and its values.

    Attributes:
        node: the node.
        values: of its inputs; None for one left out.
        opset: the version of ONNX's ops.
        made: keeps known numbers as a tensor, and returns that.
        read: names of the attributes that were asked for.
    """

    node: Node
    values: Sequence[Known | None]
    opset: int
    made: Callable[[Node, Array], Tensor]
    read: set[str] = field(default_factory=set)

    def outside(self, text: str) -> LayerDefError:
        """Return the error for what this node asks; the text goes on after the name of the op."""
        return outside(self.node, text)

    def has(self, place: int) -> bool:
        """Return whether an input is given."""
        return place < len(self.values) and self.values[place] is not None

    def tensor(self, place: int = 0) -> Tensor:
        """Return an input as a tensor."""
        value = self.values[place] if self.has(place) else None
        if value is None:
            raise self.outside(f"lacks input {place}")
        if isinstance(value, Stored):
            return value.tensor
        if isinstance(value, Tensor):
            return value
        if value.dtype == object:
            if value.size == 1 and value.ndim < 2:
                return torch.full((1,) * value.ndim, value.reshape(-1)[0], dtype=torch.int64)
            raise self.outside("takes sizes that the input decides as a tensor")
        if value.size == 1:
            number = plain(value.reshape(-1)[0])
            return torch.full(value.shape, number, dtype=getattr(torch, str(value.dtype)))
        return self.made(self.node, value)

    def optional(self, place: int) -> Tensor | None:
        """Return an input as a tensor; None if it is left out."""
        return self.tensor(place) if self.has(place) else None

    def tensors(self) -> list[Tensor]:
        """Return all inputs as tensors."""
        return [self.tensor(place) for place in range(len(self.values)) if self.has(place)]

    def operand(self, place: int, other: int) -> Any:
        """Return an input as a number, if it is one that is known, else as a tensor.

        Args:
            other: the place of a tensor that it is combined with.
        """
        value = self.values[place]
        if not isinstance(value, np.ndarray) or isinstance(self.values[other], np.ndarray):
            return self.tensor(place)
        small = value.size == 1 and value.ndim <= self.tensor(other).dim()
        return plain(value.reshape(-1)[0]) if small else self.tensor(place)

    def numbers(self, place: int, name: str = "") -> list[Any] | None:
        """Return numbers that must be known: an input, or the attribute that it once was.

        None if they are left out.
        """
        if self.has(place):
            value = self.values[place]
            if isinstance(value, Stored):
                value = value.read()
            if not isinstance(value, np.ndarray):
                raise self.outside(f"has {name or 'numbers'} that the graph computes")
            items: list[Any] = value.reshape(-1).tolist()
            if value.dtype == object:
                return items
            return [plain(value.dtype.type(item)) for item in items]
        found = self.attribute(name, None) if name else None
        return None if found is None else list(found) if isinstance(found, list) else [found]

    def number(self, place: int, name: str, default: Any) -> Any:
        """Return one such number."""
        found = self.numbers(place, name)
        return default if not found else found[0]

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute, as a list if it is one; floats with the digits of float32."""
        self.read.add(name)
        for one in self.node.proto.attribute:
            if one.name == name:
                found = get_attribute_value(one)
                if isinstance(found, bytes):
                    return found.decode("utf-8", "replace")
                if isinstance(found, float):
                    return plain(np.float32(found))
                return found if isinstance(found, int) else list(found)
        return default

    def check_read(self) -> None:
        """Refuse attributes that nobody asked for: they may change what the node computes."""
        given = {str(one.name) for one in self.node.proto.attribute}
        if unread := sorted(given - self.read - _NEUTRAL):
            raise self.outside(f"has {unread[0]!r:.40}")


#: Attributes that change no result, or repeat what shapes say.
_NEUTRAL = frozenset(
    {"kernel_shape", "stash_type", "storage_order", "momentum", "spatial", "ratio", "seed"}
    | {"is_test", "consumed_inputs", "sorted", "cubic_coeff_a", "saturate", "value", "num_outputs"}
)


def plain(number: Any) -> Any:
    """Return a number of numpy as one of Python, with the digits that it was written with.

    Example:
        >>> plain(np.float32(0.1)), plain(np.int64(3))
        (0.1, 3)
    """
    if isinstance(number, np.float32) and abs(number) < 1e38:
        return float(str(number))
    return number.item() if isinstance(number, np.generic) else number
