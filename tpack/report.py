"""What a conversion did, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor.

    Attributes:
        action: ``packed`` (losslessly), ``quantized`` or ``kept``; ``refused``, where a
            conversion would fail.
        scale: granularity, if packed.
        method: ``exact`` or a quantizer, if packed.
        relative_error: ‖w - s·q‖ / ‖w‖; 0 if the tensor is kept.
        bpw: bits per weight in the output, scales included.
        reason: why it was kept, or what was done to it.
        left: whether it is a weight that was kept because it is not ternary.
        dtype: in the source.
    """

    name: str
    action: str
    scale: str | None
    method: str | None
    relative_error: float
    bpw: float
    shape: tuple[int, ...]
    reason: str = ""
    left: bool = False
    dtype: str = ""

    @property
    def is_master(self) -> bool:
        """Whether its model rounds it in the same way as it runs, so that nothing was lost."""
        return self.action == "quantized" and bool(self.reason)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON data."""
        return {**self.__dict__, "shape": list(self.shape)}


def counted(tensors: Iterable[TensorReport]) -> str:
    """Count what became of tensors: ``1 packed losslessly, 0 quantized, 2 kept``."""
    count = Counter("master" if t.is_master else t.action for t in tensors)
    masters = f"{count['master']} as the model rounds them, " if count["master"] else ""
    return (
        f"{count['packed']} packed losslessly, {masters}{count['quantized']} quantized, "
        f"{count['kept']} kept"
    )


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        output: path of the checkpoint; None if this process wrote none, as in a dry run.
        input_bytes: size of the source; of the weights alone, where it holds more than weights.
        output_bytes: size of the checkpoint.
        tensors: one report each, in the order of the source.
        notes: sentences about what was changed or left out.
        warnings: sentences that nobody may miss, such as about weights that were rounded.
        memory: upper bound of the resident memory, in bytes.
        disk: upper bound of the disk space while the conversion runs, in bytes.
    """

    output: str | None
    input_bytes: int
    output_bytes: int
    tensors: tuple[TensorReport, ...]
    notes: tuple[str, ...] = ()
    memory: int = 0
    disk: int = 0
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON data."""
        return {
            "output": self.output,
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "memory": self.memory,
            "disk": self.disk,
        }
