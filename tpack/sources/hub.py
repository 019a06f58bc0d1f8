"""Repositories of the Hugging Face hub as a source (the extra ``hf``)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tpack.errors import InputError, UnsupportedError
from tpack.sources.source import Source

SCHEME = "hf://"

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_REPOSITORY = re.compile(rf"({_PART}/{_PART})(?:@([\w./-]{{1,200}}))?")
#: What a conversion reads or copies; never code.
SMALL = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.md", "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Repository:
    """A repository ``org/name`` at a revision; None is its main branch."""

    name: str
    revision: str | None = None


def repository_of(text: str) -> Repository | None:
    """Return the repository that a source names; None if it names something else.

    ``org/name`` without a scheme names a repository if no such path exists.

    Raises:
        InputError: ``hf://`` with something else behind it.

    Example:
        >>> repository_of("hf://org/name@v2")
        Repository(name='org/name', revision='v2')
    """
    match = _REPOSITORY.fullmatch(text.removeprefix(SCHEME))
    if text.startswith(SCHEME):
        if match is None:
            raise InputError("names no repository, expected hf://org/name[@revision].")
        return Repository(match[1], match[2])
    if match is None or Path(text).exists() or Path(text).parent.exists():
        return None
    return Repository(match[1], match[2])


def hub_source(repository: Repository, open_path: Callable[[Path], Source]) -> Source:
    """Download a repository into the hub's cache, or find it there, and open it.

    An interrupted download is taken up where it ended; with ``HF_HUB_OFFLINE=1`` only the
    cache is asked.

    Raises:
        InputError: it cannot be downloaded, and is not in the cache.
        UnsupportedError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UnsupportedError(
            "is not a path here, and the hub needs the package huggingface_hub. Install it: "
            'pip install "tpack-ternary[hf]".'
        ) from None

    folder = None
    for weights in ("*.safetensors", "*.bin"):
        try:
            folder = Path(
                snapshot_download(
                    repository.name,
                    revision=repository.revision,
                    allow_patterns=[*SMALL, weights],
                )
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            first = str(error).strip().partition("\n")[0][:300]
            raise InputError(
                f"is not a path here, and cannot be downloaded from the hub: {first}"
            ) from error
        if any(folder.glob(weights)):
            break
    assert folder is not None
    source = open_path(folder)
    source.path = Path(repository.name.rpartition("/")[2])
    source.repository = repository.name
    return source
