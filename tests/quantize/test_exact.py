"""Weights that are ternary: found exactly, at the granularity that costs least."""

# ruff: noqa: PT017 -- an input may be read or refused; a refusal is checked too

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from weights import FLOATS, GRANULARITIES, restore, scales_for, trits, trits_of, weight_of

from tpack.codec import Scale
from tpack.errors import InputError, NotTernaryError
from tpack.quantize import Weight, detect, encode, fit, narrow, quantize, widen
from tpack.quantize.fitting import repeat_scale, spread

pytestmark = pytest.mark.usefixtures("blocks")


@pytest.mark.parametrize("text", GRANULARITIES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("columns", [512, 600])
def test_exact_is_found_at_the_coarsest_granularity(text, dtype, columns):
    values = trits(7, columns) * scales_for(text, 7, columns)
    tensor = torch.from_numpy(values).to(FLOATS[dtype])
    weight = weight_of(tensor)
    found = fit(weight, exact_only=True)
    assert found.method == "exact"
    assert str(found.granularity) == text
    assert found.dtype == ("float32" if dtype == "float64" else dtype)
    assert found.scale.shape == Scale.parse(text).shape((7, columns), 1)
    back = torch.from_numpy(restore(weight, found)).to(tensor.dtype)
    assert torch.equal(back, tensor)
    assert encode(weight, found).relative_error == 0.0


@pytest.mark.parametrize("text", GRANULARITIES)
def test_explicit_scale_is_kept_where_it_is_exact(text):
    values = (trits(3, 600) * 0.5).astype(np.float32)
    found = fit(Weight.of(values), scale=text, exact_only=True)
    assert (found.method, str(found.granularity)) == ("exact", text)
    assert np.array_equal(restore(Weight.of(values), found), values)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.arange(1, 41).reshape(40, 1), "each row has one value"),
        (np.arange(1, 41).reshape(1, 40), "each column has one value"),
        ([np.arange(1, 41), np.arange(-1, -41, -1)], "each column has two"),
        (np.diag(np.arange(1, 41)), "of each row and column one is not 0"),
        (np.diag([*range(1, 40), 1]) + np.eye(40)[::-1] * 2, "hardly any has two that agree"),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_granularity_that_says_nothing_does_not_count(values, text, dtype):
    weight = weight_of(torch.tensor(np.array(values, dtype=np.float64)).to(FLOATS[dtype]))
    assert detect(weight).fit is None, text
    with pytest.raises(NotTernaryError, match=r"hardly any two of its values|is not ternary"):
        fit(weight, exact_only=True)


def test_scales_that_need_more_room_than_the_weights_do_not_count():
    rows = np.arange(1, 101).reshape(-1, 1)
    values = np.repeat(rows, 2, axis=1)
    values[::2, 0] *= -1
    assert str(detect(Weight.of(values.astype(np.float32))).fit.granularity) == "row"
    assert detect(Weight.of(values.astype(np.int8))).fit is None
    assert str(detect(Weight.of(values.astype(np.int8)), "row").fit.granularity) == "row"


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_cheapest_granularity_is_taken(dtype):
    """One block of a scale of its own: rows and columns both are exact."""
    for shape, text in (((30, 60), "row"), ((60, 30), "column")):
        values = trits(*shape)
        values[15:, :15] = values[:15, 15:] = 0
        values[15:, 15:] *= 2
        weight = weight_of(torch.from_numpy(values).to(FLOATS[dtype]))
        found = detect(weight).fit
        assert (found.method, str(found.granularity)) == ("exact", text)
        back = torch.from_numpy(restore(weight, found)).to(FLOATS[dtype])
        assert torch.equal(back, torch.from_numpy(values).to(FLOATS[dtype]))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 40])
def test_explicit_odd_groups(size):
    values = (trits(4, 13) * scales_for(f"group:{size}", 4, 13)).astype(np.float32)
    found = fit(Weight.of(values), scale=f"group:{size}", exact_only=True)
    assert found.method == "exact"
    assert np.array_equal(restore(Weight.of(values), found), values)


