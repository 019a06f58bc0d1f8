#!/usr/bin/env bash
# torch.zeros makes small tensors of four-bit floats, but no large and no empty ones.
#
# Package: torch==2.13.0, numpy==2.4.6
# Expected: torch.zeros of a dtype works or does not, whatever the shape.
# Happens: on the CPU, torch.zeros with float4_e2m1fn_x2 works for 1 to 32767 items. For none, and
#   from 32768 on, it raises NotImplementedError, which says that fill_cpu is not implemented for
#   the dtype, not that the size matters. torch.ones works for no size. A view of uint8 helps.
# Met by: whoever makes a buffer for MXFP4 or NVFP4 codes: the test with a small layer passes, and
#   the real layer fails.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'END'
import torch

dtype = torch.float4_e2m1fn_x2


def works(make, *shape):
    try:
        made = make(shape, dtype=dtype)
    except NotImplementedError as error:
        print(f"torch.{make.__name__}({shape}): {error}")
        return False
    print(f"torch.{make.__name__}({shape}): made")
    return not made.view(torch.uint8).any()


shapes = ((), (1,), (32767,), (151, 217), (0,), (0, 64), (32768,), (128, 256), (1024, 1024))
seen = [works(torch.zeros, *shape) for shape in shapes]
assert not works(torch.ones, 1)
viewed = [torch.zeros(shape, dtype=torch.uint8).view(dtype).shape == shape for shape in shapes]
print("as a view of uint8:", "all made" if all(viewed) else "not all made")
assert seen == [True] * 4 + [False] * 5 and all(viewed)
END
