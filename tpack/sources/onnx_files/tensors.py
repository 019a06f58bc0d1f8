"""Tensors of an ONNX model as tensors of a source."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from tpack.container.header import MAX_DIMS
from tpack.container.reader import stored_dtype
from tpack.dtypes import BY_NAME
from tpack.errors import InputError, UnsupportedError
from tpack.sources.onnx_files.model import OnnxModel, ReadBytes
from tpack.sources.source import SourceTensor

Array = npt.NDArray[Any]

#: The dtype of each type that has whole bytes.
DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.UINT16: "uint16",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.COMPLEX64: "complex64",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
    TensorProto.FLOAT8E5M2: "float8_e5m2",
    TensorProto.FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
}
#: Integers of less than a byte, by their numbers in ``TensorProto.DataType``, of which older
#: versions of onnx do not know all: bits, and whether they have a sign.
SUB_BYTE = {21: (4, False), 22: (4, True), 25: (2, False), 26: (2, True)}


def read_tensor(model: OnnxModel, tensor: TensorProto, name: str) -> SourceTensor:
    """Return a tensor of a model; integers of less than a byte as one byte each.

    Args:
        name: what the source calls it.

    Raises:
        InputError: its shape, or where its elements lie, is impossible.
        UnsupportedError: it has a type that safetensors cannot hold.
    """
    shape = tuple(tensor.dims)
    if len(shape) > MAX_DIMS or min(shape, default=0) < 0:
        raise InputError(
            f"has shape {shape!r:.60}, expected a list of at most {MAX_DIMS} sizes from 0."
        )
    numel = math.prod(shape)
    if tensor.data_type in SUB_BYTE:
        bits, signed = SUB_BYTE[tensor.data_type]
        data = model.bytes_of(tensor, -(-numel * bits // 8))
        return SourceTensor(name, "int8" if signed else "uint8", shape, _bits(data, bits, signed))
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        raise UnsupportedError(
            f"has type {type_name(tensor.data_type)}, which no safetensors file can hold."
        )
    nbytes, kind = BY_NAME[dtype].nbytes, np.dtype(stored_dtype(dtype)).newbyteorder("<")
    data = model.bytes_of(tensor, nbytes(numel))
    return SourceTensor(
        name, dtype, shape, lambda start, stop: data(nbytes(start), nbytes(stop)).view(kind)
    )


def type_name(number: int) -> str:
    """Return what ONNX calls a type of tensor.

    Example:
        >>> type_name(1), type_name(99)
        ('FLOAT', '99')
    """
    names = {value: name for name, value in TensorProto.DataType.items()}
    return str(names.get(number, number))


def unpack_bits(data: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Spread bytes into codes, those in the low bits first.

    Example:
        >>> unpack_bits(np.array([0b11100100], np.uint8), 2).tolist()
        [0, 1, 2, 3]
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (data[..., None] >> shifts & np.uint8((1 << bits) - 1)).reshape(*data.shape[:-1], -1)


def _bits(data: ReadBytes, bits: int, signed: bool) -> Callable[[int, int], Array]:
    each = 8 // bits

    def read(start: int, stop: int) -> Array:
        first = start // each
        codes = unpack_bits(data(first, -(-stop // each)), bits)
        codes = codes[start - first * each : stop - first * each]
        if not signed:
            return codes
        spare = np.uint8(8 - bits)
        return (codes << spare).view(np.int8) >> spare.view(np.int8)

    return read
