"""The element types of a file: one row each, known here and nowhere else.

``name`` is what LayerDef, reports and torch say; ``code`` is what a safetensors header
says. Sub-byte types have no row: a tensor of such a type is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """One element type; ``size`` in bytes."""

    name: str
    code: str
    size: int
    is_float: bool = False

    @property
    def meaning(self) -> str:
        """What a shorter name for it stands for."""
        return self.name


DTYPES = (
    DType("complex64", "C64", 8),
    DType("float64", "F64", 8, is_float=True),
    DType("float32", "F32", 4, is_float=True),
    DType("float16", "F16", 2, is_float=True),
    DType("bfloat16", "BF16", 2, is_float=True),
    DType("float8_e4m3fn", "F8_E4M3", 1, is_float=True),
    DType("float8_e5m2", "F8_E5M2", 1, is_float=True),
    DType("float8_e4m3fnuz", "F8_E4M3FNUZ", 1, is_float=True),
    DType("float8_e5m2fnuz", "F8_E5M2FNUZ", 1, is_float=True),
    DType("float8_e8m0fnu", "F8_E8M0", 1, is_float=True),
    DType("int64", "I64", 8),
    DType("uint64", "U64", 8),
    DType("int32", "I32", 4),
    DType("uint32", "U32", 4),
    DType("int16", "I16", 2),
    DType("uint16", "U16", 2),
    DType("int8", "I8", 1),
    DType("uint8", "U8", 1),
    DType("bool", "BOOL", 1),
)

BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_CODE = {dtype.code: dtype for dtype in DTYPES}

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
