#!/usr/bin/env bash
# torch.onnx.export keeps the name of a weight whose values it changes.
#
# Package: torch==2.13.0, onnx==1.23.2, onnxscript==0.7.2, numpy==2.4.6
# Expected: an initializer that is called as a parameter holds the values of the parameter.
# Happens: with dynamo=True, a BatchNorm2d behind a Conv2d is folded into it. The initializers are
#   still called conv.weight and conv.bias, but hold the folded values: a weight of -1, 0 and 1 has
#   other numbers in every output channel. The exporter prints that it optimizes the graph, not what
#   that changes. With optimize=False, the values are those of the parameters; with dynamo=False,
#   folded weights have made-up names.
# Met by: whoever takes weights from an ONNX file by name, and loads them into the module or
#   compares them with a checkpoint.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install -qq torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6
venv/bin/python -W ignore - 2>log.txt <<'END' || { cat log.txt; exit 1; }
import onnx
import torch
from onnx.numpy_helper import to_array
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x))


torch.manual_seed(0)
net = Net().eval()
net.conv.weight.data = torch.randint(-1, 2, (4, 3, 3, 3)).float()
net.norm.running_var = torch.tensor([0.25, 1, 4, 16])
seen = {}
for case in ({"dynamo": True}, {"dynamo": True, "optimize": False}, {"dynamo": False}):
    torch.onnx.export(net, (torch.zeros(1, 3, 8, 8),), "net.onnx", verbose=False, **case)
    graph = onnx.load("net.onnx").graph
    weights = {i.name: torch.tensor(to_array(i)) for i in graph.initializer}
    weight = weights.get("conv.weight")
    seen[len(seen)] = None if weight is None else torch.equal(weight, net.conv.weight)
    print(case, [node.op_type for node in graph.node], list(weights))
    if weight is not None:
        print("  largest conv.weight per channel:", weight.flatten(1).amax(1).tolist())
assert seen == {0: False, 1: True, 2: None}
END
