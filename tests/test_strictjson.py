"""Strict JSON: nothing is left to interpretation, and nothing takes long."""

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpack.container.strictjson import MAX_NESTING, canonical_json, parse_json
from tpack.errors import FormatError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(max_codepoint=999)), inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_canonical_text_is_ascii_sorted_and_reads_back(value):
    text = canonical_json(value)
    assert text.isascii()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert parse_json(text.encode(), "R3", "x") == value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"{'a':1}",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"x\\udc00y"',
        b'{"\\ud800":1}',
        b'["q\\"", "\\ud800"]',
        b"9223372036854775808",
        b"-9223372036854775808",
        b"1" * 5000,
        b"1e999",
        b"[-1.5e400]",
        b"{}{}",
        b"\xef\xbb\xbf{}",
        b'"\n"',
        b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1),
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
        b"[" * 1_000_000,
        b"\x00",
    ],
)
def test_refused(text):
    with pytest.raises(FormatError, match=r"^thing ") as caught:
        parse_json(text, "R8", "thing")
    assert caught.value.rule == "R8"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\\\ud800"', "\\ud800"),
        (b'"[[[[{{{{"', "[[[[{{{{"),
        (b'"\\"[["', '"[['),
        (b" {} ", {}),
        (b"9223372036854775807", 2**63 - 1),
        (b"[" * MAX_NESTING + b"]" * MAX_NESTING, None),
    ],
)
def test_accepted(text, value):
    found = parse_json(text, "R8", "thing")
    if value is not None:
        assert found == value


def test_nan_is_not_written():
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


@pytest.mark.parametrize(
    "text",
    [
        b'"' + b'\\"' * 12_000,
        b'{"a":"' + b'\\"' * 12_000,
        b'"' * 24_001,
        b'"\\u0041' + b"a" * 24_000,
        b'["\\u0041",' + b'"aaaaaaaa",' * 2_000 + b"1]",
        b'"\\u0041' + b'\\"' * 12_000,
        b'["\\u0041","' + b'\\"' * 12_000 + b'"]',
    ],
)
def test_hostile_text_takes_no_more_than_linear_time(text):
    started = time.process_time()
    with suppress(FormatError):
        parse_json(text, "R3", "header")
    assert time.process_time() - started < 0.5
