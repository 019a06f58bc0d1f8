"""JSON that leaves nothing to interpretation, in both directions."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import numpy as np

from tpack.errors import FormatError

#: How deep text may be nested, unless its reader expects more.
MAX_NESTING = 64
#: Values a text may hold, so that hostile ones fill no memory; ten for each tensor that the
#: longest header which is written has room for. An object counts as four.
MAX_VALUES = 2_000_000
#: Keys among which one that is there twice is looked for by name: that takes much memory.
MAX_NAMED = 100_000

_STRUCTURE = b'"[]{},:'
_NO_STRUCTURE = bytes(set(range(256)) - set(_STRUCTURE))
#: By how much a byte outside strings changes the depth.
_STEPS = np.zeros(256, dtype=np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
#: Digits that may be beyond 64 bits.
_LONG = re.compile(rb"[0-9]{19}")
#: All text before an escape that is half of a surrogate pair and lacks the other half.
_PAIRED = re.compile(
    r"(?:[^\\]++|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\(?!u[dD][89a-fA-F]).)*+", re.DOTALL
)


def canonical_json(data: Any) -> str:
    """ASCII, keys sorted, no spaces: equal data gives equal bytes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_json(text: bytes, rule: str, what: str, nesting: int = MAX_NESTING) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN or Infinity, no lone surrogates, no
    deep nesting, no integers beyond 64 bits, no floats beyond doubles, at most ``MAX_VALUES``
    values.

    Args:
        text: UTF-8.
        rule: number of the rule of docs/format.md that a fault breaks.
        what: what the text is, for the message.
        nesting: how deep it may be nested.

    Raises:
        FormatError: anything else.
    """

    def fail(reason: str) -> NoReturn:
        raise FormatError(f"{what} {reason}.", rule=rule)

    def integer(digits: str) -> int:
        if len(digits) > 20 or abs(int(digits)) >= 2**63:
            fail(f"has the integer {digits:.24}, beyond 64 bits")
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            fail(f"has the number {digits:.24}, beyond doubles")
        return value

    depth, values, keys = _measure(text)
    if depth > nesting:
        fail(f"is nested deeper than {nesting}")
    if values > MAX_VALUES:
        fail(f"has {values} values, expected at most {MAX_VALUES}")
    try:
        decoded = text.decode("utf-8")
        if _has_lone_surrogate(decoded):
            fail("has a lone surrogate")
        found = json.loads(
            decoded,
            parse_constant=lambda name: fail(f"has {name}, which is not JSON"),
            parse_int=integer if _LONG.search(text) else int,  # which is much faster
            parse_float=real,
        )
    except (UnicodeDecodeError, ValueError) as error:
        raise FormatError(f"{what} is not JSON: {error}.", rule=rule) from error
    if _count_keys(found) != keys:
        fail(f"has {_twice(decoded) if keys <= MAX_NAMED else 'a key'} twice")
    return found


def _measure(text: bytes) -> tuple[int, int, int]:
    """How deep JSON is nested, about how many values it has, and how many keys its objects have
    in all; without parsing it.
    """
    # the pairs first: what is then left of a run of backslashes escapes what follows it
    plain = text.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_STRUCTURE)
    marks = np.frombuffer(plain, dtype=np.uint8)
    inside = np.logical_xor.accumulate(marks == ord('"'))
    marks = marks[~inside]
    commas, colons, lists, objects = (int((marks == ord(mark)).sum()) for mark in ",:[{")
    depth = int(_STEPS[marks].cumsum(dtype=np.int32).max(initial=0))
    return depth, commas + lists + 4 * objects, colons


def _count_keys(data: Any) -> int:
    """Count the keys of all objects in a text of JSON."""
    count, found = 0, [data]
    for item in found:  # which grows on the way
        if type(item) is dict:
            count += len(item)
            found.extend(item.values())
        elif type(item) is list:
            found.extend(item)
    return count


def _twice(text: str) -> str:
    """Return the first key that an object has twice."""
    twice: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                twice.append(key)
            seen.add(key)

    json.loads(text, object_pairs_hook=look)
    return f"the key {twice[0]!r:.60}"


def _has_lone_surrogate(text: str) -> bool:
    """Whether JSON escapes half of a surrogate pair without the other half."""
    paired = _PAIRED.match(text)
    return paired is not None and text.startswith("\\u", paired.end())
