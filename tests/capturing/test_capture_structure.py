"""Modules become layers: lists, dicts, modules called twice, tied weights, names."""

import pytest
import torch
import torch.nn.functional as F
from running import from_source
from torch import nn

from tpack import UsageError
from tpack.build import build_module
from tpack.capturing import capture
from tpack.capturing.names import free_name, targets
from tpack.capturing.widths import fits
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import FunctionCall, Identifier, Literal, Tuple, slots


def agree(module, *inputs, **options):
    """The program of a module whose readings equal it."""
    module.eval()
    program = capture(module, inputs, **options)
    names = {slot.name for slot in slots(program)}
    state = {k: v for k, v in module.state_dict().items() if k in names}
    for reading in (build_module(program), from_source(program, standalone=True)):
        reading.load_state_dict(state, strict=True)
        found, expected = reading(*inputs), module(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    return program


X = torch.randn((2, 8), generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.tanh(self.fc(self.norm(x)))


def test_lists_that_are_applied_in_order_are_loops():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(3))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    program = agree(Net(), X)
    assert [layer.name for layer in program.layers] == ["Block", "Net"]
    source = generate_pytorch_code(program)
    assert "self.blocks = nn.ModuleList(Block() for _ in range(3))" in source
    assert "for layer in self.blocks:\n            x = layer(x)" in source


def test_sequences_of_equal_layers_are_loops():
    stack = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Sequential(*(Block() for _ in range(3))))
    source = generate_pytorch_code(agree(stack, X))
    assert "nn.ModuleList(Block() for _ in range(3))" in source
    assert "for layer in self[2]:" in source


def test_lists_used_otherwise_are_written_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(3))

        def forward(self, x):
            first = self.blocks[0](x)
            second = self.blocks[1](first)
            return first + second + self.blocks[2](x)

    source = generate_pytorch_code(agree(Net(), X))
    assert "self.blocks[2](x)" in source
    assert "for layer" not in source


def test_dicts_of_layers_stay_dicts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            parts = {"table": nn.Embedding(9, 8), "h": nn.ModuleList([Block(), Block()])}
            self.transformer = nn.ModuleDict(parts)
            self.head = nn.Linear(8, 9, bias=False)
            self.head.weight = self.transformer["table"].weight

        def forward(self, ids):
            x = self.transformer["table"](ids)
            for block in self.transformer["h"]:
                x = block(x)
            return self.head(x)

    program = agree(Net(), torch.tensor([[1, 5], [8, 0]]))
    source = generate_pytorch_code(program)
    assert "nn.ModuleDict(" in source
    assert "F.linear(x, self.transformer.table.weight)" in source
    assert "for layer in self.transformer.h:" in source


def test_modules_may_be_called_twice():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x, y):
            return {"sum": self.block(x) + self.block(y), "pair": (x * 2, y)}

    program = agree(Net(), X, X + 1)
    assert "self.block(x) + self.block(y)" in generate_pytorch_code(program)


def test_modules_called_in_ways_that_differ_are_written_out():
    class Maybe(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x, twice=False):
            x = self.fc(x)
            return x * 2 if twice else x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.maybe = Maybe()

        def forward(self, x):
            return self.maybe(self.maybe(x), twice=True)

    program = agree(Net(), X)
    assert [layer.name for layer in program.layers] == ["Net"]


def test_weights_of_modules_that_are_not_called():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)
            self.unused = nn.Linear(3, 3)
            self.odd = nn.LSTMCell(2, 2)

        def forward(self, x):
            return F.linear(x, self.fc.weight, self.fc.bias)

    source = generate_pytorch_code(agree(Net(), X))
    assert "F.linear(x, self.fc.weight, self.fc.bias)" in source
    assert "raise NotImplementedError" not in source


def test_attention_of_torch():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    agree(Net(), torch.randn(2, 3, 8))


def test_names_that_source_cannot_use_are_changed():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.self = nn.Linear(8, 8)
            self.LayerNorm = nn.LayerNorm(8)

        def forward(self, input):  # noqa: A002
            type = self.self(input)  # noqa: A001
            return self.LayerNorm(type) + type

    program = agree(Linear(), X)
    assert program.root == "LinearLayer"


def test_sizes_of_images_are_free_on_demand():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

        def forward(self, x):
            x = self.conv(x)
            return x.reshape(x.size(0), 4, x.size(2) * x.size(3)).mean(1)

    auto = torch.export.Dim.AUTO
    net = Net()
    shapes = {"x": {0: auto, 2: auto, 3: auto}}
    program = agree(net, torch.randn(2, 3, 8, 8), dynamic_shapes=shapes)
    module = build_module(program)
    module.load_state_dict(net.state_dict())
    image = torch.randn(3, 3, 12, 10)
    torch.testing.assert_close(module(image), net(image))


def test_lists_of_tensors_are_refused_or_named():
    class Net(nn.Module):
        def forward(self, pair):
            return pair[0] + pair[1]

    with pytest.raises(UsageError):
        capture(Net().eval(), (), {"other": X})


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("x = f(y)", ("x",)),
        ("x: Tensor = f(y)", ("x",)),
        ("a, b = f(y)", ("a", "b")),
        ("x += 1", ("x",)),
        ("f(a=1)", ()),
        ("return x == y", ()),
        ("x == y", ()),
        ("self.x = 1", ()),
    ],
)
def test_targets(line, names):
    assert targets(f'File "m.py", line 3, in forward\n{line}') == names


def test_free_names():
    assert free_name("x", {"x", "x2"}) == "x3"
    assert free_name("class", set()) == "class_value"
    assert free_name("1", set()) == "value"


def test_a_statement_does_not_break_inside_brackets():
    x = Identifier("x")
    assert not fits(FunctionCall("slice", [x, Literal(2)], {"end": x}), 20, {})
    assert not fits(FunctionCall("index", [x, Tuple([x, x, x, x])]), 12, {})
    assert fits(FunctionCall("linear", [x, x]), 12, {})
