#!/usr/bin/env bash
# In float16 transformers' bitlinear can answer quiet tokens with zeros.
#
# Package: transformers==5.23.0, torch==2.13.0
# Expected: a token with small values has small outputs.
# Happens: the layer divides by the product of both scales, 127 / max |x| and 1 / s. In float16 it
#   is infinite from 65520 on, for s = 0.02 where max |x| is below 0.097, and all outputs of the
#   token are exactly 0. So it is without torch.compile, that is with TORCHDYNAMO_DISABLE=1, which
#   one sets where there is no C++ compiler; compiled, the product is kept in float32.
# Met by: whoever runs a BitNet model of linear_class `bitlinear` in float16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq transformers==5.23.0 torch==2.13.0
TORCHDYNAMO_DISABLE=1 venv/bin/python - <<'END'
import torch
from transformers.integrations.bitnet import BitLinear, pack_weights

torch.manual_seed(0)
packed = pack_weights(torch.randint(-1, 2, (32, 64), dtype=torch.int8))
direction = torch.randn(64)
direction /= direction.abs().max()
sizes = {}
for dtype in (torch.float32, torch.float16):
    layer = BitLinear(64, 32, bias=False, dtype=dtype)
    layer.weight.copy_(packed)
    layer.weight_scale.fill_(50)  # 1 / 0.02
    for largest in (1.0, 0.1, 0.09, 0.01):
        output = layer((direction * largest)[None].to(dtype))
        sizes[dtype, largest] = output.abs().max().item()
        print(f"{dtype}, max |x| = {largest}: largest output {sizes[dtype, largest]:.5f}")
assert all(sizes[torch.float32, largest] > 0 for largest in (1.0, 0.1, 0.09, 0.01))
assert sizes[torch.float16, 0.1] > 0
assert sizes[torch.float16, 0.09] == sizes[torch.float16, 0.01] == 0
END
