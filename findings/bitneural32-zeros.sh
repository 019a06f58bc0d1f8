#!/usr/bin/env bash
# bitneural32 compiles exactly ternary weights to zeros.
#
# Package: bitneural32==0.0.15, numpy==2.4.6
# Expected: weights that already are -s, 0 and s become the trits -1, 0 and 1.
# Happens: the threshold is the median of |w|, and only what lies above it is kept. With fewer
#   zeros than half the median is s itself, nothing lies above it, and every trit is 0. No
#   warning.
# Met by: whoever compiles an already ternary layer for a microcontroller.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
# without TensorFlow, which only its Keras layers need
venv/bin/python -m pip install -qq --no-deps bitneural32==0.0.15 numpy==2.4.6
venv/bin/python - <<'END'
import numpy as np
from bitneural32 import quantize_weights_ternary

rng = np.random.default_rng(0)
shares = []
for zeros in (0.3, 0.6):
    trits = rng.choice([-1, 0, 1], p=[(1 - zeros) / 2, zeros, (1 - zeros) / 2], size=(64, 64))
    found = quantize_weights_ternary((trits * 0.5).astype(np.float32))
    shares.append((found == trits).mean())
    print(f"{zeros:.0%} zeros: {shares[-1]:.1%} of the trits right, values {np.unique(found)}")
    assert (found == 0).all() == (zeros < 0.5)
assert shares[0] < 0.5 and shares[1] == 1
END
