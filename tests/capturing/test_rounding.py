"""Weights that a forward rounds: found with their rule, or left to the captured forward."""

import hf_models
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tpack
from tpack.build import build_module
from tpack.capturing import trace_module
from tpack.errors import TpackError
from tpack.quantize import Rounding

TENSOR, ROW = Rounding("absmean", "tensor"), Rounding("absmean", "row")


def straight(w, q):
    return w + (q - w).detach()


def divided(w, s):
    return (w / s).round().clamp(-1, 1) * s


def multiplied(w, r):
    return (w * r).round().clamp(-1, 1) / r


def mean(w, **options):
    return w.abs().mean(**options)


#: Spellings of absmean → the rule.
KNOWN = {
    "divided": (lambda w: divided(w, mean(w).clamp(min=1e-5)), TENSOR),
    "multiplied": (lambda w: multiplied(w, 1 / mean(w).clamp(min=1e-5)), TENSOR),
    "straight": (lambda w: straight(w, divided(w, mean(w).clamp(min=1e-5))), TENSOR),
    "no floor": (lambda w: divided(w, mean(w)), TENSOR),
    "a small floor": (lambda w: divided(w, mean(w).clamp(min=1e-8)), TENSOR),
    "a small sum": (lambda w: divided(w, mean(w) + 1e-9), TENSOR),
    "per row": (lambda w: divided(w, mean(w, dim=-1, keepdim=True).clamp(min=1e-5)), ROW),
    "per row, by its number": (lambda w: divided(w, mean(w, dim=1, keepdim=True)), ROW),
    "clamped first": (lambda w: (w / mean(w)).clamp(-1, 1).round() * mean(w), TENSOR),
    "scale first": (lambda w: mean(w) * (w / mean(w)).round().clamp(-1, 1), TENSOR),
    "in float32": (
        lambda w: straight(w, multiplied(w.float(), 1 / mean(w.float()).clamp(min=1e-5)).to(w)),
        TENSOR,
    ),
    "cast after": (lambda w: multiplied(w.float(), 1 / mean(w.float())).type_as(w), TENSOR),
}

#: Rules that are none of tpack's, some of them nearly.
OTHER = {
    "a large sum": lambda w: divided(w, mean(w) + 1e-3),
    "a large floor": lambda w: divided(w, mean(w).clamp(min=1.0)),
    "by the largest": lambda w: divided(w, w.abs().amax()),
    "half the mean": lambda w: divided(w, 0.5 * mean(w)),
    "two scales": lambda w: (w / mean(w)).round().clamp(-1, 1) * w.abs().amax(),
    "the wrong way": lambda w: multiplied(w, mean(w)),
    "multiplied twice": lambda w: (w * mean(w)).round().clamp(-1, 1) * mean(w),
    "five levels": lambda w: (w / mean(w)).round().clamp(-2, 2) * mean(w),
    "without zero": lambda w: w.sign() * mean(w),
    "per column": lambda w: divided(w, mean(w, dim=0, keepdim=True)),
    "without a mean": lambda w: divided(w, mean(w - w.mean())),
    "two means": lambda w: divided(w - w.mean(), mean(w)),
    "a threshold": lambda w: torch.where(w.abs() > 0.7 * mean(w), w.sign(), 0.0) * mean(w),
    "compared": lambda w: ((w > 0.05).float() - (w < -0.05).float()) * 0.1,
    "by floor": lambda w: (w / mean(w) + 0.5).floor().clamp(-1, 1) * mean(w),
    "of a sum": lambda w: divided(w + 0.01, mean(w + 0.01)),
    "padded": lambda w: divided(F.pad(w, (0, 4)), mean(F.pad(w, (0, 4))))[:, :16],
    "of the transpose": lambda w: divided(w.T, mean(w.T, dim=1, keepdim=True)).T,
}


class Layer(nn.Linear):
    def __init__(self, rule, x=None):
        super().__init__(16, 12)
        self.rule, self.x = rule, x or (lambda x: x)

    def forward(self, x):
        return F.linear(self.x(x), self.rule(self.weight), self.bias)


def net(rule, dtype=torch.float32, x=None):
    torch.manual_seed(0)
    model = nn.Sequential(Layer(rule, x), nn.ReLU(), nn.Linear(12, 4))
    with torch.no_grad():
        model[2].weight.copy_(torch.randint(-1, 2, (4, 12)) * 0.25)
    return model.to(dtype).eval()


def traced(model, *x):
    return trace_module(model, x or (torch.randn(3, 16),), None, None)


