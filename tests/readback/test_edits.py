"""Generated source that a person has edited: it saves again, or is refused with its line."""

import warnings

import pytest
import torch
from running import from_text
from torch import nn

import tpack
from tpack import LayerDefError
from tpack.capturing import capture
from tpack.codegen import generate_pytorch_code


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = tpack.nn.TernaryLinear(16, 48, bias=False)
        self.out = nn.Linear(16, 16)
        self.register_buffer("mask", torch.ones(32, 32).tril().bool())

    def forward(self, x):
        length = x.size(1)
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / 4
        scores = scores.masked_fill(~self.mask[:length, :length], -1e9)
        return self.out(scores.softmax(-1) @ v)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.attention = Attention()
        self.up = tpack.nn.TernaryLinear(16, 32)
        self.down = tpack.nn.TernaryLinear(32, 16)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(nn.functional.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(16, 50)

    def forward(self, ids):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def source():
    return generate_pytorch_code(capture(Net().eval(), (torch.ones(2, 7).long(),)))


def edited(source, *changes):
    """An instance of the class after changes to its source, with random trits and floats."""
    for old, new in changes:
        assert old in source, source
        source = source.replace(old, new)
    module = from_text(source, "Net").eval()
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("_packed"):
            trits = torch.randint(-1, 2, (len(tensor), 4 * tensor.shape[1]))
            tensor.copy_(tpack.pack_ternary(trits))
        elif name.endswith("mask"):
            tensor.copy_(torch.ones_like(tensor).tril())
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.3)
    return module


def check_saved(module, path, **options):
    """A module that is saved and loaded computes the same, at sizes other than any example."""
    tpack.save(module, path / "m.safetensors", **options)
    loaded = tpack.load(path / "m.safetensors")
    for size in ((2, 7), (1, 1), (3, 12)):
        ids = torch.randint(0, 50, size)
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids), module(ids), rtol=1e-5, atol=1e-5)
    return loaded


RELU = "F.relu(self.up(x))"
LENGTH = "length = x.size(1)"
HEAD = "        self.head = nn.Linear(16, 50)"
LOOP = "for layer in self.blocks:\n            x = layer(x)"
FORWARD = (
    'def forward(self, x: Tensor) -> Tensor:\n        """x (batch, length, 16) → '
    '(batch, length, 16)."""\n        x = x +'
)
GATE = """\
class Gate(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)"""
CALL = "self.attention(self.norm(x))"


def added(layer):
    """The changes that add a layer before the head."""
    return (HEAD, f"        self.extra = {layer}\n{HEAD}"), (
        "self.head(x)",
        "self.head(self.extra(x))",
    )


