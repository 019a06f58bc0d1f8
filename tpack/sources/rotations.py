"""Weights that are stored in a rotated basis: y = W·R·(Rᵀ·x), with W·R in the file.

QuaRot, SpinQuant, QuIP# and others multiply weights with a Hadamard matrix or another rotation
before they quantize, and undo that in the model as it runs. The tensors do not show it, and no
layer of tpack undoes it: computed without, every number is wrong. So a source whose config names a
rotation is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tpack.errors import UnsupportedError

#: Words in a key that speak of rotated weights wherever they stand.
ROTATED = re.compile(r"hadamard|quarot|spinquant|online_rot|rotat(ed|e)_weights?", re.IGNORECASE)
#: Further words that name a rotation, within the quantization settings of a config.
_QUANTIZED = re.compile(rf"{ROTATED.pattern}|rotat|transform_config|incoheren", re.IGNORECASE)
#: Keys of a config that hold its quantization settings.
_SECTIONS = ("quantization_config", "quantization", "compression_config")
#: Words for "not".
_OFF = ("", "none", "identity", "false", "off")
_DEEPEST = 16


def refuse_rotated(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a source whose settings say that its weights are rotated.

    Args:
        settings: a config.json, or the metadata of a GGUF file.
        where: what to call them.

    Raises:
        UnsupportedError: naming the key and its value.
    """
    for key, found in _rotations(settings, ROTATED):
        raise UnsupportedError(
            f"holds weights in a rotated basis: its {where} says {key} {found!r:.60}. tpack has no "
            "layer that undoes the rotation of the inputs, and would compute wrong numbers. "
            "Convert the original, from before its weights were rotated."
        )


def _rotations(
    settings: Mapping[str, Any], words: re.Pattern[str], path: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a config that name a rotation, with their values."""
    for key, found in settings.items():
        inside = _QUANTIZED if key in _SECTIONS else words
        name = f"{path}.{key}" if path else str(key)
        if isinstance(key, str) and words.search(key) and not _is_off(found):
            yield name, found
        elif isinstance(found, Mapping) and depth < _DEEPEST:
            yield from _rotations(found, inside, name, depth + 1)


def _is_off(found: Any) -> bool:
    return not found or (isinstance(found, str) and found.strip().lower() in _OFF)
