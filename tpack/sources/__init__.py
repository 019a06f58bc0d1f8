"""Where weights come from: files and state dicts, as named tensors that are read in pieces.

``open_source`` knows which reader a path needs. A source holds no tensor in memory that its
file does not force it to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpack.container.opening import input_errors
from tpack.errors import InputError, UnsupportedError, locate
from tpack.sources.names import clean_names
from tpack.sources.source import PackedTensor, Source, SourceTensor, with_companion

__all__ = ["PackedTensor", "Source", "SourceTensor", "clean_names", "open_source", "with_companion"]

PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def open_source(source: str | os.PathLike[str] | Mapping[str, Any] | Any) -> Source:
    """Open a checkpoint of any kind that tpack reads.

    Args:
        source: path of a ``.safetensors``, ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file; or a
            state dict, or an ``nn.Module``.

    Raises:
        InputError: missing, unreadable or malformed; a pickle that asks for code.
        UnsupportedError: another kind of file, or tensors of a kind that cannot be stored.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        with locate(file=path), input_errors():
            return _open_path(path)
    from tpack.sources.torch_source import state_dict_source

    return state_dict_source(source)


def _open_path(path: Path) -> Source:
    if path.is_dir():
        raise UnsupportedError("is a folder, expected a file. Convert its files one by one.")
    if not path.exists():
        raise InputError("does not exist.")
    if path.suffix == ".safetensors":
        from tpack.sources.safetensors_source import safetensors_source

        return safetensors_source(path)
    if path.suffix in PICKLES:
        from tpack.sources.torch_source import pickle_source

        return pickle_source(path)
    raise UnsupportedError(
        f"has suffix {path.suffix!r}, expected .safetensors or one of {', '.join(PICKLES)}. "
        "Rename it if it is one of these."
    )
