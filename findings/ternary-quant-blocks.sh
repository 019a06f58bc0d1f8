#!/usr/bin/env bash
# ternary-quant's block_size fits a scale to each block, and stores their mean.
#
# Package: ternary-quant==0.1.6, torch==2.13.0, transformers==5.23.0, accelerate==1.15.0
# Expected: with block_size=128 a weight that is exactly ternary in blocks of 128 comes back, or
#   has a smaller error than with one scale for each row.
# Happens: the blocks get the right trits, but only one scale for each row is stored, the mean of
#   the blocks'. Scales 0.5 and 2 come back as 1.25, and the error is larger than without blocks.
# Met by: whoever has weights with one scale for each group, as some published ternary models do.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
# without the data sets that it reads for calibration
venv/bin/python -m pip install -qq --no-deps ternary-quant==0.1.6
venv/bin/python - <<'END'
import torch
from ternary_quant import TernaryQuantizer

torch.manual_seed(0)
trits = torch.randint(-1, 2, (16, 256)).float()
weight = trits * torch.tensor([0.5, 2.0]).repeat_interleave(128)
errors = {}
for block_size in (128, 0):
    found = TernaryQuantizer(block_size=block_size).quantize(weight)
    errors[block_size] = ((found.dequantize() - weight).norm() / weight.norm()).item()
    print(f"block_size {block_size}: relative error {errors[block_size]:.3f},",
          f"trits right: {torch.equal(found.ternary_codes.float(), trits)},",
          f"scale of row 0: {found.alpha[0].item():.4f}")
assert errors[0] < 0.4 < errors[128]
END
