"""What a file is: a row for each kind that people have, whether tpack reads it or not.

``kind_of`` asks the content first, for a suffix may lie: a download that failed is a web page,
whatever it is called. Only what has no mark of its own is known by its suffix.
"""

from __future__ import annotations

import os
import re
import zipfile
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from tpack.container.opening import input_errors, open_input
from tpack.errors import locate


@dataclass(frozen=True)
class Kind:
    """A kind of files or folders.

    Attributes:
        name: its key.
        what: completes "is …".
        suffixes: how its files are called; those without another mark are known by it.
        begins: a regular expression for the first bytes.
        records: one for the name of a record, of kinds that are zip archives.
        holds: a file in it, of kinds that are folders.
        advice: what to do with it, of kinds that tpack does not read.
    """

    name: str
    what: str
    suffixes: tuple[str, ...] = ()
    begins: bytes | None = None
    records: str | None = None
    holds: str | None = None
    advice: str = ""


_DOWNLOAD = "If it is what a download gave, look at what it says, and download the file again."
_SOURCE = "Convert the model that it was made from."
_TENSORFLOW = (
    "Save its variables with TensorFlow, as one array for each name: "
    "numpy.savez('model.npz', **arrays)."
)

#: In the order in which they are tried.
KINDS = {
    kind.name: kind
    for kind in (
        Kind("safetensors", "a safetensors file", (".safetensors",), rb"....\0{4}\{"),
        Kind(
            "TorchScript", "a TorchScript program", (".jit", ".ts"), None, r"[^/]+/constants\.pkl"
        ),
        Kind(
            "PyTorch",
            "a PyTorch file",
            (".pt", ".pth", ".bin", ".ckpt", ".pth.tar"),
            rb"\x80[\1-\5]",
            r"[^/]+/data\.pkl",
        ),
        Kind(
            "exported program",
            "an exported program of PyTorch",
            (".pt2",),
            records=r"([^/]+/)?(archive_format|serialized_exported_program\.json)",
        ),
        Kind("GGUF", "a GGUF file", (".gguf",), rb"GGUF"),
        Kind("ONNX", "an ONNX file", (".onnx",)),
        Kind(
            "Keras",
            "a Keras file",
            (".keras",),
            records=r"model\.weights\.(h5|npz)",
        ),
        Kind("HDF5", "an HDF5 file", (".h5", ".hdf5"), rb"\x89HDF\r\n\x1a\n"),
        Kind(
            "Keras index",
            "an index of shards of Keras",
            (".weights.json",),
            rb'\s*\{[^/]*"weight_map"\s*:\s*\{\s*"/',
        ),
        Kind(
            "NumPy",
            "a NumPy file",
            (".npy", ".npz"),
            rb"\x93NUMPY",
            r".+\.npy",
        ),
        Kind("TFLite", "a TFLite file", (".tflite",), rb"....TFL3"),
        Kind("ORT", "a file of ONNX Runtime", (".ort",), rb"....ORTM", advice=_SOURCE),
        Kind(
            "Flax",
            "a Flax file",
            (".msgpack",),
            advice="Save its parameters with safetensors.flax.save_file, under names such as "
            "'layers.0.kernel': flax.traverse_util.flatten_dict(params, sep='.').",
        ),
        Kind(
            "TensorFlow",
            "a file of TensorFlow",
            (".pb", ".ckpt.index", ".data-00000-of-00001"),
            advice=_TENSORFLOW,
        ),
        Kind(
            "SavedModel", "a SavedModel of TensorFlow", holds="saved_model.pb", advice=_TENSORFLOW
        ),
        Kind("Core ML", "a Core ML model", (".mlmodel",), holds="Manifest.json", advice=_SOURCE),
        Kind(
            "OpenVINO", "a file of OpenVINO", begins=rb"(<\?xml[^>]*>)?\s*<net[ >]", advice=_SOURCE
        ),
        Kind("TensorRT", "an engine of TensorRT", (".engine", ".plan", ".trt"), advice=_SOURCE),
        Kind(
            "GGML",
            "a file in the format before GGUF",
            begins=rb"lmgg|fmgg|tjgg|algg",
            advice="Get the model as GGUF, or as it was published.",
        ),
        Kind(
            "llamafile",
            "a llamafile",
            (".llamafile",),
            rb"MZqFpD",
            advice="It is a zip archive with a GGUF file inside: unzip it, and name that file.",
        ),
        Kind(
            "zip archive",
            "a zip archive",
            (".zip",),
            advice="Unpack it, and name the file or the folder that holds the weights.",
        ),
        Kind(
            "archive",
            "an archive",
            (".tar", ".nemo"),
            rb".{257}ustar",
            advice="Unpack it, and name the file or the folder that holds the weights.",
        ),
        Kind(
            "compressed file",
            "a compressed file",
            (".gz", ".xz", ".bz2", ".zst", ".7z"),
            rb"\x1f\x8b|\xfd7zXZ\0|BZh|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c",
            advice="Unpack it, and name the file or the folder that holds the weights.",
        ),
        Kind(
            "web page",
            "a web page",
            (".html",),
            rb"\s*<(?i:!doctype html|html|head)",
            advice="The download failed: open the page to see why, and download the file itself.",
        ),
        Kind("JSON", "JSON text", (".json",), rb"\s*[{\[]\s*[\"{\[\]}\d]", advice=_DOWNLOAD),
        Kind("empty", "an empty file", begins=rb"\Z", advice="Download or copy it again."),
        Kind("text", "text", (".txt",), advice=_DOWNLOAD),
    )
}
_HEAD = 512
#: Fields of a ModelProto, by number, and their wire types: 0 a number, 2 bytes of some length.
_ONNX_FIELDS = {1: 0, 5: 0} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), 2)
_GRAPH = 7


