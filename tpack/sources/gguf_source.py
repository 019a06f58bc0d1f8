"""GGUF files as a source: ternary blocks come packed, plain tensors as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.choices import I2S_ORDERS
from tpack.codec import GROUP_SIZES, Scale
from tpack.container.header import check_name
from tpack.container.reader import stored_dtype
from tpack.container.strictjson import canonical_json
from tpack.dialects.gguf_blocks import (
    I2_S_ORDERS,
    I2_S_ROWS,
    PQ2_0,
    BlockFormat,
    rows_of_four,
    scales_of,
    unpack_blocks,
)
from tpack.dialects.gguf_names import Naming, RowOrder
from tpack.dialects.gguf_quants import QUANTS, Quant
from tpack.dialects.gguf_types import I2_S_TAIL
from tpack.dialects.gguf_values import Value, to_json
from tpack.dtypes import BY_NAME
from tpack.errors import InputError, UnsupportedError, locate
from tpack.options import Reading
from tpack.quantize.weight import BLOCK
from tpack.sources.gguf_reader import GgufFile, TensorInfo
from tpack.sources.rotations import ROTATED, refuse_rotated
from tpack.sources.source import PackedTensor, Source, SourceTensor
from tpack.wording import spell

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

#: Of the metadata as JSON; more would not fit beside the rest of a header.
MAX_JSON = 20_000_000


def open_gguf(path: Path, reading: Reading = Reading()) -> Source:  # noqa: B008  # frozen
    """Open a GGUF file.

    Tensors of architectures that tpack knows get the names and the order of rows that they have
    in Hugging Face checkpoints. The metadata stands, as JSON, under ``gguf`` in the source's
    metadata.

    Raises:
        InputError: malformed, truncated or hostile; a scale that is no number.
        UnsupportedError: a type of tensor that is neither ternary nor plain; a part of a split
            model.
    """
    resources = ExitStack()
    with resources:
        file = resources.enter_context(GgufFile(path, I2_S_ORDERS[reading.i2s_order or "x86"]))
        _refuse_part(file.metadata)
        said = {k: item.plain for k, item in file.metadata.items() if ROTATED.search(k)}
        refuse_rotated(said, "metadata")
        names = Naming.of(file.metadata)
        tensors: dict[str, SourceTensor | PackedTensor] = {}
        for info in file.tensors:
            with locate(tensor=info.name[:200]):
                tensor = _tensor(file, info, names)
            check_name(tensor.name)
            if tensor.name in tensors:
                raise InputError(
                    f"would have the name {tensor.name!r}, which another tensor has. Rename one.",
                    tensor=info.name,
                )
            tensors[tensor.name] = tensor
        return Source(
            str(path),
            tensors,
            notes=_notes(file, names, reading),
            warnings=_warnings(file, reading),
            files=(path,),
            nbytes=path.stat().st_size,
            metadata={"gguf": _carried(file, names)},
            int8_inputs=frozenset(
                names.outside(info.name) for info in file.tensors if _rounds_inputs(info, names)
            ),
            resources=resources.pop_all(),
        )


def _refuse_part(metadata: Mapping[str, Value]) -> None:
    count = metadata.get("split.count")
    if count is not None and count.kind in ("uint16", "uint32") and count.data > 1:
        raise UnsupportedError(
            f"is one of {count.plain} parts of a model. Join them first: llama-gguf-split --merge."
        )


def _carried(file: GgufFile, names: Naming) -> str:
    """Return, as JSON, what is needed to make a GGUF file of the checkpoint again."""
    text = canonical_json(
        {
            "version": file.version,
            "metadata": [[key, *to_json(value)] for key, value in file.metadata.items()],
            "tensors": [[info.name, names.outside(info.name), info.kind] for info in file.tensors],
        }
    )
    if len(text) > MAX_JSON:
        raise UnsupportedError(
            f"has metadata of {len(text)} characters as JSON, expected at most {MAX_JSON}. "
            "Remove from it what the model does not need, with llama.cpp's gguf_new_metadata.py."
        )
    return text


def _warnings(file: GgufFile, reading: Reading) -> list[str]:
    if reading.i2s_order or not any(info.kind == "I2_S" for info in file.tensors):
        return []
    others = tuple(order for order in I2S_ORDERS if order != "x86")
    return [
        "I2_S is taken in the order that x86 has; in another one the weights would change places, "
        f"and the file does not say which it is. If the model computes nonsense, try "
        f"{spell(i2s_order=others)}"
    ]


def _notes(file: GgufFile, names: Naming, reading: Reading) -> list[str]:
    found = []
    kinds = {info.kind for info in file.tensors}
    if names.renamed:
        permuted = " and ".join(stem.rpartition(".")[2] for stem in names.heads)
        order = f", rows of {permuted} in their order" if permuted else ""
        found.append(f"{names.stated}: names as Hugging Face has them{order}")
    elif names.stated:
        found.append(f"{names.stated}: names as GGUF has them")
    if "I2_S" in kinds and reading.i2s_order:
        found.append(f"I2_S taken in the order that {reading.i2s_order} has, as you say")
    for quant in QUANTS.values():
        if names_of := [names.outside(i.name) for i in file.tensors if i.quant is quant]:
            more = f" and {len(names_of) - 1} others" if len(names_of) > 1 else ""
            found.append(
                f"{names_of[0]}{more}: {quant.name}, kept byte for byte unless the values are "
                f"packed; {spell(keep_dtype='f32')} keeps the values that llama.cpp gives them"
            )
    if PQ2_0.name in kinds:
        found.append("blocks of 128 weights in 34 bytes, as PrismML writes them")
    scaled = [info.name for info in file.tensors if info.name.endswith(".scale")]
    if scaled:
        found.append(
            f"{scaled[0]} and others like it multiply outputs too: kept beside the weights"
        )
    if any(_rounds_inputs(info, names) for info in file.tensors):
        found.append("linear layers round their inputs to int8 per token, as BitNet does")
    return found


def _rounds_inputs(info: TensorInfo, names: Naming) -> bool:
    """Return whether a tensor is the weight of a layer that rounds its input to int8 per token.

    All layers of BitNet do, whatever type holds their weights, and so do all weights in I2_S.
    llama.cpp also rounds activations of any model in blocks; that is not part of the model.
    """
    is_linear = info.name.startswith("blk.") and len(info.shape) == 2
    by_model = names.known is not None and names.known.int8_inputs
    return is_linear and (info.kind == "I2_S" or by_model)


def _tensor(file: GgufFile, info: TensorInfo, names: Naming) -> SourceTensor | PackedTensor:
    order = names.order(info.name, info.shape[0]) if info.shape else None
    name = names.outside(info.name)
    if info.quant is not None:
        read = _values(file, info, info.quant, order)
        raw = SourceTensor(name, *_form_of_blocks(info), _blocks(file, info, order))
        coded = f"{info.kind} of GGUF"
        return SourceTensor(name, "float32", info.shape, read, coded=coded, stored=raw)
    if info.blocks is None:
        dtype = str(info.dtype)
        return SourceTensor(name, dtype, info.shape, _elements(file, info, dtype, order))
    stored = _reordered(partial(_stored_rows, file, info), order)
    scale: Array
    if info.blocks.scale_at is None:
        start = info.nbytes - I2_S_TAIL
        tail = file.read(info, start, start + 4)
        scale = np.frombuffer(tail, dtype="<f4").astype(np.float32)
        granularity, dtype = Scale.parse("tensor"), "float32"
        if not np.isfinite(scale).all():
            raise InputError(
                f"has the scale {scale[0]}, expected a finite number. The file is damaged."
            )
    else:
        granularity, scale = _coarsest(_all_scales(info, info.blocks, stored), info)
        dtype = "float16"

    def rows(first: int, last: int) -> Bytes:
        assert info.blocks is not None
        with locate(file=file.path, tensor=info.name):
            return unpack_blocks(info.blocks, stored(first, last), first)

    return PackedTensor(name, dtype, info.shape, rows, scale, dtype, granularity, info.nbytes)


# ---- rows


def _row_bytes(info: TensorInfo) -> int:
    assert info.blocks is not None
    return info.blocks.row_bytes(info.shape[-1])


def _stored_rows(file: GgufFile, info: TensorInfo, first: int, last: int) -> Bytes:
    """Read rows as they lie in the file."""
    if info.blocks is I2_S_ROWS:
        columns, top = info.shape[-1], first // 4
        data = file.read(info, top * columns, -(-last // 4) * columns)
        fours = np.frombuffer(data, dtype=np.uint8).reshape(-1, columns)
        return rows_of_four(fours)[first - 4 * top : last - 4 * top]
    width = _row_bytes(info)
    data = file.read(info, first * width, last * width)
    return np.frombuffer(data, dtype=np.uint8).reshape(last - first, width)


def _reordered(read: Callable[[int, int], Array], order: RowOrder | None) -> Callable[..., Array]:
    """Return a reader of rows in the original order, which reads whole heads."""
    if order is None:
        return read

    def rows(first: int, last: int) -> Array:
        start = first // order.size * order.size
        stop = -(-last // order.size) * order.size
        return read(start, stop)[order.in_gguf(first, last) - start]

    return rows


def _elements(
    file: GgufFile, info: TensorInfo, dtype: str, order: RowOrder | None
) -> Callable[[int, int], Array]:
    """Return a reader of the elements of a plain tensor, flat."""
    nbytes, kind = BY_NAME[dtype].nbytes, np.dtype(stored_dtype(dtype)).newbyteorder("<")
    width = math.prod(info.shape[1:])

    def flat(start: int, stop: int) -> Array:
        return np.frombuffer(file.read(info, nbytes(start), nbytes(stop)), dtype=kind)

    return _flat_in_order(flat, width, order)


def _form_of_blocks(info: TensorInfo) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of the blocks of a tensor as bytes."""
    assert info.quant is not None
    return "uint8", (*info.shape[:-1], info.quant.row_bytes(info.shape[-1]))


