"""Each spelling of an op, captured from a small module, gives the same in every reading."""

import math

import pytest
import torch
import torch.nn.functional as F
from captured_functions import (
    FUNCTIONS,
    IMAGES,
    LINES,
    VIDEOS,
    Function,
    gelu_by_tanh,
    grouped,
    rms_norm,
    rotated,
)
from running import from_source
from torch import nn
from torch.export import Dim

from tpack import LayerDefError
from tpack.build import build_module
from tpack.capturing import capture
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import slots


def source_of(function, x):
    return generate_pytorch_code(captured(function, x)[1])


def captured(function, x):
    module = Function(function).eval()
    return module, capture(module, (x,))


def agree(function, x):
    """The module equals its build and its source, at another batch too."""
    module, program = captured(function, x)
    built, written = build_module(program), from_source(program, standalone=True)
    names = {slot.name for slot in slots(program)}
    state = {k: v for k, v in module.state_dict().items() if k in names}
    for reading in (built, written):
        reading.load_state_dict(state, strict=True)
        for given in (x, torch.cat((x, x))):
            expected = module(given)
            if isinstance(expected, torch.Tensor):
                expected = [expected]
            found = reading(given)
            found = [found] if isinstance(found, torch.Tensor) else found
            torch.testing.assert_close(list(found), list(expected), rtol=1e-5, atol=1e-5)


X = torch.randn((3, 4, 6), generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn((2, 6, 8, 8), generator=torch.Generator().manual_seed(0))
LINE = torch.randn((2, 6, 9), generator=torch.Generator().manual_seed(0))
VIDEO = torch.randn((2, 6, 4, 5, 4), generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[0, 5, 2], [1, 1, 3]])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name):
    agree(FUNCTIONS[name], X)


@pytest.mark.parametrize("name", IMAGES)
def test_function_of_images(name):
    agree(IMAGES[name], IMAGE)


@pytest.mark.parametrize("name", LINES)
def test_function_of_lines(name):
    agree(LINES[name], LINE)


@pytest.mark.parametrize("name", VIDEOS)
def test_function_of_videos(name):
    agree(VIDEOS[name], VIDEO)


def test_functions_of_tokens():
    agree(lambda m, x: F.embedding(x, m.w) + F.one_hot(x, 6) * m.v, IDS)
    agree(lambda m, x: m.w[x] + m.v[x.clamp(0, 2)].unsqueeze(-1), IDS)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (rms_norm, "F.rms_norm(x, (6,), self.v, eps=1e-06)"),
        (lambda m, x: gelu_by_tanh(x), 'F.gelu(x, approximate="tanh")'),
        (lambda m, x: F.relu(x).pow(2), "torch.square(F.relu(x))"),
        (lambda m, x: x * torch.sigmoid(x), "F.silu(x)"),
        (lambda m, x: rotated(x), "rotate_half(x)"),
        (lambda m, x: grouped(x), "enable_gqa=True"),
        (lambda m, x: x.view(x.size(0), 4, 2, 3), "x.unflatten(-1, (2, 3))"),
        (lambda m, x: x.reshape(x.size(0), -1), "x.flatten(1)"),
        (lambda m, x: (x + 0) * 1, "return x\n"),
        (lambda m, x: x[:, 1:3], "x[:, 1:3]"),
        (lambda m, x: x @ m.w + m.v, "x @ self.w + self.v"),
        (
            lambda m, x: torch.addmm(m.v, x.view(-1, 6), m.w).view(x.shape),
            "x @ self.w + self.v",
        ),
    ],
)
def test_spelling(function, expected):
    assert expected in source_of(function, X)


# ---- masks


def causal(x):
    positions = torch.arange(x.size(1))
    return positions[None, :] <= positions[:, None]


def window(x, size):
    positions = torch.arange(x.size(1))
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < size)


def attend(x, mask):
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


