"""Which meaning of a scale fits a model, and what is stored for it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from tpack.errors import UnsupportedError
from tpack.exporting.bitnet_scales import Number, choose, exact, scaled
from tpack.quantize import widen

DTYPES = ("float32", "bfloat16", "float16")


def value(number):
    return None if number is None else float(widen(number.raw, number.dtype)[0])


def bfloat16(values):
    raw = torch.tensor(values, dtype=torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return Number(raw, "bfloat16")


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.sampled_from(DTYPES))
def test_exact_is_what_torch_holds(number, dtype):
    held = float(torch.tensor(number, dtype=torch.float64).to(getattr(torch, dtype)))
    found = exact(number, dtype)
    assert (found is not None) == (held == number)
    if found is not None:
        assert value(found) == number
        assert found.dtype == dtype


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1e300, 2.0**140])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_holds(number, dtype):
    assert exact(number, dtype) is None


def test_no_divisor_is_beyond_the_dtype():
    weight = scaled("a", 2.0**-130, None, "bfloat16", "bfloat16")
    assert (weight.divide, value(weight.multiply)) == (None, 2.0**-130)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_divisor_is_stored_as_it_came(dtype):
    weight = scaled("a", 1 / 3, 3.0, dtype, dtype)
    assert value(weight.divide) == 3.0
    assert weight.multiply is None
    assert choose([weight]) == "divide"


def test_a_divisor_in_a_finer_dtype_than_the_model():
    divisor = float(np.float32(3.3))
    weight = scaled("a", 1 / divisor, divisor, "float32", "bfloat16")
    assert value(weight.divide) == divisor
    assert weight.divide.dtype == "float32"


def test_a_factor_is_multiplied():
    weight = scaled("a", 0.375, None, "bfloat16", "bfloat16")
    assert value(weight.multiply) == 0.375
    assert weight.divide is None
    assert choose([weight]) == "multiply"


def test_powers_of_two_go_either_way():
    assert value(scaled("a", 0.25, None, "float32", "float32").divide) == 4.0
    assert value(scaled("a", 0.25, 4.0, "float32", "float32").multiply) == 0.25
    assert value(scaled("a", -0.25, None, "float32", "float32").divide) == -4.0
    divided = scaled("a", 1 / 3, 3.0, "float32", "float32")
    factor = scaled("b", 0.25, None, "float32", "float32")
    other = scaled("b", float(np.float32(0.3)), None, "float32", "float32")
    assert choose([divided, factor]) == "divide"
    assert choose([scaled("a", 0.25, 4.0, "float32", "float32"), other]) == "multiply"
    with pytest.raises(
        UnsupportedError, match=r"multiplies by 0\.30\d+, but 'a' divides by 3, "
    ) as e:
        choose([divided, other])
    assert e.value.tensor == "b"


def test_a_scale_of_zero_only_multiplies():
    weight = scaled("a", 0.0, None, "float32", "float32")
    assert (value(weight.multiply), weight.divide) == (0.0, None)


@pytest.mark.parametrize(("scale", "fits"), [(0.3, False), (65536.0, False), (0.5, True)])
def test_a_scale_that_the_model_cannot_hold(scale, fits):
    weight = scaled("a", scale, None, "float32", "float16")
    if fits:
        assert choose([weight]) == "multiply"
    elif math.frexp(scale)[0] == 0.5:
        assert choose([weight]) == "divide"  # 1 / 65536 is a float16
    else:
        with pytest.raises(UnsupportedError, match="which float16, the dtype of the model"):
            choose([weight])


# ---- biases


@given(st.integers(-255, 255), st.integers(129, 255), st.integers(-9, 9), st.integers(-9, 9))
def test_biases_of_the_library_come_back(stored, factor, low, high):
    """What an import has multiplied, ``stored * scale`` in float32, is divided again."""
    bias, scale = bfloat16([stored * 2.0**low]), bfloat16([factor * 2.0**high])
    product = widen(bias.raw, "bfloat16") * widen(scale.raw, "bfloat16")
    number = Number(product, "float32")
    weight = scaled("a", value(scale), None, "bfloat16", "bfloat16", number)
    assert value(weight.bias) == stored * 2.0**low
    assert weight.fits("multiply")


@given(st.floats(0.0625, 64, width=32), st.floats(0.0625, 64, width=32))
def test_biases_in_float32_give_the_same_product(stored, factor):
    product = np.float32([stored]) * np.float32(factor)
    weight = scaled("a", factor, None, "float32", "float32", Number(product, "float32"))
    assert weight.bias is not None
    assert weight.bias.raw * np.float32(factor) == product


def test_biases_that_cannot_be_divided():
    bias = bfloat16([0.3])
    weight = scaled("a", 0.375, None, "bfloat16", "bfloat16", bias)
    assert not weight.fits("multiply")
    with pytest.raises(UnsupportedError, match=r"has a bias that divided by the scale 0\.375 is"):
        choose([weight])
    # a power of two can be divided by instead, and the bias stays as it is
    weight = scaled("a", 2.0**-120, None, "bfloat16", "bfloat16", bfloat16([1e30]))
    assert choose([weight]) == "divide"


def test_a_bias_beside_a_scale_of_zero():
    zero = scaled("a", 0.0, None, "float32", "float32", Number(np.float32([0, 1]), "float32"))
    assert not zero.fits("multiply")
