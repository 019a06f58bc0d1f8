"""Layouts t2 and t5, exhaustively, against a definition written out one trit at a time."""

import itertools
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from tpack import pack_ternary, unpack_ternary
from tpack.codec import (
    GROUP_SIZES,
    LAYOUTS,
    Scale,
    check_trits,
    layout_named,
    pack,
    rows_and_columns,
    unpack,
)
from tpack.codec.shapes import default_split
from tpack.errors import NotTernaryError, UsageError


def byte_t2(codes):
    """Four codes, least significant bits first."""
    return codes[0] + 4 * codes[1] + 16 * codes[2] + 64 * codes[3]


def byte_t5(codes):
    """Five codes, base 3, most significant first, as a fraction of 256 rounded up."""
    value = 81 * codes[0] + 27 * codes[1] + 9 * codes[2] + 3 * codes[3] + codes[4]
    return next(byte for byte in range(257) if byte * 243 >= value * 256)


PER_BYTE = {"t2": 4, "t5": 5}
BYTE = {"t2": byte_t2, "t5": byte_t5}


def pack_row(trits, layout):
    """One row, written out."""
    n = PER_BYTE[layout]
    codes = [int(trit) + 1 for trit in trits]
    codes += [1] * (-len(codes) % n)
    return [BYTE[layout](codes[i : i + n]) for i in range(0, len(codes), n)]


@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_every_group_of_codes_makes_its_byte(layout):
    groups = list(itertools.product((-1, 0, 1), repeat=PER_BYTE[layout]))
    packed = pack(np.array(groups, dtype=np.int8), layout)
    assert packed.dtype == np.uint8
    assert packed[:, 0].tolist() == [BYTE[layout]([t + 1 for t in group]) for group in groups]
    assert len(set(packed[:, 0].tolist())) == len(groups) == 3 ** PER_BYTE[layout]
    assert unpack(packed, PER_BYTE[layout], layout).tolist() == [list(group) for group in groups]


@pytest.mark.parametrize("layout", ["t2", "t5"])
@pytest.mark.parametrize("value", range(256))
def test_every_byte_is_valid_or_refused(layout, value):
    n = PER_BYTE[layout]
    groups = {BYTE[layout](codes): codes for codes in itertools.product((0, 1, 2), repeat=n)}
    packed = np.array([[0, value]], dtype=np.uint8)
    packed[0, 0] = BYTE[layout]([1] * n)
    assert LAYOUTS[layout].valid.shape == (256,)
    assert bool(LAYOUTS[layout].valid[value]) == (value in groups)
    if value in groups:
        assert unpack(packed, 2 * n, layout)[0, n:].tolist() == [c - 1 for c in groups[value]]
    else:
        with pytest.raises(NotTernaryError) as caught:
            unpack(packed, 2 * n, layout)
        assert caught.value.index == (0, 1)
        assert caught.value.value == value
        assert f"0x{value:02x}" in str(caught.value)
        assert f"layout {layout}" in str(caught.value)


def test_t2_refuses_exactly_the_bytes_with_code_3():
    bad = [b for b in range(256) if 3 in (b & 3, b >> 2 & 3, b >> 4 & 3, b >> 6 & 3)]
    assert np.flatnonzero(~LAYOUTS["t2"].valid).tolist() == bad
    assert int((~LAYOUTS["t5"].valid).sum()) == 13


@pytest.mark.parametrize("layout", ["t2", "t5"])
@pytest.mark.parametrize("columns", [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 19, 20, 21, 255, 256, 257])
def test_rows_start_on_bytes_and_are_padded_with_code_1(layout, columns):
    generator = np.random.default_rng(columns)
    trits = generator.integers(-1, 2, (3, columns)).astype(np.int8)
    packed = pack(trits, layout)
    assert packed.shape == (3, -(-columns // PER_BYTE[layout]))
    assert packed.tolist() == [pack_row(row, layout) for row in trits]
    assert np.array_equal(unpack(packed, columns, layout), trits)
    assert LAYOUTS[layout].bytes_for(columns) == packed.shape[1]


@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_no_rows(layout):
    packed = pack(np.zeros((0, 7), dtype=np.int8), layout)
    assert packed.shape == (0, 2)
    assert unpack(packed, 7, layout).shape == (0, 7)


@given(hnp.arrays(np.int8, hnp.array_shapes(max_dims=4, max_side=9), elements=st.integers(-1, 1)))
def test_round_trip_of_any_shape(trits):
    for layout in LAYOUTS:
        packed = pack(trits, layout)
        assert np.array_equal(unpack(packed, trits.shape[-1], layout), trits)
    assert np.array_equal(pack(trits), pack_ternary(torch.from_numpy(trits)).numpy())
    assert np.array_equal(unpack_ternary(torch.from_numpy(pack(trits)), trits.shape).numpy(), trits)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float16, np.float32, np.float64])