MASKS = {
    "causal": lambda m, x: attend(x, causal(x)),
    "window": lambda m, x: attend(x, window(x, 2)),
    "all": lambda m, x: attend(x, torch.arange(x.size(1))[:, None].ge(0).expand(-1, x.size(1))),
    "none but itself": lambda m, x: attend(x, causal(x) & causal(x).T),
    "not": lambda m, x: attend(x, ~(causal(x) & ~causal(x).T)),
    "either": lambda m, x: attend(x, causal(x) | (torch.arange(x.size(1)) == 1)),
    "of a buffer": lambda m, x: attend(x, m.counts[:4] <= m.counts[:4, None]),
    "moved": lambda m, x: attend(x, causal(x).unsqueeze(0).transpose(1, 2).squeeze(0).mT),
    "stepped": lambda m, x: attend(x, causal(x)[:, None].select(1, 0)[:, :] & (causal(x) | True)),
    "of integers": lambda m, x: attend(
        x, (torch.arange(4)[:, None] - torch.arange(4)).to(torch.int64) > -2
    ),
    "of the largest": lambda m, x: attend(x, causal(x)) * (x.max() - x.min()) + x.amax(),
    "chosen, then moved": lambda m, x: (
        torch.where(causal(x).expand(2, 3, -1, -1), 0.5, -1.0).flatten(1, 2).unsqueeze(0)
    ),
    "filled": lambda m, x: (x @ x.mT).masked_fill(~causal(x), float("-inf")).softmax(-1) @ x,
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    agree(MASKS[name], X)


def test_causal_masks_become_a_flag():
    assert "is_causal=True" in source_of(MASKS["causal"], X)
    assert "attn_mask" not in source_of(MASKS["all"], X)
    source = source_of(MASKS["window"], X)
    assert "attn_mask" in source


# ---- what LayerDef cannot express


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda m, x: torch.unique(x), "uses _unique2.default"),
        (lambda m, x: torch.stft(x[:, 0], 4, return_complex=True), "uses stft.default"),
        (lambda m, x: F.dropout(x, training=True), "train=True"),
        (lambda m, x: torch.add(x, x, alpha=2), "alpha=2"),
        (lambda m, x: x.add_(1), "changes"),
        (
            lambda m, x: (h := x * 2, h.view(-1).add_(1), h)[2],
            "changes a tensor that other values are",
        ),
        (lambda m, x: x[:, m.counts[:2], m.counts[:2]], "indexes some dims"),
        (lambda m, x: {1: x}, "keys that are not identifiers"),
        (lambda m, x: x + torch.randn(6), "uses randn"),
        (lambda m, x: m.mean.add_(1) + x, "changes"),
    ],
)
def test_refusals(function, text):
    with pytest.raises(LayerDefError, match=text):
        captured(function, X)


def test_sizes_that_no_layer_def_computes_are_refused():
    module = Function(lambda m, x: torch.arange(min(x.size(0), 8))).eval()
    with pytest.raises(LayerDefError, match=r"size Min\(.*\), which LayerDef cannot compute"):
        capture(module, (X,))


def test_sizes_that_no_tensor_has_are_refused():
    half = Dim("half", min=2, max=100)
    module = Function(lambda m, x: torch.arange(x.size(0) // 2)).eval()
    with pytest.raises(LayerDefError, match=r"needs size s\d+, which LayerDef cannot"):
        capture(module, (torch.randn(8, 3),), None, {"x": {0: 2 * half}})


def test_a_module_that_takes_no_tensor_is_refused():
    class Constant(nn.Module):
        def forward(self):
            return torch.arange(3)

    with pytest.raises(LayerDefError):
        capture(Constant().eval(), ())


def test_constants_that_are_too_large_are_refused():
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.randn(5000), persistent=False)

        def forward(self, x):
            return x + self.table

    with pytest.raises(LayerDefError, match="persistent"):
        capture(Large().eval(), (torch.randn(2, 5000),))


def test_constants_that_are_not_finite_are_refused():
    class Infinite(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.tensor([1.0, math.inf]), persistent=False)

        def forward(self, x):
            return x + self.table

    with pytest.raises(LayerDefError, match="infinity"):
        capture(Infinite().eval(), (torch.randn(2, 2),))
