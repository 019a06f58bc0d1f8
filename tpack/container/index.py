"""The index of a folder of shards: which file holds which tensor.

This is the index that Hugging Face libraries write: an object ``weight_map`` from the name of
a tensor to the name of a file beside the index. In that of a checkpoint of tpack, ``metadata``
also ties the shards together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpack.container.atomic import new_file
from tpack.container.document import digest
from tpack.container.header import TensorFile
from tpack.container.opening import read_whole
from tpack.container.strictjson import canonical_json, parse_json
from tpack.errors import FormatError, InputError, StorageError, locate

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
#: The same for pickles.
PICKLE_INDEX = "pytorch_model.bin.index.json"

#: Of an index; a million long names fit.
MAX_INDEX = 100_000_000

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Index:
    """A checked index.

    Attributes:
        path: of the index.
        weight_map: name of a tensor → name of a file, both in the order of the index.
        metadata: what else the index says, e.g. ``total_size``.
        holds: whether it is spelled as ``write_index`` does, and has its own digest.
    """

    path: Path
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    holds: bool = False

    @property
    def files(self) -> list[str]:
        """The names of the shards, sorted."""
        return sorted(set(self.weight_map.values()))

    def described(self) -> Mapping[str, str] | None:
        """SHA-256 of the description of each shard by file; None if the index does not say.

        Raises:
            FormatError: rule R20: it says something else.
        """
        tie = self.metadata.get("tpack")
        if tie is None:
            return None
        found = tie.get("shards") if isinstance(tie, dict) else None
        if (
            not isinstance(found, dict)
            or sorted(found) != self.files
            or not all(isinstance(v, str) and _HEX.fullmatch(v) for v in found.values())
        ):
            raise FormatError(
                f"{self.path.name} does not have one digest for each shard under 'tpack'.",
                rule="R20",
            )
        return found


def write_index(path: Path, weight_map: Mapping[str, str], metadata: Mapping[str, int]) -> None:
    """Write the index of a checkpoint whose shards lie beside it.

    Args:
        path: where it goes; a file that is there is replaced.
        weight_map: name of a tensor → name of a file.
        metadata: ``total_size`` and the like.

    Raises:
        StorageError: as ``new_file``, or a shard cannot be read.
    """
    shards = {}
    for name in sorted(set(weight_map.values())):
        try:
            with TensorFile(path.parent / name) as file:
                shards[name] = description_digest(file.metadata)
        except InputError as error:  # it was written just before
            raise StorageError(f"cannot be read again: {error.message}", file=name) from error
    tie: dict[str, Any] = {"shards": shards}
    data = {"metadata": {**metadata, "tpack": tie}, "weight_map": dict(weight_map)}
    tie["sha256"] = _own_digest(data)
    with new_file(path, force=True) as out:
        out.write(_spelled(data).encode("ascii"))


def description_digest(metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of the description in the ``__metadata__`` of a shard."""
    return digest([metadata["tpack"].encode()])


def _own_digest(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of an index without its own digest."""
    metadata = data["metadata"]
    tie = {key: value for key, value in metadata["tpack"].items() if key != "sha256"}
    rest = {**data, "metadata": {**metadata, "tpack": tie}}
    return digest([canonical_json(rest).encode("ascii")])


def _spelled(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def _holds(data: Mapping[str, Any], text: bytes) -> bool:
    metadata = data.get("metadata")
    tie = metadata.get("tpack") if isinstance(metadata, dict) else None
    return (
        isinstance(tie, dict)
        and tie.get("sha256") == _own_digest(data)
        and _spelled(data).encode("ascii") == text
    )


def read_index(path: Path) -> Index:
    """Read an index; check that its files are there, and no others of the same model.

    Raises:
        FormatError: rule R18: malformed, or an entry that leads out of the folder.
        InputError: a shard is missing, or one is there that the index does not name, or one file
            without shards.
    """
    with locate(file=path):
        text = read_whole(path, MAX_INDEX, "R18")
        data = parse_json(text, "R18", "index")
        found = data.get("weight_map") if isinstance(data, dict) else None
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise FormatError("has no weight_map from names to file names.", rule="R18")
        for name, shard in found.items():
            if not is_plain_name(shard):
                raise FormatError(
                    f"is in the file {shard!r:.100}, expected a file beside the index.",
                    rule="R18",
                    tensor=name[:200],
                )
        metadata = data.get("metadata", {})
        metadata = metadata if isinstance(metadata, dict) else {}
        index = Index(path, found, metadata, _holds(data, text))
        _check_files(index)
        return index


def is_plain_name(name: str) -> bool:
    """Return whether a name is a plain file name, without a path.

    Example:
        >>> is_plain_name("model-00001-of-00002.safetensors"), is_plain_name("../x")
        (True, False)
    """
    return name.isprintable() and name not in ("", ".", "..") and not set(name) & set("/\\:")


def _check_files(index: Index) -> None:
    folder, named = index.path.parent, index.files
    if not named:
        raise FormatError("names no shard.", rule="R18")
    single = index.path.name.removesuffix(".index.json")
    if (folder / single).exists() and single not in named:  # which others load instead
        raise InputError(
            f"holds {single} beside {index.path.name}, which is about other files. Remove what is "
            "old.",
            file=folder,
        )
    missing = [name for name in named if not (folder / name).exists()]
    if missing:
        raise InputError(f"names shards that are missing: {_some(missing)}. Download them again.")
    suffixes = {Path(name).suffix for name in named}
    extra = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in suffixes and path.name not in named and _is_shard(path.name)
    )
    if extra:
        raise InputError(
            f"does not name {_some(extra)}, which lie beside it. Move away what belongs to another "
            "download."
        )


def _is_shard(name: str) -> bool:
    """Whether a name is spelled as shards are, ``…-00001-of-00002.…``."""
    parts = Path(name).stem.split("-")
    return len(parts) >= 4 and parts[-2] == "of" and parts[-1].isdigit() and parts[-3].isdigit()


def _some(names: list[str]) -> str:
    text = ", ".join(names[:4])
    return text if len(names) <= 4 else f"{text} and {len(names) - 4} more"
