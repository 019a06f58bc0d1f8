"""Pack trits into bytes and back: the layouts of a file, in numpy.

A *trit* is -1, 0 or +1; its *code* is trit + 1. A layout says how the codes of one row lie
in bytes; rows start on whole bytes and are padded with code 1 (trit 0). This package is the
readable definition that kernels are tested against.

Example:
    >>> import numpy as np
    >>> trits = np.array([1, -1, 0, 1, 0], dtype=np.int8)
    >>> [f"{byte:08b}" for byte in pack(trits)]
    ['10010010', '01010101']
    >>> unpack(pack(trits), 5)
    array([ 1, -1,  0,  1,  0], dtype=int8)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.choices import FormatRow
from tpack.codec import t2, t5
from tpack.codec.shapes import GRANULARITIES, GROUP_SIZES, Scale, rows_and_columns
from tpack.errors import NotTernaryError, unknown

__all__ = [
    "GRANULARITIES",
    "GROUP_SIZES",
    "LAYOUTS",
    "Layout",
    "Scale",
    "canonical",
    "check_trits",
    "layout_named",
    "pack",
    "rows_and_columns",
    "unpack",
]

Trits = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout(FormatRow):
    """How the codes of a row lie in bytes.

    Attributes:
        name: what options and files call it.
        meaning: what it is, in one line.
        per_byte: trits a byte holds.
        encode: codes ``(..., n * per_byte)`` uint8 in 0..2 → bytes ``(..., n)``.
        decode: bytes ``(..., n)`` → codes ``(..., n * per_byte)`` uint8. Total: an invalid
            byte decodes to something, ``valid`` tells.
        valid: ``(256,)`` bool, which bytes the encoder can produce.
    """

    name: str
    meaning: str
    per_byte: int
    encode: Callable[[Bytes], Bytes]
    decode: Callable[[Bytes], Bytes]
    valid: npt.NDArray[np.bool_]

    def bytes_for(self, columns: int) -> int:
        """Bytes that one row of ``columns`` trits takes."""
        return -(-columns // self.per_byte)


#: The layouts by name.
LAYOUTS = {
    row.name: row
    for row in (
        Layout("t2", "four trits a byte, of two bits each", 4, t2.encode, t2.decode, t2.VALID),
        Layout("t5", "five trits a byte, in base 3", 5, t5.encode, t5.decode, t5.VALID),
    )
}


def layout_named(name: str) -> Layout:
    """Look a layout up by name.

    Raises:
        UsageError: there is no such layout.
    """
    if name not in LAYOUTS:
        raise unknown("layout", name, LAYOUTS)
    return LAYOUTS[name]


def check_trits(values: npt.NDArray[Any]) -> None:
    """Make sure that every value is -1, 0 or +1.

    Args:
        values: array of any shape and real dtype.

    Raises:
        NotTernaryError: naming the first other value and its index.
    """
    bad = (values != 0) & (values != 1) & (values != -1)
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise not_a_trit(float(values[index]), index)


def not_a_trit(value: float, index: tuple[int, ...]) -> NotTernaryError:
    """The error for a value outside the set: one wording for numpy, torch and C."""
    return NotTernaryError(
        f"value {value:g} at index {index} is not ternary, expected -1, 0 or 1. "
        "Round or quantize the tensor first.",
        index=index,
        value=value,
    )


def pack(trits: npt.NDArray[Any], layout: str = "t2") -> Bytes:
    """Pack trits along the last axis, each row padded to whole bytes with code 1.

    Args:
        trits: ``(..., k)``, any real dtype, values in {-1, 0, 1}.
        layout: ``t2`` (four trits a byte) or ``t5`` (five).

    Returns:
        uint8 of shape ``(..., ceil(k / per_byte))``.

    Raises:
        NotTernaryError: any other value, with its index.
    """
    kind = layout_named(layout)
    check_trits(trits)
    columns = trits.shape[-1]
    padding = -columns % kind.per_byte
    codes = np.ones((*trits.shape[:-1], columns + padding), dtype=np.uint8)
    np.add(trits, 1, out=codes[..., :columns], casting="unsafe")
    return kind.encode(codes)


def unpack(packed: Bytes, columns: int, layout: str = "t2") -> Trits:
    """Unpack rows of ``columns`` trits.

    Args:
        packed: uint8 ``(..., ceil(columns / per_byte))``.
        columns: trits a row.

    Returns:
        int8 of shape ``(..., columns)``.

    Raises:
        NotTernaryError: a byte that no encoder writes (in t2: code 3), with its index.
    """
    kind = layout_named(layout)
    bad = ~kind.valid[packed]
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise illegal_byte(int(packed[index]), index, layout)
    codes = kind.decode(packed)[..., :columns]
    return codes.astype(np.int8) - np.int8(1)


def canonical(packed: Bytes, columns: int, layout: str) -> Bytes:
    """Return rows in layout t2, whatever theirs; digests of weights are those of such rows.

    Args:
        packed: uint8 (rows, bytes); bytes that no encoder writes give something.
        columns: trits in a row.
    """
    if layout == "t2":
        return packed
    codes = layout_named(layout).decode(packed)[..., :columns]
    return pack(codes.astype(np.int8) - np.int8(1))


def illegal_byte(value: int, index: tuple[int, ...], layout: str) -> NotTernaryError:
    """The error for a byte that no encoder of the layout writes."""
    return NotTernaryError(
        f"byte 0x{value:02x} at index {index} holds no valid code of layout {layout}. "
        "The data is damaged or in another layout.",
        index=index,
        value=value,
    )