def test_explicit_scale_that_is_too_coarse_is_refused_or_quantized():
    values = np.float32([[1, -1, 0], [2, 0, -2]])
    with pytest.raises(NotTernaryError) as caught:
        fit(Weight.of(values), scale="tensor", exact_only=True)
    assert (caught.value.index, caught.value.value) == ((1, 0), 2.0)
    assert fit(Weight.of(values), scale="tensor").method == "absmean"
    assert str(fit(Weight.of(values)).granularity) == "row"


@pytest.mark.parametrize("peak", [1, 2, 7, 100, 127])
def test_int8(peak):
    values = (trits(4, 9) * peak).astype(np.int8)
    found = fit(Weight.of(values), exact_only=True)
    assert (found.dtype, found.scale.tolist()) == ("float32", [float(peak)])
    assert np.array_equal(restore(Weight.of(values), found), values)


def test_int8_of_minus_128():
    values = np.int8([[-128, 0, -128]])
    found = fit(Weight.of(values), exact_only=True)
    assert found.scale.tolist() == [128.0]
    assert np.array_equal(restore(Weight.of(values), found), values)


def test_zero_rows_and_groups_take_any_scale():
    values = np.zeros((4, 96), dtype=np.float32)
    values[1, 32:64] = [0.25, -0.25] * 16
    values[2] = 3
    found = fit(Weight.of(values), exact_only=True)
    assert str(found.granularity) == "row"
    assert np.isfinite(found.scale).all()
    assert found.scale.min() > 0
    assert np.array_equal(restore(Weight.of(values), found), values)


@pytest.mark.parametrize("dtype", [*FLOATS, "int8"])
def test_all_zero(dtype):
    tensor = torch.zeros(3, 40, dtype=getattr(torch, dtype))
    weight = weight_of(tensor)
    found = fit(weight, exact_only=True)
    assert (found.method, str(found.granularity)) == ("exact", "tensor")
    assert not trits_of(weight, found).any()
    assert widen(found.scale, found.dtype).tolist() == [1.0]


@pytest.mark.parametrize("method", ["absmean", "twn", "mse"])
@pytest.mark.parametrize("text", ["tensor", "row", "column", "group:32"])
def test_methods_bear_zero_rows_and_groups(method, text):
    values = np.zeros((3, 70), dtype=np.float32)
    values[1, :5] = [1, 2, 3, 4, 5]
    weight = Weight.of(values)
    found = quantize(weight, method, text, detect(weight))
    assert found.method == method
    assert np.isfinite(found.scale).all()
    restored = restore(Weight.of(values), found)
    assert not restored[0].any()
    assert not restored[2].any()


def test_negative_zero_becomes_positive_zero_and_nothing_else():
    values = np.float32([[-0.0, 0.5, -0.5, 0.0]])
    found = fit(Weight.of(values), exact_only=True)
    restored = restore(Weight.of(values), found)
    assert np.array_equal(restored, values)
    assert not np.signbit(restored[0, 0])


@pytest.mark.parametrize(
    ("dtype", "tiny"),
    [
        ("float32", 2.0**-149),
        ("float16", 2.0**-24),
        ("bfloat16", 2.0**-133),
        ("float64", 2.0**-149),
    ],
)
def test_subnormal_scales(dtype, tiny):
    tensor = torch.from_numpy(np.array([[tiny, 0, -tiny]])).to(FLOATS[dtype])
    assert tensor.any()
    found = fit(weight_of(tensor), exact_only=True)
    assert found.method == "exact"
    back = torch.from_numpy(restore(weight_of(tensor), found)).to(tensor.dtype)
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("scale", [0.1, 1e-300, 1e300, 1 + 2**-30])
def test_float64_scale_that_float32_cannot_hold_is_not_exact(scale):
    values = np.array([[scale, 0, -scale]])
    with pytest.raises(NotTernaryError) as caught:
        fit(Weight.of(values), exact_only=True)
    assert "float32 cannot hold" in str(caught.value)
    assert caught.value.value == scale


