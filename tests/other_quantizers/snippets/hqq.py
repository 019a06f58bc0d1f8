"""hqq: ``Quantizer.quantize`` with two bits and its own group of 64."""

import torch
from hqq.core.quantize import Quantizer


def packed(weight, **options):
    float32 = {"compute_dtype": torch.float32, "device": "cpu"}
    codes, meta = Quantizer.quantize(torch.from_numpy(weight), nbits=2, **options, **float32)
    return codes, meta | {"compute_dtype": torch.float32}


def quantize(weight, mode):
    codes, meta = packed(weight, optimize=mode == "optimize=True")
    return Quantizer.dequantize(codes, meta), [codes, meta["scale"], meta["zero"]]


def by_hand(trits, scale):
    _, meta = packed(trits)
    codes = torch.from_numpy(trits + 1).reshape(meta["group_size"], -1)
    meta |= {"scale": torch.full_like(meta["scale"], scale), "zero": 1}
    return Quantizer.dequantize(Quantizer.pack[meta["packing"]](codes), meta)
