"""An ONNX model, parsed without its weights, and where the bytes of each tensor lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto

from tpack.container.opening import open_input, read_into
from tpack.errors import InputError
from tpack.sources.onnx_files.skeleton import INSIDE, cut

#: Reads bytes ``start`` to ``stop`` of a tensor.
ReadBytes = Callable[[int, int], npt.NDArray[np.uint8]]

#: The field of a tensor that has its elements where it has no raw data, and one as it lies in
#: memory, by type; ``int32_data`` and a byte for all others.
_FIELDS: dict[int, tuple[str, str]] = {
    TensorProto.FLOAT: ("float_data", "<f4"),
    TensorProto.COMPLEX64: ("float_data", "<f4"),
    TensorProto.DOUBLE: ("double_data", "<f8"),
    TensorProto.COMPLEX128: ("double_data", "<f8"),
    TensorProto.INT64: ("int64_data", "<i8"),
    TensorProto.UINT64: ("uint64_data", "<u8"),
    TensorProto.UINT32: ("uint64_data", "<u4"),
    TensorProto.INT32: ("int32_data", "<i4"),
    TensorProto.INT16: ("int32_data", "<i2"),
    TensorProto.UINT16: ("int32_data", "<u2"),
    TensorProto.FLOAT16: ("int32_data", "<u2"),
    TensorProto.BFLOAT16: ("int32_data", "<u2"),
}
_NUMBERS = {"float_data": 4, "double_data": 10}
_RAW = 9


@dataclass
class OnnxModel:
    """An ONNX file: its graph, and its tensors, which are read in pieces.

    Attributes:
        path: of the file.
        proto: the model. Large tensors in it have no elements: ``bytes_of`` reads them.
        files: the file and those beside it that tensors have been found in.
    """

    path: Path
    proto: ModelProto
    _own: FileIO
    _resources: ExitStack
    _opened: dict[str, tuple[int, int]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    @property
    def graph(self) -> GraphProto:
        """The main graph."""
        return self.proto.graph

    def close(self) -> None:
        """Close all files."""
        self._resources.close()

    def bytes_of(self, tensor: TensorProto, size: int) -> ReadBytes:
        """Return a reader of the elements of a tensor as they lie in memory, little-endian.

        Args:
            tensor: of this model.
            size: the bytes that its type and shape give.

        Raises:
            InputError: it has another number of bytes; a file beside the model that is missing
                or lies elsewhere.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        external = tensor.data_location == TensorProto.EXTERNAL
        inside = [e for e in tensor.external_data if e.value.startswith(INSIDE)]
        if len(inside) > 1 or (inside and external):
            raise InputError("has its elements twice. Save the model again.")
        if not external and not inside:
            data = self._typed(tensor)
            _check_size(len(data), size)
            return lambda start, stop: data[start:stop]
        if inside:
            number = int(inside[0].value.removeprefix(INSIDE) or 0)
            expected = _NUMBERS.get(_field_of(tensor)[0])
            if number not in (_RAW, expected):
                raise InputError(f"has its elements in field {number}, which is not of its type.")
            handle, whole = self._own.fileno(), os.fstat(self._own.fileno()).st_size
        else:
            handle, whole = self._beside(entries.get("location", ""))
        offset = _number(entries, "offset", 0)
        length = _number(entries, "length", size if external else 0)
        _check_size(length, size)
        if offset + length > whole:
            raise InputError(
                f"takes bytes {offset} to {offset + length} of a file of {whole} bytes "
                f"({entries.get('location', '')!r:.100}). It is truncated: copy it again."
            )

        def read(start: int, stop: int) -> npt.NDArray[np.uint8]:
            found = np.empty(stop - start, np.uint8)
            read_into(handle, memoryview(found), offset + start)
            return found

        return read

    def _typed(self, tensor: TensorProto) -> npt.NDArray[np.uint8]:
        """Return the elements that are in the message, as bytes."""
        if tensor.HasField("raw_data"):
            return np.frombuffer(tensor.raw_data, np.uint8)
        name, kind = _field_of(tensor)
        values = getattr(tensor, name)
        whole = np.fromiter(
            values, kind if "f" in kind else np.uint64 if kind == "<u8" else np.int64, len(values)
        )
        return whole.astype(kind, casting="unsafe").view(np.uint8)

    def _beside(self, location: str) -> tuple[int, int]:
        """Open a file in the folder of the model, once; return its handle and size."""
        if location not in self._opened:
            parts = Path(location).parts
            if not parts or Path(location).is_absolute() or ".." in parts or "\\" in location:
                raise InputError(
                    f"refers to the file {location!r:.100}, expected one in the folder of the "
                    "model."
                )
            path = self.path.parent / location
            folder = self.path.parent.resolve()
            if not path.resolve().is_relative_to(folder):
                raise InputError(
                    f"refers to the file {location!r:.100}, a link that leads out of the folder "
                    "of the model. Copy the file there."
                )
            if not path.exists():
                raise InputError(
                    f"has its elements in the file {location!r:.100}, which is not beside the "
                    "model. Copy it there."
                )
            file = self._resources.enter_context(open_input(path))
            self._opened[location] = file.fileno(), os.fstat(file.fileno()).st_size
            self.files.append(path)
        return self._opened[location]


def load_model(path: Path) -> OnnxModel:
    """Parse an ONNX file. Its weights, and files beside it, are not read.

    Raises:
        InputError: it is not an ONNX model, is truncated, or is too large besides its weights.
    """
    with ExitStack() as resources:
        file = resources.enter_context(open_input(path))
        size = os.fstat(file.fileno()).st_size
        proto = ModelProto()
        try:
            proto.ParseFromString(cut(file.fileno(), size))
        except DecodeError as error:
            raise InputError(
                "is not an ONNX model, or is damaged. Download or copy it again."
            ) from error
        if not proto.HasField("graph"):
            raise InputError("is not an ONNX model: it has no graph. Export it again.")
        return OnnxModel(path, proto, file, resources.pop_all(), files=[path])


def _field_of(tensor: TensorProto) -> tuple[str, str]:
    return _FIELDS.get(tensor.data_type, ("int32_data", "u1"))


def _number(entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise InputError(f"has {key} {text!r:.40}, expected a number of bytes from 0.")
    return int(text)


def _check_size(found: int, size: int) -> None:
    if found != size:
        raise InputError(
            f"holds {found} bytes, expected {size} for its type and shape. The file is damaged: "
            "export it again."
        )
