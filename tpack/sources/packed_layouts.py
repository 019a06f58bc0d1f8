"""Weights that another system has packed, told by names and dtypes where no config says how.

Taken as plain tensors, their codes would be kept as integers, and their scales quantized as if
they were weights: a checkpoint that is of no use, without an error. So they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tpack.errors import UnsupportedError
from tpack.sources.source import PackedTensor, SourceTensor


@dataclass(frozen=True)
class Layout:
    """How a system stores a packed weight.

    Attributes:
        system: whose it is.
        codes: how the name of the codes ends; a root's tensor counts as ``.weight``.
        dtypes: of the codes.
        beside: the endings of names one of which lies beside the codes, in place of ``codes``.
        advice: what to do.
    """

    system: str
    codes: str
    dtypes: tuple[str, ...]
    beside: tuple[str, ...]
    advice: str


_UNPACKED = "Convert the unquantized model."
_MODULE = "Write the packed module with tpack.save(module, path), or convert what it was made of."


def _config(key: str) -> str:
    return (
        f"No config.json beside it says how, under {key!r}: put that of the model there, or "
        "convert the unquantized model."
    )


#: Every layout that is known, the first that fits names the system.
LAYOUTS = (
    Layout("MLX", ".weight", ("uint32",), (".scales",), _config("quantization")),
    Layout(
        "Hugging Face's bitnet",
        ".weight",
        ("uint8",),
        (".weight_scale",),
        "Its scale may multiply or divide. " + _config("quantization_config"),
    ),
    Layout(
        "compressed-tensors",
        ".weight_packed",
        ("int32",),
        (".weight_scale", ".weight_shape"),
        _config("quantization_config"),
    ),
    Layout(
        "compressed-tensors", ".weight_packed", ("uint8",), (".weight_global_scale",), _UNPACKED
    ),
    Layout("tpack", "_packed", ("uint8",), ("_scale",), _MODULE),
    Layout("GPTQ or AWQ", ".qweight", ("int32",), (".qzeros", ".scales"), _UNPACKED),
    Layout(
        "bitsandbytes",
        ".weight",
        ("uint8", "int8"),
        (".weight.absmax", ".SCB", ".weight.SCB"),
        _UNPACKED,
    ),
    Layout("MXFP4", "_blocks", ("uint8",), ("_scales",), _UNPACKED),
    Layout("HQQ", ".W_q", ("uint8", "int32", "int16", "int8"), (".scale", ".zero"), _UNPACKED),
    Layout("quanto", ".weight._data", ("uint8", "int8"), (".weight._scale",), _UNPACKED),
    Layout("EETQ", ".weight", ("int8",), (".weight_scales",), _UNPACKED),
)


def refuse_packed(tensors: Mapping[str, SourceTensor | PackedTensor]) -> None:
    """Refuse weights in a packed layout that no dialect has read.

    Args:
        tensors: of the whole source, after a dialect took its own.

    Raises:
        UnsupportedError: the first one, with the system, and what to do.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, SourceTensor):
            continue
        rooted = f".{name}"
        for layout in LAYOUTS:
            if tensor.dtype not in layout.dtypes or not rooted.endswith(layout.codes):
                continue
            prefix = rooted[: -len(layout.codes)]
            found = [n for n in (f"{prefix}{last}"[1:] for last in layout.beside) if n in tensors]
            if found:
                raise UnsupportedError(
                    f"looks packed by {layout.system}: {tensor.dtype} beside {found[0]!r}, "
                    f"expected plain weights. {layout.advice}",
                    tensor=name,
                )
