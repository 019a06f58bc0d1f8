"""Spell options and calls in a message as its reader writes them.

A caller in Python passes ``force=True``, the command line ``--force``. A message that says what to
do gets these words while it is made. No finished text is rewritten, so a name in it that looks like
an option stays as it is.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from glob import escape
from typing import Any

#: What was typed after ``tpack``, while the command line runs; empty for a caller in Python. It is
#: one for the process, not for each thread: threads that read weights make messages too.
_typed: list[Sequence[str]] = []


@contextmanager
def command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Address messages to somebody who typed ``arguments`` after ``tpack``."""
    _typed.append(arguments)
    try:
        yield
    finally:
        _typed.pop()


def option_name(name: str) -> str:
    """Return the name of an option on the command line: ``--keep-dtype``."""
    return f"--{name.replace('_', '-')}"


def spell_name(name: str) -> str:
    """Spell the name of an option, without a value: ``--keep-dtype`` or ``keep_dtype``."""
    return option_name(name) if _typed else name


def spell(**chosen: Any) -> str:
    """Spell options with their values.

    Args:
        chosen: value by option: True for a flag, a list of values that are all given, a tuple of
            values of which one is given, ``...`` for a value that the reader knows.

    Example:
        >>> spell(force=True), spell(quantize="mse", exclude=["a b"]), spell(layout=("t2", "t5"))
        ('force=True', "quantize='mse', exclude=['a b']", "layout='t2' or 't5'")
        >>> with command_line([]):
        ...     spell(force=True), spell(quantize="mse", exclude=["a b"]), spell(layerdef=...)
        ('--force', "--quantize mse --exclude 'a b'", '--layerdef')
    """
    if _typed:
        return " ".join(_option(name, value) for name, value in chosen.items())
    return ", ".join(f"{name}={_argument(value)}" for name, value in chosen.items())


def spell_exclude(*names: str) -> str:
    """Spell the option that keeps exactly these tensors."""
    return spell(exclude=[escape(name) for name in names])


def spell_call(command: str, *arguments: Any, **options: Any) -> str:
    """Spell a command with what it is given; if that is nothing, its name.

    Example:
        >>> spell_call("unpack"), spell_call("export", "a.tpack", to="gguf")
        ('tpack.unpack', "tpack.export('a.tpack', to='gguf')")
        >>> with command_line([]):
        ...     spell_call("unpack"), spell_call("export", "a.tpack", to="gguf")
        ('tpack unpack', 'tpack export a.tpack --to gguf')
    """
    if _typed:
        words = [f"tpack {command}", *map(_quoted, arguments)]
        return " ".join([*words, spell(**options)] if options else words)
    given = [_argument(str(each)) for each in arguments]
    given += [spell(**options)] if options else []
    return f"tpack.{command}" + (f"({', '.join(given)})" if given else "")


def spell_again(**options: Any) -> str:
    """Spell the call that is running, with options added: a sentence without its full stop."""
    if not _typed:
        return f"Call it again with {spell(**options)}"
    command, *rest = _typed[-1]
    added = spell(**options)
    return (
        f"Run {shlex.join(['tpack', command])} {added} {shlex.join(a for a in rest if a != added)}"
    )


def either(names: Iterable[str]) -> str:
    """Join names: ``a, b or c``."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean force?``, the end of a message; empty if no known name is like it."""
    near = get_close_matches(name, list(known), 1, 0.7)
    return f" Did you mean {near[0]}?" if near else ""


def _option(name: str, value: Any) -> str:
    if value is False:
        return option_name(f"no_{name}")
    if value is True or value is ... or value == [...]:
        return option_name(name)
    if isinstance(value, list):
        return " ".join(_option(name, each) for each in value)
    values = value if isinstance(value, tuple) else (value,)
    return f"{option_name(name)} {either(map(_quoted, values))}"


def _argument(value: Any) -> str:
    if value is ...:
        return "…"
    if isinstance(value, list):
        return f"[{', '.join(map(_argument, value))}]"
    return either(map(repr, value)) if isinstance(value, tuple) else repr(value)


def _quoted(value: Any) -> str:
    return shlex.quote(str(value))
