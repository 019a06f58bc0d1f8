"""onebitllms: ``quantize_to_1bit``, which writes transformers' bitnet packing."""

import tempfile

import tiny_llama
import torch
from onebitllms import quantize_to_1bit
from safetensors.torch import load_file
from transformers.integrations.bitnet import unpack_weights


def quantize(weight, mode):
    with tempfile.TemporaryDirectory() as folder:
        tiny_llama.save(weight, folder)
        quantize_to_1bit(folder, f"{folder}/quantized")
        state = load_file(f"{folder}/quantized/model.safetensors")
    packed, divisor = (state[f"{tiny_llama.NAME}.{part}"] for part in ("weight", "weight_scale"))
    return unpack_weights(packed, torch.float32) / divisor.float(), [packed, divisor]
