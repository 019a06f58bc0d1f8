#!/usr/bin/env bash
# safetensors.numpy scrambles a transposed array.
#
# Package: safetensors==0.8.0, numpy==2.4.6
# Expected: save_file writes the values of an array, or refuses it, as safetensors.torch refuses a
#   tensor that is not contiguous.
# Happens: it writes the bytes in the order in which they lie in memory, under the shape of the
#   view. W.T is read back with its values in other places; a matrix in Fortran order as well. No
#   error, no warning.
# Met by: whoever turns the (in, out) kernels of Keras or JAX into (out, in) with .T and saves
#   them. np.ascontiguousarray helps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'END'
import numpy as np
from safetensors.numpy import load_file, save_file

kernel = np.array([[1, 1, 1], [0, 0, 0]], np.float32)
arrays = {"plain": kernel, "transposed": kernel.T, "fortran": np.asfortranarray(kernel)}
save_file(arrays, "weights.safetensors")
right = {}
for name, array in load_file("weights.safetensors").items():
    right[name] = np.array_equal(array, arrays[name])
    print(f"{name}: saved {arrays[name].tolist()}, loaded {array.tolist()}")
save_file({"copied": np.ascontiguousarray(kernel.T)}, "copied.safetensors")
assert np.array_equal(load_file("copied.safetensors")["copied"], kernel.T)
assert right == {"plain": True, "transposed": False, "fortran": False}
END
