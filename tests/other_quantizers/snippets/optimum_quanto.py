"""optimum-quanto: ``quantize`` with ``qint2``, then ``freeze``."""

import torch
from optimum.quanto import freeze, qint2, quantize as quantize_model
from optimum.quanto.tensor.packed import PackedTensor
from torch import nn


def packed(weight):
    model = nn.Sequential(nn.Linear(*weight.shape[::-1], bias=False))
    model[0].weight.data = torch.from_numpy(weight)
    quantize_model(model, weights=qint2)
    freeze(model)
    return model[0].weight


def quantize(weight, mode):
    tensor = packed(weight)
    return tensor.dequantize(), [tensor._data._data, tensor._scale, tensor._shift]


def by_hand(trits, scale):
    tensor = packed(trits.astype("float32"))
    codes = torch.from_numpy(trits + 1).to(torch.uint8).reshape(tensor._data.shape)
    tensor._data = PackedTensor.pack(codes, 2)
    tensor._scale.fill_(scale)
    tensor._shift.fill_(scale)
    return tensor.dequantize()
