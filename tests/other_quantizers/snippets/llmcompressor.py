"""llm-compressor: ``oneshot`` with the scheme W2A16 of compressed-tensors, saved and read again."""

import tempfile

import tiny_llama
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file


def quantize(weight, mode):
    with tempfile.TemporaryDirectory() as folder:
        tiny_llama.save(weight, folder)
        model = oneshot(folder, recipe=QuantizationModifier(targets="Linear", scheme="W2A16"))
        model.save_pretrained(f"{folder}/quantized")
        state = load_file(f"{folder}/quantized/model.safetensors")
    packed, scale = (state[f"{tiny_llama.NAME}.weight_{part}"] for part in ("packed", "scale"))
    codes = unpack_from_int32(packed, 2, torch.Size(weight.shape))
    return codes * scale.repeat_interleave(128, dim=1), [packed, scale]


def by_hand(trits, scale):
    packed = pack_to_int32(torch.from_numpy(trits), 2)
    return unpack_from_int32(packed, 2, torch.Size(trits.shape)) * scale
