"""Brevitas: ``QuantLinear`` with ``SignedTernaryWeightPerTensorConst``."""

import torch
from brevitas.nn import QuantLinear
from brevitas.quant.ternary import SignedTernaryWeightPerTensorConst


def returned(weight, **options):
    rows, columns = weight.shape
    layer = QuantLinear(
        columns, rows, bias=False, weight_quant=SignedTernaryWeightPerTensorConst, **options
    )
    layer.weight.data = torch.from_numpy(weight)
    return layer.quant_weight().value, list(layer.state_dict().values())


def quantize(weight, mode):
    return returned(weight)


def by_hand(trits, scale):
    return returned(trits * scale, weight_scaling_const=scale)[0]
