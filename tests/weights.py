"""Weights, trits and scales, and what they are restored to."""

import numpy as np
import torch

from tpack.codec import Scale, unpack
from tpack.quantize import Weight, encode, widen
from tpack.quantize.fitting import spread

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


def sets_of(values, text):
    """The index sets that share a scale."""
    if text == "tensor":
        return [values.reshape(-1)]
    if text == "column":
        return list(values.T)
    width = values.shape[1] if text == "row" else int(text.partition(":")[2])
    return [row[i : i + width] for row in values for i in range(0, len(row), width)]
