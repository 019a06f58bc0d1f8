"""Shapes of code that models of transformers have, each in a module of a few lines."""

import pytest
import torch
from captured_functions import Function
from running import from_source
from torch import nn
from torch.export import Dim

from tpack import LayerDefError
from tpack.build import build_module
from tpack.capturing import capture
from tpack.layerdef import slots

X = torch.randn((3, 5, 4), generator=torch.Generator().manual_seed(0))
FREE = {"x": {0: Dim.AUTO, 1: Dim.AUTO}}


def check(module, sizes=((3, 5), (1, 1), (2, 7))):
    """Capture it with free sizes; the module and its source agree at each."""
    program = capture(module, (X,), dynamic_shapes=FREE)
    names = {slot.name for slot in slots(program)}
    state = {k: v for k, v in module.state_dict().items() if k in names}
    for reading in (build_module(program), from_source(program, standalone=True)):
        reading.load_state_dict(state, strict=True)
        for batch, length in sizes:
            x = torch.randn(batch, length, 4)
            torch.testing.assert_close(reading(x), module(x))
    return from_source(program)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x):
        return self.second(x).tanh()


class Outside(nn.Module):
    """Calls a layer of a module, and then the module."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(self.inner.first(x))


class Tables(nn.Module):
    """Keeps two tables that no state dict holds, and gives one of them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("near_table", torch.tensor([1.0, 3, 2, 5]), persistent=False)
        self.register_buffer("far_table", torch.tensor([2.0, 0, 1, 4]), persistent=False)

    def forward(self, x, kind):
        return x * getattr(self, f"{kind}_table").cos() + 1


class TwoKinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.tables = Tables()
        self.register_buffer("tables_far_table", torch.ones(4))  # a name that is taken

    def forward(self, x):
        return self.up(self.tables(x, "near")) + self.tables(x, "far") * self.tables_far_table


class Halves(nn.Module):
    """Turns two tensors in the same lines, so that names are taken again."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(4, 4)
        self.k = nn.Linear(4, 4)

    def turned(self, x, y):
        first, second = x.chunk(2, -1)
        third, fourth = y.chunk(2, -1)
        return torch.cat((first - second, second + first), -1), torch.cat((third, -fourth), -1)

    def forward(self, x):
        query, key = self.q(x), self.k(x)
        query, key = self.turned(query, key)
        return query @ key.mT


@pytest.mark.parametrize(
    "module", [Outside(), TwoKinds(), Halves()], ids=lambda m: type(m).__name__
)
def test_modules(module):
    check(module.eval())


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x[:, :, torch.tensor([-1, 1])],
        lambda m, x: nn.functional.pad(x, (0, 0, 0, (8 - x.size(1) % 8) % 8)).unflatten(1, (-1, 8)),
        lambda m, x: x.new_zeros(x.size(1) ** 2, max(1, x.size(0))),
    ],
    ids=["indices from the end", "blocks of a padded length", "a square"],
)
def test_functions(function):
    check(Function(function).eval())


def in_blocks(m, x):
    """Sums in blocks of eight, for which the trace has one step for each block."""
    if x.size(1) > 6:
        return torch.cat((x[:, :6].cumsum(1), x[:, 6:].cumsum(1)), 1)
    return x.cumsum(1)


def test_a_trace_that_depends_on_a_size_is_refused_if_the_module_takes_others():
    with pytest.raises(LayerDefError, match=r"gives other results at length 7, which the module"):
        capture(Function(in_blocks).eval(), (X,), dynamic_shapes={"x": {1: Dim.AUTO}})
    program = capture(Function(in_blocks).eval(), (X,), dynamic_shapes={"x": {1: Dim("n", max=6)}})
    assert torch.equal(build_module(program)(X), X.cumsum(1))
