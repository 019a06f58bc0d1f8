#!/usr/bin/env bash
# What bitneural32 compiles holds no scale of the weights.
#
# Package: bitneural32==0.0.15, keras==3.15.1, torch==2.13.0, numpy==2.4.6
# Expected: two layers whose weights differ by a factor of ten compile to different bytes.
# Happens: TernaryDense trains with trits times mean |w|, but the compiled layer is its trits and
#   biases alone: both layers give the same bytes, so their outputs on the device are the same.
# Met by: whoever trains TernaryDense or its siblings and compiles the model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq keras==3.15.1 torch==2.13.0 numpy==2.4.6
# without TensorFlow: torch serves Keras as well
venv/bin/python -m pip install -qq --no-deps bitneural32==0.0.15
KERAS_BACKEND=torch venv/bin/python - <<'END'
import numpy as np
import keras
from bitneural32 import BitNeuralCompiler, TernaryDense

rng = np.random.default_rng(0)
model = keras.Sequential([keras.Input((64,)), TernaryDense(8)])
weight, bias = rng.normal(size=(64, 8)).astype("f4"), np.zeros(8, "f4")
x = rng.normal(size=(1, 64)).astype("f4")
sizes, compiled = [], []
for factor in (1, 10):
    model.layers[0].set_weights([weight * factor, bias])
    sizes.append(np.abs(model.predict(x, verbose=0)).mean())
    compiler = BitNeuralCompiler()
    compiler.compile_model(model)
    compiled.append(bytes(compiler.model_data))
print("outputs in Keras grow by %.1f" % (sizes[1] / sizes[0]))
print("compiled bytes are equal:", compiled[0] == compiled[1], f"({len(compiled[0])} bytes)")
assert len(compiled[0]) >= 64 * 8 // 4
assert abs(sizes[1] / sizes[0] - 10) < 0.01 and compiled[0] == compiled[1]
END
