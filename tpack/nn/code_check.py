"""Packed bytes are checked before they are computed with: code 3 is no weight of +2.

The check reads the bytes once, when they are first used: they are read then anyway, and
a mapped file is not read before. Under torch.compile and torch.export the operators do
it when the compiled program runs.
"""

from __future__ import annotations

import weakref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tpack.codec import LAYOUTS, illegal_byte
from tpack.errors import FormatError

#: By id of a tensor: the tensor, and its version when its bytes were found legal.
_KNOWN: dict[int, tuple[weakref.ref[Tensor], int]] = {}
#: By id of a tensor: the tensor, and the file and name that an error tells.
_ORIGINS: dict[int, tuple[weakref.ref[Tensor], str, str]] = {}
#: Words of eight bytes looked at in one go: they and what is computed stay in a cache.
_WORDS = 1 << 14
_LOW_BITS = np.uint64(0x5555555555555555)

_functorch_active = torch._C._are_functorch_transforms_active  # noqa: SLF001
_modes = torch._C._len_torch_dispatch_stack  # noqa: SLF001
_tracing = torch._C._get_tracing_state  # noqa: SLF001


def check_legal(packed: Tensor, layout: str = "t2", name: str | None = None) -> None:
    """Make sure that packed bytes hold codes only, unless they did when last asked.

    While something is traced there are no bytes to look at, and nothing is checked.

    Args:
        packed: uint8; floats, which a weight in training is, pass.
        layout: of the bytes.
        name: for the error, where nothing better is known.

    Raises:
        FormatError: rule R14: a byte that no encoder writes.
    """
    if torch.compiler.is_compiling():
        return
    known = _KNOWN.get(id(packed))
    if (
        known is not None
        and known[0]() is packed
        and (packed.is_inference() or known[1] == packed._version)  # noqa: SLF001
    ):
        return
    traced = _functorch_active() or _modes() or _tracing() is not None
    if traced or packed.dtype != torch.uint8 or packed.is_meta:
        return
    first = _first_illegal(packed.detach(), layout)
    if first is not None:
        raise _error(packed, first, layout, name)
    accept(packed)


def accept(packed: Tensor) -> None:
    """Note that the bytes of a tensor, as they are now, hold codes only."""
    key = id(packed)
    version = 0 if packed.is_inference() else packed._version  # noqa: SLF001
    _KNOWN[key] = weakref.ref(packed, lambda _: _KNOWN.pop(key, None)), version


def remember(packed: Tensor, file: str, name: str) -> None:
    """Keep where a tensor came from, for the error that its bytes may cause."""
    key = id(packed)
    _ORIGINS[key] = (
        weakref.ref(packed, lambda _: _ORIGINS.pop(key, None)),
        file,
        name,
    )


def _error(packed: Tensor, first: int, layout: str, named: str | None) -> FormatError:
    index = tuple(int(i) for i in np.unravel_index(first, tuple(packed.shape)))
    value = int(packed.detach()[index])
    text = illegal_byte(value, index, layout).message
    origin = _ORIGINS.get(id(packed))
    file, name = None, named
    if origin is not None and origin[0]() is packed:
        _, file, name = origin
    if name is None:
        return FormatError(f"packed: {text}", rule="R14")
    error = FormatError(f"is damaged: {text}", rule="R14", tensor=name)
    error.file = file
    return error


def _first_illegal(packed: Tensor, layout: str) -> int | None:
    """Find the first byte that no encoder of the layout writes."""
    flat = packed.contiguous().reshape(-1)
    if packed.is_cpu and layout == "t2":
        return _first_code_3(flat.numpy())
    if packed.is_cpu:
        bad = ~LAYOUTS[layout].valid[flat.numpy()]
        return int(bad.argmax()) if bad.any() else None
    found = _illegal(flat, layout)
    return int(found.nonzero()[0]) if found.any() else None


def _first_code_3(data: npt.NDArray[np.uint8]) -> int | None:
    """Find code 3, whose bits are both set, eight bytes at a time."""
    whole = len(data) - len(data) % 8
    words, space = data[:whole].view(np.uint64), np.empty(_WORDS, np.uint64)
    for start in range(0, len(words), _WORDS):
        piece = words[start : start + _WORDS]
        both = space[: len(piece)]
        np.right_shift(piece, np.uint64(1), out=both)
        np.bitwise_and(both, piece, out=both)
        if np.bitwise_or.reduce(both) & _LOW_BITS:
            return _first_of(data, 8 * start)
    return _first_of(data, whole)


def _first_of(data: npt.NDArray[np.uint8], start: int) -> int | None:
    """Find the first byte with code 3 from ``start`` on, within one piece."""
    bad = ~LAYOUTS["t2"].valid[data[start : start + 8 * _WORDS]]
    return start + int(bad.argmax()) if bad.any() else None


def _illegal(flat: Tensor, layout: str) -> Tensor:
    """Return which bytes no encoder writes, on any device.

    In layout t5 a byte is ceil(256 · v / 243): then 243 · byte exceeds a multiple of
    256 by less than 243.
    """
    return flat & (flat >> 1) & 0x55 != 0 if layout == "t2" else flat * 243 >= 243
