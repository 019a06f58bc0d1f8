"""Exact detection and quantizers, against brute force and torch."""

# ruff: noqa: PT017 -- an input may be read or refused; a refusal is checked too

import dataclasses
import itertools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

import tpack.quantize.methods
import tpack.quantize.pieces
from tpack import kernels
from tpack.codec import Scale, unpack
from tpack.errors import InputError, NotTernaryError, UsageError
from tpack.kernels import selection
from tpack.quantize import Weight, detect, encode, encode_blocks, fit, narrow, quantize, widen
from tpack.quantize.fitting import repeat_scale, spread

FLOATS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
GRANULARITIES = [
    *("tensor", "row", "column", "group:256", "group:128", "group:64", "group:32"),
    *("group:48", "group:16"),
]


@pytest.fixture(autouse=True, params=[False, True], ids=["whole", "blocks"])
def blocks(request, monkeypatch):
    """Every test runs with the usual block size and with blocks of a row or two."""
    if request.param:
        monkeypatch.setattr(tpack.quantize.pieces, "BLOCK", 64)
        monkeypatch.setattr(tpack.quantize.methods, "BLOCK", 3)


def weight_of(tensor, split=None):
    """A torch tensor as a weight."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    raw = tensor.contiguous()
    if dtype == "bfloat16":
        raw = raw.view(torch.int16)
    array = raw.numpy()
    return Weight.of(array.view(np.uint16) if dtype == "bfloat16" else array, dtype, split)


def trits_of(weight, found):
    """The trits that a fit gives."""
    return unpack(encode(weight, found).packed, weight.columns)


def restore(weight, found):
    """What unpacking gives, as numbers in the width of the source."""
    q = trits_of(weight, found)
    scale = widen(found.scale, found.dtype)
    return (spread(scale, found.granularity, 0, *q.shape) * q).reshape(weight.shape)


def trits(*shape, seed=0):
    """Random trits."""
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float64)


def scales_for(text, rows, columns):
    """Powers of two times three, one per set, distinct from their neighbours."""
    scale = Scale.parse(text)
    if scale.kind == "tensor":
        return np.full((rows, columns), 0.375)
    if scale.kind == "row":
        return np.broadcast_to(0.375 * 2.0 ** (np.arange(rows)[:, None] % 7), (rows, columns))
    if scale.kind == "column":
        return np.broadcast_to(0.375 * 2.0 ** (np.arange(columns) % 7), (rows, columns))
    groups = -(-columns // scale.group_size)
    each = 0.375 * 2.0 ** ((np.arange(rows)[:, None] + np.arange(groups)) % 7)
    return np.repeat(each, scale.group_size, axis=1)[:, :columns]


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


# ---- absmean


def bitnet(w, mean):
    """The reference of BitNet b1.58, with the mean given."""
    inverse = 1.0 / mean.clamp(min=1e-5)
    return (w * inverse).round().clamp(-1, 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_absmean_is_the_reference_of_bitnet(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(31, 67, generator=generator) * 0.02).to(FLOATS[dtype])
    weight = weight_of(tensor)
    found = fit(weight, "absmean", "tensor")
    mean = tensor.double().abs().mean().float()
    wanted = bitnet(tensor.float(), mean)
    assert np.array_equal(trits_of(weight, found), wanted.numpy())
    assert torch.equal(
        torch.from_numpy(widen(found.scale, found.dtype)),
        mean.reshape(1).to(tensor.dtype).float(),
    )


@pytest.mark.parametrize("text", ["row", "group:32"])
def test_absmean_per_row_and_group(text):
    tensor = torch.randn(5, 70, generator=torch.Generator().manual_seed(1))
    found = fit(weight_of(tensor), "absmean", text)
    width = 70 if text == "row" else 32
    parts = [
        bitnet(part, part.double().abs().mean(1, keepdim=True).float())
        for part in tensor.split(width, dim=1)
    ]
    assert np.array_equal(trits_of(weight_of(tensor), found), torch.cat(parts, 1).numpy())


def test_absmean_floor_of_the_mean():
    values = np.full((2, 4), 1e-7, dtype=np.float32)
    values[0, 0] = 2e-7
    found = fit(Weight.of(values), "absmean")
    assert found.scale.tolist() == [np.float32(1e-5)]
    assert not trits_of(Weight.of(values), found).any()


def test_absmean_rounds_half_to_even():
    values = np.float32([[0.5, -0.5, 1.5, 1.5]])
    found = fit(Weight.of(values), "absmean")
    assert found.scale.tolist() == [1.0]
    assert trits_of(Weight.of(values), found).tolist() == [[0, 0, 1, 1]]


def test_absmean_gives_back_the_trits_of_training():
    generator = torch.Generator().manual_seed(3)
    master = torch.randn(64, 64, generator=generator)
    scale = 1.0 / master.abs().mean().clamp_(min=1e-5)
    quantized = (master * scale).round().clamp(-1, 1) / scale
    found = fit(weight_of(quantized), exact_only=True)
    assert np.array_equal(
        trits_of(weight_of(quantized), found), torch.sign(quantized).to(torch.int8).numpy()
    )
    assert np.array_equal(restore(weight_of(quantized), found), quantized.numpy())


# ---- twn and mse


def error_of(values, scale, kept):
    return float(np.square(values - scale * np.sign(values) * kept).sum())


def sets_of(values, text):
    """The index sets that share a scale."""
    if text == "tensor":
        return [values.reshape(-1)]
    if text == "column":
        return list(values.T)
    width = values.shape[1] if text == "row" else int(text.partition(":")[2])
    return [row[i : i + width] for row in values for i in range(0, len(row), width)]


@pytest.mark.parametrize("text", ["tensor", "row", "column", "group:4"])
@pytest.mark.parametrize("seed", range(6))
def test_twn_by_brute_force(text, seed):
    values = np.random.default_rng(seed).normal(size=(3, 10))
    found = fit(Weight.of(values), "twn", text)
    wanted = []
    for part in sets_of(values, text):
        threshold = 0.7 * np.abs(part).mean()
        kept = np.abs(part) > threshold
        wanted.append(np.abs(part[kept]).mean() * np.sign(part) * kept)
    restored = sets_of(restore(Weight.of(values), found), text)
    for one, other in zip(restored, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


FINITE = st.floats(-100, 100, width=32)


def least_error(part):
    """The least squared error over all subsets, each with its best scale."""
    best = float(np.square(part).sum())
    size = np.abs(part)
    for kept in itertools.product((0, 1), repeat=len(part)):
        mask = np.array(kept)
        if mask.any():
            scale = (size * mask).sum() / mask.sum()
            best = min(best, error_of(part, scale, mask))
    return best


@settings(max_examples=120, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 2), st.integers(1, 5)), elements=FINITE))
@example(np.array([[1.0, 1.0, 1.0, 0.5]]))
@example(np.array([[0.0, 0.0, 2.0]]))
@example(np.array([[3.0, 1.0, 1.0, 1.0, 1.0]]))
def test_mse_is_the_best_of_all_subsets(values):
    for text in ("tensor", "row", "column", "group:2", "group:3"):
        weight = Weight.of(values)
        found = fit(weight, "mse", text)
        got = np.square(values - restore(weight, found)).sum()
        least = sum(least_error(part) for part in sets_of(values, text))
        assert got <= least + 1e-6 * (1 + np.square(values).sum())


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=FINITE),
    st.sampled_from(["tensor", "row", "group:8", "group:32"]),
)
def test_mse_is_never_worse_than_the_others(values, text):
    weight = Weight.of(values)
    least = encode(weight, fit(weight, "mse", text)).relative_error
    for other in ("absmean", "twn"):
        assert least <= encode(weight, fit(weight, other, text)).relative_error + 1e-6


def test_a_finer_granularity_never_raises_the_least_error():
    values = np.random.default_rng(0).normal(size=(8, 128)).astype(np.float32)
    weight = Weight.of(values)
    errors = [
        encode(weight, fit(weight, "mse", text)).relative_error
        for text in ("tensor", "row", "group:64", "group:32")
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("method", ["absmean", "twn", "mse"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_relative_error_is_that_of_what_is_stored(method, dtype):
    generator = torch.Generator().manual_seed(5)
    tensor = torch.randn(7, 33, generator=generator, dtype=torch.float64).to(FLOATS[dtype])
    weight = weight_of(tensor)
    found = fit(weight, method, "row")
    lost = torch.from_numpy(restore(weight, found)).double() - tensor.double()
    wanted = float(lost.norm() / tensor.double().norm())
    assert encode(weight, found).relative_error == pytest.approx(wanted, rel=1e-5)


def test_ternary_weights_stay_exact_under_every_method():
    values = np.float32([[0.5, -0.5, 0], [0, 0, 0.5]])
    for method in ("auto", "absmean", "twn", "mse"):
        assert fit(Weight.of(values), method).method == "exact"


def test_unknown_method_and_scale():
    weight = Weight.of(np.ones((2, 2), dtype=np.float32))
    with pytest.raises(UsageError, match="method 'best' is unknown"):
        fit(weight, "best")
    with pytest.raises(UsageError, match="scale 'cell' is unknown"):
        fit(weight, scale="cell")


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


# ---- pieces, variants and threads


METHODS = ["absmean", "twn", "mse"]
SHAPES = [(5, 41), (3, 256), (2, 20480 + 37), (1, 3 * 20480 + 1), (700, 3)]


def random_weight(shape, dtype, seed=0):
    """Values over many magnitudes, some zeros of both signs, and a row and a group of zeros."""
    random = np.random.default_rng(seed)
    values = random.normal(size=shape) * 2.0 ** random.integers(-3, 4, shape)
    values[random.random(shape) < 0.1] = -0.0
    values[-1, :32] = 0
    if shape[0] > 2:
        values[1] = 0
    return torch.from_numpy(values).to(FLOATS[dtype])


def outcome(weight, method, text):
    """Everything that a file holds of a weight."""
    found = fit(weight, method, text)
    encoded = encode(weight, found)
    return (
        (found.method, str(found.granularity), found.scale.tobytes(), found.threshold.tobytes()),
        encoded.packed.tobytes(),
        encoded.relative_error,
    )


@pytest.mark.parametrize("method", ["absmean", "twn"])
@pytest.mark.parametrize("text", ["tensor", "row", "column", "group:96", "group:32", "group:5"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_methods_by_brute_force(method, text, dtype, shape):
    tensor = random_weight(shape, dtype)
    weight = weight_of(tensor)
    found = quantize(weight, method, text, detect(weight, text))
    real = np.float64 if dtype == "float64" else np.float32
    values = tensor.to(torch.float64).numpy()
    scale, trit, sets = [], [], sets_of(values, text)
    for part in sets:
        mean = math.fsum(np.abs(part)) / len(part)
        if method == "absmean":
            scale.append(max(real(mean), real(1e-5)))
            trit.append(np.clip(np.rint(part.astype(real) * (real(1) / scale[-1])), -1, 1))
        else:
            kept = np.abs(part).astype(real) > real(0.7 * mean)
            scale.append(math.fsum(np.abs(part[kept])) / kept.sum() if kept.any() else 1.0)
            trit.append(np.sign(part) * kept)
    stored = torch.tensor(np.array(scale, np.float64)).float().to(FLOATS[found.dtype]).float()
    got = widen(found.scale, found.dtype).reshape(-1)
    np.testing.assert_allclose(got, stored.numpy(), rtol=1e-6 if method == "twn" else 0)
    q = trits_of(weight, found)
    assert np.array_equal(np.concatenate(sets_of(q, text)), np.concatenate(trit))
    lost = values - restore(weight, found)
    wanted = math.sqrt((lost**2).sum() / (values**2).sum())
    assert encode(weight, found).relative_error == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("variant", kernels.available())
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", ["tensor", "row", "column", "group:96", "group:5"])
def test_nothing_depends_on_pieces_threads_or_variant(variant, dtype, text, monkeypatch):
    for shape, method in itertools.product(SHAPES, METHODS):
        if method == "mse" and shape[1] > 256:
            continue  # sorts every set by itself
        weight = weight_of(random_weight(shape, dtype, seed=1))
        with monkeypatch.context() as patch:
            patch.setattr(tpack.quantize.pieces, "BLOCK", 1 << 21)
            wanted = outcome(weight, method, text)
        for block, threads in ((1, 1), (100, 3), (20480, 2), (50_000, 3)):
            with monkeypatch.context() as patch, kernels.forced(variant):
                patch.setattr(tpack.quantize.pieces, "BLOCK", block)
                patch.setattr(selection, "default_threads", lambda count=threads: count)
                assert outcome(weight, method, text) == wanted


@pytest.mark.parametrize("variant", kernels.available())
@pytest.mark.parametrize("text", GRANULARITIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_exact_at_any_place_by_any_variant(variant, text, dtype):
    for shape in ((7, 600), (7 if text == "column" else 2, 2 * 20480 + 600)):
        values = trits(*shape) * scales_for(text, *shape)
        values[0, :3] = [-0.0, 0.0, -0.0]
        tensor = torch.from_numpy(values).to(FLOATS[dtype])
        weight = weight_of(tensor)
        with kernels.forced(variant):
            found = fit(weight, exact_only=True)
            assert (found.method, str(found.granularity)) == ("exact", text)
            back = torch.from_numpy(restore(weight, found)).to(tensor.dtype)
            assert torch.equal(back, tensor)
            tensor[:, -8:-6] = 1 + torch.arange(2 * len(tensor)).view(-1, 2)
            with pytest.raises(NotTernaryError):
                fit(weight, exact_only=True)


def test_packed_rows_come_in_order_and_in_whole_bytes():
    columns = 3 * 20480 + 5
    values = (trits(2, columns) * 0.5).astype(np.float32)
    weight = Weight.of(values)
    taken = []
    encode_blocks(weight, fit(weight), lambda packed, count: taken.append((packed, count)))
    rows = [unpack(packed, count) for packed, count in taken]
    flat = np.concatenate([row.reshape(-1) for row in rows])
    assert np.array_equal(flat.reshape(2, columns), np.sign(values))
    ends = np.cumsum([row.size for row in rows])
    assert all(
        count % 20 == 0 for (_, count), end in zip(taken, ends, strict=True) if end % columns
    )


@pytest.mark.parametrize("index", [0, 300, 1023])
def test_a_source_that_changes_between_the_passes_is_refused(index):
    tensor = torch.from_numpy(trits(4, 256))
    weight = weight_of(tensor)
    found = fit(weight)
    tensor.view(-1)[index] = 0.75
    with pytest.raises(InputError, match="other values than when it was read before"):
        encode(weight, found)


@pytest.mark.parametrize("text", GRANULARITIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_ternary_weight_is_read_once(dtype, text):
    values = trits(40, 256) * scales_for(text, 40, 256)
    weight = weight_of(torch.from_numpy(values).to(FLOATS[dtype]))
    spans = []

    def load(start, stop):
        spans.append((start, stop))
        return weight.load(start, stop)

    once = dataclasses.replace(weight, load=load)
    packed = encode(once, fit(once)).packed
    assert np.array_equal(unpack(packed, 256), np.sign(values))
    assert sum(stop - start for start, stop in spans) == values.size


def test_another_weight_is_read_twice():
    weight = Weight.of(np.random.default_rng(0).normal(size=(40, 256)).astype(np.float32))
    spans = []

    def load(start, stop):
        spans.append((start, stop))
        return weight.load(start, stop)

    twice = dataclasses.replace(weight, load=load)
    encode(twice, fit(twice))
    assert sum(stop - start for start, stop in spans) == 2 * 40 * 256


@pytest.mark.parametrize("text", ["tensor", "row", "group:32", "group:7"])
def test_the_first_value_that_is_not_finite_is_named_in_any_piece(text):
    values = np.ones((40, 64), dtype=np.float32)
    values[17, 5] = math.nan
    values[17, 4] = math.inf
    values[39, 0] = math.nan
    with pytest.raises(InputError, match=r"inf at index \(17, 4\)"):
        fit(Weight.of(values), scale=text)


def test_a_reader_is_called_alone_at_first(monkeypatch):
    """Sources make ready what all later reads share: they need no lock."""
    monkeypatch.setattr(selection, "default_threads", lambda: 3)
    flat, events = np.ones(64 * 512, dtype=np.float32), []

    def load(start, stop):
        events.append("begin")
        time.sleep(0.005)
        events.append("end")
        return flat[start:stop]

    fit(Weight((64, 512), 1, "float32", load))
    assert events[:2] == ["begin", "end"]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_nothing_to_pack(shape, method):
    weight = Weight.of(np.zeros(shape, dtype=np.float32))
    found = fit(weight, method)
    assert encode(weight, found).packed.shape == (shape[0], -(-shape[1] // 4))


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
