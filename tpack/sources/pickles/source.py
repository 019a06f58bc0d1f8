"""A file of torch as a source."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tpack.container.opening import open_input
from tpack.options import Reading
from tpack.sources.names import Naming, clean_names
from tpack.sources.pickles.files import itemsize, read_file
from tpack.sources.pickles.machine import is_built
from tpack.sources.pickles.modules import Opener
from tpack.sources.pickles.tensors import Reader
from tpack.sources.pickles.values import Tensor, called
from tpack.sources.source import Source
from tpack.sources.state_dicts import Tensors, collect
from tpack.text import listed


def open_pickle(path: Path, reading: Reading, naming: Naming = clean_names) -> Source:
    """Open what ``torch.save`` wrote. It is read as data: no code of the file runs.

    Raises:
        InputError: damaged, or without tensors.
        UnsupportedError: of a kind that tpack does not read, or tensors that cannot be stored.
    """
    resources = ExitStack()
    with resources, open_input(path) as opened:
        handle = os.dup(opened.fileno())
        resources.callback(os.close, handle)
        file = read_file(handle, resources)
        opener, reader = Opener(), Reader(file)
        kind = Tensors(
            _measure,
            _identity,
            reader.source_tensor,
            lambda _, tensor: opener.roles.get(id(tensor)),
            lambda _, tensor: opener.trained.get(id(tensor)),
            opener.open,
            called,
        )
        source = collect(file.value, str(path), kind, naming, reading, path.stat().st_size)
        source.resources.push(resources.pop_all())
    source.files = (path,)
    source.notes += file.notes
    source.warnings += file.warnings
    source.notes += _left(n for n in file.named if n not in opener.opened | reader.kinds)
    if not file.checksums:
        source.notes.append("has no checksums: a flipped bit in its tensors cannot be noticed")
    return source


def _measure(value: Any) -> tuple[tuple[int, ...], int] | None:
    """Return the shape of a tensor and its bytes; None for any other value."""
    if not isinstance(value, Tensor):
        return None
    return value.shape, value.numel * itemsize(value.dtype)


def _identity(tensor: Tensor) -> object:
    """Return a key that views of the same elements share; None for a tensor without elements."""
    if tensor.storage is None or not tensor.numel:
        return None
    first = tensor.storage.start + tensor.offset * itemsize(tensor.dtype)
    place = tensor.storage.key, first, tensor.shape, tensor.strides
    return (*place, tensor.dtype, tensor.conj, tensor.neg, id(tensor.quantizer))


def _left(names: Iterable[str]) -> list[str]:
    """Name the classes and functions that were neither made nor run, by their libraries."""
    libraries: dict[str, list[str]] = {}
    for name in names:
        if not is_built(name) and not name.startswith("torch.jit._pickle."):  # types of lists
            libraries.setdefault(name.partition(".")[0], []).append(name)
    if not libraries:
        return []
    found = [
        f"{first:.80}" + (f" and {len(more)} more of {library:.40}" if more else "")
        for library, (first, *more) in libraries.items()
    ]
    return [f"left out objects of {listed(found)}: no code of a file runs"]
