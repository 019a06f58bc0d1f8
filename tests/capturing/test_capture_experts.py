"""Mixtures of experts are captured, and compute the chosen experts only."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from running import from_source
from torch import nn

import tpack
from tpack.build import build_module
from tpack.errors import LayerDefError
from tpack.layerdef import FunctionCall, Identifier, LayerDef, Literal, Param, Return
from tpack.nn import TernaryLinear, by_expert, expert_linear, expert_matmul
from tpack.nn.reference import routed

SCALES = {
    "tensor": lambda shape: torch.tensor(0.5),
    "row": lambda shape: torch.rand(*shape[:2], 1) + 0.5,
    "column": lambda shape: torch.rand(1, 1, shape[2]) + 0.5,
    "group:32": lambda shape: (torch.rand(*shape[:2], 2) + 0.5).repeat_interleave(32, 2),
}


class Mixture(nn.Module):
    """Two of five experts for each token, with a weight that lies (in, out) as well."""

    def __init__(self, scale="row", dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(64, 5, dtype=dtype)
        for name, shape in (("up", (5, 96, 64)), ("down", (5, 96, 64))):
            weight = torch.randint(-1, 2, shape) * SCALES[scale](shape)
            setattr(self, name, nn.Parameter(weight.to(dtype)))
        self.down_bias = nn.Parameter(torch.randn(5, 64, dtype=dtype))

    def forward(self, x):
        weights, ids = torch.topk(self.gate(x).softmax(-1), 2)
        ids = ids.reshape(-1)
        rows = x.repeat_interleave(2, dim=0)
        inner = F.silu(torch.bmm(self.up[ids], rows.unsqueeze(-1)).squeeze(-1))
        outer = torch.bmm(inner.unsqueeze(1), self.down[ids]).squeeze(1) + self.down_bias[ids]
        return (outer * weights.reshape(-1, 1)).view(-1, 2, 64).sum(1)


X = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))


def close(found, expected):
    loose = {} if expected.dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(found / scale, expected / scale, **loose)


@pytest.fixture(scope="module")
def program():
    return tpack.capture(Mixture().eval(), (X,))


def test_the_products_of_experts_are_one_op_each(program):
    source = tpack.generate_pytorch_code(program)
    assert "F.silu(expert_linear(rows, self.up, ids))" in source
    assert "expert_matmul(inner, self.down, ids) + self.down_bias[ids]" in source


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", SCALES)
def test_a_packed_mixture_equals_the_module(scale, dtype, tmp_path):
    model = Mixture(scale, dtype).eval()
    path, x = tmp_path / "m.safetensors", X.to(dtype)
    report = tpack.convert(model, path, example_args=(x,), exclude=["gate.*"])
    assert {row.name for row in report.tensors if row.action == "packed"} == {"up", "down"}
    loaded = tpack.load(path)
    source = tpack.generate_pytorch_code(tpack.capture(loaded, (x,)))
    assert "ternary_expert_linear(" in source
    assert "ternary_expert_matmul(" in source
    standalone = from_source(tpack.capture(loaded, (x,)), standalone=True)
    standalone.load_state_dict(loaded.state_dict(), strict=True)
    for given in (x, x[:1], x[:0]):
        for reading in (loaded, standalone):
            close(reading(given), model(given)) if len(given) else reading(given)


def test_the_generated_class_and_a_module_around_it_are_saved_again(tmp_path):
    tpack.convert(Mixture().eval(), tmp_path / "m.safetensors", example_args=(X,))
    loaded = tpack.load(tmp_path / "m.safetensors")
    generated = from_source(tpack.capture(loaded, (X,)))
    generated.load_state_dict(loaded.state_dict())
    tpack.save(generated, tmp_path / "again.safetensors")
    tpack.convert(nn.Sequential(loaded, nn.Tanh()).eval(), tmp_path / "s", example_args=(X,))
    assert torch.equal(tpack.load(tmp_path / "again.safetensors")(X), loaded(X))
    assert torch.equal(tpack.load(tmp_path / "s")(X), loaded(X).tanh())
    again = tpack.capture(tpack.load(tmp_path / "s"), (X,))
    assert "ternary_expert_linear(" in tpack.generate_pytorch_code(again)


def test_matrices_that_no_id_names_are_not_computed(program):
    seen = []

    def product(expert, rows):
        seen.append((expert, len(rows)))
        return rows

    ids = torch.tensor([[3, 1], [3, 3]])
    x = torch.arange(4.0).reshape(2, 2, 1)
    assert torch.equal(routed(x, ids, 5, product), x)
    assert torch.equal(routed(x[0], ids[0], 5, product), x[0])
    assert seen == [(1, 1), (3, 3), (3, 1), (1, 1)]
    model = build_module(program)
    model.load_state_dict(Mixture().state_dict())
    expected = model(X[:1])
    chosen = set(torch.topk(model.gate(X[:1]), 2).indices.flatten().tolist())
    with torch.no_grad():
        for expert in {*range(5)} - chosen:
            model.up[expert] = torch.nan
    assert torch.equal(model(X[:1]), expected)


@pytest.mark.parametrize("op", [expert_linear, expert_matmul])
def test_ids_are_those_of_indexing(op):
    stack, x = torch.randn(3, 4, 4), torch.randn(2, 4)
    assert torch.equal(op(x, stack, torch.tensor([-1, 0])), op(x, stack, torch.tensor([2, 0])))
    for wrong in (3, -4):
        with pytest.raises(IndexError, match=f"{wrong} is out of range for 3 experts"):
            op(x, stack, torch.tensor([0, wrong]))


class Expert(nn.Module):
    """A feed-forward layer."""

    def __init__(self, kind=nn.Linear):
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = kind(12, 8, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.up(x)))


class Layers(nn.ModuleList):
    """A list that chooses in itself."""

    def forward(self, x, ids):
        return by_expert(self, x, ids)


class Block(nn.Module):
    """Two of a list of layers for each token."""

    def __init__(self, kinds=(nn.Linear,) * 4, container=nn.ModuleList):
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(8, len(kinds))
        self.experts = container(map(Expert, kinds))

    def forward(self, x):
        weights, ids = torch.topk(self.gate(x), 2)
        rows, ids = x.repeat_interleave(2, dim=0), ids.flatten()
        own = isinstance(self.experts, Layers)
        call = self.experts if own else partial(by_expert, self.experts)
        return (call(rows, ids) * weights.reshape(-1, 1)).unflatten(0, (-1, 2)).sum(1)


class Averaged(Block):
    """The mean of all experts is used too."""

    def forward(self, x):
        every = torch.stack([expert(x) for expert in self.experts])
        ids = self.gate(x).argmax(-1)
        return every[ids, torch.arange(x.size(0))] + every.mean(0)


class Returned(Block):
    """What one expert makes is a result too."""

    def forward(self, x):
        found = [expert(x) for expert in self.experts]
        ids = self.gate(x).argmax(-1)
        return torch.stack(found)[ids, torch.arange(x.size(0))], found[1]


ROWS = X[:, :8]
BLOCKS = {
    "list": ({}, "in range(4))"),
    "in itself": ({"container": Layers}, "in range(4))"),
    "some packed": ({"kinds": (nn.Linear, TernaryLinear) * 2}, "Expert(), Expert2(), Expert()"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_layers_of_a_list_are_chosen_by_ids(name, tmp_path):
    options, listed = BLOCKS[name]
    model = Block(**options).eval()
    program = tpack.capture(model, (ROWS,))
    source = tpack.generate_pytorch_code(program)
    assert "by_expert(self.experts, rows, ids)" in source
    assert listed in source
    generated = from_source(program, standalone=True)
    generated.load_state_dict(model.state_dict())
    tpack.save(generated, tmp_path / "m.safetensors")
    again = from_source(tpack.capture(tpack.load(tmp_path / "m.safetensors"), (ROWS,)))
    again.load_state_dict(model.state_dict())
    tpack.save(again, tmp_path / "again.safetensors")
    for given in (ROWS, ROWS[:1]):
        for path in ("m.safetensors", "again.safetensors"):
            close(tpack.load(tmp_path / path)(given), model(given))
        close(generated(given), model(given))


@pytest.mark.parametrize("kind", [Averaged, Returned])
def test_results_of_all_layers_that_are_needed_stay(kind):
    model = kind().eval()
    program = tpack.capture(model, (ROWS,))
    source = tpack.generate_pytorch_code(program)
    assert "by_expert" not in source
    generated = from_source(program)
    generated.load_state_dict(model.state_dict())
    torch.testing.assert_close(generated(ROWS), model(ROWS))


def test_a_list_that_is_no_list_of_layers_is_refused():
    call = FunctionCall("by_expert", [Literal("gate"), Identifier("x"), Identifier("ids")])
    gate = Param("gate", "Layer", layer="Linear", args={"in_features": 8, "out_features": 4})
    inputs = [Param("x", "Tensor"), Param("ids", "Tensor")]
    with pytest.raises(LayerDefError, match=r"layers: must be the name of a list of layers"):
        build_module(LayerDef("L", [gate, *inputs], [Return(call)]))
