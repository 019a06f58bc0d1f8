#!/usr/bin/env bash
# The default scale of bitlinear's BitLinear vanishes for sparse ternary weights.
#
# Package: bitlinear==2.4.6, torch==2.13.0, numpy==2.4.6
# Expected: a layer whose weights are exactly -s, 0 and s computes with -s, 0 and s, whatever
#   their shares.
# Happens: the default measure is the median of |w|. With up to half zeros it is s and all is
#   exact; with more it is 0, the scale is its floor of 1e-5, and the outputs are 1e-5 / s of what
#   they should be. No warning.
# Met by: whoever loads or trains ternary weights of which most are zero.
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
x = torch.randn(4, 256)
ratios = []
for zeros in (100, 127, 129, 160):  # of 256 in each row
    order = torch.rand(64, 256).argsort(1)
    weight = torch.where(order < zeros, 0.0, torch.randint(0, 2, (64, 256)) - 0.5)
    # no norm, and no rounding of activations: the weight is all that differs from x @ W
    layer = BitLinear(256, 64, bias=False, norm=None, activation_measure=None)
    layer.weight.data.copy_(weight)
    ratios.append((layer(x).norm() / (x @ weight.T).norm()).item())
    print(f"{zeros / 256:.1%} zeros: outputs are {ratios[-1]:.6f} of x @ W")
assert abs(ratios[0] - 1) < 1e-4 and abs(ratios[1] - 1) < 1e-4
assert ratios[2] < 1e-3 and ratios[3] < 1e-3
END
