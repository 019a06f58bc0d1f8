"""A capture knows what each tensor is by what the model does with it, whatever its name."""

import pytest
import torch
import torch.nn.functional as F
from captured_models import FAMILIES
from torch import nn

from tpack.capturing import trace_module

IDS = torch.tensor([[0, 5, 2], [1, 1, 3]])
X = torch.randn((2, 8), generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def roles(module, *inputs):
    """The roles of a module's tensors."""
    return dict(trace_module(module.eval(), inputs, None, None).roles())


class Net(nn.Module):
    """Matrices of shapes that tell nothing, and a function of them."""

    def __init__(self, function, **shapes):
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, *inputs):
        return self.function(self, *inputs)


def roles_of(function, *inputs, **shapes):
    return roles(Net(function, **shapes), *inputs)


class Oddly(nn.Module):
    """A language model with names that say nothing."""

    def __init__(self, *, tied=False):
        super().__init__()
        self.a = nn.Embedding(9, 8)
        self.b = nn.Parameter(torch.randn(5, 8))
        self.norm_weight = nn.Linear(8, 8)
        self.embed = nn.Linear(8, 8)
        self.c = nn.LayerNorm(8)
        self.d = nn.Linear(8, 9, bias=False)
        if tied:
            self.d.weight = self.a.weight

    def forward(self, ids):
        x = self.a(ids) + self.b[: ids.size(1)]
        x = x + self.embed(torch.relu(self.norm_weight(x)))
        return self.d(self.c(x))


def test_names_tell_nothing():
    assert roles(Oddly(), IDS) == {
        "a.weight": "embedding",
        "b": "other",
        "norm_weight.weight": "linear",
        "norm_weight.bias": "other",
        "embed.weight": "linear",
        "embed.bias": "other",
        "c.weight": "norm",
        "c.bias": "norm",
        "d.weight": "output head",
    }


def test_a_tied_head_is_an_embedding_by_both_names():
    found = roles(Oddly(tied=True), IDS)
    assert found["a.weight"] == found["d.weight"] == "embedding"


def test_tensors_that_are_never_used_have_no_role():
    model = Oddly()
    model.unused = nn.Linear(3, 3)
    assert "unused.weight" not in roles(model, IDS)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.linear(torch.relu(x @ m.u), m.w),
        lambda m, x: torch.relu(x @ m.u) @ m.w.T,
        lambda m, x: (torch.relu(x @ m.u) @ m.w.mT + 1).softmax(-1),
        lambda m, x: F.linear(torch.relu(x @ m.u), m.w * m.w.abs().mean()),
        lambda m, x: torch.tanh(F.linear(torch.relu(x @ m.u), m.w) / 30) * 30,
        lambda m, x: F.linear(torch.relu(x @ m.u), m.w).argmax(-1),
        lambda m, x: (y := F.linear(torch.relu(x @ m.u), m.w)) / y.square().sum(-1, True).sqrt(),
        lambda m, x: (F.linear(torch.relu(x @ m.u), m.w), x @ m.u),
        lambda m, x: torch.einsum("bi,oi->bo", torch.relu(x @ m.u), m.w),
    ],
)
def test_the_last_product_is_the_output_head(function):
    assert roles_of(function, X, u=(8, 8), w=(5, 8)) == {"u": "linear", "w": "output head"}


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.linear(x, m.w),  # all there is
        lambda m, x: x + F.linear(torch.relu(x), m.w),
        lambda m, x: F.linear(torch.relu(F.linear(x, m.w)), m.w),  # a block gives what it takes
        lambda m, x: F.layer_norm(F.linear(torch.relu(x), m.w), (8,), x[0] * 0 + 1),
        lambda m, x: F.linear(torch.relu(x), m.w).unflatten(1, (2, 4)) @ x.unflatten(1, (4, 2)),
        lambda m, x: F.linear(x, m.w[:4])[:, :4] + F.linear(x, m.w[4:]),
        lambda m, x: x @ (m.w.round().clamp(-1, 1) - m.w).detach(),
    ],
)
def test_products_on_the_way_are_linear(function):
    assert roles_of(function, X, w=(8, 8)) == {"w": "linear"}


@pytest.mark.parametrize(
    "function",
    [
        lambda m, ids: F.embedding(ids, m.w),
        lambda m, ids: m.w[ids],
        lambda m, ids: m.w.index_select(0, ids[0]),
        lambda m, ids: (m.w * 2)[ids],
        lambda m, ids: F.one_hot(ids, 9).float() @ m.w,
        lambda m, ids: F.linear(F.one_hot(ids, 9).to(m.w.dtype), m.w.T),
        lambda m, ids: F.embedding(ids, m.w) @ m.w.T,
    ],
)
def test_tables_are_embeddings(function):
    assert roles_of(function, IDS, w=(9, 8)) == {"w": "embedding"}


def test_experts_picked_from_a_stack_are_linear():
    def mixture(m, x):
        scores, picked = F.linear(x, m.gate).softmax(-1).topk(1)
        return x + (x[:, None] @ m.experts[picked[:, 0]])[:, 0] * scores

    found = roles_of(mixture, X, gate=(4, 8), experts=(4, 8, 8))
    assert found == {"gate": "router", "experts": "linear"}


def test_convolutions():
    def net(m, x):
        x = F.conv2d(x, m.patches, stride=4)
        x = F.conv2d(x, m.apart, padding=1, groups=6)
        x = F.relu(F.conv2d(x, m.plain, padding=1))
        return F.conv2d(x, m.last)

    shapes = {"patches": (6, 3, 4, 4), "apart": (6, 1, 3, 3), "plain": (6, 6, 3, 3)}
    assert roles_of(net, IMAGE, last=(5, 6, 1, 1), **shapes) == {
        "patches": "embedding",
        "apart": "depthwise",
        "plain": "conv",
        "last": "output head",
    }


def test_what_is_added_or_multiplied_elementwise_is_other():
    function = lambda m, x: F.linear(x * m.gain + m.shift, m.w * m.scale) + x  # noqa: E731
    shapes = {"gain": (2, 8), "shift": (2, 8), "w": (8, 8), "scale": (8, 1)}
    found = roles_of(function, X, **shapes)
    assert found == {"gain": "other", "shift": "other", "w": "linear", "scale": "other"}


def test_adapters_are_linear():
    function = lambda m, x: x + F.linear(x, m.w + m.b @ m.a)  # noqa: E731
    found = roles_of(function, X, w=(8, 8), a=(2, 8), b=(8, 2))
    assert found == {"w": "linear", "a": "linear", "b": "linear"}


@pytest.mark.parametrize("name", ["mlp", "mobilenet", "vit", "gpt2", "llama", "mixtral", "lstm"])
def test_roles_agree_with_the_names_that_families_use(name):
    """By the classes of the modules, which the graph does not see."""
    example = FAMILIES[name]()
    options = example.arguments()
    found = trace_module(
        example.model,
        options["example_args"],
        options["example_kwargs"],
        options["dynamic_shapes"],
    ).roles()
    heads = ("lm_head", "fc2", "classifier", "head", "pooler.dense")
    for path, module in example.model.named_modules():
        role = found.get(f"{path}.weight")
        if isinstance(module, nn.Embedding):
            assert role == "embedding"
        elif isinstance(module, nn.Linear):
            head = path in heads or path.partition(".")[0] == "classifier"
            assert role in ({"output head", "embedding"} if head else {"linear"})
        elif isinstance(module, nn.Conv2d):
            patches = module.stride == module.kernel_size != (1, 1)
            depthwise = "depthwise" if module.groups > 1 else "conv"
            assert role == ("embedding" if patches else depthwise)
