#!/usr/bin/env bash
# bitlinear's BitLinear divides the bias by the scales, so it depends on the input.
#
# Package: bitlinear==2.4.6, torch==2.13.0, numpy==2.4.6
# Expected: y = quantized(x) @ quantized(W) + bias, as in nn.Linear and in transformers'
#   bitlinear.
# Happens: the bias is added to the integers, and then divided with them by the scale of the
#   weight times that of the token: a bias of 1 adds 0.0016 to a token of ordinary size, and to
#   each token another amount.
# Met by: whoever replaces the linear layers of a trained model that has biases, as bitlinearize()
#   does, or exports such a layer to a runtime that adds the bias last.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq bitlinear==2.4.6 torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'END'
import torch
from bitlinear import BitLinear

torch.manual_seed(0)
layer = BitLinear(64, 8, norm=None)
x = torch.randn(3, 64) * torch.tensor([[1.0], [10.0], [100.0]])
without = layer(x)
layer.bias.data += 1
added = (layer(x) - without).mean(1).tolist()
print("a bias of 1 adds, for three tokens:", [f"{value:.5f}" for value in added])
assert max(added) < 0.5
assert added[2] > 10 * added[0]
END
