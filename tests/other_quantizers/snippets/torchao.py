"""torchao: ``quantize_`` with ``IntxWeightOnlyConfig(torch.int2)``, groups of 128."""

import torch
from torch import nn
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup, quantize_


def layer(weight):
    linear = nn.Linear(*weight.shape[::-1], bias=False)
    linear.weight.data = torch.from_numpy(weight)
    return linear


def quantize(weight, mode):
    linear = layer(weight)
    config = IntxWeightOnlyConfig(torch.int2, PerGroup(128), MappingType[mode])
    quantize_(linear, config)
    packed = linear.weight
    return packed.dequantize(), [packed.qdata, packed.scale, packed.zero_point]


def by_hand(trits, scale):
    linear = layer(trits.astype("float32"))
    quantize_(linear, IntxWeightOnlyConfig(torch.int2, PerGroup(128)))
    linear.weight.qdata.copy_(torch.from_numpy(trits))
    linear.weight.scale.fill_(scale)
    return linear.weight.dequantize()
