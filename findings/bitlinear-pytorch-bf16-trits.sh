#!/usr/bin/env bash
# The trits of a master depend on the dtype in which absmean is computed.
#
# Package: bitlinear-pytorch==0.5.0, torch==2.13.0, numpy==2.4.6
# Expected: weights that are bfloat16 numbers have the same trits whether they are held in
#   bfloat16 or float32.
# Happens: in bfloat16 the scale and each product w / s are rounded to eight bits before they are
#   rounded to a trit: two trits in a thousand change.
# Met by: whoever trains in float32, or in a mixed precision that computes in it, and runs or
#   packs the master in bfloat16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq bitlinear-pytorch==0.5.0 torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'END'
import torch
from bitlinear_pytorch.bitlinear import weight_quant

torch.manual_seed(0)
master = torch.randn(1024, 1024).mul(0.02).bfloat16()
half = weight_quant(master).float().sign()
full = weight_quant(master.float()).sign()
differ = (half != full).float().mean().item()
print(f"{differ:.2%} of the trits differ between bfloat16 and float32")
assert 0.0002 < differ < 0.02
END