def test_any_real_dtype_packs_to_the_same_bytes(dtype):
    trits = np.array([[1, -1, 0, 1, 0]])
    assert pack(trits.astype(dtype)).tolist() == [[146, 85]]


@pytest.mark.parametrize(
    ("values", "index", "value"),
    [
        ([[0, 1], [2, 3]], (1, 0), 2),
        ([[0.0, 0.5], [1.0, 2.0]], (0, 1), 0.5),
        ([[0.0, float("nan")]], (0, 1), float("nan")),
        ([[0.0, 1.0], [1.0, float("inf")]], (1, 1), float("inf")),
        ([[-2, 0]], (0, 0), -2),
    ],
)
def test_first_bad_value_is_named_with_its_index(values, index, value):
    for call in (
        lambda: check_trits(np.array(values)),
        lambda: pack(np.array(values), "t2"),
        lambda: pack(np.array(values), "t5"),
        lambda: pack_ternary(torch.tensor(values)),
    ):
        with pytest.raises(NotTernaryError) as caught:
            call()
        assert isinstance(caught.value, ValueError)
        assert caught.value.index == index
        assert caught.value.value == pytest.approx(value, nan_ok=True)
        assert f"{value:g} at index {index}" in str(caught.value)


def test_unsigned_255_is_not_minus_one():
    with pytest.raises(NotTernaryError) as caught:
        pack(np.array([1, 255], dtype=np.uint8))
    assert caught.value.index == (1,)


def test_unsigned_and_bool_trits_pack_alike():
    assert pack(np.array([1, 0, 1], dtype=np.uint8)).tolist() == [pack_row([1, 0, 1], "t2")[0]]
    assert pack(np.array([True, False, True])).tolist() == [pack_row([1, 0, 1], "t2")[0]]


@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_layouts_know_their_names_and_stay_as_they_are(layout):
    found = layout_named(layout)
    assert found.name == layout
    with pytest.raises(FrozenInstanceError):
        found.name = "other"


@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_bytes_decode_to_bytes_and_back(layout):
    valid = np.flatnonzero(LAYOUTS[layout].valid).astype(np.uint8).reshape(-1, 1)
    codes = LAYOUTS[layout].decode(valid)
    assert codes.dtype == np.uint8
    assert codes.shape == (3 ** PER_BYTE[layout], PER_BYTE[layout])
    assert np.array_equal(LAYOUTS[layout].encode(codes), valid)


def test_unknown_layout():
    with pytest.raises(UsageError, match="layout 't3' is unknown, expected t2 or t5"):
        layout_named("t3")


def test_rows_and_columns():
    assert rows_and_columns((2, 3, 4), 0) == (1, 24)
    assert rows_and_columns((2, 3, 4), 2) == (6, 4)


@pytest.mark.parametrize(("rank", "split"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)])
def test_rows_are_the_first_dim_of_several(rank, split):
    assert default_split(rank) == split


def test_group_sizes_are_those_of_the_format():
    assert GROUP_SIZES == (256, 128, 64, 32)


@pytest.mark.parametrize(
    ("text", "kind", "group_size"),
    [
        ("tensor", "tensor", 0),
        ("column", "column", 0),
        ("row", "row", 0),
        ("group:7", "group", 7),
    ],
)
def test_scales_say_what_they_are(text, kind, group_size):
    scale = Scale.parse(text)
    assert (scale.kind, scale.group_size) == (kind, group_size)
    assert {scale: 1}[Scale.parse(text)] == 1


@pytest.mark.parametrize(
    "text", ["tensor", "column", "row", "group:32", "group:1", "group:999999999"]
)
def test_scale_reads_what_it_prints(text):
    assert str(Scale.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "Tensor", "group", "group:", "group:0", "group:-1", "group:08", "group:1e3",
             "group:1000000000", "rows", "group:32 ", "group:٣"]
)  # fmt: skip
def test_scale_refuses_other_text(text):
    with pytest.raises(UsageError, match="expected tensor, row, column or group:N"):
        Scale.parse(text)


SCALES = ["tensor", "row", "column", "group:64", "group:32", "group:48"]


