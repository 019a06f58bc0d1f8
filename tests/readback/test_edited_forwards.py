"""Generated classes that a person has edited: what is saved computes what they compute."""

import types

import pytest
import torch
from running import randomize
from torch import nn

import tpack
from tpack import LayerDefError

SOURCE = """
from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import functional as G
from tpack.nn import TernaryLinear

SCALE = 1 / math.sqrt(16)
TABLE = torch.arange(8.0)


def helper(x, times=2):
    return G.gelu(x) * times * SCALE


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor, both: bool = False):
        y = torch.sigmoid(x * self.gain)
        return {"one": y, "two": (y + 1, None)} if both else y


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(8, eps=1e-6)
        self.up = TernaryLinear(8, 16)
        self.down = TernaryLinear(16, 8, bias=False)
        self.register_buffer("mask", torch.ones(16, 16).tril())
        {init}

    def forward(self, x: Tensor) -> Tensor:
        {block}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        {net}
        return self.head(x)
"""
BLOCK = "return x + self.down(F.relu(self.up(self.norm(x))))"
NET = "for layer in self.layers:\n    x = layer(x)"


def edited(block=BLOCK, net=NET, init="pass"):
    """An instance of the classes above with other bodies, with random weights."""
    text = SOURCE
    for name, lines in (("{init}", init), ("{block}", block), ("{net}", net)):
        text = text.replace(name, lines.replace("\n", "\n        "))
    namespace = {"__name__": "edited"}
    exec(compile(text, "edited.py", "exec"), namespace)
    module = namespace["Net"]()
    randomize(module)
    return module


def saved(module, path):
    """What loads after a save; compared with the module at two sizes."""
    tpack.save(module, path, force=True)
    loaded = tpack.load(path)
    module.eval()
    for shape in ((2, 5), (3, 7)):
        x = torch.randn(*shape, 8)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), module(x.clone()), rtol=1e-4, atol=1e-4)
    return loaded


