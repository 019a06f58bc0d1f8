"""JSON that leaves nothing to interpretation, in both directions."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from tpack.errors import FormatError

MAX_NESTING = 256

_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


def canonical_json(data: Any) -> str:
    """ASCII, keys sorted, no spaces: equal data gives equal bytes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_json(text: bytes, rule: str, what: str) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN or Infinity, no lone surrogates, no
    nesting beyond ``MAX_NESTING``, no integers beyond 64 bits.

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

    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(match[0], 0)
        deepest = max(deepest, depth)
        if deepest > MAX_NESTING:
            fail(f"is nested deeper than {MAX_NESTING}")
    try:
        decoded = text.decode("utf-8")
        if "\\u" in decoded and _has_surrogate(decoded):
            fail("has a lone surrogate")
        return json.loads(
            decoded,
            object_pairs_hook=unique,
            parse_constant=lambda name: fail(f"has {name}, which is not JSON"),
            parse_int=integer,
        )
    except (UnicodeDecodeError, ValueError) as error:
        raise FormatError(f"{what} is not JSON: {error}.", rule=rule) from error


def _has_surrogate(text: str) -> bool:
    """Whether a string of the JSON text has half of a surrogate pair."""
    return any(
        _SURROGATE.search(json.loads(match[0]))
        for match in re.finditer(r'"(?:[^"\\]|\\.)*\\u(?:[^"\\]|\\.)*"', text, re.DOTALL)
    )
