"""Strict JSON: nothing is left to interpretation, and nothing takes long."""

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from tpack.container import strictjson
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


K = b"k" * 99


def message(text, **options):
    with pytest.raises(FormatError) as caught:
        parse_json(text, "R8", "thing", **options)
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b'{"a":1,"a":2}', "thing has the key 'a' twice."),
        (b'[{"b":1,"c":1},{"a":1,"a":1,"b":1,"b":1}]', "thing has the key 'a' twice."),
        (b'{"%b":1,"%b":2}' % (K, K), f"thing has the key '{'k' * 59} twice."),
        (b'["\\ud800"]', "thing has a lone surrogate."),
        (b"[NaN]", "thing has NaN, which is not JSON."),
        (b"-Infinity", "thing has -Infinity, which is not JSON."),
        (b"9223372036854775808", "thing has the integer 9223372036854775808, beyond 64 bits."),
        (b"-9223372036854775808", "thing has the integer -9223372036854775808, beyond 64 bits."),
        (b"1" * 30, f"thing has the integer {'1' * 24}, beyond 64 bits."),
        (b"1" * 5000, f"thing has the integer {'1' * 24}, beyond 64 bits."),
        (b"[1e999]", "thing has the number 1e999, beyond doubles."),
        (b"-1.0" + b"0" * 30 + b"e400", f"thing has the number -1.0{'0' * 20}, beyond doubles."),
        (b"[[[]]]", "thing is nested deeper than 2."),
        (b'{"a":[{}]}', "thing is nested deeper than 2."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text, wanted):
    assert message(text, nesting=2) == wanted


@pytest.mark.parametrize(
    "text",
    [
        *(b"999999999999999999", b"-9223372036854775807", b"[12345678901234567890.5]"),
        *(b"0", b"1e308", b"-1.7976931348623157e308", b"[[],[]]", b'{"a":{}}'),
        *(b'{"a":1,"b":{"a":1}}', b'{"a":"]}"}', b'{"\\\\":1,"\\"":2}'),
    ],
)
def test_what_is_just_right(text):
    assert parse_json(text, "R8", "thing", nesting=2) == json.loads(text)


def test_objects_in_lists_of_objects_count_their_keys():
    text = b'[{"a":[{"b":1,"c":{"d":2}}]},{"a":1}]'
    assert parse_json(text, "R8", "thing") == json.loads(text)
    assert message(text.replace(b'"c"', b'"b"')) == "thing has the key 'b' twice."


def test_a_key_that_is_twice_among_many_is_not_looked_for(monkeypatch):
    assert strictjson.MAX_NAMED == 100_000
    monkeypatch.setattr(strictjson, "MAX_NAMED", 3)
    assert message(b'{"a":1,"b":2,"a":3}') == "thing has the key 'a' twice."
    assert message(b'{"a":1,"b":2,"a":3,"c":4}') == "thing has a key twice."


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (b"1", 0),
        (b"[1]", 1),
        (b"[1,2,3]", 3),
        (b"{}", 4),
        (b'{"a":1,"b":2}', 5),
        (b'["[{,",{}]', 6),
    ],
)
def test_values_are_counted_before_they_are_read(monkeypatch, text, values):
    assert strictjson.MAX_VALUES == 2_000_000
    monkeypatch.setattr(strictjson, "MAX_VALUES", values)
    parse_json(text, "R8", "thing")
    if values:
        monkeypatch.setattr(strictjson, "MAX_VALUES", values - 1)
        assert message(text) == f"thing has {values} values, expected at most {values - 1}."


PAIRED = [r"\ud83d\ude00", r"\uD83D\uDE00", r"\udbff\udfff", r"\\ud800", r"a\ud83d\ude00b"]
PAIRED += [r"\ud7ff", r"\ue000", r"\u00d8", r"\"\\"]
LONE = [r"\ud83d", r"\udbff", r"\udc00", r"\udfff", r"\uDC00", r"\ud83d\ud83d", r"\ude00\ud83d"]
LONE += [r"\ud83dx", r"\\\ud83d", r"\ud83d\ude00\ude00", r"\ud83d\n", r"\ud83d \ude00"]


@pytest.mark.parametrize("text", PAIRED)
def test_surrogates_in_pairs(text):
    assert parse_json(f'"{text}"'.encode(), "R8", "thing") == json.loads(f'"{text}"')


@pytest.mark.parametrize("text", LONE)
def test_surrogates_without_the_other_half(text):
    assert message(f'"{text}"'.encode()) == "thing has a lone surrogate."


def test_canonical_text():
    assert canonical_json({"b": [1, 2.5], "a": {"ä": None}}) == '{"a":{"\\u00e4":null},"b":[1,2.5]}'


def test_the_deepest_nesting():
    assert MAX_NESTING == 64
    assert parse_json(b"1", "R8", "thing", nesting=0) == 1
    assert message(b"[]", nesting=0) == "thing is nested deeper than 0."
