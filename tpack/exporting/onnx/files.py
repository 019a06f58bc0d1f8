"""The files of a model: the graph with its description, and large weights beside it."""

from __future__ import annotations

from pathlib import Path

from onnxscript import ir

from tpack.container import Checkpoint, new_file
from tpack.container.header import Entry
from tpack.errors import UnsupportedError
from tpack.exporting.onnx.weights import Stored
from tpack.sources.onnx_files.tensors import DTYPES

#: Weights of more bytes than this lie in a file of their own; a message of protobuf has 2 GB at
#: most, and readers hold it whole.
INSIDE = 64 << 20
#: Tensors of fewer bytes stay in the graph.
SMALL = 1 << 12
#: Where elements begin in that file: what maps it finds them at an address it can compute on.
ALIGNED = 64

#: dtypes by name → those of ONNX that lie in files in the same way; ONNX Runtime computes with no
#: complex numbers.
_TYPES = {name: ir.DataType(code) for code, name in DTYPES.items() if name != "complex64"}


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
        values = self.checkpoint.array(name).view(dtype.numpy())
        return ir.Tensor(values, dtype=dtype, shape=shape, name=name)

    def write(self, folder: Path) -> int:
        """Write the file of weights, if there is one; return its size in bytes."""
        if not self.beside:
            return 0
        end = 0
        with new_file(folder / self.data) as file:
            for name, start in self.beside.items():
                file.write(bytes(start - end))
                for chunk in self.checkpoint.chunks(name):
                    file.write(chunk)
                end = start + self.entries[name].nbytes
        return end
