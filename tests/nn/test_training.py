"""Unfrozen modules against torch autograd on weights written out by hand."""

import copy
import io
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from running import inputs_of, randomize, readings
from strategies import UNSHRUNK, Runnable, runnables
from torch import nn

import tpack
from tpack.build import build_module
from tpack.codec import Scale, unpack
from tpack.errors import InputError, LayerDefError, UsageError
from tpack.layerdef import FunctionCall, Identifier, LayerCall, LayerDef, Param, Program, Return
from tpack.nn import (
    BitLinear,
    TernaryConv2d,
    TernaryEmbedding,
    TernaryLinear,
    freeze,
    is_unfrozen,
    ternary_linear,
    unfreeze,
)
from tpack.nn.ternarization import Rule
from tpack.quantize import METHODS, Weight, encode, fit, widen

SCALES = ["tensor", "row", "column", "group:5", "group:32"]
X = Identifier("x")


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


def layer_of(kind, **options):
    """A layer with random bytes and scales, and an input for it."""
    generator = torch.Generator().manual_seed(1)
    if kind == "embedding":
        layer, x = TernaryEmbedding(9, 33, **options), torch.tensor([[1, 2, 8], [1, 0, 1]])
    elif kind == "conv2d":
        layer = TernaryConv2d(4, 6, 3, padding=1, groups=2, stride=2, **options)
        x = torch.randn(2, 4, 7, 7, generator=generator)
    else:
        layer = {"linear": TernaryLinear, "bit_linear": BitLinear}[kind](33, 6, **options)
        x = torch.randn(2, 5, 33, generator=generator)
    randomize(layer)
    with torch.no_grad():
        layer.weight_scale.abs_().add_(0.1)
    return layer, x


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


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


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


# ---- freezing what nothing trained


