#!/usr/bin/env bash
# compressed-tensors stores two-bit weights in eight bits when activations are quantized.
#
# Package: compressed-tensors==0.20.0, transformers==5.23.0, torch==2.13.0
# Expected: the presets W2A16 and W2A8 store the same weights in the same size; they differ in the
#   activations.
# Happens: W2A16 packs sixteen weights in an int32. W2A8, the shape of a BitNet model, takes the
#   format `int-quantized`, which stores one int8 for each weight: four times as much.
# Met by: whoever saves a ternary model with eight-bit activations and expects two bits on disk.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq compressed-tensors==0.20.0 transformers==5.23.0 torch==2.13.0
venv/bin/python - <<'END'
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationConfig, QuantizationStatus, apply_quantization_config)

torch.manual_seed(0)
weight = torch.randint(-1, 2, (64, 256)) * 0.5
sizes = {}
for preset in ("W2A16", "W2A8"):
    model = torch.nn.Sequential(torch.nn.Linear(256, 64, bias=False))
    apply_quantization_config(model, QuantizationConfig(config_groups={preset: ["Linear"]}))
    with torch.no_grad():
        model[0].weight.copy_(weight)
        model[0].weight_scale.fill_(0.5)
    model[0].quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    state = model.state_dict()
    name = next(n for n in ("0.weight_packed", "0.weight") if n in state)
    sizes[preset] = state[name].numel() * state[name].element_size()
    print(f"{preset}: {name} {state[name].dtype} {tuple(state[name].shape)},",
          f"{8 * sizes[preset] / weight.numel():.0f} bits a weight")
assert sizes == {"W2A16": weight.numel() // 4, "W2A8": weight.numel()}
END
