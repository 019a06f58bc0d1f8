"""GPTQModel: its ``RTN`` quantizer, groups of 128, packed and read by its ``TorchLinear``."""

import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization.config import RTNConfig
from gptqmodel.quantization.rtn import RTN
from torch import nn


def packed(linear, scales, zeros, symmetric):
    groups = torch.arange(linear.in_features, dtype=torch.int32) // 128
    layer = TorchLinear(
        bits=2,
        group_size=128,
        sym=symmetric,
        desc_act=False,
        in_features=linear.in_features,
        out_features=linear.out_features,
    )
    layer.pack_original(linear, scales, zeros, groups)
    layer.post_init()
    return layer.dequantize_weight().T, [layer.qweight, layer.qzeros, layer.scales]


def layer(weight):
    linear = nn.Linear(*weight.shape[::-1], bias=False)
    linear.weight.data = torch.from_numpy(weight)
    return linear


def quantize(weight, mode):
    linear = layer(weight)
    symmetric = mode == "symmetric"
    config = RTNConfig(bits=2, group_size=128, sym=symmetric)
    linear.weight.data, scales, zeros, *_ = RTN(linear, config).quantize()
    return packed(linear, scales, zeros, symmetric)


def by_hand(trits, scale):
    scales = torch.full((len(trits), trits.shape[1] // 128), scale)
    return packed(layer(trits * scale), scales, torch.ones_like(scales), symmetric=True)[0]