def test_float64_beyond_float32_is_a_clear_error():
    with pytest.raises(InputError, match="float32 cannot hold"):
        fit(Weight.of(np.array([[1e300, 0, -1e300]])))


@pytest.mark.parametrize(
    ("values", "index", "value"),
    [
        ([[1, 0, -1], [1, 2, 1]], (1, 1), 2.0),
        ([[0, 0, 3], [1, 3, 1]], (1, 1), 3.0),
        ([[1.0, 1.5, 1.0]], (0, 1), 1.5),
    ],
)
def test_refusal_names_the_first_value_that_differs(values, index, value):
    with pytest.raises(NotTernaryError) as caught:
        fit(Weight.of(np.float32(values)), exact_only=True)
    assert (caught.value.index, caught.value.value) == (index, value)
    assert "not ternary" in str(caught.value)


@settings(max_examples=60)
@given(data=st.data())
def test_refusal_points_at_a_value_that_contradicts_one_before_it(data):
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(2, 70)))
    values = data.draw(
        hnp.arrays(np.float32, shape, elements=st.sampled_from([0, 1, -1, 2, -2, 0.5]))
    )
    text = data.draw(st.sampled_from(["auto", "tensor", "row", "group:32", "group:5"]))
    weight = Weight.of(values)
    try:
        found = fit(weight, scale=text, exact_only=True)
    except NotTernaryError as error:
        if error.index is None:
            assert "hardly any two" in str(error)
            assert text == "auto"
            return
        row, column = error.index
        assert values[row, column] == error.value
        if text == "tensor":
            before = values.reshape(-1)[: row * shape[1] + column]
        else:
            width = {"auto": 32, "row": shape[1], "group:32": 32, "group:5": 5}[text]
            before = values[row, column - column % width : column]
        kept = np.abs(before[before != 0])
        assert kept.size
        assert (kept == kept[0]).all()
        assert abs(error.value) != kept[0]
    else:
        assert np.array_equal(restore(weight, found), values)


