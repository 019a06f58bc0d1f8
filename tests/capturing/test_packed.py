"""Modules with packed layers are captured and converted as they are."""

import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tpack
from tpack.errors import UsageError
from tpack.nn import BitLinear, TernaryConv2d, TernaryEmbedding, TernaryLinear, unfreeze
from tpack.nn.reference import pack_trits

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def filled(module):
    """A module whose packed layers have random trits and scales."""
    generator = torch.Generator().manual_seed(0)
    for owner in module.modules():
        for name, shape in getattr(owner, "ternary_shapes", {}).items():
            trits = torch.randint(-1, 2, (shape[0], math.prod(shape[1:])), generator=generator)
            layout = owner.ternary_layouts.get(name, "t2")
            setattr(owner, f"{name}_packed", pack_trits(trits, layout))
            getattr(owner, f"{name}_scale").data.uniform_(0.1, 0.5, generator=generator)
    return module.eval()


class Mixed(nn.Module):
    """Two packed layers beside a float layer."""

    def __init__(self, kind=TernaryLinear, dtype=torch.float32, **options):
        super().__init__()
        self.up = kind(8, 6, dtype=dtype, **options)
        self.down = kind(6, 5, layout="t5", bias=False, dtype=dtype)
        self.head = nn.Linear(5, 3).to(dtype)

    def forward(self, x):
        return self.head(F.relu(self.down(F.relu(self.up(x)))))


class Tokens(nn.Module):
    """A packed table, whose ids have two dims."""

    def __init__(self, **options):
        super().__init__()
        self.embed = TernaryEmbedding(10, 8, **options)
        self.proj = BitLinear(8, 5)

    def forward(self, ids):
        return self.proj(self.embed(ids))


class Picture(nn.Module):
    """Convolutions."""

    def __init__(self, **options):
        super().__init__()
        self.first = TernaryConv2d(3, 4, 3, padding=1, **options)
        self.second = TernaryConv2d(4, 4, (3, 1), groups=2, stride=(2, 1), bias=False, scale="row")

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


PACKED = (TernaryLinear, BitLinear, TernaryEmbedding, TernaryConv2d)
BF16 = {"dtype": torch.bfloat16, "scale": "group:4", "scale_dtype": torch.float32}
CASES = {
    "linear": (Mixed, {}, "self.down = TernaryLinear(6, 5, bias=False, layout="),
    "column": (Mixed, {"scale": "column"}, 'self.up = TernaryLinear(8, 6, scale="column")'),
    "bfloat16": (Mixed, BF16, "scale_dtype=torch.float32, dtype=torch.bfloat16"),
    "bit": (Mixed, {"kind": BitLinear}, "self.up = BitLinear(8, 6)"),
    "bit bfloat16": (Mixed, {"kind": BitLinear, **BF16}, "8, 6, scale="),
    "embedding": (Tokens, {}, "self.embed = TernaryEmbedding(10, 8)"),
    "rows": (Tokens, {"scale": "row", "layout": "t5"}, "TernaryEmbedding(10, 8, scale="),
    "conv": (Picture, {"layout": "t5"}, "TernaryConv2d(3, 4, 3, padding=1, layout="),
}
X = {Mixed: torch.linspace(-1, 1, 16).reshape(2, 8), Tokens: IDS, Picture: torch.rand(2, 3, 6, 6)}


@pytest.mark.parametrize("name", CASES)
def test_packed_layers_keep_their_bytes_and_their_classes(tmp_path, name):
    kind, options, line = CASES[name]
    module = filled(kind(**options))
    x = X[kind].to(options.get("dtype", X[kind].dtype))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    report = tpack.convert(module, tmp_path / "a", example_args=(x,))
    loaded = tpack.load(tmp_path / "a")
    after = loaded.state_dict()
    assert list(module.state_dict()) == list(before)  # the module is as it was
    assert type(module.get_submodule(next(iter(dict(module.named_children()))))) in PACKED
    for key, value in before.items():
        assert torch.equal(after[key], value), key
        assert torch.equal(module.state_dict()[key], value), key
    assert torch.equal(loaded(x), module(x))
    assert line in tpack.generate_pytorch_code(tpack.capture(module, (x,)))
    rows = {row.name: row for row in report.tensors}
    packed = [row for row in rows.values() if row.name + "_packed" in before]
    assert {row.action for row in packed} == {"packed"}
    assert not report.warnings


def test_float_layers_beside_packed_ones_are_kept(tmp_path):
    report = tpack.convert(filled(Mixed()), tmp_path / "a", example_args=(X[Mixed],))
    kept = {row.name: row.reason for row in report.tensors if row.action == "kept"}
    assert kept["head.weight"] == "output head"


