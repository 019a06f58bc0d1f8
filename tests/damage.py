"""Flips bits of a checkpoint, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import tpack
from tpack.errors import InputError


def unnoticed(
    file: Path, checkpoint: Path, bits: Iterable[int] | None = None
) -> list[tuple[int, int]]:
    """Byte and bit of every flip in a file that ``verify`` does not find.

    Args:
        file: to be damaged, and left as it was.
        checkpoint: that it is, or is a part of.
        bits: to flip in each byte; None for one in each, another from byte to byte.
    """
    blob, found = file.read_bytes(), []
    with file.open("r+b", buffering=0) as opened:
        for at, byte in enumerate(blob):
            for bit in (at % 8,) if bits is None else bits:
                os.pwrite(opened.fileno(), bytes([byte ^ 1 << bit]), at)
                with suppress(InputError):  # found when the file is opened: exit code 3
                    if tpack.verify(checkpoint).ok:
                        found.append((at, bit))
            os.pwrite(opened.fileno(), blob[at : at + 1], at)
    return found
