#!/usr/bin/env bash
# Naming one layer to skip makes transformers quantize the output head.
#
# Package: transformers==5.23.0, torch==2.13.0
# Expected: modules_to_not_convert of a bitnet config adds to the layers that stay as they are:
#   naming one more keeps the output head as it was.
# Happens: a list, even an empty one, takes the place of the automatic choice. The output head
#   becomes a BitNet layer too, with its weights rounded to trits in `online` mode, without a
#   warning.
# Met by: whoever edits the config of a BitNet model to keep a layer in floats.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq transformers==5.23.0 torch==2.13.0 accelerate==1.15.0
venv/bin/python - <<'END'
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).save_pretrained("model")
config = json.loads(Path("model/config.json").read_text())

kinds = {}
for skip in (None, [], ["model.layers.0.mlp.up_proj"]):
    bitnet = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    bitnet |= {"quantization_mode": "online", "modules_to_not_convert": skip}
    changed = config | {"quantization_config": bitnet}
    Path("model/config.json").write_text(json.dumps(changed))
    model = AutoModelForCausalLM.from_pretrained("model")
    kinds[str(skip)] = type(model.lm_head).__name__
    print(f"modules_to_not_convert {skip}: the output head is a {kinds[str(skip)]}")
assert list(kinds.values()) == ["Linear", "AutoBitLinear", "AutoBitLinear"]
END