@pytest.mark.parametrize("method", ["auto", "absmean", "twn", "mse"])
@pytest.mark.parametrize("text", ["auto", "tensor", "row", "group:32"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named(method, text, bad):
    values = np.ones((5, 40), dtype=np.float32)
    values[3, 37] = bad
    values[4, 0] = math.nan
    with pytest.raises(InputError) as caught:
        fit(Weight.of(values), method, text)
    assert "(3, 37)" in str(caught.value)
    assert str(bad) in str(caught.value)
    assert caught.value.code == 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_not_finite_in_other_dtypes(dtype):
    tensor = torch.ones(2, 3, 4, dtype=FLOATS[dtype])
    tensor[1, 2, 3] = math.nan
    with pytest.raises(InputError, match=r"\(1, 2, 3\)"):
        fit(weight_of(tensor))


# ---- detected


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "values",
    [
        np.zeros((16, 40)),
        np.full((16, 40), 0.5),
        np.eye(40),
        [[0.5, -0.5], [0.0, 0.5]],
    ],
    ids=["zero", "constant", "one sign", "a handful"],
)
def test_a_weight_may_be_ternary_by_chance(values, dtype):
    detected = detect(weight_of(torch.tensor(np.array(values)).to(FLOATS[dtype])))
    assert detected.fit.method == "exact"
    assert detected.by_chance
    assert detected.zero == (not np.any(values))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numbers_too_small_for_their_dtype_are_ternary_by_chance(dtype):
    rows = np.sign(np.random.default_rng(0).normal(size=(64, 64))) * np.arange(1, 65)[:, None] / 8
    small = torch.from_numpy(rows.round() * {"float32": 2.0**-149, "float16": 2.0**-24}[dtype])
    assert detect(weight_of(small.to(FLOATS[dtype]))).by_chance
    values = np.random.default_rng(0).normal(size=(64, 64))
    tiny = torch.from_numpy(values * {"float32": 2.0**-150, "float16": 2.0**-25}[dtype])
    detected = detect(weight_of(tiny.clamp(-(2.0**-24), 2.0**-24).to(FLOATS[dtype])))
    assert detected.fit is None or detected.by_chance


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", GRANULARITIES)
def test_a_ternary_weight_is_none_by_chance(text, dtype):
    values = trits(7, 600) * scales_for(text, 7, 600)
    detected = detect(weight_of(torch.from_numpy(values).to(FLOATS[dtype])))
    assert not detected.by_chance
    assert not detected.zero


@pytest.mark.parametrize("method", ["absmean", "twn", "mse"])
@pytest.mark.parametrize("text", ["auto", "row"])
def test_quantize_rounds_a_ternary_weight_too(method, text):
    weight = Weight.of((trits(4, 40) * 0.1).astype(np.float32))
    detected = detect(weight)
    found = quantize(weight, method, text, detected)
    assert found.method == method
    assert str(found.granularity) == ("tensor" if text == "auto" else text)
    if method == "absmean":
        assert found.scale.max() < 0.09  # the mean of |w|, zeros and all


# ---- narrow and widen


def test_widen_is_exact_for_every_half_and_bfloat16():
    bits = np.arange(1 << 16, dtype=np.uint16)
    for dtype, kind in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        raw = bits if dtype == "bfloat16" else bits.view(np.float16)
        wanted = torch.from_numpy(bits.view(np.int16).copy()).view(kind).float().numpy()
        np.testing.assert_array_equal(widen(raw, dtype), wanted)
        back = narrow(widen(raw, dtype), dtype).view(np.uint16)
        finite = ~np.isnan(wanted)
        assert np.array_equal(back[finite], bits[finite])


@given(hnp.arrays(np.float32, 8, elements=st.floats(width=32)))
def test_narrow_to_bfloat16_rounds_as_torch_does(values):
    wanted = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(widen(narrow(values, "bfloat16"), "bfloat16"), wanted)


def test_three_dimensions_with_a_split_of_two():
    values = (trits(2, 3, 40) * np.array([1.0, 2, 4])[None, :, None]).astype(np.float32)
    found = fit(Weight.of(values, split=2), exact_only=True)
    assert str(found.granularity) == "row"
    assert found.scale.shape == (2, 3, 1)
    assert np.array_equal(restore(Weight.of(values, split=2), found), values)


def test_vector_is_one_row():
    values = np.float32([1, 0, -1])
    found = fit(Weight.of(values), exact_only=True)
    assert found.scale.shape == (1,)
    assert np.array_equal(restore(Weight.of(values), found), values)


def test_a_scale_that_must_be_rounded_keeps_the_trits():
    trits = np.random.default_rng(0).integers(-1, 2, (8, 40))
    weight = Weight.of(trits * 0.1)
    found = fit(weight)
    assert found.method == "mse"
    assert np.array_equal(trits_of(weight, found), trits)
    assert 0 < encode(weight, found).relative_error < 1e-7


# ---- scales at a finer granularity


@pytest.mark.parametrize("old", GRANULARITIES)
@pytest.mark.parametrize("new", GRANULARITIES)
@pytest.mark.parametrize(
    ("shape", "split"), [((6, 300), 1), ((2, 3, 70), 2), ((5,), 0), ((3, 4, 2, 2), 1)]
)
def test_a_repeated_scale_gives_each_weight_the_scale_that_it_had(old, new, shape, split):
    old, new = Scale.parse(old), Scale.parse(new)
    if not old.can_repeat(new):
        return
    rows, columns = math.prod(shape[:split]), math.prod(shape[split:])
    before = np.random.default_rng(0).random(old.shape(shape, split))
    after = repeat_scale(before, old, new, columns, new.shape(shape, split))
    assert after.shape == new.shape(shape, split)
    weights = [
        np.broadcast_to(spread(values, each, 0, rows, columns), (rows, columns))
        for values, each in ((before, old), (after, new))
    ]
    assert np.array_equal(*weights)
