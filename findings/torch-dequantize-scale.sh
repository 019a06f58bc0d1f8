#!/usr/bin/env bash
# A quantized tensor of torch rounds its scale before it multiplies, but not if it has one per row.
#
# Package: torch==2.13.0, numpy==2.4.6
# Expected: the same codes and the same scale dequantize to the same floats, however many scales
#   there are.
# Happens: q_scale() and q_per_channel_scales() give the same doubles. dequantize() of a tensor with
#   one scale rounds it to float32 first and multiplies then; of a tensor with one per channel it
#   multiplies in double precision and rounds the product. Where float32 does not hold the scale,
#   many values differ in the last bit. Codes -1, 0 and 1 are equal; those of ternary weights that
#   were quantized to -127, 0 and 127 need not be.
# Met by: whoever computes codes times scale from a file, or compares weights bit by bit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq torch==2.13.0 numpy==2.4.6
venv/bin/python -W ignore - <<'END'
import torch

floats = torch.arange(-128.0, 128)
seen = {}
for scale in (0.3, torch.tensor(0.3).item(), 0.25):
    x = (floats * scale).reshape(1, -1)
    one = torch.quantize_per_tensor(x, scale, 0, torch.qint8)
    scales = torch.tensor([scale], dtype=torch.float64)
    rows = torch.quantize_per_channel(x, scales, torch.tensor([0]), 0, torch.qint8)
    assert torch.equal(one.int_repr(), rows.int_repr())
    assert one.q_scale() == rows.q_per_channel_scales().item() == scale
    codes = one.int_repr()
    rounded_first = codes.float() * torch.tensor(scale, dtype=torch.float32)
    rounded_last = (codes.double() * scale).float()
    assert torch.equal(one.dequantize(), rounded_first)
    assert torch.equal(rows.dequantize(), rounded_last)
    differ = one.dequantize() != rows.dequantize()
    seen[scale] = int(differ.sum())
    print(f"scale {scale!r}: {seen[scale]} of {codes.numel()} values differ")
    assert not differ[codes.abs() <= 1].any()
    if seen[scale]:
        index = int(differ.nonzero()[-1, 1])
        values = (float(t.dequantize()[0, index]) for t in (one, rows))
        print("  code %d: one scale %.9g, scales per channel %.9g" % (codes[0, index], *values))
assert seen[0.3] > 0 and sum(map(bool, seen.values())) == 1
END
