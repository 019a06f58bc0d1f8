#!/usr/bin/env bash
# The scale of int4 weights multiplies in Keras, or divides, by the size of the blocks.
#
# Package: keras==3.15.1, torch==2.13.0, numpy==2.4.6
# Expected: kernel_scale means the same in every layer that quantize makes int4.
# Happens: with the default, blocks of 128 inputs, the weight is (code - kernel_zero) times
#   kernel_scale. With block_size=-1, one scale per output, it is code / kernel_scale. Both
#   variables are float32 under the same name; only the dtype policy, "int4/128" or "int4/-1", and
#   the missing kernel_zero tell which it is.
# Met by: whoever reads weights from a .keras or .weights.h5 file, or converts them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq keras==3.15.1 torch==2.13.0 numpy==2.4.6
KERAS_BACKEND=torch venv/bin/python -W ignore - <<'END'
import keras
import numpy as np
from keras.quantizers import Int4QuantizationConfig

weight = np.random.default_rng(0).normal(0, 0.02, (256, 2)).astype("float32")
seen = {}
for block in (128, -1):
    model = keras.Sequential([keras.Input((256,)), keras.layers.Dense(2, use_bias=False)])
    model.layers[0].set_weights([weight])
    if block == 128:
        model.quantize("int4")  # the default
    else:
        model.quantize(config=Int4QuantizationConfig(block_size=block))
    layer = model.layers[0]
    stored = {v.name: v.value.detach().numpy() for v in layer.variables}
    # two outputs in a byte, the low half first
    byte = stored["kernel"].view("uint8")
    codes = (np.concatenate([byte & 15, byte >> 4], axis=1).astype("float32") + 8) % 16 - 8
    scale, zero = stored["kernel_scale"], np.float32(0)
    if block == 128:
        scale, zero = (np.repeat(stored[n], 128, 0) for n in ("kernel_scale", "kernel_zero"))
    errors = [abs(w - weight).max() for w in ((codes - zero) * scale, (codes - zero) / scale)]
    seen[block] = errors[0] < 0.01, errors[1] < 0.01
    print(f"{layer.dtype_policy.name}: stored {list(stored)}, first scale {scale.flat[0]:.5g}")
    print("  furthest from the weights: times the scale %.2g, divided by it %.2g" % tuple(errors))
assert seen == {128: (True, False), -1: (False, True)}
END
