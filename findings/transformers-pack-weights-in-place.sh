#!/usr/bin/env bash
# transformers' pack_weights changes the trits it is given.
#
# Package: transformers==5.23.0, torch==2.13.0
# Expected: packing reads its argument: a second call gives the same bytes.
# Happens: it adds 1 to the tensor in place. Afterwards the trits are 0, 1 and 2, a comparison
#   with what was unpacked fails, and a second call returns other bytes, in which codes have run
#   into their neighbours.
# Met by: whoever packs a weight for transformers and goes on using it, for a check or for a
#   second file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq transformers==5.23.0 torch==2.13.0
venv/bin/python - <<'END'
import torch
from transformers.integrations.bitnet import pack_weights

trits = torch.tensor([[-1], [0], [1], [1]], dtype=torch.int8)
before = trits.clone()
first = pack_weights(trits)
print("trits:", before.flatten().tolist(), "afterwards:", trits.flatten().tolist())
second = pack_weights(trits)
print("first call:", first.tolist(), "second call:", second.tolist())
assert torch.equal(trits, before + 2) and not torch.equal(first, second)
END