def kind_of(path: Path) -> Kind | None:
    """Return what a file or a folder is, by its content, else by its suffix; None if unknown.

    Raises:
        InputError: it is missing, cannot be read, or is a pointer of Git LFS.
    """
    if path.is_dir():
        there = (kind for kind in KINDS.values() if kind.holds and (path / kind.holds).is_file())
        return next(there, None)
    with locate(file=path), open_input(path) as file, input_errors():
        return _of_content(file) or _of_suffix(path.name.lower())


def is_called_as_file(path: Path) -> bool:
    """Return whether a name has the suffix of a kind of files."""
    return _of_suffix(path.name.lower()) is not None


def _of_content(file: FileIO) -> Kind | None:
    head = os.pread(file.fileno(), _HEAD, 0)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except Exception:  # noqa: BLE001  damaged, it fails wherever zipfile first stumbles
            return None
        for kind in KINDS.values():
            if kind.records and any(re.fullmatch(kind.records, name) for name in names):
                return kind
        return KINDS["zip archive"]
    for kind in KINDS.values():
        if kind.begins and re.match(kind.begins, head, re.DOTALL):
            return kind
    if _is_onnx(file.fileno()):
        return KINDS["ONNX"]
    return KINDS["text"] if _is_text(head) else None


def _of_suffix(name: str) -> Kind | None:
    return next((kind for kind in KINDS.values() if name.endswith(kind.suffixes)), None)


def _is_text(head: bytes) -> bool:
    """Return whether bytes read as text; the last character may be cut."""
    text = head.decode("utf-8", errors="ignore")
    return len(text.encode()) >= len(head) - 3 and all(c.isprintable() or c.isspace() for c in text)


def _is_onnx(handle: int) -> bool:
    """Return whether a file has the fields of a ModelProto, up to its graph.

    ONNX has no mark. Its first field is the version of the format, and the graph another field
    than those that messages of other systems have there.
    """
    at, size = 0, os.fstat(handle).st_size
    for _ in range(64):  # what stands before the graph: who made it, metadata
        key, start = _number(handle, at)
        number, wire = key >> 3, key & 7
        if _ONNX_FIELDS.get(number) != wire or (at == 0) != (number == 1):
            return False
        if number == _GRAPH:
            return True
        value, start = _number(handle, start)
        at = start + (value if wire == 2 else 0)
        if at >= size:
            return False
    return False


def _number(handle: int, at: int) -> tuple[int, int]:
    """Read a varint of protobuf; return it and where it ends."""
    number = 0
    for place, byte in enumerate(os.pread(handle, 10, at)):
        number |= (byte & 0x7F) << 7 * place
        at += 1
        if byte < 0x80:
            break
    return number, at
