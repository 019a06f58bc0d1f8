"""A weight as whole numbers and scales: packed if it is ternary, else left as its source has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale, pack
from tpack.errors import InputError, UnsupportedError
from tpack.quantize import narrow, widen
from tpack.quantize.fitting import spread
from tpack.quantize.weight import BLOCK
from tpack.sources.source import PackedTensor, SourceTensor

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Lie:
    """How parameters of a weight, such as its scales, lie over it.

    Attributes:
        granularity: which weights share one.
        column_dims: how many trailing dims of the weight are the columns.
        turned: whether that is so of its transpose.
    """

    granularity: Scale
    column_dims: int = 1
    turned: bool = False

    @classmethod
    def of(cls, found: tuple[int, ...], shape: tuple[int, ...], axis: int, block: int = 0) -> Lie:
        """Find how parameters of a shape lie over a weight.

        Args:
            found: shape of the parameters.
            shape: of the weight.
            axis: along which they differ, from 0.
            block: how many weights along it share one; 0 if each has its own.

        Raises:
            UnsupportedError: as "it …", where no granularity says this.
            InputError: the shapes do not fit.

        Example:
            >>> str(Lie.of((4, 2), (4, 9), 1, 8).granularity)
            'group:8'
        """
        rank = len(shape)
        if math.prod(found) == 1:
            return cls(Scale.parse("tensor"), max(rank - 1, 1))
        wanted = shape[axis : axis + 1] if not block else (
            *shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :]
        )  # fmt: skip
        if found != wanted:
            raise InputError(
                f"has scales or zero points of shape {found}, expected {wanted} for a weight of "
                f"shape {shape}. Export it again."
            )
        if not block and axis == 0:
            return cls(Scale.parse("row"), max(rank - 1, 1))
        if not block and axis == rank - 1:
            return cls(Scale.parse("column"))
        if block and axis == rank - 1:
            return cls(Scale.parse(f"group:{block}" if found[-1] > 1 else "row"))
        if block and rank == 2:
            return cls(Scale.parse(f"group:{block}" if found[0] > 1 else "row"), turned=True)
        raise UnsupportedError(f"it has scales along axis {axis} of its shape {shape}")


@dataclass(frozen=True)
class Levels:
    """A weight: ``scale * (code - zero point)``, or divided by the scale.

    Attributes:
        name: of the weight.
        shape: of the weight.
        read: numbers ``start`` to ``stop``, flat; zero points are not yet subtracted.
        zeros: the zero points, in a shape that broadcasts as those of ``lie``; None for 0.
        divides: whether the scale divides.
        scale: as stored, in the shape that the granularity gives.
        scale_dtype: float32, float16 or bfloat16.
        dtype: of the weight.
        lie: how scales and zero points lie over it.
        parts: names of the tensors that it was made of, the codes first.
        system: what says so.
        nbytes: bytes that the parts take.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Array]
    scale: Array
    scale_dtype: str
    dtype: str
    lie: Lie
    parts: tuple[str, ...]
    system: str
    nbytes: int
    zeros: Array | None = field(default=None)
    divides: bool = False

    @property
    def split(self) -> int:
        """Leading dims that index rows."""
        return len(self.shape) - self.lie.column_dims

    @property
    def columns(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape[self.split :])

    def rows(self, first: int, last: int) -> npt.NDArray[np.int32]:
        """Return rows of numbers without their zero points, ``(last - first, columns)``."""
        columns = self.columns
        codes = self.read(first * columns, last * columns).reshape(last - first, columns)
        codes = codes.astype(np.int32)
        if self.zeros is None:
            return codes
        return codes - spread(self.zeros, self.lie.granularity, first, last - first, columns)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the first and last row of each piece that is read at once."""
        count = math.prod(self.shape[: self.split])
        step = max(1, BLOCK // max(self.columns, 1))
        for first in range(0, count, step):
            yield first, min(first + step, count)

    def tensor(self) -> PackedTensor:
        """Return the weight, packed.

        Raises:
            UnsupportedError: as "it …", if its numbers are not ternary.
            InputError: a scale is not finite.
        """
        values = widen(self.scale, self.scale_dtype)
        if not np.isfinite(values).all() or (self.divides and (values == 0).any()):
            raise InputError(
                "has a scale that is NaN or infinite, or divides by 0. Export the model again."
            )
        magnitude = self._magnitude()
        scale, size = self.scale, np.int32(magnitude)
        if self.divides:
            scale = narrow(magnitude / values.astype(np.float64), self.scale_dtype)
        elif magnitude > 1:
            scale = narrow(values.astype(np.float64) * magnitude, self.scale_dtype)

        def rows(first: int, last: int) -> npt.NDArray[np.uint8]:
            return pack(self.rows(first, last) // size)

        return PackedTensor(
            self.name,
            self.dtype,
            self.shape,
            rows,
            np.ascontiguousarray(scale).reshape(self.lie.granularity.shape(self.shape, self.split)),
            self.scale_dtype,
            self.lie.granularity,
            self.nbytes,
            column_dims=self.lie.column_dims,
        )

    def _magnitude(self) -> int:
        """Return the size that all numbers have which are not 0."""
        magnitude = 0
        for first, last in self.blocks():
            sizes = np.abs(self.rows(first, last))
            magnitude = magnitude or int(sizes.max(initial=0))
            if ((sizes != 0) & (sizes != magnitude)).any():
                raise UnsupportedError("it has more values than three")
        return magnitude or 1

    def dense(self) -> SourceTensor:
        """Return the weight as floats."""
        values = widen(self.scale, self.scale_dtype)
        columns = self.columns

        def read(start: int, stop: int) -> Array:
            first, last = start // columns, -(-stop // columns)
            rows = self.rows(first, last).astype(np.float32)
            scale = spread(values, self.lie.granularity, first, *rows.shape)
            floats = rows / scale if self.divides else rows * scale
            flat = narrow(floats, self.dtype).reshape(-1)
            return flat[start - first * columns : stop - first * columns]

        return SourceTensor(self.name, self.dtype, self.shape, read, coded=f"from {self.system}")

    def turned(self) -> Levels:
        """Return the transpose, ``(columns, rows)``; its numbers are read whole."""
        height, width = self.shape
        held: list[Array] = []

        def read(start: int, stop: int) -> Array:
            if not held:
                held.append(self.read(0, height * width).reshape(height, width).T.reshape(-1))
            found: Array = held[0][start:stop]
            if stop == height * width:
                held.clear()  # the last rows: nothing else is read soon
            return found

        return replace(self, shape=(width, height), read=read)
