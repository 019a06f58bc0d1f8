"""Explain why a weight is not ternary: the first value that no scale explains."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale
from tpack.errors import NotTernaryError
from tpack.kernels.reference import by_group
from tpack.quantize.detection import Detected
from tpack.quantize.pieces import in_pieces
from tpack.quantize.statistics import GROUP
from tpack.quantize.weight import Weight, changed

Array = npt.NDArray[Any]


def refuse(weight: Weight, detected: Detected) -> NotTernaryError:
    """Return the error that says why a weight is not ternary.

    Args:
        detected: of this weight; without an exact fit.
    """
    if detected.found is not None:
        value = float(detected.found.scales.max())
        return NotTernaryError(
            f"has the scale {value!r}, which {weight.scale_dtype} cannot hold exactly.",
            value=value,
        )
    statistics, scope = detected.statistics, detected.wanted or GROUP
    if detected.wanted is None and statistics.scales is not None and statistics.group == GROUP:
        return NotTernaryError(
            "is ternary only because hardly any two of its values share a scale, or only with "
            "so many scales that it would not become smaller.",
        )
    index, value, scale = _first_other(weight, scope)
    return NotTernaryError(
        f"is not ternary: value {value!r} at index {index}, expected 0 or ±{scale!r} "
        f"as before it in the same {scope.kind}.",
        index=index,
        value=value,
    )


def _first_other(weight: Weight, scope: Scale) -> tuple[tuple[int, ...], float, float]:
    """Find the first weight whose |w| differs from one before it in its set.

    Returns:
        Its index in the logical shape, its value, and the |w| before it.
    """
    before = 0.0  # |w| in a set that began in another piece
    columns = np.zeros((1, weight.columns), weight.real)  # the same of each column
    for piece in in_pieces(weight, scope, lambda piece: piece):
        values = piece.values
        if scope.kind == "column":
            found = _other_in_column(values, piece.part(columns, scope)[0])
            if found is None:
                continue
            row, column = found
            index = weight.index((piece.row + row) * weight.columns + piece.column + column)
            return index, float(values[row, column]), float(columns[0, piece.column + column])
        rows, columns = values.shape
        width = scope.group_size or columns
        sizes = np.abs(values)
        sets = sizes.reshape(1, -1) if scope.kind == "tensor" else by_group(sizes, width)
        scale = np.take_along_axis(sets, (sets != 0).argmax(axis=1, keepdims=True), axis=1)
        if scope.kind == "tensor" or (scope.kind == "row" and piece.column):
            scale[0, 0] = before or scale[0, 0]
        other = (sets != 0) & (sets != scale)
        if other.any():
            found, place = divmod(int(other.argmax()), sets.shape[1])
            row, column = divmod(place, columns)
            if scope.kind != "tensor":
                row, column = divmod(found, sets.shape[0] // rows)
                column = column * width + place
            index = weight.index((piece.row + row) * weight.columns + piece.column + column)
            return index, float(values[row, column]), float(scale[found, 0])
        before = float(scale[-1, 0])
    raise changed()


def _other_in_column(values: Array, scales: Array) -> tuple[int, int] | None:
    """Row and column of the first value unlike one before it in its column; notes all |w|.

    Args:
        scales: |w| before, ``(columns,)``, 0 where there is none; updated.
    """
    sizes = np.abs(values)
    first = np.take_along_axis(sizes, (sizes != 0).argmax(axis=0)[None], axis=0)[0]
    scales[...] = np.where(scales == 0, first, scales)
    other = (sizes != 0) & (sizes != scales)
    if not other.any():
        return None
    row, column = divmod(int(other.argmax()), values.shape[1])
    return row, column
