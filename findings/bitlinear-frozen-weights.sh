#!/usr/bin/env bash
# A frozen bitlinear model saves random weights.
#
# Package: bitlinear==2.4.6, torch==2.13.0, numpy==2.4.6
# Expected: freeze(model) fixes the trits; model.state_dict() then holds them, or the masters they
#   came from.
# Happens: freeze() puts trits and scale into plain attributes. The state_dict has the old name
#   and shape, and under it a new random tensor that nothing computes with: what torch.save writes
#   has lost the model, and loads without an error.
# Met by: whoever trains with this package and saves the frozen model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq bitlinear==2.4.6 torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'END'
import torch
from bitlinear import BitLinear, freeze

torch.manual_seed(0)
model = torch.nn.Sequential(BitLinear(64, 32, bias=False)).eval()
x = torch.randn(1, 64)
expected = model(x)
trained = model[0].weight.detach().clone()

freeze(model)
saved = model.state_dict()["0.weight"]
print("outputs kept by freeze:", torch.allclose(model(x), expected, atol=1e-5))
print("names in the state_dict:", list(model.state_dict()))
both = torch.stack([saved.flatten(), trained.flatten()])
print("correlation of saved and trained weights: %.3f" % torch.corrcoef(both)[0, 1])
again = torch.nn.Sequential(BitLinear(64, 32, bias=False)).eval()
print("loaded again:", again.load_state_dict(model.state_dict(), strict=True))
error = ((again(x) - expected).norm() / expected.norm()).item()
print("relative error of the loaded model: %.2f" % error)
assert torch.allclose(model(x), expected, atol=1e-5)
assert list(model.state_dict()) == ["0.weight"]
assert error > 0.5
END