@pytest.mark.parametrize("coarse", SCALES)
@pytest.mark.parametrize("fine", SCALES)
def test_a_scale_can_be_repeated_where_no_finer_set_is_cut(coarse, fine):
    rows, columns = np.indices((6, 192))
    sets = {"tensor": 0 * rows, "row": rows, "column": columns}
    one, other = (
        sets[s] if s in sets else rows * 192 + columns // int(s.split(":")[1])
        for s in (coarse, fine)
    )
    holders = {(a, b) for a, b in zip(one.flat, other.flat, strict=True)}
    assert Scale.parse(coarse).can_repeat(Scale.parse(fine)) == (
        len(holders) == len(set(other.flat))
    )


@pytest.mark.parametrize(
    ("text", "shape", "split", "wanted"),
    [
        ("tensor", (4, 6), 1, (1,)),
        ("row", (4, 6), 1, (4, 1)),
        ("row", (6,), 0, (1,)),
        ("column", (4, 6), 1, (1, 6)),
        ("column", (16, 8, 3, 3), 1, (1, 72)),
        ("column", (2, 3, 6), 2, (1, 1, 6)),
        ("group:4", (4, 6), 1, (4, 2)),
        ("group:4", (2, 3, 6), 2, (2, 3, 2)),
        ("group:27", (8, 3, 3, 3), 1, (8, 1)),
        ("group:26", (8, 3, 3, 3), 1, (8, 2)),
    ],
)
def test_scale_shapes(text, shape, split, wanted):
    assert Scale.parse(text).shape(shape, split) == wanted


@pytest.mark.parametrize("one", SCALES)
@pytest.mark.parametrize("other", SCALES)
def test_the_common_granularity_is_the_coarsest_that_both_repeat_to(one, other):
    one, other = Scale.parse(one), Scale.parse(other)
    every = [Scale.parse(text) for text in ("tensor", "row", "column")]
    every += [Scale.parse(f"group:{size}") for size in range(2, 65)]
    fits = [each for each in every if one.can_repeat(each) and other.can_repeat(each)]
    common = one.common(other)
    assert (common is None) == (not fits)
    assert common is None or all(common.can_repeat(each) for each in fits)
    assert common == other.common(one)


@pytest.mark.parametrize("shape", [(6, 80), (4, 3, 5, 5), (7,), (1, 1), (2, 33)])
@pytest.mark.parametrize("text", ["tensor", "column", "row", "group:32", "group:64", "group:5"])
def test_the_shape_of_a_scale_tells_its_granularity(text, shape):
    split = min(1, len(shape) - 1)
    scale = Scale.parse(text)
    found = Scale.of(scale.shape(shape, split), shape, split, scale.group_size)
    assert found == scale or (
        text in ("row", "column") and found.shape(shape, split) == scale.shape(shape, split)
    )
    if text in ("group:32", "group:64"):
        inferred = Scale.of(scale.shape(shape, split), shape, split)
        assert inferred.shape(shape, split) == scale.shape(shape, split)


@pytest.mark.parametrize("shape", [(6, 3), (5, 1), (2,), (6, 81), (7, 2)])
def test_a_scale_that_fits_no_granularity_is_refused(shape):
    with pytest.raises(UsageError, match=r"shows no group size for a weight of shape \(6, 80\)"):
        Scale.of(shape, (6, 80), 1, 48)


@pytest.mark.parametrize(
    ("scale_shape", "shape", "split", "text"),
    [
        ((1,), (6, 80), 1, "tensor"),
        ((6, 1), (6, 80), 1, "row"),
        ((6, 5), (6, 80), 1, "group:16"),  # an even share
        ((6, 7), (6, 7), 1, "group:1"),
        ((5,), (80,), 0, "group:16"),
        ((2, 3, 5), (2, 3, 80), 2, "group:16"),
        ((6, 3), (6, 300), 1, "group:128"),  # a usual size before an even share
        ((6, 2), (6, 260), 1, "group:256"),
        ((6, 0), (6, 0), 1, "group:256"),
    ],
)
def test_the_usual_sizes_of_groups_come_first_then_an_even_share(scale_shape, shape, split, text):
    assert str(Scale.of(scale_shape, shape, split)) == text


@pytest.mark.parametrize(
    ("scale_shape", "shape"),
    [((), (6, 80)), ((6, 0), (6, 80)), ((6, 81), (6, 80)), ((5, 5), (6, 80)), ((4, 6), (4, 11))],
)
def test_a_scale_that_fits_no_usual_group_is_refused(scale_shape, shape):
    with pytest.raises(UsageError, match="Name the group size"):
        Scale.of(scale_shape, shape, 1)
