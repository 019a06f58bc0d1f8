"""The quick start of the original design, word for word but for the import paths."""

import pytest
import torch
import torch.nn.functional as F

from tpack.codegen import generate_pytorch_code
from tpack.layerdef import FunctionCall, Identifier, LayerDef, Param, Return
from tpack.pack import pack_ternary, unpack_ternary


def make_layer(inputs=256, outputs=512):
    layer_def = LayerDef(
        name="MyTernaryLayer",
        params=[
            Param(name="weights", param_type="TernaryTensor", shape=[inputs, outputs]),
            Param(name="bias", param_type="TernaryTensor", shape=[outputs]),
            Param(name="x", param_type="Tensor", shape=None),
        ],
        body=[],
    )
    print(layer_def.to_dict())
    namespace = {}
    exec(generate_pytorch_code(layer_def), namespace)
    return namespace["MyTernaryLayer"]()


def trits(*shape):
    return torch.randint(-1, 2, shape, dtype=torch.int8)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("sizes", [(256, 512), (6, 7), (5, 8), (8, 5), (1, 1), (3, 9)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
def test_layer_is_the_affine_map(flat, sizes, dtype):
    torch.manual_seed(0)
    layer = make_layer(*sizes)
    custom_weights = trits(*sizes).to(dtype)
    bias = trits(sizes[1]).to(dtype)
    layer.weights_packed = pack_ternary(custom_weights.flatten() if flat else custom_weights)
    layer.bias_packed = pack_ternary(bias)
    with torch.no_grad():
        layer.weights_scale.fill_(0.5)
        layer.bias_scale.fill_(3.0)
    x = torch.randn(32, sizes[0])
    output = layer(x)
    assert output.shape == (32, sizes[1])
    torch.testing.assert_close(output, x @ (custom_weights.float() * 0.5) + bias.float() * 3.0)


def test_quick_start():
    layer = make_layer()
    output = layer(torch.randn(32, 256))
    assert output.shape == (32, 512)
    custom_weights = trits(256, 512)
    layer.weights_packed = pack_ternary(custom_weights)
    optimizer = torch.optim.Adam(layer.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    x = torch.randn(32, 256, requires_grad=True)
    target = x.detach() @ (custom_weights.float() * 0.3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert losses == sorted(losses, reverse=True)


def test_gradients_are_those_of_plain_tensors():
    layer = make_layer(6, 5)
    custom_weights, bias = trits(6, 5), trits(5)
    layer.weights_packed = pack_ternary(custom_weights)
    layer.bias_packed = pack_ternary(bias)
    x = torch.randn(4, 6, requires_grad=True)
    layer(x).square().sum().backward()
    plain_x = x.detach().clone().requires_grad_()
    weights_scale, bias_scale = (torch.ones(1, requires_grad=True) for _ in range(2))
    plain = plain_x @ (custom_weights * weights_scale) + bias * bias_scale
    plain.square().sum().backward()
    torch.testing.assert_close(x.grad, plain_x.grad)
    torch.testing.assert_close(layer.weights_scale.grad, weights_scale.grad)
    torch.testing.assert_close(layer.bias_scale.grad, bias_scale.grad)


def test_pack_and_unpack():
    weights = torch.tensor([1, -1, 0, 1, 0, -1, 1, 1], dtype=torch.int8)
    packed = pack_ternary(weights)
    assert packed.numel() * packed.element_size() == 2
    assert torch.equal(unpack_ternary(packed, len(weights)), weights)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("shape", [(5, 2, 3, 3), (4, 1, 2, 2), (3, 3, 1, 4)])
def test_convolution_weights(flat, shape):
    layer_def = LayerDef(
        "Conv",
        [Param("w", "TernaryTensor", shape), Param("x", "Tensor")],
        [Return(FunctionCall("conv2d", [Identifier("x"), Identifier("w")]))],
    )
    namespace = {}
    exec(generate_pytorch_code(layer_def), namespace)
    layer = namespace["Conv"]()
    weight = trits(*shape)
    layer.w_packed = pack_ternary(weight.flatten() if flat else weight)
    x = torch.randn(2, shape[1], 6, 6)
    torch.testing.assert_close(layer(x), F.conv2d(x, weight.float()))


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(3, dtype=torch.uint8),
        torch.zeros(256, 127, dtype=torch.uint8),
        torch.zeros(512, 64, dtype=torch.uint8),
        torch.zeros(256, 512),
        torch.zeros(256, 128, dtype=torch.int8),
    ],
)
def test_assigning_something_else_is_refused(wrong):
    layer = make_layer()
    before = layer.weights_packed
    with pytest.raises(ValueError, match=r"weights_packed|pack_ternary"):
        layer.weights_packed = wrong
    assert layer.weights_packed is before
