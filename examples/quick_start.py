"""A ternary layer from its description: source, packed weights, a training loop.

Needs no network; some seconds.

    python examples/quick_start.py
"""

import torch

from tpack import LayerDef, Param, generate_pytorch_code, pack_ternary

layer_def = LayerDef(
    name="MyTernaryLayer",
    params=[
        Param(name="weights", param_type="TernaryTensor", shape=[256, 512]),
        Param(name="bias", param_type="TernaryTensor", shape=[512]),
        Param(name="x", param_type="Tensor", shape=None),
    ],
    body=[],
)
code = generate_pytorch_code(layer_def)
print(code)

namespace: dict[str, type[torch.nn.Module]] = {}
exec(code, namespace)  # noqa: S102  # the example is about this source
layer = namespace["MyTernaryLayer"]()

torch.manual_seed(0)
layer.weights_packed = pack_ternary(torch.randint(-1, 2, (256, 512)))
x, target = torch.randn(32, 256), torch.randn(32, 512)
optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
for epoch in range(5):
    loss = torch.nn.functional.mse_loss(layer(x), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
