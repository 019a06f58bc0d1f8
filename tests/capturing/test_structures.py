"""Arguments that hold several tensors, and results of None: said in a note, never in silence."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tpack import LayerDefError
from tpack.capturing import trace_module


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.function(self, x)


X = torch.ones(3, 4)


def traced(function, x):
    trace = trace_module(Net(function).eval(), (x,), None, None)
    root = trace.program().by_name[trace.program().root]
    return [note for note in trace.notes if "fixed" not in note], [
        param.name for param in root.params if param.is_input
    ]


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda m, x: m.fc(x["b"]) + x["a"], {"a": X, "b": X + 1}),
        (lambda m, x: m.fc(x[1]) + x[0], (X, X + 1)),
        (lambda m, x: m.fc(x.right) + x.left, Pair(X, X + 1)),
    ],
)
def test_arguments_of_several_tensors_are_told(function, x):
    notes, names = traced(function, x)
    assert len(names) == 2
    assert notes == [
        "an argument of forward holds several tensors: the captured model takes them one by one, "
        f"as {', '.join(names)}"
    ]


@pytest.mark.parametrize(
    ("function", "places"),
    [
        (lambda m, x: (m.fc(x), None, x + 1), "[1]"),
        (
            lambda m, x: {"a": m.fc(x), "more": (None, x + 1, [x, None])},
            "['more'][0], ['more'][2][1]",
        ),
    ],
)
def test_none_among_results_is_told(function, places):
    notes, _ = traced(function, X)
    assert notes == [
        f"forward gives None at {places} of its results: the captured model leaves it out, so that "
        "later results move up"
    ]


def test_a_forward_without_results_is_refused():
    with pytest.raises(LayerDefError, match="forward returns no tensor"):
        traced(lambda m, x: None, X)
    with pytest.raises(LayerDefError, match="forward returns no tensor"):
        traced(lambda m, x: (None, {"loss": None}), X)


def test_what_is_the_same_needs_no_note():
    assert traced(lambda m, x: {"y": m.fc(x), "loss": None, "all": (x, x + 1)}, X)[0] == []
