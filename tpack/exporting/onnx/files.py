"""The files of a model: the graph with its description, and large weights beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from onnxscript import ir

from tpack.container import Checkpoint, new_file
from tpack.container.header import Entry
from tpack.errors import FormatError, UnsupportedError
from tpack.exporting.onnx.weights import Stored

#: Weights of more bytes than this lie in a file of their own; a message of protobuf has 2 GB at
#: most, and readers hold it whole.
INSIDE = 64 << 20
#: Tensors of fewer bytes stay in the graph.
SMALL = 1 << 12
#: Where elements begin in that file: what maps it finds them at an address it can compute on.
ALIGNED = 64

#: dtypes by name → those of ONNX that lie in files in the same way.
_TYPES = {
    name: ir.DataType[onnx]
    for name, onnx in {
        "bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "int16": "INT16", "int32": "INT32",
        "int64": "INT64", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "float32": "FLOAT",
        "float64": "DOUBLE", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
        "float8_e4m3fn": "FLOAT8E4M3FN", "float8_e5m2": "FLOAT8E5M2",
        "float8_e4m3fnuz": "FLOAT8E4M3FNUZ", "float8_e5m2fnuz": "FLOAT8E5M2FNUZ",
    }.items()
}  # fmt: skip


class Weights:
    """The tensors of a checkpoint, on their way into a model.

    Attributes:
        beside: where the bytes of large ones begin in the file of weights, by name; empty if all
            are inside of the graph.
        data: that file's name.
    """

    def __init__(self, checkpoint: Checkpoint, data: str) -> None:
        self.checkpoint, self.data = checkpoint, data
        self.entries = checkpoint.entries
        self.beside: dict[str, int] = {}
        for name, entry in self.entries.items():
            if entry.dtype not in _TYPES:
                raise UnsupportedError(f"is {entry.dtype}, which ONNX has not.", tensor=name)
        end = 0
        if sum(entry.nbytes for entry in self.entries.values()) > INSIDE:
            for name, entry in self.entries.items():
                if entry.nbytes >= SMALL:
                    self.beside[name] = end
                    end += -(-entry.nbytes // ALIGNED) * ALIGNED

    def tensors(self, folder: Path) -> dict[str, Stored]:
        """Return them for a graph that is written into a folder, by name."""
        return {name: self._tensor(name, entry, folder) for name, entry in self.entries.items()}

    def _tensor(self, name: str, entry: Entry, folder: Path) -> Stored:
        dtype, shape = _TYPES[entry.dtype], ir.Shape(entry.shape)
        if name in self.beside:
            return ir.ExternalTensor(
                self.data,
                self.beside[name],
                entry.nbytes,
                dtype,
                shape=shape,
                name=name,
                base_dir=folder,
            )
        self._check(name, hashlib.sha256(self.checkpoint.read(name)).hexdigest())
        values = self.checkpoint.array(name)
        if entry.dtype in ("bool", "bfloat16") or entry.dtype.startswith("float8"):
            values = values.view(dtype.numpy())
        return ir.Tensor(values, dtype=dtype, shape=shape, name=name)

    def write(self, folder: Path) -> int:
        """Write the file of weights, if there is one; return its size in bytes.

        Raises:
            FormatError: a tensor that is not what was written into the checkpoint.
        """
        if not self.beside:
            return 0
        end = 0
        with new_file(folder / self.data) as file:
            for name, start in self.beside.items():
                file.write(bytes(start - end))
                file.section()
                for chunk in self.checkpoint.chunks(name):
                    file.write(chunk)
                self._check(name, file.section())
                end = start + self.entries[name].nbytes
        return end

    def _check(self, name: str, found: str) -> None:
        """Compare the digest of a tensor with that of its description."""
        document = self.checkpoint.document
        wanted = document.kept.get(name)
        if wanted is None and name.endswith("_scale"):
            wanted = document.tensors[name.removesuffix("_scale")].scale_sha256
        elif wanted is None:
            entry = document.tensors[name.removesuffix("_packed")]
            wanted = entry.sha256 if entry.layout == "t2" else found
        if found != wanted:
            raise FormatError(
                "does not have the digest of its description: its data was changed. Get the file "
                "again.",
                rule="R17",
                tensor=name,
            )
