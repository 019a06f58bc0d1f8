"""tpack: checkpoints of ternary neural networks.

Converts float and int8 checkpoints to 2-bit safetensors that describe themselves, proves that
nothing was lost, regenerates the source of the model, and runs it on the packed bytes.

Importing this package imports no torch; a function that needs it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tpack.errors import (
    ExistsError as ExistsError,
    FormatError as FormatError,
    InputError as InputError,
    LayerDefError as LayerDefError,
    NotTernaryError as NotTernaryError,
    StorageError as StorageError,
    TpackError,
    UnsupportedError as UnsupportedError,
    UsageError as UsageError,
)

if TYPE_CHECKING:
    from tpack.capturing import capture
    from tpack.checkpoint import load, save, unpack
    from tpack.codegen import PyTorchCodeGenerator, generate_pytorch_code
    from tpack.conversion import convert
    from tpack.difference import DiffReport as DiffReport, diff
    from tpack.exporting import export
    from tpack.generation import generate
    from tpack.inspection import InspectionReport as InspectionReport, inspect
    from tpack.layerdef import LayerDef, Param, Program
    from tpack.pack import pack_ternary, unpack_ternary
    from tpack.report import ConversionReport as ConversionReport
    from tpack.verification import VerificationReport as VerificationReport, verify

__version__ = "0.1.0"

#: Public names that are imported when they are first used.
_LAZY = {
    "ConversionReport": "tpack.report",
    "DiffReport": "tpack.difference",
    "InspectionReport": "tpack.inspection",
    "LayerDef": "tpack.layerdef",
    "Param": "tpack.layerdef",
    "Program": "tpack.layerdef",
    "PyTorchCodeGenerator": "tpack.codegen",
    "VerificationReport": "tpack.verification",
    "capture": "tpack.capturing",
    "convert": "tpack.conversion",
    "diff": "tpack.difference",
    "export": "tpack.exporting",
    "generate": "tpack.generation",
    "generate_pytorch_code": "tpack.codegen",
    "inspect": "tpack.inspection",
    "load": "tpack.checkpoint",
    "pack_ternary": "tpack.pack",
    "save": "tpack.checkpoint",
    "unpack": "tpack.checkpoint",
    "unpack_ternary": "tpack.pack",
    "verify": "tpack.verification",
}

#: Public packages, which need no import of their own: ``tpack.nn.freeze``.
_PACKAGES = ("codec", "codegen", "layerdef", "nn", "parallel", "quantize")

__all__ = [
    "LayerDef",
    "Param",
    "Program",
    "PyTorchCodeGenerator",
    "TpackError",
    "__version__",
    "capture",
    "convert",
    "diff",
    "export",
    "generate",
    "generate_pytorch_code",
    "inspect",
    "load",
    "pack_ternary",
    "save",
    "unpack",
    "unpack_ternary",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"tpack.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'tpack' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
