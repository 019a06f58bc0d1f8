#!/usr/bin/env bash
# MLX leaves out all tensors of a GGUF file from the first ternary one on.
#
# Package: mlx==0.32.4, gguf==0.19.0, numpy==2.4.6
# Expected: mx.load of a GGUF file returns every tensor, or raises an error for a type it does not
#   know.
# Happens: at the first TQ1_0 or TQ2_0 tensor it stops and returns what came before. Plain float
#   tensors behind it are missing, too; a model whose first tensor is ternary is an empty dict. No
#   error, no warning.
# Met by: whoever loads a ternary GGUF file in MLX.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq "mlx[cpu]==0.32.4" gguf==0.19.0 numpy==2.4.6
venv/bin/python - <<'END'
import gguf
import mlx.core as mx
import numpy as np

weight = np.random.default_rng(0).integers(-1, 2, (4, 256)).astype(np.float32) * 0.5
for kind in ("TQ1_0", "TQ2_0"):
    kind = gguf.GGMLQuantizationType[kind]
    for order in (["before", "ternary", "after"], ["ternary", "before", "after"]):
        writer = gguf.GGUFWriter("model.gguf", "llama")
        for name in order:
            if name == "ternary":
                writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, weight)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert [tensor.name for tensor in gguf.GGUFReader("model.gguf").tensors] == order
        found = list(mx.load("model.gguf"))
        print(f"{kind.name}: the file holds {order}, mx.load returns {found}")
        assert found == order[: order.index("ternary")]
END
