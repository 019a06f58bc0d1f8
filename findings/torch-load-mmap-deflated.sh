#!/usr/bin/env bash
# torch.load(mmap=True) fails on a recompressed checkpoint that torch.load reads.
#
# Package: torch==2.13.0, numpy==2.4.6
# Expected: a .pt is a zip archive. Recompressed, it is read with mmap=True as without, or refused
#   with the reason.
# Happens: torch.load reads it; with mmap=True it raises RuntimeError "Trying to resize storage
#   that is not resizable", which names neither the file nor the compression.
# Met by: whoever deflates ternary weights in floats, which become ten times smaller, and loads
#   large files with mmap=True.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'END'
import os
import zipfile

import torch

torch.manual_seed(0)
weight = torch.randint(-1, 2, (512, 512)) * 0.5
torch.save({"weight": weight}, "stored.pt")
with zipfile.ZipFile("stored.pt") as source:
    with zipfile.ZipFile("deflated.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
print("bytes:", os.path.getsize("stored.pt"), "deflated:", os.path.getsize("deflated.pt"))
assert torch.equal(torch.load("stored.pt", mmap=True)["weight"], weight)
print("read without mmap:", torch.equal(torch.load("deflated.pt")["weight"], weight))
try:
    torch.load("deflated.pt", mmap=True)
except RuntimeError as error:
    print("with mmap=True:", error)
    assert "not resizable" in str(error)
else:
    raise SystemExit("mmap=True reads it")
END