BLOCKS = {
    "unedited": BLOCK,
    "method": "return x + self.down(self.up(self.norm(x)).relu())",
    "function of torch": "return self.down(torch.relu(self.up(x)))",
    "whole name": "return self.down(torch.nn.functional.relu(input=self.up(x)))",
    "alias": "act = G.silu\nreturn self.down(act(self.up(x)))",
    "helper": "return self.down(helper(self.up(x), times=3)) + TABLE",
    "dropout": "return self.down(F.dropout(self.up(x), 0.1, self.training))",
    "training": "if self.training:\n    x = x * torch.rand(8)\nreturn self.down(self.up(x))",
    "sliced mask": (
        "n = x.size(1)\nscores = x @ x.mT * x.size(-1) ** -0.5\n"
        "scores = scores.masked_fill(self.mask[:n, :n] == 0, float('-inf'))\n"
        "return x + scores.softmax(-1) @ x"
    ),
    "mask with more dims": (
        "b, n, _ = x.shape\nmask = self.mask[None][..., :n, :n]\n"
        "return torch.where(mask > 0, x @ x.transpose(-2, -1), -1e9).softmax(dim=-1) @ x"
    ),
    "augmented": "h = self.up(x)\nh += 1.5\nh *= 2\nh.relu_()\nreturn self.down(h)",
    "another name": "h = self.up(x)\nother = h\nh += 1\nreturn self.down(h + other)",
    "assert": (
        "assert x.dim() == 3 and x.size(-1) == 8, f'bad {x.shape}'\nreturn self.down(self.up(x))"
    ),
    "guard": "if x.shape[-1] != 8:\n    raise ValueError(f'bad {x}')\nreturn self.down(self.up(x))",
    "walrus": (
        "f = lambda t: t * 2\nif (h := self.up(x)) is not None:\n    h = f(h)\nreturn self.down(h)"
    ),
    "nested": "def f(t):\n    return t * 3\nreturn self.down(f(self.up(x)))",
    "halves": (
        "a, b = self.up(x).chunk(2, -1)\nh = self.up(x).split(8, -1)\nreturn a * b + h[0] * h[1]"
    ),
    "numbers first": "return 1 - x / 2 + (2**x).clamp(max=3)",
    "views": "b, n, d = x.shape\nreturn self.down(self.up(x).view(b, n, 4, 4).reshape(b, n, -1))",
    "largest": "m, i = x.max(-1)\nreturn x * m.unsqueeze(-1)",
    "axis": "return self.down(torch.cat([x, x], axis=-1))",
    "kept": "self.last = self.up(x)\nreturn self.down(self.last)",
    "a tensor of a child": "return self.down(self.up(x)) + self.up.bias[:8]",
    "dtype of a sum": "return x + x.sum(-1, keepdim=True, dtype=torch.float64).float()",
    "reflected": "return F.pad(x, (1, 0), mode='reflect')[..., 1:]",
    "sorted": "return torch.sort(x).values + x.sort(-1, descending=True)[0]",
    "best": "values, _ = torch.topk(x, 2, dim=-1)\nreturn x * values.sum(-1, keepdim=True)",
    "positions": "return x + torch.arange(2, 10).to(torch.float32)",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_edits_of_a_layer(name, tmp_path):
    saved(edited(BLOCKS[name]), tmp_path / "m.safetensors")


NETS = {
    "range": "for i in range(len(self.layers)):\n    x = self.layers[i](x)",
    "enumerate": "for i, layer in enumerate(self.layers):\n    x = layer(x) * (i + 1)",
    "comprehension": "x = sum([layer(x) for layer in self.layers])",
    "some": "for layer in self.layers[:2]:\n    x = layer(x)",
    "reversed": "for layer in reversed(self.layers):\n    x = layer(x)",
    "inside": "for layer in self.layers:\n    x = layer(x) + layer.up(x)[..., :8]",
    "all results": (
        "seen = []\n"
        "for layer in self.layers:\n"
        "    x = layer(x)\n"
        "    seen.append(x)\n"
        "x = torch.stack(seen).mean(0)"
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_edits_of_a_loop(name, tmp_path):
    saved(edited(net=NETS[name]), tmp_path / "m.safetensors")


ADDED = {
    "nn.Dropout(0.1)": "return self.added(self.down(self.up(x)))",
    "nn.ReLU(inplace=True)": "return self.down(self.added(self.up(x)))",
    "nn.LayerNorm(8)": "return self.added(x)",
    "TernaryLinear(8, 8, scale='row')": "return self.added(x)",
    "nn.Sequential(nn.Linear(8, 4), nn.GELU(), TernaryLinear(4, 8))": "return x + self.added(x)",
    "nn.Conv1d(8, 8, 3, padding=1)": "return self.added(x.transpose(1, 2)).transpose(1, 2)",
    "Gate()": "out = self.added(x, both=True)\nreturn out['one'] * out['two'][0]",
}


@pytest.mark.parametrize("layer", ADDED)
def test_added_layers(layer, tmp_path):
    saved(edited(ADDED[layer], init=f"self.added = {layer}"), tmp_path / "m.safetensors")


def _monkey(module):
    block = module.layers[0]
    block.forward = types.MethodType(lambda self, x: self.down(torch.tanh(self.up(x))), block)


def _monkey_linear(module):
    before = module.head.forward
    module.head.forward = lambda x: before(x) * 3


class Linear(nn.Module):
    """Has the name of a layer of torch, and computes something else."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 8)), None
        self.in_features, self.out_features = 8, 5

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight) * 5


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


CHANGES = {
    "hook": lambda m: m.layers[1].register_forward_hook(lambda *a: a[2] * 2),
    "hook before": lambda m: m.layers[1].register_forward_pre_hook(lambda _, a: (a[0] * 2,)),
    "hook of the root": lambda m: m.register_forward_hook(lambda *a: a[2] + 1),
    "hook of a linear layer": lambda m: m.head.register_forward_hook(lambda *a: a[2] + 1),
    "forward of an instance": _monkey,
    "forward of a linear layer": _monkey_linear,
    "replaced layer": lambda m: setattr(m.layers[1], "norm", nn.LayerNorm(8)),
    "epsilon": lambda m: setattr(m.layers[0].norm, "eps", 0.5),
    "subclass": lambda m: setattr(m, "head", Doubled(8, 5)),
    "namesake": lambda m: setattr(m, "head", Linear()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_an_instance(name, tmp_path):
    module = edited()
    CHANGES[name](module)
    saved(module, tmp_path / "m.safetensors")


REFUSED = {
    "decides by sizes or values": "if x.shape[1] > 3:\n    return x\nreturn -x",
    "decides by sizes or values ": "if x.sum() > 0:\n    return x\nreturn -x",
    "calls __float__": "try:\n    s = float(x.sum())\nexcept Exception:\n    s = 0.0\nreturn x * s",
    "assigns to a part": "y = x.clone()\ny[:, 0] = 0\nreturn y",
    "mul_.*changed in place": "h = self.up(x)\nv = h[:, :, :8]\nh.mul_(2)\nreturn v",
    "relu.*changed in place": (
        "h = self.up(x)\n"
        "v = h.view(h.shape[0], -1, 16)\n"
        "F.relu(h, inplace=True)\n"
        "return self.down(v)"
    ),
    "changes a stored tensor": "self.mask.add_(1)\nreturn x",
    "calls rand": "return x + torch.rand(8)",
    "reads the dtype": "return self.up(x).to(x.dtype)",
    "gives add alpha": "return torch.add(x, x, alpha=2)",
    "training=True": "return F.dropout(x, 0.1)",
    "uses a value of another call": "y = x + getattr(self, 'before', 0)\nself.before = y\nreturn y",
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_cannot_be_read_is_refused_by_line(problem, tmp_path):
    module = edited(REFUSED[problem])
    with pytest.raises(LayerDefError, match=rf"edited\.py:\d+: Block .*{problem.strip()}"):
        tpack.save(module, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
    assert "before" not in vars(module.layers[0])


@pytest.mark.parametrize(
    "block", ["return x * random.random()", "self.n = getattr(self, 'n', 0) + 1\nreturn x * self.n"]
)
def test_what_differs_between_calls_is_refused(block, tmp_path):
    with pytest.raises(LayerDefError, match="something else each time it is called"):
        tpack.save(edited(block), tmp_path / "m.safetensors")


def test_an_argument_that_changes_is_refused_where_a_caller_sees_it(tmp_path):
    change = "x += self.down(self.up(x))\nreturn x"
    with pytest.raises(LayerDefError, match="changes its argument x in place"):
        tpack.save(edited(change), tmp_path / "m.safetensors")
    saved(edited(change, "x = x * 2\nfor layer in self.layers:\n    x = layer(x)"), tmp_path / "m")
    later = "y = x * 2\nfor layer in self.layers:\n    layer(y)\nx = y[:, :]"
    before = "x = x * 2\ny = x[:, :1]\nfor layer in self.layers:\n    x = layer(x)\nx = x + y"
    for net in (later, before):
        with pytest.raises(LayerDefError, match="changed in place through another name"):
            tpack.save(edited(change, net), tmp_path / "n")


def test_reading_leaves_the_module_as_it_was(tmp_path):
    module = edited()
    module.train()
    before = [(dict(vars(one)), one.training) for one in module.modules()]
    tpack.save(module, tmp_path / "m.safetensors")
    assert [(dict(vars(one)), one.training) for one in module.modules()] == before