def _blocks(
    file: GgufFile, info: TensorInfo, order: RowOrder | None
) -> Callable[[int, int], Array]:
    """Return a reader of the bytes of blocks, flat."""
    shape = _form_of_blocks(info)[1]

    def flat(start: int, stop: int) -> Array:
        return np.frombuffer(file.read(info, start, stop), dtype=np.uint8)

    return _flat_in_order(flat, math.prod(shape[1:]), order)


def _values(
    file: GgufFile, info: TensorInfo, quant: Quant, order: RowOrder | None
) -> Callable[[int, int], Array]:
    """Return a reader of the values that the codes of a tensor stand for, flat."""

    def flat(start: int, stop: int) -> Array:
        first, last = start // quant.weights, -(-stop // quant.weights)
        data = file.read(info, first * quant.nbytes, last * quant.nbytes)
        values = quant.dequantize(np.frombuffer(data, dtype=np.uint8).reshape(last - first, -1))
        return values[start - first * quant.weights : stop - first * quant.weights]

    return _flat_in_order(flat, math.prod(info.shape[1:]), order)


def _flat_in_order(
    flat: Callable[[int, int], Array], width: int, order: RowOrder | None
) -> Callable[[int, int], Array]:
    """Return a reader of elements of rows ``width`` wide, in the original order of the rows."""
    if order is None or not width:
        return flat
    matrix = _reordered(
        lambda first, last: flat(first * width, last * width).reshape(-1, width), order
    )

    def read(start: int, stop: int) -> Array:
        first, last = start // width, -(-stop // width)
        return matrix(first, last).reshape(-1)[start - first * width : stop - first * width]

    return read


