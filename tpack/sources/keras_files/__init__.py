"""Files of Keras as a source: ``.keras``, ``.weights.h5``, the older ``.h5``, and other HDF5.

Nothing of the model is run, and of its config only names and options of layers are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tpack.container.opening import open_input
from tpack.errors import InputError, UnsupportedError, locate
from tpack.options import Reading
from tpack.sources.archive import AGAIN, archive_of
from tpack.sources.keras_files.hdf5 import Hdf5, joined
from tpack.sources.keras_files.layers import layer_of
from tpack.sources.keras_files.legacy import read_legacy
from tpack.sources.keras_files.naming import Found, read_layers, read_paths
from tpack.sources.keras_files.variables import Layer, mapping
from tpack.sources.source import Source
from tpack.text import listed

#: Records of a .keras file, and how long a config may be.
_CONFIG, _WEIGHTS, _LONG = "config.json", "model.weights.h5", 6 << 20
#: Groups beside the weights, which no model needs to compute.
_ASIDE = ("optimizer", "optimizer_weights", "metrics", "compile_metrics")


def open_keras(path: Path, _: Reading = Reading()) -> Source:  # noqa: B008  # frozen
    """Open a file of Keras, the index of its shards, or an HDF5 file of arrays.

    Raises:
        InputError: damaged, or made to cost time or memory.
        UnsupportedError: it leads to other files, or holds what safetensors cannot.
    """
    with ExitStack() as resources:
        files = [path]
        root = Layer()
        if path.suffix == ".json":
            files += _shards(path)
            opened = {each.name: _open(each, resources)[0] for each in files[1:]}
        else:
            file, root = _open(path, resources)
            opened = {path.name: file}
        first = next(iter(opened.values()))
        if first.has("model_weights") or first.texts("", "layer_names"):
            found = read_legacy(first)
        elif any(first.has(group) for group in ("layers", "_layer_checkpoint_dependencies")) or any(
            "/vars/" in f"/{name}" for name in first.datasets
        ):
            found = read_layers(dict(joined(opened)), list(opened.values()), root)
        else:
            found = read_paths(first)
        return _source(path, files, list(opened.values()), found, resources)


def _source(
    path: Path, files: list[Path], opened: list[Hdf5], found: Found, resources: ExitStack
) -> Source:
    aside = [group for group in _ASIDE if any(file.has(group) for file in opened)]
    if aside:
        found.notes.append(f"left out {listed(aside)}: state of the training")
    if others := [name for file in opened for name in file.left_out]:
        found.notes.append(f"left out {listed(others)}: texts or records, not numbers")
    return Source(
        str(path),
        found.tensors,
        notes=found.notes,
        warnings=found.warnings,
        floats=found.floats,
        roles=found.roles,
        splits=found.splits,
        files=tuple(files),
        nbytes=sum(t.nbytes for t in found.tensors.values())
        if aside
        else sum(each.stat().st_size for each in files),
        resources=resources.pop_all(),
    )


def _open(path: Path, resources: ExitStack) -> tuple[Hdf5, Layer]:
    """Open a file, or the weights in an archive; return them and what its config says."""
    handle = resources.enter_context(open_input(path)).fileno()
    archive = archive_of(handle)
    root, place, length = Layer(), 0, os.fstat(handle).st_size
    if archive is not None:
        resources.callback(archive.close)
        if _WEIGHTS not in archive.names:
            raise UnsupportedError(
                f"has no {_WEIGHTS}, expected one beside {_CONFIG}. Save the model with "
                "model.save(path)."
            )
        length = archive.size(_WEIGHTS)
        if _CONFIG in archive.names:
            if archive.size(_CONFIG) > _LONG:
                raise InputError(f"has a {_CONFIG} of more than {_LONG} bytes. {AGAIN}")
            root = _config(archive.read(_CONFIG))
        handle, place = archive.locate(_WEIGHTS)
    file = Hdf5.open(handle, place, length, skip=_ASIDE)
    resources.callback(file.close)
    return file, root


def _config(text: bytes) -> Layer:
    return layer_of(_json(text, _CONFIG))


def _json(text: bytes, what: str) -> Mapping[str, Any]:
    try:
        return mapping(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"has a {what} that is not JSON. {AGAIN}") from error


def _shards(path: Path) -> list[Path]:
    """Return the shards that an index names: files beside it.

    Raises:
        InputError: it names none, or files elsewhere.
    """
    with open_input(path) as file:
        text = file.read(_LONG)
    found: dict[str, None] = {}
    for shards in mapping(_json(text, "text").get("weight_map")).values():
        found |= dict.fromkeys(map(str, shards if isinstance(shards, list) else [shards]))
    for name in found:
        with locate(file=path):
            if not name or Path(name).name != name or not (path.parent / name).is_file():
                raise InputError(
                    f"names the shard {name!r:.80}, expected a file beside it. Put all shards into "
                    "its folder."
                )
    if not found:
        raise InputError("names no shards, expected a weight_map. Save the weights again.")
    return [path.parent / name for name in found]
