#!/usr/bin/env bash
# Merging a LoRA adapter into a BitNet model of transformers shrinks the adapter.
#
# Package: peft==0.21.2, transformers==5.23.0, torch==2.13.0
# Expected: merge_and_unload() gives a model with the outputs of the adapted one, but for
#   rounding.
# Happens: an offline AutoBitLinear computes (x @ W) * s with trits in W. The adapter is added to
#   W and so is multiplied by s as well: with s = 0.02 the merged model keeps 2 % of what was
#   learned. The weights are no trits any more. No warning.
# Met by: whoever fine-tunes a BitNet model of linear_class `autobitlinear` with LoRA and merges
#   the result.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq peft==0.21.2 transformers==5.23.0 torch==2.13.0
TORCHDYNAMO_DISABLE=1 venv/bin/python - <<'END'
import torch
from peft import LoraConfig, get_peft_model
from transformers.integrations.bitnet import AutoBitLinear

torch.manual_seed(0)
model = torch.nn.Sequential(AutoBitLinear(64, 32, bias=False, online_quant=False))
with torch.no_grad():
    model[0].weight.copy_(torch.randint(-1, 2, (32, 64)))
    model[0].weight_scale.fill_(0.02)
lora = LoraConfig(target_modules=["0"], r=4, init_lora_weights=False)
adapted = get_peft_model(model, lora).eval()
x = torch.randn(16, 64)
with torch.no_grad():
    with adapted.disable_adapter():
        base = adapted(x)
    learned = (adapted(x) - base).norm()
    merged = adapted.merge_and_unload()
    kept = (merged(x) - base).norm()
print(f"the adapter changes outputs by {learned:.3f}, merged by {kept:.3f}: {kept / learned:.1%}")
print("different values in the merged weight:", merged[0].weight.unique().numel())
assert type(merged[0]) is AutoBitLinear
assert 0.015 < kept / learned < 0.025
END
