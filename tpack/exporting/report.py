"""What an export wrote: one row for each tensor, whatever the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ExportedTensor:
    """What became of one tensor.

    Attributes:
        name: in the output.
        source: in the checkpoint.
        type: what the target calls how it is stored; the dtype of a tensor that stays as it is.
        shape: logical shape.
        error: relative error of the worst scale that was rounded; 0 if the tensor is exact.
        reason: why a weight is not in exact blocks.
    """

    name: str
    source: str
    type: str
    shape: tuple[int, ...]
    error: float = 0.0
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether the output gives the tensor of the checkpoint back, value for value."""
        return self.error == 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            **self.__dict__,
            "shape": list(self.shape),
            "exact": self.exact,
            "relative_error": self.error,
        }


@dataclass(frozen=True)
class ExportReport:
    """What ``export`` wrote.

    Attributes:
        target: for which system.
        output: the file or folder.
        output_bytes: the size of the files of weights.
        tensors: in the order of the output.
        notes: what a user should know.
        details: what only this target has to say, by name.
    """

    target: str
    output: str
    output_bytes: int
    tensors: tuple[ExportedTensor, ...]
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "target": self.target,
            "output": self.output,
            "output_bytes": self.output_bytes,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "notes": list(self.notes),
            **self.details,
        }
