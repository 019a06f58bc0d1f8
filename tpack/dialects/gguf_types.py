"""The tensor types of a GGUF file: which hold trits, which hold plain numbers, and the rest."""

from __future__ import annotations

from typing import NamedTuple

from tpack.dialects.gguf_blocks import I2_S, PQ2_0, PTQ1_0, Q2_0, TQ1_0, TQ2_0, BlockFormat

#: Types of plain elements: their id, and our name of the dtype.
PLAIN = {
    0: "float32",
    1: "float16",
    24: "int8",
    25: "int16",
    26: "int32",
    27: "int64",
    28: "float64",
    30: "bfloat16",
}
PLAIN_IDS = {dtype: number for number, dtype in PLAIN.items()}

#: Types of trits. Id 42 has other blocks too: ``FORMS_OF_42``.
TERNARY: dict[int, BlockFormat] = {
    34: TQ1_0,
    35: TQ2_0,
    36: I2_S,
    42: Q2_0,
    142: PQ2_0,
    143: PTQ1_0,
}


class Unread(NamedTuple):
    """Blocks that tpack knows by their size only."""

    name: str
    weights: int
    nbytes: int


STQ1_0 = Unread("STQ1_0", 256, 42)
#: The blocks that files have had under id 42; the size of the tensors shows which.
FORMS_OF_42 = (Q2_0, PQ2_0, STQ1_0)
TERNARY_IDS = {kind.name: number for number, kind in TERNARY.items()}

#: What tpack writes, coarsest block first, with the value of ``general.file_type`` that it has.
WRITTEN = {"TQ2_0": 37, "TQ1_0": 36, "Q2_0": 41}

#: Bytes after the codes of an I2_S tensor: a float32 scale, and what fills up 32 bytes.
I2_S_TAIL = 32

_OTHER = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    29: "IQ1_M",
    38: "TL1 of bitnet.cpp",
    39: "MXFP4, or TL2 of bitnet.cpp",
    40: "NVFP4",
    41: "Q1_0",
    43: STQ1_0.name,
}
_LOOKUP_TABLES = (38, 39)


def why_unsupported(number: int) -> str:
    """Return the error text for a type that is neither trits nor plain numbers."""
    found = f"has type {number} ({_OTHER.get(number, 'unknown')})"
    if number in _LOOKUP_TABLES:
        return (
            f"{found}, which tpack does not read: MXFP4 is not ternary, and the order of TL1 and "
            "TL2 depends on a tuning file that is not in the GGUF file. Convert the model from "
            "I2_S or from its original instead."
        )
    if number in (42, 43):
        return (
            f"has type {number} in {STQ1_0.name} ({STQ1_0.nbytes} bytes for {STQ1_0.weights} "
            "weights), which tpack does not read. Convert the original model instead."
        )
    return (
        f"{found}, expected ternary blocks ({', '.join(TERNARY_IDS)}) or plain numbers. Quantize "
        "the model again with this tensor kept in F16 (llama-quantize --token-embedding-type f16 "
        "--output-tensor-type f16)."
    )
