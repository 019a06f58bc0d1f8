"""Which kinds of files are read, by what, and which extra that needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tpack.container.kinds import KINDS, Kind, kind_of
from tpack.errors import UnsupportedError, UsageError
from tpack.options import Reading
from tpack.sources.names import Naming
from tpack.sources.source import Source
from tpack.wording import either, spell_name


@dataclass(frozen=True)
class Reader:
    """What opens a kind of files.

    Attributes:
        module: where the function is; imported when it is needed.
        function: takes a path and how to read it, and returns a source.
        package: that it imports and tpack does not install by itself.
        extra: that installs the package.
        names: whether it takes wrappers' prefixes from names, and can be kept from it: shards of a
            folder lose them together.
        nests: whether dicts may lie in it, of which ``Reading.key`` chooses one.
    """

    module: str
    function: str
    package: str = ""
    extra: str = ""
    names: bool = False
    nests: bool = False


#: By the name of a kind; a kind without a row has advice instead.
READERS = {
    "safetensors": Reader("tpack.sources.safetensors_source", "open_safetensors", names=True),
    "PyTorch": Reader("tpack.sources.pickles.source", "open_pickle", names=True, nests=True),
    "TorchScript": Reader("tpack.sources.pickles.source", "open_pickle", names=True),
    "exported program": Reader("tpack.sources.exported", "exported_source"),
    "GGUF": Reader("tpack.sources.gguf_source", "open_gguf"),
    "ONNX": Reader("tpack.sources.onnx_files", "open_onnx", "onnx", "onnx"),
    "Keras": Reader("tpack.sources.keras_files", "open_keras", "h5py", "keras"),
    "Keras index": Reader("tpack.sources.keras_files", "open_keras", "h5py", "keras"),
    "HDF5": Reader("tpack.sources.keras_files", "open_keras", "h5py", "keras"),
    "NumPy": Reader("tpack.sources.numpy_files", "open_numpy"),
    "TFLite": Reader("tpack.sources.tflite_files", "open_tflite"),
}


def read_file(path: Path, reading: Reading, naming: Naming) -> Source:
    """Open a file by what it is; a note says so where its name says something else.

    Raises:
        UnsupportedError: tpack does not read its kind, or not without an extra.
    """
    kind = kind_of(path)
    if kind is None:
        suffixes = [
            suffix for name in READERS if not KINDS[name].advice for suffix in KINDS[name].suffixes
        ]
        raise UnsupportedError(
            f"has suffix {path.suffix!r}, and its content shows no kind that tpack reads, expected "
            f"{either(suffixes)}. Rename it if it is one of these."
        )
    if kind.name not in READERS:
        raise _refusal(kind)
    source = _open(kind, path, reading, naming)
    if _is_called_otherwise(kind, path.name.lower()):
        source.notes.append(f"is {kind.what}, whatever its name says")
    return source


def _open(kind: Kind, path: Path, reading: Reading, naming: Naming) -> Source:
    reader = READERS[kind.name]
    if reading.key is not None and not reader.nests:
        raise UsageError(
            f"is {kind.what}, which has no dicts to choose from, expected no "
            f"{spell_name('key')}. Leave it out."
        )
    try:
        if reader.package:
            import_module(reader.package)
    except ImportError:
        raise UnsupportedError(
            f"is {kind.what}, which needs the package {reader.package}. Install it: "
            f'pip install "tpack-ternary[{reader.extra}]".'
        ) from None
    if find_spec(reader.module) is None:
        raise _refusal(kind)
    function: Callable[..., Source] = getattr(import_module(reader.module), reader.function)
    return function(path, reading, naming) if reader.names else function(path, reading)


def _refusal(kind: Kind) -> UnsupportedError:
    return UnsupportedError(f"is {kind.what}, expected weights that tpack reads. {kind.advice}")


def _module(kind: str) -> str | None:
    return READERS[kind].module if kind in READERS else None


def _is_called_otherwise(kind: Kind, name: str) -> bool:
    """Return whether a name has a suffix of a kind that something else reads."""
    return not name.endswith(kind.suffixes) and any(
        name.endswith(other.suffixes)
        for other in KINDS.values()
        if _module(other.name) != _module(kind.name)
    )