def converted(model, path, x, **options):
    report = tpack.convert(model, path, example_args=(x,), **options)
    return {row.name: row for row in report.tensors}, tpack.load(path)


def root(program):
    return program.by_name[program.root]


def close(loaded, model, x, tolerance=1e-5):
    with torch.no_grad():
        found, expected = loaded(x).float(), model(x).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max())


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_rule_is_found(name, tmp_path):
    rule, rounding = KNOWN[name]
    model = net(rule)
    trace = traced(model)
    assert trace.rounded == {"0.weight": rounding}
    assert trace.measured == frozenset()
    assert {p.layer for p in root(trace.program()).params if p.layer} >= {"TernaryLinear"}


@pytest.mark.parametrize("name", [n for n, (_, rule) in KNOWN.items() if rule == TENSOR])
def test_a_master_is_packed_and_not_rounded_again(name, tmp_path):
    model, x = net(KNOWN[name][0]), torch.randn(3, 16)
    rows, loaded = converted(model, tmp_path / "m", x)
    assert rows["0.weight"].method == "absmean"
    assert "weight_packed" in dict(loaded.get_submodule("0").named_buffers())
    close(loaded, model, x)


@pytest.mark.parametrize("values", ["random", "ternary", "zero"])
@pytest.mark.parametrize("name", KNOWN)
def test_the_scale_of_a_master_is_that_of_forward(name, values, tmp_path):
    """Also where the values are ``0.1 * q``: forward's scale is their mean, about 0.067."""
    rule, rounding = KNOWN[name]
    model, x = net(rule), torch.randn(3, 16)
    with torch.no_grad():
        if values == "ternary":
            model[0].weight.copy_(torch.randint(-1, 2, (12, 16)) * 0.1)
        elif values == "zero" and "no floor" in name:
            model[0].weight[0].zero_()
    rows, loaded = converted(model, tmp_path / "m", x)
    found = rows["0.weight"]
    assert (found.action, found.method, found.scale) == ("quantized", "absmean", rounding.scale)
    close(loaded, model, x)


@pytest.mark.parametrize("name", OTHER)
def test_ternary_values_under_another_rule_stay_too(name, tmp_path):
    model, x = net(OTHER[name]), torch.randn(3, 16)
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-1, 2, (12, 16)) * 0.1)
    _, loaded = converted(model, tmp_path / "m", x)
    close(loaded, model, x)


@pytest.mark.parametrize("name", OTHER)
def test_another_rule_stays_in_forward(name, tmp_path):
    model, x = net(OTHER[name]), torch.randn(3, 16)
    trace = traced(model)
    assert trace.rounded == {}
    assert trace.measured == {"0.weight"}
    rows, loaded = converted(model, tmp_path / "m", x)
    assert rows["0.weight"].action == "kept"
    close(loaded, model, x)


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"include": ["0.weight"]}])
def test_beside_another_rule_nothing_is_rounded_unasked(options, tmp_path):
    """The floats of such a model are not masters of the default's rule."""
    model = net(OTHER[next(iter(OTHER))])
    with torch.no_grad():
        model[2].weight.normal_()
    model.append(nn.Linear(4, 2))  # an output head
    with pytest.raises(TpackError, match=r"rounds 0\.weight as it runs, by a rule that tpack does"):
        converted(model.eval(), tmp_path / "m", torch.randn(3, 16), **options)


def test_bfloat16_is_known_only_where_float32_computes():
    x = torch.randn(3, 16).bfloat16()
    assert traced(net(KNOWN["in float32"][0], torch.bfloat16), x).rounded == {"0.weight": TENSOR}
    assert traced(net(KNOWN["cast after"][0], torch.bfloat16), x).rounded == {"0.weight": TENSOR}
    trace = traced(net(KNOWN["divided"][0], torch.bfloat16), x)
    assert (trace.rounded, trace.measured) == ({}, {"0.weight"})


class Twice(nn.Module):
    """One weight, used rounded, and in another way."""

    def __init__(self, other):
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.randn(16, 16) / 8), other

    def forward(self, x):
        rounded = divided(self.weight, mean(self.weight))
        return F.linear(F.linear(x, rounded), self.other(self.weight, rounded))


@pytest.mark.parametrize(
    "other",
    [
        lambda w, _: w,
        lambda w, _: divided(w, mean(w, dim=-1, keepdim=True)),
        lambda _, q: q.T,
        lambda w, _: w.T,
        lambda _, q: q * 2,
    ],
)
def test_a_weight_that_is_used_otherwise_too_is_no_master(other, tmp_path):
    model = Twice(other).eval()
    trace = traced(model)
    assert trace.rounded == {}
    assert trace.measured == {"weight"}
    program = trace.program(())
    (weight,) = (p for p in root(program).params if p.name == "weight")
    assert weight.param_type == "Tensor"


