"""MLX: ``mx.quantize`` with two bits and its own group of 64."""

import mlx.core as mx
import numpy as np


def quantize(weight, mode):
    stored = mx.quantize(mx.array(weight), bits=2)
    return mx.dequantize(*stored, bits=2), stored


def by_hand(trits, scale):
    codes = (trits + 1).astype(np.uint32).reshape(len(trits), -1, 16)
    words = (codes << 2 * np.arange(16, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    scales = mx.full((len(trits), trits.shape[1] // 64), scale)
    return mx.dequantize(mx.array(words), scales, -scales, bits=2)
