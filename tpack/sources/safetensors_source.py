"""Plain safetensors files as a source; read without torch."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.container import Checkpoint, TensorFile
from tpack.container.reader import stored_dtype
from tpack.dtypes import BY_NAME
from tpack.errors import UnsupportedError
from tpack.options import Reading
from tpack.sources.names import Naming, clean_names
from tpack.sources.source import Source, SourceTensor
from tpack.wording import spell_call


def open_safetensors(path: Path, _: Reading, naming: Naming = clean_names) -> Source:
    """Open a plain safetensors file.

    Raises:
        FormatError: it is malformed.
        UnsupportedError: it is a tpack checkpoint already.
    """
    resources = ExitStack()
    file = resources.enter_context(TensorFile(path))
    if "tpack" in file.metadata:
        resources.close()
        raise UnsupportedError(
            f"is a tpack checkpoint already. Unpack it first: {spell_call('unpack')}."
        )
    names, notes = naming(file.entries)
    tensors = {new: as_source(file, name, new) for name, new in sorted(names.items())}
    return Source(
        str(path),
        tensors,
        notes=notes,
        files=(path,),
        nbytes=path.stat().st_size,
        resources=resources,
    )


def as_source(file: TensorFile | Checkpoint, stored: str, name: str) -> SourceTensor:
    """Return a stored tensor as one of a source.

    Args:
        stored: its name in the file.
        name: what it is called from then on.
    """
    entry = file.entries[stored]
    nbytes = BY_NAME[entry.dtype].nbytes

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        data = file.read(stored, nbytes(start), nbytes(stop))
        return np.frombuffer(data, dtype=stored_dtype(entry.dtype))

    return SourceTensor(name, entry.dtype, entry.shape, read)
