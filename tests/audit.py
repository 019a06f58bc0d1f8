"""Watches what the interpreter does: whether anything is imported, run or opened."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Events of ``sys.addaudithook``, by how they begin, that a file has no business to cause.
_EVENTS = (
    *("import", "exec", "compile", "os.", "subprocess.", "pickle.", "socket.", "ctypes.", "open"),
    *("marshal.", "code.", "shutil.", "object.__setattr__", "setopencodehook", "builtins."),
)
_seen: list[str] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _seen is not None and event.startswith(_EVENTS):
        _seen.append(f"{event} {args!r:.200}")


sys.addaudithook(_hook)


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Check that no code is imported or run, no file opened and no process started meanwhile."""
    global _seen  # noqa: PLW0603 -- a hook cannot be removed
    before, seen = set(sys.modules), []  # type: ignore[var-annotated]
    _seen = seen
    try:
        yield
    finally:
        _seen = None
        assert not seen, seen
        assert set(sys.modules) == before
