"""Which tensors of a checkpoint are weights to pack, and why the others are kept."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from tpack.dtypes import WEIGHT_DTYPES
from tpack.errors import UnsupportedError
from tpack.layerdef.mirror import EMBEDDING_WORDS
from tpack.layerdef.params import MAX_RANK

#: Last module of a name that makes its weight an output head, if it is near the root.
HEADS = frozenset(
    {"lm_head", "output", "head", "classifier", "embed_out", "score", "output_projection"}
)
#: Words in the last part of a name of tensors that are no matrices to multiply with.
OTHER_WORDS = ("bias", "token", "mask", "norm", "freq", *EMBEDDING_WORDS)


def keep_reason(
    name: str,
    dtype: str,
    shape: Sequence[int],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> str | None:
    """Why a tensor is kept as it is, or None if it is to be packed.

    Args:
        include: patterns of names; if there are any, only matching tensors are packed, also
            embeddings and output heads.
        exclude: patterns of names to keep.

    Raises:
        UnsupportedError: a weight in a dtype that cannot be packed.

    Example:
        >>> keep_reason("model.embed_tokens.weight", "float32", (100, 64))
        'embedding'
        >>> keep_reason("layers.0.fc.weight", "float32", (64, 64)) is None
        True
    """
    if excluded(name, exclude):
        return "excluded"
    if 0 in shape:
        return "empty"
    if not 2 <= len(shape) <= MAX_RANK:
        return f"{len(shape)}-D"
    if dtype not in WEIGHT_DTYPES and not dtype.startswith(("float8", "complex")):
        return "integer"
    if include:
        if not any(fnmatchcase(name, pattern) for pattern in include):
            return "not included"
    elif reason := _reason_by_name(name):
        return reason
    if dtype not in WEIGHT_DTYPES:
        raise UnsupportedError(
            f"is a weight in {dtype}, expected {', '.join(WEIGHT_DTYPES)}. Cast it to bfloat16 "
            f"first, or keep it with --exclude '{name}'.",
            tensor=name,
        )
    return None


def excluded(name: str, exclude: Sequence[str]) -> bool:
    """Whether a pattern of ``exclude`` names a tensor."""
    return any(fnmatchcase(name, pattern) for pattern in exclude)


def _reason_by_name(name: str) -> str | None:
    *owners, last = name.lower().split(".")
    owner = owners[-1] if owners else ""
    if any(word in part for word in EMBEDDING_WORDS for part in (owner, last)):
        return "embedding"
    if "norm" in owner:
        return "norm"
    if len(owners) <= 2 and owner in HEADS:
        return "output head"
    if any(word in last for word in OTHER_WORDS):
        return "no matrix by its name"
    return None
