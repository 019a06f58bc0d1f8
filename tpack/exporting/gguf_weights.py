"""Which GGUF blocks hold a weight exactly, and the weight in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import LAYOUTS, Scale, pack, unpack
from tpack.container import Checkpoint, TernaryEntry
from tpack.dialects.gguf_blocks import BlockFormat, pack_blocks
from tpack.dialects.gguf_names import RowOrder
from tpack.dialects.gguf_types import TERNARY, TERNARY_IDS, WRITTEN
from tpack.errors import FormatError, NotTernaryError, UnsupportedError
from tpack.quantize import narrow, widen
from tpack.quantize.fitting import spread
from tpack.quantize.weight import BLOCK
from tpack.wording import spell_exclude

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Rows = Callable[[int, int], Array]

#: The values of ``--type`` → the format.
FORMATS = {name.lower(): TERNARY[TERNARY_IDS[name]] for name in WRITTEN}
#: In what order ``auto`` tries them.
AUTO = ("tq2_0", "q2_0")


@dataclass(frozen=True)
class Fitted:
    """A weight in blocks, or as floats if no blocks hold it.

    Attributes:
        kind: the blocks; None for floats.
        dtype: of the floats.
        scales: of the blocks, float16, broadcast to ``(rows, blocks)``.
        error: of the worst scale, relative to it; 0 where all are exact.
        problem: why the weight is not exact; empty if it is.
    """

    kind: BlockFormat | None
    dtype: str
    scales: npt.NDArray[np.float16]
    error: float
    problem: str


def fit_blocks(checkpoint: Checkpoint, name: str, kinds: list[BlockFormat]) -> Fitted:
    """Find the first format that holds a weight exactly; else the first that rounds its scales.

    Raises:
        UnsupportedError: it is not a matrix of rows along the last dim; a scale is beyond float16.
    """
    entry = checkpoint.document.tensors[name]
    if entry.split != len(entry.shape) - 1:
        raise UnsupportedError(
            f"has shape {entry.shape}, of which {entry.split} dimensions are rows, expected all "
            f"but the last. Convert the model again with {spell_exclude(name)}.",
            tensor=name,
        )
    stored, dtype, granularity = checkpoint.scale(name)
    scale = widen(stored, dtype)
    tried = [_fit(entry, scale, granularity, kind) for kind in kinds]
    for found in tried:
        if not found.problem:
            return found
    rounded = [found for found in tried if found.kind is not None]
    return rounded[0] if rounded else _floats(scale, tried[-1])


def _fit(entry: TernaryEntry, scale: Array, granularity: Scale, kind: BlockFormat) -> Fitted:
    nothing = np.zeros((0, 0), dtype=np.float16)
    columns = entry.columns
    size = 1 if granularity.kind == "column" else granularity.group_size
    if columns % kind.weights:
        return Fitted(
            None,
            "",
            nothing,
            0.0,
            f"has {columns} columns, expected a multiple of {kind.weights} in {kind.name}",
        )
    blocks = columns // kind.weights
    if not size:
        shared = scale.reshape(-1, 1)
    elif size % kind.weights == 0:
        shared = np.repeat(scale.reshape(entry.rows, -1), size // kind.weights, 1)[:, :blocks]
    elif kind.weights % size == 0 and _equal(groups := scale.reshape(-1, kind.weights // size)):
        shared = groups[:, :1].reshape(-1, blocks)
    else:
        return Fitted(
            None,
            "",
            nothing,
            0.0,
            f"has scales per {granularity}, expected one for each {kind.weights} columns in "
            f"{kind.name}",
        )
    with np.errstate(over="ignore", under="ignore"):
        halves = shared.astype(np.float16)
    error, problem = _rounding(shared, halves)
    return Fitted(kind, "", np.broadcast_to(halves, (entry.rows, blocks)), error, problem)


def _equal(groups: Array) -> bool:
    return bool((groups == groups[:, :1]).all())


def _rounding(exact: Array, halves: npt.NDArray[np.float16]) -> tuple[float, str]:
    """Return the worst relative error of rounded scales, and the problem in words."""
    back = halves.astype(exact.dtype)
    if np.array_equal(back, exact):
        return 0.0, ""
    off = np.abs(back - exact) / np.where(exact == 0, 1, np.abs(exact))
    worst = np.unravel_index(int(off.argmax()), off.shape)
    if not off[worst] < 1:
        raise UnsupportedError(
            f"has the scale {exact[worst]!s}, which is beyond float16, the scale of every GGUF "
            "block. Unpack the model and quantize it to another type."
        )
    return (
        float(f"{off[worst]:.3e}"),
        f"has the scale {exact[worst]!s}, which float16 only holds as {back[worst]!s} "
        f"(relative error {off[worst]:.1e})",
    )


def _floats(scale: Array, tried: Fitted) -> Fitted:
    halves = narrow(scale, "float16")
    dtype = "float16" if np.array_equal(halves.astype(scale.dtype), scale) else "float32"
    return Fitted(None, dtype, tried.scales, 0.0, tried.problem)


# ---- bytes


def block_chunks(
    checkpoint: Checkpoint, name: str, fitted: Fitted, order: RowOrder | None
) -> Iterator[Bytes]:
    """Yield a weight in its blocks, from top to bottom.

    Raises:
        FormatError: a byte without valid codes.
    """
    assert fitted.kind is not None
    entry = checkpoint.document.tensors[name]
    rows = permuted(_packed_rows(checkpoint, name, entry), order)
    scales = permuted(lambda first, last: fitted.scales[first:last], order)
    for first, last in row_blocks(entry.rows, entry.columns):
        yield pack_blocks(fitted.kind, rows(first, last), scales(first, last)).reshape(-1)


def float_chunks(
    checkpoint: Checkpoint, name: str, dtype: str, order: RowOrder | None
) -> Iterator[Array]:
    """Yield a weight as floats, from top to bottom.

    Raises:
        FormatError: a byte without valid codes.
    """
    entry = checkpoint.document.tensors[name]
    stored, scale_dtype, granularity = checkpoint.scale(name)
    scale = widen(stored, scale_dtype)
    packed = _packed_rows(checkpoint, name, entry)

    def values(first: int, last: int) -> Array:
        trits = unpack(packed(first, last), entry.columns)
        return narrow(spread(scale, granularity, first, *trits.shape) * trits, dtype)

    rows = permuted(values, order)
    for first, last in row_blocks(entry.rows, entry.columns):
        yield rows(first, last).reshape(-1)


def _packed_rows(checkpoint: Checkpoint, name: str, entry: TernaryEntry) -> Rows:
    """Return a reader of the rows of a weight in layout t2."""
    width = entry.packed_shape[-1]

    def read(first: int, last: int) -> Bytes:
        data = checkpoint.read(f"{name}_packed", first * width, last * width)
        packed = np.frombuffer(data, dtype=np.uint8).reshape(last - first, width)
        try:
            if entry.layout != "t2":
                return pack(unpack(packed, entry.columns, entry.layout))
            if not LAYOUTS["t2"].valid[packed].all():
                unpack(packed, entry.columns)
        except NotTernaryError as error:  # of a file, not of weights that somebody gave
            raise FormatError(error.message, rule="R14", tensor=f"{name}_packed") from error
        return packed

    return read


def permuted(read: Rows, order: RowOrder | None) -> Rows:
    """Return a reader of rows in the order of GGUF, which reads whole heads."""
    if order is None:
        return read

    def rows(first: int, last: int) -> Array:
        start = first // order.size * order.size
        stop = -(-last // order.size) * order.size
        return read(start, stop)[order.in_original(first, last) - start]

    return rows


def row_blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows, each with about as many elements as are worked on at a time."""
    step = max(1, BLOCK // max(columns, 1))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)
