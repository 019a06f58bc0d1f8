"""Packed weights are trained as float masters, with the values of the estimator by hand."""

import copy
import io
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from running import randomize, readings
from torch import nn
from training_models import SCALES, close, layer_of, network, states_equal

import tpack
from tpack.build import build_module
from tpack.codec import Scale, unpack
from tpack.layerdef import LayerDef, Param
from tpack.nn import (
    TernaryEmbedding,
    TernaryLinear,
    freeze,
    is_unfrozen,
    ternary_linear,
    unfreeze,
)
from tpack.nn.ternarization import Rule
from tpack.quantize import METHODS, Weight, encode, fit, widen


def by_hand(weight, method, scale):
    """The ternary weight of a float one (rows, columns): loops over sets, in float64."""
    result = np.empty(weight.shape)
    rows, columns = weight.shape
    if scale == "tensor":
        sets = [(slice(None), slice(None))]
    elif scale == "column":
        sets = [(slice(None), slice(c, c + 1)) for c in range(columns)]
    else:
        size = int(scale.partition(":")[2] or columns)
        sets = [(r, slice(c, c + size)) for r in range(rows) for c in range(0, columns, size)]
    for one in sets:
        w = weight[one].astype(np.float64)
        size = np.abs(w)
        if method == "absmean":
            s = max(size.mean(), 1e-5)
            kept = np.clip(np.round(size / s), 0, 1) == 1
        elif method == "twn":
            kept = size > 0.7 * size.mean()
            s = size[kept].mean() if kept.any() else 1.0
        else:
            best = min(
                (((size - (m := size[size >= t].mean()) * (size >= t)) ** 2).sum(), t, m)
                for t in size.ravel()
                if t > 0
            )
            kept, s = size >= best[1], best[2]
        result[one] = s * np.sign(w) * kept
    return result


def plain(kind, x, weight, bias):
    """The layer in plain torch on a float weight."""
    if kind == "embedding":
        return F.embedding(x, weight)
    if kind == "conv2d":
        return F.conv2d(x, weight, bias, stride=2, padding=1, groups=2)
    if kind == "bit_linear":
        gain = 127 / x.detach().abs().amax(-1, keepdim=True)
        x = x + ((x * gain).round() / gain - x).detach()
    return F.linear(x, weight, bias)


# ---- what an unfrozen layer computes


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["linear", "bit_linear", "conv2d", "embedding"])
def test_values_and_gradients_are_those_of_an_estimator_by_hand(kind, method, scale):
    layer, x = layer_of(kind, scale=scale)
    unfreeze(layer, method)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.manual_seed(0)))
    flat = layer.weight.detach().flatten(1).numpy()
    ternary = torch.tensor(by_hand(flat, method, scale), dtype=torch.float32)
    weight = ternary.reshape(layer.weight.shape).requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().clone().requires_grad_()
    if x.is_floating_point():
        x.requires_grad_()
    found = layer(x)
    gradients = [layer.weight, layer.bias, x]
    found.sin().sum().backward()
    gradients = [None if t is None or t.grad is None else t.grad.clone() for t in gradients]
    x.grad = None
    expected = plain(kind, x, weight, bias)
    close(found, expected)
    expected.sin().sum().backward()
    for gradient, tensor in zip(gradients, (weight, bias, x), strict=True):
        if gradient is not None:
            close(gradient, tensor.grad)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_rules_are_those_of_convert(method, scale, dtype):
    master = torch.randn(7, 83, generator=torch.manual_seed(0)).to(dtype)
    granularity = Scale.parse(scale)
    trits, stored = Rule(method, granularity, (7, 83), 1, dtype).quantize(master)
    raw = master.view(torch.uint16) if dtype == torch.bfloat16 else master
    name = str(dtype).removeprefix("torch.")
    weight = Weight.of(raw.numpy(), name)
    found = fit(weight, method, scale)
    assert np.array_equal(trits.numpy(), unpack(encode(weight, found).packed, 83))
    assert stored.shape == found.scale.shape
    expected = torch.tensor(widen(found.scale, found.dtype))
    epsilon = torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps
    torch.testing.assert_close(stored.to(expected.dtype), expected, rtol=2 * epsilon, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_value_is_exactly_scale_times_trit(method):
    rule = Rule(method, Scale.parse("row"), (4, 50), 1, torch.float32)
    master = torch.randn(4, 50, generator=torch.manual_seed(0)).requires_grad_()
    trits, scale = rule.quantize(master)
    assert torch.equal(rule.ternary(master), scale * trits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", ["tensor", "row", "group:4"])
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (1, 1), (3, 4), (3, 5), (6,)])
def test_shapes_at_the_edge(shape, scale, method):
    split = min(1, len(shape) - 1)
    rule = Rule(method, Scale.parse(scale), shape, split, torch.float32)
    weight = torch.randint(-1, 2, shape, generator=torch.manual_seed(2)).float() * 2
    rows = weight.reshape(*shape[:split], -1) if weight.numel() else weight
    master = rule.master(rows)
    assert master.shape == shape
    torch.testing.assert_close(rule.ternary(master).reshape(shape), weight)
    assert rule.quantize(master)[1].isfinite().all()


# ---- training


def task(count=96):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 16, generator=generator)
    return x, (x[:, :4] + x[:, 4:8]).argmax(1)


