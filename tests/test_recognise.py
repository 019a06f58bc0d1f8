"""Weights that are not ternary, recognised."""

import numpy as np

from tpack.quantize import Weight, detect, recognise


def test_an_ordinary_weight_is_not_recognised():
    weight = Weight.of(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32))
    assert recognise(weight, detect(weight)) is None