class Net(nn.Module):
    """A small model for a checkpoint."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, ids):
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = hidden + F.silu(layer(hidden))
        return hidden


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "net.safetensors"
    torch.manual_seed(0)
    tpack.convert(Net().eval(), path, example_args=(IDS,), quantize="absmean", include=["*weight"])
    return path


@pytest.mark.parametrize("given", [{}, {"example_args": (IDS,)}])
def test_a_loaded_model_is_converted_to_the_same_bytes(tmp_path, checkpoint, given):
    tpack.convert(tpack.load(checkpoint), tmp_path / "a", **given)
    assert (tmp_path / "a").read_bytes() == checkpoint.read_bytes()


def test_a_loaded_model_that_was_changed_is_traced(checkpoint):
    loaded = tpack.load(checkpoint)
    source = tpack.generate_pytorch_code(tpack.capture(loaded, (IDS,)))
    loaded.layers[1] = nn.Identity()
    changed = tpack.generate_pytorch_code(tpack.capture(loaded, (IDS,)))
    assert "class Net(" in changed
    assert changed != source


@pytest.mark.parametrize("standalone", [False, True])
def test_a_generated_class_gives_its_source_again(tmp_path, checkpoint, standalone):
    loaded = tpack.load(checkpoint)
    source = tpack.generate_pytorch_code(tpack.capture(loaded, (IDS,)), standalone=standalone)
    (tmp_path / "net.py").write_text(source)
    spec = importlib.util.spec_from_file_location(f"net{standalone}", tmp_path / "net.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    net = made.Net().eval()
    net.load_state_dict(loaded.state_dict())
    again = tpack.capture(net, (IDS,))
    assert tpack.generate_pytorch_code(again, standalone=standalone) == source
    tpack.convert(net, tmp_path / "converted")
    tpack.save(net, tmp_path / "saved")
    assert (tmp_path / "converted").read_bytes() == (tmp_path / "saved").read_bytes()
    assert torch.equal(tpack.load(tmp_path / "converted")(IDS), loaded(IDS))


class Outer(nn.Module):
    """A loaded model inside another one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.inner(ids))


def test_a_loaded_model_inside_another_keeps_what_is_known_of_its_weights(tmp_path, checkpoint):
    outer = Outer(tpack.load(checkpoint)).eval()
    tpack.convert(outer, tmp_path / "a", example_args=(IDS,))
    rows = {row.name: row.method for row in tpack.inspect(tmp_path / "a").tensors}
    assert set(rows.values()) == {"absmean"}
    source = tpack.generate_pytorch_code(tpack.capture(outer, (IDS,)))
    assert "self.inner = Net()" in source
    assert "def forward(self, ids: Tensor)" in source.partition("class Net(")[2]


def test_masters_are_packed_by_their_rule_and_kept_where_nothing_trained_them(tmp_path, checkpoint):
    module = unfreeze(tpack.load(checkpoint))
    with torch.no_grad():
        module.layers[0].weight[0, 0] += 3
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tpack.convert(module, tmp_path / "a", example_args=(IDS,))
    assert all(torch.equal(state[name], t) for name, t in module.state_dict().items())
    found, old = tpack.load(tmp_path / "a"), tpack.load(checkpoint)
    assert torch.equal(found.layers[1].weight_packed, old.layers[1].weight_packed)
    assert not torch.equal(found.layers[0].weight_scale, old.layers[0].weight_scale)
    torch.testing.assert_close(found(IDS), module(IDS))


def test_a_state_dict_of_a_packed_module_says_what_to_do():
    with pytest.raises(tpack.NotTernaryError, match=r"tpack\.convert\(module, path\)"):
        tpack.convert(filled(Mixed()).state_dict(), "a")


def test_scales_of_another_dtype_are_refused():
    module = filled(Mixed()).double()
    with pytest.raises(UsageError, match=r"scale of torch\.float64"):
        tpack.capture(module, (X[Mixed].double(),))


def test_a_size_that_the_capture_fixed_is_named(tmp_path):
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    tpack.convert(module, tmp_path / "a", example_args=torch.ones(1, 4))  # a tensor alone
    loaded = tpack.load(tmp_path / "a")
    assert loaded(torch.ones(1, 4)).shape == (1, 2)
    with pytest.raises(UsageError, match=r"dim 0 is 2, where the capture fixed 1"):
        loaded(torch.ones(2, 4))
    with pytest.raises(UsageError, match=r"expected \(1, 4\): 2 dims"):
        loaded(torch.ones(4))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_wrappers_are_captured_as_what_is_in_them():
    module, x = filled(Mixed()), X[Mixed]
    expected = tpack.capture(module, x)
    assert tpack.capture(nn.DataParallel(module), x) == expected
    assert tpack.capture(torch.compile(module), x) == expected


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ({"x": X[Mixed]}, None, "are a dict, expected a tuple"),
        ("x", None, "are a str, expected a tuple"),
        ((X[Mixed],), [1], "are a list, expected a dict"),
    ],
)
def test_arguments_of_another_kind_are_explained(args, kwargs, message):
    with pytest.raises(UsageError, match=message):
        tpack.capture(filled(Mixed()), args, kwargs)
