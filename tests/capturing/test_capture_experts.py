"""Mixtures of experts are captured, and compute the chosen experts only."""

import pytest
import torch
import torch.nn.functional as F
from running import from_source
from torch import nn

import tpack
from tpack.build import build_module
from tpack.nn import expert_linear, expert_matmul
from tpack.nn.reference import by_expert

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
    assert torch.equal(by_expert(x, ids, 5, product), x)
    assert torch.equal(by_expert(x[0], ids[0], 5, product), x[0])
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