def test_a_weight_that_is_used_rounded_twice_is_a_master():
    model = Twice(lambda w, _: divided(w, mean(w))).eval()
    assert traced(model).rounded == {"weight": TENSOR}


class Returned(Layer):
    def forward(self, x):
        rounded = self.rule(self.weight)
        return F.linear(x, rounded), rounded


def test_a_weight_whose_rounded_form_is_returned_is_no_master():
    assert traced(Returned(KNOWN["divided"][0]).eval()).rounded == {}


def int8(x):
    gain = 127.0 / x.float().abs().max(dim=-1, keepdim=True).values.clamp_(min=1e-5)
    return ((x.float() * gain).round().clamp_(-128, 127) / gain).to(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["straight", "in float32", "cast after"])
def test_layers_that_round_both_become_bit_linear(name, dtype, tmp_path):
    if name == "straight" and dtype == torch.bfloat16:
        return
    model, x = net(KNOWN[name][0], dtype, int8), torch.randn(3, 16).to(dtype)
    rows, loaded = converted(model, tmp_path / "m", x)
    assert rows["0.weight"].method == "absmean"
    assert "BitLinear" in repr(loaded)
    close(loaded, model, x, 1e-5 if dtype == torch.float32 else 2e-2)


def test_a_float_weight_behind_a_rounded_input_stays_what_it_is(tmp_path):
    model, x = net(lambda w: w, x=int8), torch.randn(3, 16)
    assert traced(model).rounded == {}
    rows, loaded = converted(model, tmp_path / "m", x, exclude=["0.weight"])
    assert rows["0.weight"].action == "kept"
    close(loaded, model, x)


def test_a_master_that_is_kept_is_rounded_by_forward(tmp_path):
    model, x = net(KNOWN["straight"][0], x=int8), torch.randn(3, 16)
    trace = traced(model)
    program = trace.program(())
    assert "round" in str(program)
    built = build_module(program)
    built.load_state_dict(model.state_dict())
    close(built, model, x)


@pytest.mark.parametrize("bias", [True, False])
def test_transformers_own_layer(bias):
    AutoBitLinear = hf_models.transformers().integrations.bitnet.AutoBitLinear

    model = nn.Sequential(AutoBitLinear(16, 8, bias, online_quant=True)).eval()
    for dtype in (torch.float32, torch.bfloat16):
        trace = traced(model.to(dtype), torch.randn(3, 16, dtype=dtype))
        assert trace.rounded == {"0.weight": TENSOR}
        assert {p.layer for p in root(trace.program()).params if p.layer} == {"BitLinear"}


class Conv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, divided(self.weight, mean(self.weight).clamp(min=1e-5)), self.bias)


def test_a_convolution(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(Conv(3, 4, 3)).eval(), torch.randn(2, 3, 6, 6)
    assert traced(model, x).rounded == {"0.weight": TENSOR}
    rows, loaded = converted(model, tmp_path / "m", x)
    assert rows["0.weight"].method == "absmean"
    close(loaded, model, x)


@pytest.mark.parametrize("method", ["absmean", "twn", "mse"])
@pytest.mark.parametrize("scale", ["tensor", "row"])
@pytest.mark.parametrize("trained", [True, False])
def test_an_unfrozen_module_is_packed_by_its_own_rule(tmp_path, method, scale, trained):
    """Its masters are ternary at first, with another scale than that of its layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    x = torch.ones(2, 16)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape) * 0.1)
    tpack.convert(model, tmp_path / "a", example_args=(x,))
    unfrozen = tpack.nn.unfreeze(tpack.load(tmp_path / "a"), method, scale)
    with torch.no_grad():
        for weight in unfrozen.parameters():
            weight.add_(torch.randn(weight.shape) / 50 * trained)
        expected = unfrozen(x)
    report = tpack.convert(unfrozen, tmp_path / "b")
    # masters as they were stand for the very bytes that they were made of
    wanted = method if trained or scale == "row" else "exact"
    assert {row.method for row in report.tensors if row.action != "kept"} == {wanted}
    with torch.no_grad():
        model.load_state_dict(tpack.unpack(tmp_path / "b"))
        found = model(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max())
    tpack.convert(unfrozen, tmp_path / "c", example_args=(x,))
    torch.testing.assert_close(
        tpack.load(tmp_path / "c")(x), expected, rtol=0, atol=1e-5 * expected.abs().max()
    )
