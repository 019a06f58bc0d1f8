"""TFLite files as a source: constants of the graph, ternary codes packed with their scales.

Nothing of the graph is run. Names are those that the converter gave, and weights lie as the
operators have them: ``(out, in)``, ``(out, height, width, in)``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.container.header import check_name
from tpack.container.opening import open_input
from tpack.container.reader import stored_dtype
from tpack.errors import InputError, UnsupportedError, locate
from tpack.options import Reading
from tpack.sources.archive import AGAIN
from tpack.sources.levels import Levels, Lie
from tpack.sources.source import PackedTensor, Source, SourceTensor
from tpack.sources.stored_array import StoredArray
from tpack.sources.tflite_files.model import Constant, constants, read_model
from tpack.sources.tflite_files.tables import File
from tpack.text import listed, plural

Array = npt.NDArray[Any]
_CODES = ("int8", "uint8", "int16")
#: Why a constant is kept that no operator multiplies with.
_OTHER = "not used as a weight"


def open_tflite(path: Path, _: Reading = Reading()) -> Source:  # noqa: B008  # frozen
    """Open a TFLite model.

    Raises:
        InputError: damaged, or made to cost time or memory.
    """
    with ExitStack() as resources:
        file = File(resources.enter_context(open_input(path)).fileno())
        found = _Found(file)
        model = read_model(file)
        room = 2 * file.size
        for name, constant in constants(model):
            with locate(tensor=name[:200]):
                check_name(name)
                room -= found.add(name, constant)
                if room < 0:
                    raise InputError(f"uses the same bytes again and again. {AGAIN}")
        found.say(model.unheld)
        return Source(
            str(path),
            found.tensors,
            aliases=found.aliases,
            notes=found.notes,
            warnings=found.warnings,
            floats=found.floats,
            roles=found.roles,
            splits=found.splits,
            files=(path,),
            nbytes=file.size,
            resources=resources.pop_all(),
        )


@dataclass
class _Found:
    """What a file holds; see ``Source``.

    Attributes:
        first: the first tensor with the same bytes, by what describes them.
        biases: integers that were taken as floats.
        packed: ternary weights.
        opaque: constants whose values are stored in a form that is not read.
    """

    file: File
    tensors: dict[str, SourceTensor | PackedTensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    first: dict[tuple[Any, ...], str] = field(default_factory=dict)
    biases: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)

    def add(self, name: str, constant: Constant) -> int:
        """Add a constant; return how many bytes it takes in the file.

        Raises:
            InputError: it holds other bytes than its shape needs.
        """
        scales = constant.scales.tobytes(), constant.zeros.tobytes(), constant.axis
        same = constant.buffer, constant.dtype, constant.bits, constant.shape, *scales
        if (owner := self.first.setdefault(same, name)) != name:
            self.aliases[name] = owner
            self._set_role(owner, constant)
            return 0
        if constant.other.startswith("values"):
            self.opaque.append(name)
            return 0
        tensor = _stored(self.file, name, constant)
        self._set_role(name, constant)
        if constant.other or (constant.bits < 8 and not len(constant.scales)):
            self.floats[name] = constant.other or "codes without scales"
            self.opaque.append(name)
            self.tensors[name] = tensor
        elif len(constant.scales) and (len(constant.shape) < 2 or constant.dtype == "int32"):
            self._add_floats(tensor, constant)
        elif len(constant.scales) and constant.dtype in _CODES:
            self._add_codes(tensor, constant)
        else:
            self.tensors[name] = tensor
        return constant.place.length

    def _set_role(self, name: str, constant: Constant) -> None:
        use, rank = constant.use, len(constant.shape)
        if use is not None:
            self.roles[name] = use.role
            self.splits[name] = rank - min(use.column_dims or max(rank - 1, 1), rank)
        elif rank > 1:
            self.roles.setdefault(name, _OTHER)

    def _add_floats(self, tensor: SourceTensor, constant: Constant) -> None:
        """Add integers that stand for floats: a bias is no use without its scales."""
        count, inner = len(constant.scales), int(np.prod(constant.shape[constant.axis + 1 :]))
        size = constant.shape[constant.axis] if constant.axis < len(constant.shape) else 1
        zeros = np.resize(constant.zeros if len(constant.zeros) else np.zeros(1), count)
        if count not in (1, size) or constant.axis < 0:
            raise InputError(f"has {count} scales for its shape {constant.shape}. {AGAIN}")

        def read(start: int, stop: int) -> Array:
            place = np.arange(start, stop) // inner % size if count > 1 else 0
            codes = tensor.read(start, stop).astype(np.float64)
            floats: Array = ((codes - zeros[place]) * constant.scales[place]).astype(np.float32)
            return floats

        self.biases.append(tensor.name)
        self.tensors[tensor.name] = SourceTensor(tensor.name, "float32", tensor.shape, read)

    def _add_codes(self, tensor: SourceTensor, constant: Constant) -> None:
        """Add a weight of codes and scales: packed if it is ternary, else both as they are."""
        name, system = tensor.name, f"TFLite's int{constant.bits}"
        scale = _numbers(f"{name}_scale", "float32", constant.scales)
        zero = _numbers(f"{name}_zero_point", "int64", constant.zeros)
        parts = [scale, zero] if constant.zeros.any() else [scale]
        try:
            self.tensors[name] = _levels(tensor, constant, system).tensor()
            self.packed.append(name)
        except UnsupportedError as error:
            if taken := [part.name for part in parts if part.name in self.tensors]:
                raise InputError(f"needs the name {taken[0]!r}, which is taken.") from error
            beside = tuple(part.name for part in parts)
            self.tensors[name] = SourceTensor(
                name, tensor.dtype, tensor.shape, tensor.read, None, error.message, system, beside
            )
            self.tensors |= {part.name: part for part in parts}

    def say(self, unheld: list[str]) -> None:
        """Say what was found, for the report."""
        if self.packed:
            self.notes.append(f"read {plural(len(self.packed), 'weight')} of ternary codes")
        if self.biases:
            self.notes.append(
                f"took {plural(len(self.biases), 'tensor')} of integers as the float32 values that "
                f"they stand for: {listed(self.biases)}"
            )
        if unheld:
            self.notes.append(f"left out {listed(unheld)}: no safetensors file can hold them")
        sparse = [name for name in self.opaque if name not in self.tensors]
        if sparse:
            self.warnings.append(
                f"left out {listed(sparse)}: sparse tensors are not read. Convert the model to "
                "TFLite without sparsity."
            )
        if kept := [name for name in self.opaque if name in self.tensors]:
            self.warnings.append(
                f"{plural(len(kept), 'tensor')} of codes kept without the scales, which the file "
                f"has in another form: {listed(kept)}. Convert the model that it was made from."
            )


def _levels(tensor: SourceTensor, constant: Constant, system: str) -> Levels:
    count, shape = len(constant.scales), constant.shape
    if not 0 <= constant.axis < len(shape):
        raise InputError(f"has scales along axis {constant.axis} of {shape}. {AGAIN}")
    lie = Lie.of((count,), shape, constant.axis)
    zeros = None
    if constant.zeros.any():
        if len(constant.zeros) not in (1, count) or np.abs(constant.zeros).max() > 1 << 15:
            raise InputError(f"has {len(constant.zeros)} zero points for {count} scales. {AGAIN}")
        wanted = lie.granularity.shape(shape, len(shape) - lie.column_dims)
        zeros = np.resize(constant.zeros, count).astype(np.int16).reshape(wanted)
    name = tensor.name
    return Levels(
        name, shape, tensor.read, constant.scales, "float32", "float32", lie, (name,), system,
        constant.place.length, zeros,
    )  # fmt: skip


def _stored(file: File, name: str, constant: Constant) -> SourceTensor:
    numel = int(np.prod(constant.shape, dtype=object))
    needed = -(-numel * constant.bits // 8)
    if needed != constant.place.length:
        raise InputError(
            f"holds {constant.place.length} bytes, expected {needed} for shape {constant.shape} "
            f"in {constant.bits} bits. {AGAIN}"
        )
    whole = constant.bits >= 8
    kind = np.dtype(stored_dtype(constant.dtype) if whole else "uint8").newbyteorder("<")
    size = numel if whole else needed
    array = StoredArray(kind, (size,), constant.place.start, lambda: (file.handle, 0))
    read = array.read if whole else _of_bits(array, constant.bits)
    return SourceTensor(name, constant.dtype, constant.shape, read)


def _of_bits(array: StoredArray, bits: int) -> Callable[[int, int], Array]:
    """Return a reader of numbers of 2 or 4 bits in two's complement, low bits first."""
    per_byte, top = 8 // bits, 8 - bits

    def read(start: int, stop: int) -> Array:
        first = start // per_byte
        data = array.read(first, -(-stop // per_byte)).view(np.int8)
        shifts = np.arange(per_byte, dtype=np.int8) * bits
        numbers: Array = (data[:, None] << (top - shifts)).astype(np.int8) >> top
        return numbers.reshape(-1)[start - first * per_byte : stop - first * per_byte]

    return read


def _numbers(name: str, dtype: str, values: Array) -> SourceTensor:
    return SourceTensor(name, dtype, values.shape, lambda start, stop: values[start:stop])
