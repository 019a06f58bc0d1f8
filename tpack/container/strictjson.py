"""JSON that leaves nothing to interpretation, in both directions."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import numpy as np

from tpack.errors import FormatError

MAX_NESTING = 256
#: Values a text may hold, so that hostile ones fill no memory; ten for each tensor that the
#: longest header which is written has room for.
MAX_VALUES = 2_000_000

_STRUCTURE = b'"[]{},'
_NO_STRUCTURE = bytes(set(range(256)) - set(_STRUCTURE))
#: By how much a byte outside strings changes the depth.
_STEPS = np.zeros(256, dtype=np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
#: All text before an escape that is half of a surrogate pair and lacks the other half.
_PAIRED = re.compile(
    r"(?:[^\\]++|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\(?!u[dD][89a-fA-F]).)*+", re.DOTALL
)


def canonical_json(data: Any) -> str:
    """ASCII, keys sorted, no spaces: equal data gives equal bytes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_json(text: bytes, rule: str, what: str) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN or Infinity, no lone surrogates, no
    nesting beyond ``MAX_NESTING``, no integers beyond 64 bits, at most ``MAX_VALUES`` values.

    Args:
        text: UTF-8.
        rule: number of the rule of docs/format.md that a fault breaks.
        what: what the text is, for the message.

    Raises:
        FormatError: anything else.
    """

    def fail(reason: str) -> NoReturn:
        raise FormatError(f"{what} {reason}.", rule=rule)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                fail(f"has the key {key!r:.60} twice")
            found[key] = value
        return found

    def integer(digits: str) -> int:
        if len(digits) > 20 or abs(int(digits)) >= 2**63:
            fail(f"has the integer {digits:.24}, beyond 64 bits")
        return int(digits)

    depth, values = _measure(text)
    if depth > MAX_NESTING:
        fail(f"is nested deeper than {MAX_NESTING}")
    if values > MAX_VALUES:
        fail(f"has {values} values, expected at most {MAX_VALUES}")
    try:
        decoded = text.decode("utf-8")
        if _has_lone_surrogate(decoded):
            fail("has a lone surrogate")
        return json.loads(
            decoded,
            object_pairs_hook=unique,
            parse_constant=lambda name: fail(f"has {name}, which is not JSON"),
            parse_int=integer,
        )
    except (UnicodeDecodeError, ValueError) as error:
        raise FormatError(f"{what} is not JSON: {error}.", rule=rule) from error


def _measure(text: bytes) -> tuple[int, int]:
    """How deep JSON is nested, and about how many values it has; without parsing it."""
    # the pairs first: what is then left of a run of backslashes escapes what follows it
    plain = text.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_STRUCTURE)
    marks = np.frombuffer(plain, dtype=np.uint8)
    inside = np.logical_xor.accumulate(marks == ord('"'))
    marks = marks[~inside]
    steps = _STEPS[marks]
    values = int(((steps > 0) | (marks == ord(","))).sum())
    return int(steps.cumsum(dtype=np.int32).max(initial=0)), values


def _has_lone_surrogate(text: str) -> bool:
    """Whether JSON escapes half of a surrogate pair without the other half."""
    paired = _PAIRED.match(text)
    return paired is not None and text.startswith("\\u", paired.end())