@pytest.mark.parametrize(
    ("reading", "method"),
    [
        *[("build", "absmean"), ("build", "twn"), ("build", "mse")],
        *[("source", "absmean"), ("standalone", "absmean")],
    ],
)
def test_training_lowers_the_loss_and_freezing_keeps_what_is_computed(reading, method, tmp_path):
    module = readings(network())[reading]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_().add_(0.2)
    x, labels = task()
    unfreeze(module.train(), method)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        expected = module(x)
        freeze(module)
        close(module(x), expected)
        tpack.save(module, tmp_path / "m")
        assert tpack.verify(tmp_path / "m").ok
        close(tpack.load(tmp_path / "m")(x), expected)
        assert torch.equal(unfreeze(module, method).eval()(x).argmax(1), expected.argmax(1))


class Tied(nn.Module):
    """A head that multiplies with the table of an embedding, written by hand."""

    def __init__(self):
        super().__init__()
        self.embed = TernaryEmbedding(7, 5)

    def forward(self, ids):
        return ternary_linear(self.embed(ids), self.embed.weight_packed, self.embed.weight_scale)


def test_a_table_that_two_layers_use_gets_the_gradient_of_both():
    ids = torch.tensor([0, 6, 3, 3])
    module = Tied()
    randomize(module)
    unfreeze(module, "twn")
    weight = module.embed.weight_packed.detach().requires_grad_()
    module(ids).sin().sum().backward()
    F.linear(weight[ids], weight).sin().sum().backward()
    close(module.embed.weight.grad, weight.grad)


@pytest.mark.parametrize("standalone", [False, True])
def test_packed_modules_train_their_scales_as_they_are(standalone):
    layer_def = LayerDef(
        "MyTernaryLayer",
        [Param("weights", "TernaryTensor", [32, 8]), Param("bias", "TernaryTensor", [8])],
    )
    layer = readings(layer_def)["standalone" if standalone else "source"]
    optimizer = torch.optim.Adam(layer.parameters())
    x, target = torch.randn(16, 32, requires_grad=True), torch.zeros(16, 8)
    losses = []
    for _ in range(10):
        loss = F.mse_loss(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert x.grad is not None


def test_masters_move_between_unfrozen_and_plain_models():
    plain_model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    packed = nn.Sequential(TernaryLinear(16, 8, scale="row"), nn.ReLU(), TernaryLinear(8, 4))
    unfreeze(packed, "mse")
    assert list(packed.state_dict()) == list(plain_model.state_dict())
    packed.load_state_dict(plain_model.state_dict())
    freeze(packed)
    found = fit(Weight.of(plain_model[0].weight.detach().numpy()), "mse", "row")
    close(packed[0].weight_scale.detach(), torch.tensor(found.scale))
    parameters = [name for name, _ in packed[0].named_parameters()]
    assert parameters == ["weight_scale", "bias"]


def test_a_trained_weight_is_packed_anew_and_an_untouched_one_is_not():
    module = nn.Sequential(TernaryLinear(8, 8), TernaryLinear(8, 8))
    randomize(module)
    before = copy.deepcopy(module)
    unfreeze(module)
    with torch.no_grad():
        module[1].weight[0, 0] += 10
    freeze(module)
    states_equal(before[0].state_dict(), module[0].state_dict())
    assert not torch.equal(before[1].weight_scale, module[1].weight_scale)
    assert module[1].weight_scale.requires_grad


@pytest.mark.parametrize("reading", ["build", "source"])
def test_copies_and_pickles(reading):
    module = unfreeze(readings(network())[reading], "twn")
    x = task()[0]
    copied = copy.deepcopy(module)
    assert copied.head.weight is not module.head.weight
    assert torch.equal(copied(x), module(x))
    with torch.no_grad():
        copied.head.weight.mul_(2)
    assert not torch.equal(copied(x), module(x))
    assert not is_unfrozen(freeze(copied))
    assert is_unfrozen(module)
    if reading == "build":
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
        assert torch.equal(again(x), module(x))
        freeze(again)
    freeze(module)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reading", ["build", "source"])
def test_compiled_equals_eager(reading, method):
    module = unfreeze(readings(network())[reading], method)
    x, labels = task(8)
    gradients = []
    for run in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        module.zero_grad()
        loss = F.cross_entropy(run(x), labels)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in module.parameters())])
    for eager, compiled in zip(*gradients, strict=True):
        close(compiled, eager)


def test_autocast():
    layer, x = layer_of("linear", scale="row")
    unfreeze(layer)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert y.dtype == torch.bfloat16


# ---- several processes


def train_rank(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    module = build_module(network())
    randomize(module)
    unfreeze(module, "twn")
    x, labels = task()
    half = slice(48 * rank, 48 * rank + 48)
    step_through(nn.parallel.DistributedDataParallel(module), x[half], labels[half])
    freeze(module)
    torch.save(module.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def step_through(module, x, labels):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(module(x), labels).backward()
        optimizer.step()


def test_two_processes_train_as_one_on_all_data(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train_rank, (port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    states_equal(first, second)
    module = build_module(network())
    randomize(module)
    before = module.state_dict()
    unfreeze(module, "twn")
    step_through(module, *task())
    alone = freeze(module).state_dict()
    assert any(not torch.equal(before[name], alone[name]) for name in alone if "scale" in name)
    for name, tensor in alone.items():
        close(first[name].float(), tensor.float())