# ---- scales


def _all_scales(
    info: TensorInfo, kind: BlockFormat, stored: Callable[[int, int], Bytes]
) -> npt.NDArray[np.float16]:
    """Read the scale of every block, ``(rows, blocks)``."""
    count = math.prod(info.shape[:-1])
    step = max(1, BLOCK // info.shape[-1])
    return np.concatenate(
        [
            scales_of(kind, stored(first, min(first + step, count)), first)
            for first in range(0, count, step)
        ]
    )


def _coarsest(
    scales: npt.NDArray[np.float16], info: TensorInfo
) -> tuple[Scale, npt.NDArray[np.float16]]:
    """Find the coarsest granularity that keeps scales bit for bit; return it with its scales."""
    assert info.blocks is not None
    bits = scales.view(np.uint16)
    size = info.blocks.weights
    found, kept = Scale.parse(f"group:{size}"), scales
    if (bits == bits[0, 0]).all():
        found, kept = Scale.parse("tensor"), scales[:1, :1]
    elif (bits == bits[:, :1]).all():
        found, kept = Scale.parse("row"), scales[:, :1]
    else:
        for group in GROUP_SIZES:
            each = group // size
            if each > 1 and not bits.shape[1] % each:
                together = bits.reshape(len(bits), -1, each)
                if (together == together[..., :1]).all():
                    found, kept = Scale.parse(f"group:{group}"), scales[:, ::each]
                    break
    shape = found.shape(info.shape, len(info.shape) - 1)
    return found, np.ascontiguousarray(kept).reshape(shape)
