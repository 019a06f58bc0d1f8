"""The checkpoint that a model of another system was exported from, and carries.

Its description is in the model's metadata, its tensors have the same names and bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from tpack.codec import canonical
from tpack.container import Document, Piece, digest
from tpack.container.document import MAX_NESTING, parse_document
from tpack.container.header import lay_out
from tpack.container.strictjson import parse_json
from tpack.describing import Output
from tpack.errors import FormatError
from tpack.sources.source import SourceTensor

#: Keys of the metadata: the description, and what else the checkpoint had in ``__metadata__``.
DESCRIPTION, METADATA = "tpack", "tpack.metadata"
_CHANGED = "Another program has changed the model: export it again."


def carried(metadata: Mapping[str, str], found: Mapping[str, SourceTensor]) -> Output | None:
    """Return the checkpoint that a model carries; None if it carries none.

    Args:
        metadata: of the model.
        found: its tensors.

    Raises:
        FormatError: the description is malformed, or not that of the tensors.
    """
    if DESCRIPTION not in metadata:
        return None
    text = metadata[DESCRIPTION]
    names = _names(text)
    if missing := sorted(names - found.keys()):
        raise FormatError(
            f"is described, but not in the model. {_CHANGED}", rule="R12", tensor=missing[0]
        )
    tensors = [found[name] for name in sorted(names)]
    pieces = tuple(Piece(one.name, one.dtype, one.shape, one.chunks) for one in tensors)
    document, holds = parse_document(
        text, lay_out((piece.name, piece.dtype, piece.shape) for piece in pieces)
    )
    if not holds or document.shard is not None:
        raise FormatError(f"its description does not have its own digest. {_CHANGED}", rule="R17")
    return Output(document, pieces, _metadata(metadata.get(METADATA, "{}"), document))


def _names(text: str) -> set[str]:
    """Return the names of the tensors in a description, which is checked when it is parsed."""
    data = parse_json(text.encode("utf-8", "surrogatepass"), "R8", "description", MAX_NESTING)
    tensors, kept = (
        data.get(key) if isinstance(data, dict) else None for key in ("tensors", "kept")
    )
    if not isinstance(tensors, dict) or not isinstance(kept, dict):
        raise FormatError(f"its description is malformed. {_CHANGED}", rule="R10")
    parts = {f"{name}_{part}" for name in tensors for part in ("packed", "scale")}
    return parts | set(kept)


def _metadata(text: str, document: Document) -> dict[str, str]:
    """Return the other metadata of the checkpoint."""
    more = parse_json(text.encode("utf-8", "surrogatepass"), "R8", "metadata")
    found = (
        {key: digest([str(more[key]).encode()]) for key in more} if isinstance(more, dict) else {}
    )
    if found != document.metadata:
        raise FormatError(f"its metadata does not have its digest. {_CHANGED}", rule="R10")
    return {key: str(value) for key, value in more.items()}


def changed(output: Output) -> Iterator[str]:
    """Yield the names of tensors whose bytes do not have the digest of their description."""
    described = output.document.tensors
    wanted = dict(output.document.kept)
    for name, entry in described.items():
        wanted |= {f"{name}_packed": entry.sha256, f"{name}_scale": entry.scale_sha256}
    packed = {f"{name}_packed": entry for name, entry in described.items()}
    for piece in output.pieces:
        chunks = piece.chunks()
        if of := packed.get(piece.name):
            rows = (canonical(each, of.columns, of.layout) for each in _rows(piece))
            chunks = (memoryview(each) for each in rows)
        found = digest(chunks)
        if found != wanted[piece.name]:
            yield piece.name


def _rows(piece: Piece) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the packed rows of a tensor."""
    rest, width = b"", piece.shape[-1]
    for chunk in piece.chunks():
        data = rest + bytes(chunk)
        whole = len(data) // width * width
        yield np.frombuffer(data[:whole], np.uint8).reshape(-1, width)
        rest = data[whole:]
