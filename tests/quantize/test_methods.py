"""Quantizers against brute force and the reference code of BitNet."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from weights import FLOATS, restore, sets_of, trits_of, weight_of

from tpack.errors import UsageError
from tpack.quantize import Weight, encode, fit, widen

pytestmark = pytest.mark.usefixtures("blocks")

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


@settings(max_examples=120)
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


@settings(max_examples=60)
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
