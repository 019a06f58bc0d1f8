"""The machine that reads a pickle. Nothing is imported, and nothing that a pickle names is called.

What ``pickle`` would look up and call becomes data. ``GLOBAL`` makes a name; ``REDUCE`` and its
kind make a placeholder that remembers what it would have been made from, or, for the few names that
``building`` knows, a plain value.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from tpack.sources.pickles.building import BUILDERS, DICTS, SETS, known, plain_size
from tpack.sources.pickles.values import Global, Placeholder, check_keys

#: Bytes of memory, more or less, that the values of any pickle may take, and those of a string.
ROOM = 96 << 20
#: What an opcode takes, whatever it does: so the room bounds their number too.
STEP = 32
#: Keys of dicts and sets somebody may have chosen to have one hash: they are compared in pairs.
_WEAK_KEYS = 4096

_BUILT = BUILDERS.keys() | DICTS.keys() | SETS.keys()
#: A dtype, a layout or another constant of torch; a class of storages.
_WORD = re.compile(
    r"torch\.(bfloat|float|int|uint|complex|qint|quint|bits|bool|strided|sparse_|per_|device)\w*"
    r"|torch\.(\w+_format|channels_last|channels_last_3d|serialization\._get_layout)"
    r"|torch\.nn\.functional\.\w+|numpy\.ndarray|torch\.Tensor|torch\.nn\.parameter\.\w+"
    r"|torch\.([a-z]+\.)?[A-Z]\w*Storage|builtins\.(int|float|str|bool|object|type|slice|range)"
)

Persistent = Callable[[Any], Any]


def is_built(name: str) -> bool:
    """Return whether a global is made into a value, or is but a word for one."""
    return known(name) in _BUILT or bool(_WORD.fullmatch(known(name)))


class Machine:
    """The stack, the memo and the position of a pickle that is being read."""

    def __init__(self, data: bytes, persistent: Persistent, start: int, room: int) -> None:
        self.data, self.at, self.room = data, start, room
        self.persistent = persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # what lies below each mark
        self.memo: dict[int, Any] = {}
        self.named: dict[str, Global] = {}
        self.weak = 0

    def spend(self, count: int) -> None:
        self.room -= count

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        start, self.at = self.at, self.at + count
        if count < 0 or self.at > len(self.data):
            raise EOFError
        return self.data[start : self.at]

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def line(self) -> bytes:
        """Return the rest of a line."""
        found = self.take(self.data.find(b"\n", self.at) - self.at)
        self.at += 1
        return found

    def marked(self) -> list[Any]:
        """Take what lies above the last mark."""
        found, self.stack = self.stack, self.outer.pop()
        return found

    def find(self, name: str) -> Global:
        """Return a global; the same one for the same name."""
        self.spend(400 + 2 * len(name))
        if not name.isprintable():
            raise ValueError
        return self.named.setdefault(name, Global(name))

    def make(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        """Make what a call would make."""
        if not isinstance(function, Global | Placeholder) or not isinstance(args, tuple):
            raise TypeError
        name, self.room = known(function.name), self.room - 400
        if name in _BUILT and isinstance(function, Global) and not kwargs:
            self.spend(plain_size(args))
            if self.room > 0:
                try:
                    return self.build(name, args)
                except (TypeError, ValueError):
                    if name.startswith("torch."):  # a tensor must not get lost
                        raise
        return Placeholder(function.name, args, kwargs)

    def build(self, name: str, args: tuple[Any, ...]) -> Any:
        """Make a plain value or a tensor."""
        if name in BUILDERS:
            return BUILDERS[name](*args)
        items = args[DICTS.get(name, 0) :]
        if name in SETS:
            self.hold(list(*items))
            return SETS[name](*items)
        found = list(items[0].items() if isinstance(items[0], dict) else items[0]) if items else []
        self.hold([key for key, _ in found])
        return dict(found)

    def set_items(self, items: list[Any]) -> None:
        """Set pairs of keys and values in what lies on top of the stack."""
        into = self.stack[-1]
        into = into.pairs if isinstance(into, Placeholder) else into
        if type(into) is not dict or len(items) % 2:
            raise TypeError
        self.hold(items[::2])
        into.update(zip(items[::2], items[1::2], strict=True))

    def hold(self, keys: list[Any]) -> None:
        """Check values that become keys of a dict or a set."""
        self.spend(64 * len(keys))
        self.weak += check_keys(keys)
        if self.weak > _WEAK_KEYS:
            raise TypeError

    def append(self, items: list[Any]) -> None:
        """Append to what lies on top of the stack."""
        into = self.stack[-1]
        into = into.items if isinstance(into, Placeholder) else into
        if type(into) is not list:
            raise TypeError
        into.extend(items)

    def put(self, index: int) -> None:
        self.spend(64)
        self.memo[index] = self.stack[-1]