def states_equal(first, second):
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert second[name].dtype == tensor.dtype
        assert torch.equal(second[name], tensor)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["t2", "t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "embedding"])
def test_nothing_is_lost(kind, dtype, layout, method, scale):
    layer, x = layer_of(kind, scale=scale, layout=layout, scale_dtype=dtype)
    with torch.no_grad():  # rows of zeros, scales that are zero, negative, tiny or huge
        layer.weight_packed[1] = {"t2": 0x55, "t5": 0x80}[layout]
        for value, place in zip((0, -0.7, 6e-8, 6e4), layer.weight_scale.view(-1), strict=False):
            place.fill_(value)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    scale_before, kind_before = layer.weight_scale, type(layer)
    assert unfreeze(layer, method) is layer
    assert "weight_packed" not in layer.state_dict()
    assert layer.weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    layer(x)
    assert freeze(layer) is layer
    states_equal(before, layer.state_dict())
    assert layer.weight_scale is scale_before
    assert type(layer) is kind_before
    assert layer.__dict__.keys() == layer_of(kind)[0].__dict__.keys()


@settings(max_examples=40, phases=UNSHRUNK)
@given(runnables(), st.sampled_from(sorted(METHODS)))
def test_any_module_computes_the_same_unfrozen_and_is_frozen_as_it_was(
    example: Runnable, method: str
):
    for module in readings(example.program).values():
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        packed = {name.removesuffix("_packed") for name in before if name.endswith("_packed")}
        if not packed:
            with pytest.raises(UsageError, match="has no packed weights"):
                unfreeze(module)
            continue
        weights = {name: own(module, f"{name}_packed", f"{name}_scale") for name in packed}
        unfreeze(module, method)
        names = {
            n for n in before if n.removesuffix("_packed").removesuffix("_scale") not in packed
        }
        assert set(module.state_dict()) == names | packed
        for name, (values, scale) in weights.items():
            found, one = own(module, f"{name}_packed", f"{name}_scale")
            close(found.float() * one.float(), values.float() * scale.float())
        with torch.no_grad():
            module(*inputs_of(example))
        freeze(module)
        after = module.state_dict()
        states_equal({n: before[n] for n in sorted(before)}, {n: after[n] for n in sorted(after)})


def own(module, packed, scale):
    """The trits (or, unfrozen, weights) and the scales of a weight, spread to one shape."""
    prefix, _, name = packed.rpartition(".")
    owner = module.get_submodule(prefix)
    name = name.removesuffix("_packed")
    shape = owner.ternary_shapes[name]
    values, scale = getattr(owner, f"{name}_packed"), getattr(owner, scale.rpartition(".")[2])
    columns = int(np.prod(shape[values.dim() - 1 :]))
    if values.dtype == torch.uint8:
        layout = owner.ternary_layouts.get(name, "t2")
        values = torch.from_numpy(unpack(values.numpy(), columns, layout)).float()
    if scale.shape[-1] > 1:
        size = owner.ternary_groups.get(name) or 1  # none: a scale for each column
        scale = torch.stack([scale[..., i // size] for i in range(columns)], -1)
    return values, scale.detach()


# ---- training


def network():
    """Digits of 16 pixels: a block that is repeated, a norm and a head."""
    block = LayerDef(
        "Block",
        [
            Param("up", "TernaryTensor", [16, 16], scale="row"),
            Param("shift", "Tensor", [16]),
            *[Param("x", "Tensor")],
        ],
        [
            Return(
                FunctionCall(
                    "relu", [FunctionCall("linear", [X, Identifier("up"), Identifier("shift")])]
                )
            )
        ],
    )
    head = {"in_features": 16, "out_features": 4, "scale": "group:32"}
    root = LayerDef(
        "Net",
        [
            Param("blocks", "Layer", layer="Block", repeat=2),
            Param("norm", "Layer", layer="LayerNorm", args={"normalized_shape": 16}),
            Param("head", "Layer", layer="BitLinear", args=head),
            Param("x", "Tensor"),
        ],
        [Return(LayerCall("head", [LayerCall("norm", [LayerCall("blocks", [X])])]))],
    )
    return Program([block, root], "Net")


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


# ---- another granularity


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tensor", "row"),
        ("row", "group:32"),
        ("group:32", "column"),
        ("column", "group:5"),
        *[("group:32", "tensor"), ("tensor", "group:5"), ("group:32", "group:64")],
    ],
)
@pytest.mark.parametrize("reading", ["build", "source", "standalone"])
def test_layers_take_another_granularity(reading, old, new, tmp_path):
    args = {"in_features": 80, "out_features": 6, "scale": old}
    tree = LayerDef(
        "Net",
        [Param("fc", "Layer", layer="TernaryLinear", args=args), Param("x", "Tensor")],
        [Return(LayerCall("fc", [X]))],
    )
    module = readings(tree)[reading]
    unfreeze(module, scale=new)
    with torch.no_grad():
        module.fc.weight.copy_(torch.randn(6, 80, generator=torch.manual_seed(0)))
    x = torch.randn(3, 80)
    with torch.no_grad():
        expected = module(x)
        freeze(module)
        assert module.fc.weight_scale.shape == Scale.parse(new).shape((6, 80), 1)
        close(module(x), expected)
        tpack.save(module, tmp_path / "m")
        assert tpack.inspect(tmp_path / "m").tensors[0].scale == new
        close(tpack.load(tmp_path / "m")(x), expected)


@pytest.mark.parametrize("reading", ["build", "source"])
def test_source_takes_the_granularities_that_it_can_infer(reading, tmp_path):
    def made(scale):
        weight = Param("w", "TernaryTensor", [6, 80], scale=scale)
        return LayerDef("L", [weight], [Return(FunctionCall("linear", [X, Identifier("w")]))])

    x = torch.randn(3, 80)
    ways = [("tensor", "row"), ("row", "group:32"), ("row", "column"), ("column", "group:32")]
    for old, new in (*ways, ("group:32", "row")):
        module = unfreeze(readings(made(old))[reading], "mse", new)
        with torch.no_grad():
            module.w.add_(torch.randn(6, 80, generator=torch.manual_seed(0)))
            expected = module(x)
            close(freeze(module)(x), expected)
            if old != "group:32":
                tpack.save(module, tmp_path / "m", force=True)
                close(tpack.load(tmp_path / "m")(x), expected)
    for old, new in (("group:32", "group:64"), ("tensor", "group:5"), ("group:32", "column")):
        module = readings(made(old))[reading]
        with pytest.raises(UsageError, match=f"tensor 'w' has scales per {old}, and the source"):
            unfreeze(module, scale=new)
        assert not is_unfrozen(module)


def test_copies_of_one_layer_share_a_granularity(tmp_path):
    module = build_module(network())
    unfreeze(module.blocks[0], scale="tensor")
    with torch.no_grad():
        module.blocks[0].up.add_(1)
    freeze(module)
    with pytest.raises(LayerDefError, match=r"tensor 'blocks.0.up_scale' is float32 \(1,\)"):
        tpack.save(module, tmp_path / "m")


# ---- refusals


def test_divergence_is_named_and_nothing_is_packed():
    module = nn.Sequential(TernaryLinear(4, 4), nn.Sequential(TernaryLinear(4, 4)))
    unfreeze(module)
    with torch.no_grad():
        module[0].weight.add_(1)
        module[1][0].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"tensor '1\.0\.weight' has NaN or infinity"):
        freeze(module)
    assert set(module.state_dict()) == {"0.weight", "0.bias", "1.0.weight", "1.0.bias"}


def test_a_scale_that_overflows_is_refused():
    layer = unfreeze(TernaryLinear(4, 4, scale_dtype=torch.float16))
    with torch.no_grad():
        layer.weight.fill_(1e6)
    with pytest.raises(InputError, match=r"scale of more than 65504, which torch.float16"):
        freeze(layer)


def test_misuse_is_refused(tmp_path):
    with pytest.raises(UsageError, match="method 'best' is unknown"):
        unfreeze(TernaryLinear(4, 4), "best")
    with pytest.raises(UsageError, match="scale 'columns' is unknown"):
        unfreeze(TernaryLinear(4, 4), scale="columns")
    with pytest.raises(UsageError, match="Linear has no packed weights"):
        unfreeze(nn.Linear(4, 4))
    module = unfreeze(build_module(network()))
    with pytest.raises(UsageError, match="has no packed weights"):
        unfreeze(module)
    with pytest.raises(UsageError, match="save: the module is unfrozen"):
        tpack.save(module, tmp_path / "m")
    with pytest.raises(UsageError, match="is unfrozen, expected its float weight"):
        module.head.weight_packed = torch.zeros(4, 4, dtype=torch.uint8)
    assert freeze(nn.Linear(2, 2)) is not None


def test_print():
    assert repr(unfreeze(TernaryLinear(4, 2), "mse", "row")) == (
        "TernaryLinear(4, 2, bias=True, weight: mse per row)"
    )


@pytest.mark.parametrize("reading", ["build", "source", "standalone"])
def test_groups_of_any_size_are_saved(reading, tmp_path):
    weight = Param("w", "TernaryTensor", [6, 100], scale="group:60")
    tree = LayerDef("L", [weight], [Return(FunctionCall("linear", [X, Identifier("w")]))])
    module = unfreeze(readings(tree)[reading], "twn")
    with torch.no_grad():
        module.w.add_(torch.randn(6, 100, generator=torch.manual_seed(0)))
    x = torch.randn(3, 100)
    expected = freeze(module)(x).detach()
    tpack.save(module, tmp_path / "m")
    assert tpack.inspect(tmp_path / "m").tensors[0].scale == "group:60"
    close(tpack.load(tmp_path / "m")(x).detach(), expected)
