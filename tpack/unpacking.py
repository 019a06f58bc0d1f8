"""Unpack a checkpoint into plain tensors, piece by piece, without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.container import Checkpoint, Piece, write_tensors
from tpack.container.atomic import check_not_input, check_target
from tpack.container.reader import stored_dtype
from tpack.errors import FormatError, InputError, NotTernaryError, locate
from tpack.quantize import narrow, widen
from tpack.quantize.fitting import spread

Array = npt.NDArray[Any]

WEIGHT_FLOATS = ("float64", "float32", "float16", "bfloat16")


def unpack_file(
    path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    force: bool = False,
) -> int:
    """Write the plain state dict of a checkpoint as safetensors; returns its size.

    Args:
        dtype: of the weights that were packed; that of their source, if not given.

    Raises:
        TpackError: as ``Checkpoint`` and ``new_file``.
    """
    check_not_input(Path(destination), path)
    check_target(Path(destination), force=force)
    with Checkpoint(path) as file, locate(file=path):
        return write_tensors(destination, plain_pieces(file, dtype), force=force)


def plain_pieces(file: Checkpoint, dtype: str | None = None) -> Iterator[Piece]:
    """Every tensor of the source of a checkpoint: dequantized, kept or shared."""
    made: dict[str, Piece] = {}
    for name, entry in file.ternary():
        wanted = dtype or entry.source_dtype
        made[name] = Piece(
            name,
            wanted,
            entry.shape,
            partial(_blocks, file, name, wanted),
        )
    for name in file.document.kept:
        stored = file.entries[name]
        made[name] = Piece(
            name,
            stored.dtype,
            stored.shape,
            partial(file.chunks, name),
        )
    yield from made.values()
    for alias, target in file.document.aliases.items():
        piece = made[target]
        yield Piece(alias, piece.dtype, piece.shape, piece.chunks)


def _blocks(file: Checkpoint, name: str, dtype: str) -> Iterator[memoryview]:
    """``scale * trit`` of a parameter, in stored elements of ``dtype``.

    Raises:
        FormatError: a byte without valid codes.
        InputError: a scale that ``dtype`` cannot hold.
    """
    stored, scale_dtype, granularity = file.scale(name)
    scale = widen(stored, scale_dtype)
    try:
        for first, trits in file.trit_blocks(name):
            with np.errstate(invalid="ignore"):  # of values that are refused below
                values = spread(scale, granularity, first, *trits.shape) * trits
                plain = narrow(values, dtype)
            held = widen(plain, dtype)
            kept = np.isfinite(held) & ((held != 0) == (values != 0))
            if not (held == values if dtype == "int8" else kept).all():
                raise InputError(
                    f"has a scale that {dtype} cannot hold. Unpack it in another dtype.",
                    tensor=name,
                )
            yield memoryview(plain).cast("B")
    except NotTernaryError as error:  # of a file, not of weights that somebody gave
        raise FormatError(error.message, rule="R14", tensor=error.tensor) from error


def plain_array(piece: Piece) -> Array:
    """A piece as a flat array of stored elements, in memory."""
    data = bytearray()
    for chunk in piece.chunks():
        data += chunk
    return np.frombuffer(data, dtype=stored_dtype(piece.dtype))
