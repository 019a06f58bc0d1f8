"""Blocks of more than two bits against the gguf package, on random bytes."""

import numpy as np
import pytest

from tpack.dialects.gguf_quants import QUANTS

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("number", QUANTS)
def test_values_are_those_of_the_library(number):
    kind = QUANTS[number]
    kinds = gguf.GGMLQuantizationType
    assert (kind.name, kind.weights, kind.nbytes) == (
        kinds(number).name,
        *gguf.GGML_QUANT_SIZES[kinds(number)],
    )
    rng = np.random.default_rng(number)
    rows = rng.integers(0, 256, (64, 3 * kind.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        found = kind.dequantize(rows)
        wanted = gguf.quants.dequantize(rows, kinds(number)).reshape(-1)
    assert found.dtype == np.float32
    assert np.array_equal(found, wanted, equal_nan=True)
    assert found.size == 64 * 3 * kind.weights
