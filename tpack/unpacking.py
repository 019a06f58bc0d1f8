"""Unpack a checkpoint, a file or a folder, into plain tensors, piece by piece, without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.container import Checkpoint, Document, Piece, write_plain_shards, write_tensors
from tpack.container.archives import write_npz, write_torch
from tpack.container.atomic import check_not_input, check_target, copy_files, write_json, write_text
from tpack.container.folders import check_apart, new_folder
from tpack.container.reader import stored_dtype
from tpack.dialects.gguf_quants import Quant
from tpack.errors import FormatError, InputError, NotTernaryError, UsageError, locate
from tpack.hfconfig import plain_config, read_config, unquantized_config
from tpack.modelcard import source_card
from tpack.quantize import narrow, widen
from tpack.quantize.fitting import spread
from tpack.quantize.weight import BLOCK
from tpack.sources.beside import check_texts, look_beside, read_card
from tpack.sources.gguf_kept import kept_blocks
from tpack.sources.packed_layouts import packed_groups
from tpack.sources.safetensors_source import as_source
from tpack.wording import either, spell_call

Array = npt.NDArray[Any]

#: What writes a file of plain tensors, by its suffix.
FORMS = {
    ".safetensors": write_tensors,
    **dict.fromkeys((".pt", ".pth", ".bin"), write_torch),
    ".npz": write_npz,
}
WEIGHT_FLOATS = ("float64", "float32", "float16", "bfloat16")


def unpack_file(
    path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    force: bool = False,
) -> int:
    """Write the plain state dict of a checkpoint, in the form of a suffix; returns its size.

    Args:
        destination: with one of the suffixes in ``FORMS``, or without one: safetensors.
        dtype: of the weights that were packed; that of their source, if not given.

    Raises:
        TpackError: as ``Checkpoint`` and ``new_file``.
        UsageError: another suffix.
    """
    suffix = Path(destination).suffix.lower()
    write = FORMS.get(suffix or ".safetensors")
    if write is None:
        raise UsageError(
            f"output {os.fspath(destination)!r} has suffix {suffix!r}, expected "
            f"{either(FORMS)}. {spell_call('export')} writes files of other systems."
        )
    check_not_input(Path(destination), path)
    check_target(Path(destination), force=force)
    with Checkpoint(path) as file, locate(file=path):
        return write(destination, plain_pieces(file, dtype), force=force)


def unpack_folder(
    path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    force: bool = False,
) -> int:
    """Write the plain folder of a packed one: shards, config, tokenizer, sub-folders.

    The shards are those of the packed folder. The config is that of the plain model: how the
    source was packed stands in it only if some weights still are. The model card is that of the
    source, if there was one.

    Args:
        dtype: of the weights that were packed; that of their source, if not given.

    Returns:
        The size of the files of weights, in bytes.

    Raises:
        TpackError: as ``Checkpoint``, ``new_folder`` and ``unquantized_config``.
    """
    check_apart(Path(destination), Path(path))
    with new_folder(destination, force=force) as out:
        return _write_folder(Path(path), out, dtype)


def _write_folder(path: Path, out: Path, dtype: str | None) -> int:
    """Write the plain form of a packed folder into an empty one."""
    check_texts(path)
    config = read_config(path)
    with Checkpoint(path) as file, locate(file=path):
        files = {
            part.path.name: list(plain_pieces(file, dtype, part.document)) for part in file.files
        }
        if config is not None:
            kept = {name: as_source(file, name, name) for name in file.document.kept}
            plain = plain_config(config) if packed_groups(kept) else unquantized_config(config)
            write_json(out / "config.json", plain, sort_keys=True)
        size = write_plain_shards(out, files)
        beside = look_beside(path, {part.path for part in file.files})
    copy_files(beside.copies, out)
    if card := source_card(read_card(path)):
        write_text(out / "README.md", card)
    for name in beside.parts:
        (out / name).mkdir()
        size += _write_folder(path / name, out / name, dtype)
    return size


def plain_pieces(
    file: Checkpoint, dtype: str | None = None, document: Document | None = None
) -> Iterator[Piece]:
    """Yield every tensor of the source of a checkpoint: dequantized, kept or shared.

    Args:
        document: of one of its shards, for the tensors of this alone.
    """
    document = document or file.document
    made: dict[str, Piece] = {}
    for name, entry in sorted(document.tensors.items()):
        wanted = dtype or entry.source_dtype
        made[name] = Piece(
            name,
            wanted,
            entry.shape,
            partial(_blocks, file, name, wanted),
        )
    blocks = kept_blocks(file)
    for name in document.kept:
        stored = file.entries[name]
        if quant := blocks.get(name):
            shape = (*stored.shape[:-1], quant.columns(stored.shape[-1]))
            made[name] = Piece(name, "float32", shape, partial(_values, file, name, quant))
            continue
        made[name] = Piece(
            name,
            stored.dtype,
            stored.shape,
            partial(file.chunks, name),
        )
    yield from made.values()
    for alias, target in document.aliases.items():
        piece = made[target]
        yield Piece(alias, piece.dtype, piece.shape, piece.chunks)


def _values(file: Checkpoint, name: str, quant: Quant) -> Iterator[memoryview]:
    """The values of blocks of GGUF that were kept byte for byte, in float32."""
    nbytes, step = file.entries[name].nbytes, BLOCK // quant.weights * quant.nbytes
    for start in range(0, nbytes, step):
        data = file.read(name, start, min(start + step, nbytes))
        stored = np.frombuffer(data, dtype=np.uint8).reshape(-1, quant.nbytes)
        yield memoryview(quant.dequantize(stored)).cast("B")


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
