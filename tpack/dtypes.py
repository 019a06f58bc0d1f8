"""The element types of a file: one row each, known here and nowhere else.

These are all that a safetensors header may name; a tensor of another type is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        name: what LayerDef and reports say; torch too, unless ``torch`` says otherwise.
        code: what a safetensors header says.
        bits: of one element. Elements of less than a byte lie without gaps, and a tensor of them
            fills whole bytes.
        is_float: whether torch can train it.
        torch: for elements of less than a byte, the dtype of the tensor of torch that holds them;
            its items are bytes.
    """

    name: str
    code: str
    bits: int
    is_float: bool = False
    torch: str = ""

    def nbytes(self, count: int) -> int:
        """Return the bytes that ``count`` elements take."""
        return -(-count * self.bits // 8)

    @property
    def is_cast(self) -> bool:
        """Whether tensors that are kept in it may be cast: a float of more than a byte."""
        return self.is_float and self.bits > 8

    @property
    def held(self) -> str:
        """The dtype that a tensor of torch has."""
        return self.torch or self.name

    def held_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that a tensor of torch has.

        Where its items are bytes, the last dim counts them; if rows end within a byte, it is flat.

        Example:
            >>> BY_CODE["F4"].held_shape((2, 8)), BY_CODE["F6_E2M3"].held_shape((2, 8))
            ((2, 4), (2, 6))
            >>> BY_CODE["F4"].held_shape((2, 3))
            (3,)
        """
        if not self.torch:
            return shape
        if not shape or shape[-1] * self.bits % 8:
            return (self.nbytes(math.prod(shape)),)
        return (*shape[:-1], self.nbytes(shape[-1]))

    @property
    def meaning(self) -> str:
        """What a shorter name for it stands for."""
        return self.name


DTYPES = (
    DType("complex64", "C64", 64),
    DType("float64", "F64", 64, is_float=True),
    DType("float32", "F32", 32, is_float=True),
    DType("float16", "F16", 16, is_float=True),
    DType("bfloat16", "BF16", 16, is_float=True),
    DType("float8_e4m3fn", "F8_E4M3", 8, is_float=True),
    DType("float8_e5m2", "F8_E5M2", 8, is_float=True),
    DType("float8_e4m3fnuz", "F8_E4M3FNUZ", 8, is_float=True),
    DType("float8_e5m2fnuz", "F8_E5M2FNUZ", 8, is_float=True),
    DType("float8_e8m0fnu", "F8_E8M0", 8, is_float=True),
    DType("int64", "I64", 64),
    DType("uint64", "U64", 64),
    DType("int32", "I32", 32),
    DType("uint32", "U32", 32),
    DType("int16", "I16", 16),
    DType("uint16", "U16", 16),
    DType("int8", "I8", 8),
    DType("uint8", "U8", 8),
    DType("bool", "BOOL", 8),
    DType("float6_e2m3fn", "F6_E2M3", 6, torch="uint8"),
    DType("float6_e3m2fn", "F6_E3M2", 6, torch="uint8"),
    DType("float4_e2m1fn", "F4", 4, torch="float4_e2m1fn_x2"),
)

BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_CODE = {dtype.code: dtype for dtype in DTYPES}

#: Those of whole bytes: what torch and NumPy can hold an element of, and compute with.
WHOLE = tuple(dtype.name for dtype in DTYPES if not dtype.torch)


def elements_of(held: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return the dtype and the shape of the elements of a tensor of torch.

    Args:
        held: its dtype; one that no file can hold is returned as it is.

    Example:
        >>> elements_of("float4_e2m1fn_x2", (2, 4)), elements_of("uint8", (2, 4))
        (('float4_e2m1fn', (2, 8)), ('uint8', (2, 4)))
    """
    dtype = next((d for d in DTYPES if d.torch == held and held not in BY_NAME), None)
    if dtype is None or not shape:
        return held, shape
    return dtype.name, (*shape[:-1], shape[-1] * 8 // dtype.bits)


#: What floats that are not packed may be kept in, by the name that a user gives it.
KEEP_DTYPES = {
    "f32": BY_NAME["float32"],
    "f16": BY_NAME["float16"],
    "bf16": BY_NAME["bfloat16"],
}

#: What a scale may be stored in.
SCALE_DTYPES = ("float32", "float16", "bfloat16")
#: What a weight may come in, to be packed.
WEIGHT_DTYPES = ("float64", "float32", "float16", "bfloat16", "int8")
