#!/usr/bin/env bash
# In mybitnet a token's output depends on the other tokens of the batch.
#
# Package: mybitnet==0.6.0, transformers==4.38.2, torch==2.13.0, numpy==2.4.6
# Expected: activations are scaled for each token, as the paper on BitNet b1.58 says: a sequence
#   gives the same outputs alone and in a batch.
# Happens: BitLinear158b takes one maximum over the whole input. Beside a token with one large
#   value every other token is rounded more coarsely, and its outputs change by several per cent.
# Met by: whoever compares such a model with a runtime that rounds each token by itself, or serves
#   it in batches.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq torch==2.13.0 numpy==2.4.6 transformers==4.38.2 mybitnet==0.6.0
venv/bin/python - <<'END'
import torch
from mybitnet.bitnet import BitLinear158b

torch.manual_seed(0)
layer = BitLinear158b(256, 64, bias=False).eval()
token, other = torch.randn(1, 256), torch.randn(1, 256)
other[0, 3] = 100.0
with torch.no_grad():
    alone = layer(token)
    beside = layer(torch.cat([token, other]))[:1]
change = ((alone - beside).norm() / alone.norm()).item()
print(f"the token beside another: relative change {change:.3f}")
assert change > 0.01
END
