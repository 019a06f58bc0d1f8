"""A few values tell ordinary float weights from all that may be recognised."""

import dataclasses

import numpy as np
import pytest
import torch

from tpack.quantize import Weight
from tpack.quantize.ordinary import AT_ONCE, is_ordinary

RANDOM = np.random.default_rng(0)
SHAPES = [(16, 32), (64, 100), (700, 64), (40, 4096)]


def weight_of(values, dtype):
    tensor = torch.from_numpy(np.asarray(values)).to(getattr(torch, dtype))
    if dtype == "bfloat16":
        return Weight.of(tensor.view(torch.int16).numpy().view(np.uint16), dtype)
    return Weight.of(tensor.numpy())


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform", "standard_t"])
def test_float_weights_are_ordinary(draw, shape, dtype):
    more = {"standard_t": (3,), "uniform": (-1, 1)}.get(draw, ())
    for _ in range(20):
        values = getattr(RANDOM, draw)(*more, size=shape) * 0.02
        assert is_ordinary(weight_of(values, dtype))


def with_scales(of):
    def draw(rows, columns):
        scales = {
            "tensor": (1, 1),
            "row": (rows, 1),
            "column": (1, columns),
            "group": (rows, -(-columns // 32)),
        }[of]
        scales = RANDOM.random(scales) + 0.5
        if of == "group":
            scales = scales.repeat(32, axis=1)[:, :columns]
        return scales

    return draw


def trits(*shape):
    return RANDOM.integers(-1, 2, shape)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("of", ["tensor", "row", "column", "group"])
def test_weights_that_may_be_recognised_are_not(of, shape, dtype):
    for _ in range(10):
        scales = with_scales(of)(*shape)
        exact = trits(*shape) * scales
        exceptions = np.where(RANDOM.random(shape) < 0.01, RANDOM.normal(size=shape), exact)
        assert not is_ordinary(weight_of(exceptions, dtype))
        if dtype != "bfloat16":
            rounded = exact * (1 + 1e-4 * RANDOM.normal(size=shape))
            assert not is_ordinary(weight_of(rounded, dtype))
        if of != "column":
            for levels in ([-1, -1 / 3, 1 / 3, 1], np.arange(-8, 8), [-1.5, 0, 0.4]):
                assert not is_ordinary(weight_of(RANDOM.choice(levels, shape) * scales, dtype))


@pytest.mark.parametrize("zeros", [1, 2])
def test_zeros_by_a_rule_are_not_ordinary(zeros):
    order = RANDOM.random((64, 32, 4)).argsort(axis=2)
    values = np.where(order < zeros, 0, RANDOM.normal(size=order.shape)).reshape(64, 128)
    assert not is_ordinary(weight_of(values, "float32"))


def test_little_is_read():
    weight = weight_of(RANDOM.normal(size=(512, 4096)), "float32")
    read = []

    def load(start, stop):
        read.append(stop - start)
        return weight.load(start, stop)

    assert is_ordinary(dataclasses.replace(weight, load=load))
    assert sum(read) <= AT_ONCE
