"""transformers' bitnet: absmean, as its layers round a weight, and its own packing by hand."""

import torch
from transformers.integrations.bitnet import WeightQuant, pack_weights, unpack_weights


def quantize(weight, mode):
    returned = WeightQuant.apply(torch.from_numpy(weight))
    trits = returned.sign().to(torch.int8)
    return returned, [pack_weights(trits), returned.max().reshape(1)]


def by_hand(trits, scale):
    packed = pack_weights(torch.from_numpy(trits))
    return unpack_weights(packed, torch.float32) * scale