EDITS = {
    "nothing": [],
    "comment": [(LENGTH, f"# how long it is\n        {LENGTH}")],
    "mask": [
        (LENGTH, f"{LENGTH}\n        allowed = self.mask[:length, :length]"),
        ("~hidden[:, :length]", "~allowed"),
    ],
    "mask of four dims": [("~hidden[:, :length]", "~self.mask[None, :length, :length]")],
    "dropout": [(RELU, f"F.dropout({RELU}, 0.1, self.training)")],
    "dropout by name": [(RELU, f"F.dropout({RELU}, p=0.1, training=self.training)")],
    "dropout layer": [
        ("        self.down =", "        self.drop = nn.Dropout(0.1)\n        self.down ="),
        (RELU, f"self.drop({RELU})"),
    ],
    "torch.relu": [("F.relu", "torch.relu")],
    "method relu": [(RELU, "self.up(x).relu()")],
    "gelu": [("F.relu", "F.gelu")],
    "softmax of torch": [("F.softmax(scores, dim=-1)", "torch.softmax(scores, -1)")],
    "softmax as method": [("F.softmax(scores, dim=-1)", "scores.softmax(dim=-1)")],
    "mean as method": [("self.head(x)", "self.head(x - x.mean(-1, True))")],
    "other count": [("range(3)", "range(2)")],
    "index": [(LOOP, "for i in range(len(self.blocks)):\n            x = self.blocks[i](x)")],
    "enumerate": [(LOOP, "for i, one in enumerate(self.blocks):\n            x = one(x)")],
    "reversed": [(LOOP, "for layer in reversed(self.blocks):\n            x = layer(x)")],
    "fewer": [(LOOP, "for layer in self.blocks[:2]:\n            x = layer(x)")],
    "norm": added("nn.LayerNorm(16)"),
    "linear": added("nn.Linear(16, 16)"),
    "packed layer": added("TernaryLinear(16, 16)"),
    "sequence": added("nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))"),
    "identity": added("nn.Identity()"),
    "class": [("class Net(", f"{GATE}\n\n\nclass Net("), *added("Gate()")],
    "removed": [(f"x = x + {CALL}\n        ", "")],
    "variable": [
        ("x = self.tokens(ids)", "hidden = self.tokens(ids)"),
        ("x = layer(x)", "hidden = layer(hidden)"),
        ("self.head(x)", "self.head(hidden)"),
    ],
    "shape": [(LENGTH, "batch, length, _ = x.shape")],
    "one of the shape": [(LENGTH, "length = x.shape[-2]")],
    "assert": [(LENGTH, f"{LENGTH}\n        assert x.dim() == 3 and x.size(2) == 16, f'{{x}}'")],
    "training": [(LENGTH, f"{LENGTH}\n        if self.training:\n            x = x * 2")],
    "keyword": [(CALL, "self.attention(x=self.norm(x))")],
    "clone": [("return x +", "return x.clone() +")],
    "constant": [("/ 4", "/ 16**0.5")],
    "function": [
        ("class Attention", "def act(x):\n    return F.relu(x) + 0.5\n\n\nclass Attention"),
        (RELU, "act(self.up(x))"),
    ],
    "inner argument": [
        (FORWARD, "def forward(self, x, scale=1.0):\n        x = x * scale +"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_class_saves_again(tmp_path, source, name):
    check_saved(edited(source, *EDITS[name]), tmp_path)


REFUSED = {
    "choice": (
        [(LENGTH, f"{LENGTH}\n        if length > 30:\n            x = x * 2")],
        "decides by sizes or values",
    ),
    "part": (
        [("return x +", "x[:, 0] = 0\n        return x +")],
        "assigns to a part of a tensor",
    ),
    "no op": [[("return x +", "return torch.erfinv(x) +")], "calls erfinv"],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, source, name):
    changes, text = REFUSED[name]
    module = edited(source, *changes)
    with pytest.raises(LayerDefError, match=rf"generated.py:\d+: \w+ {text}"):
        tpack.save(module, tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["choice"])
def test_what_cannot_be_read_is_captured_with_arguments(tmp_path, source, name):
    module = edited(source, *REFUSED[name][0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_saved(module, tmp_path, example_args=torch.ones(2, 7).long())


def test_arguments_prove_what_is_read(tmp_path, source):
    """What depends on whether it is traced is in no trace."""
    change = "x = self.tokens(ids) * (1 if type(ids) is Tensor else 2)"
    module = edited(source, ("x = self.tokens(ids)", change))
    with pytest.raises(LayerDefError, match="read as something else than it computes"):
        tpack.save(module, tmp_path / "m.safetensors", example_args=(torch.ones(2, 7).long(),))


def test_a_default_that_nobody_gives_stays(tmp_path, source):
    module = edited(
        source,
        ("def forward(self, ids: Tensor)", "def forward(self, ids, scale: float = 2.0)"),
        ("self.head(x)", "self.head(x) * scale"),
    )
    check_saved(module, tmp_path)


def test_a_loaded_module_that_was_changed_is_refused_or_captured(tmp_path, source):
    loaded = check_saved(edited(source), tmp_path)
    loaded.head = nn.Sequential(nn.Linear(16, 50), nn.Tanh())
    with pytest.raises(LayerDefError, match="head: was replaced or hooked into"):
        tpack.save(loaded, tmp_path / "n.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tpack.save(loaded, tmp_path / "n.safetensors", example_args=torch.ones(2, 7).long())
    ids = torch.randint(0, 50, (3, 9))
    again = tpack.load(tmp_path / "n.safetensors")
    torch.testing.assert_close(again(ids), loaded(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("standalone", [False, True])
def test_new_instances_can_be_used(standalone):
    """Gains start at one: with zeros nothing would come out of a new model."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.rand(8))
            self.offset = nn.Parameter(torch.rand(8))

        def forward(self, x):
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
            return x * self.gain + x * (1 + self.offset)

    program = capture(Scaled().eval(), (torch.rand(2, 8),))
    new = from_text(generate_pytorch_code(program, standalone=standalone), "Scaled")
    assert new.gain.tolist() == [1.0] * 8
    assert new.offset.tolist() == [0.0] * 8
