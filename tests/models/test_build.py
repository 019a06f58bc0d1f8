"""Built modules are proper modules."""

import copy
import io
import pickle

import pytest
import torch
from running import randomize, readings, same
from safetensors.torch import load_file, save_file
from trees import IDS, W, X, call, network

from tpack.build import BuiltModule, build_module
from tpack.layerdef import (
    LayerCall,
    LayerDef,
    Param,
    Program,
    Return,
    Unspecified,
    slots,
)

pytestmark = pytest.mark.usefixtures("plain_torch")

BOTH = pytest.mark.parametrize("reading", ["build", "source", "standalone"])


# ---- proper modules


def test_deepcopy(module):
    clone = copy.deepcopy(module)
    same(clone(IDS), module(IDS))
    with torch.no_grad():
        clone.head.weight_scale += 1
    assert not torch.equal(clone.head.weight_scale, module.head.weight_scale)
    assert not torch.equal(clone(IDS), module(IDS))


def test_pickle(module):
    again = pickle.loads(pickle.dumps(module))
    same(again(IDS), module(IDS))


def test_torch_save(module):
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    same(torch.load(stream, weights_only=False)(IDS), module(IDS))


def test_compile(module):
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    same(compiled(IDS), module(IDS))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compile_inductor():
    torch._dynamo.reset()
    module = build_module(network())
    randomize(module)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(IDS), module(IDS), rtol=1e-2, atol=1e-2)


def test_export(module):
    program = torch.export.export(module, (IDS,))
    same(program.module()(IDS), module(IDS))
    assert set(program.state_dict) == set(module.state_dict())


def test_export_with_a_dynamic_batch(module):
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    shapes = ((batch,),) if isinstance(module, BuiltModule) else (batch,)
    program = torch.export.export(module, (IDS,), dynamic_shapes=shapes)
    longer = torch.cat([IDS, IDS, IDS])
    torch.testing.assert_close(program.module()(longer), module(longer))


def test_safetensors_round_trip(module, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(module.state_dict(), path)
    other = build_module(network())
    other.load_state_dict(load_file(path), strict=True)
    for key, value in module.state_dict().items():
        assert value.numpy().tobytes() == other.state_dict()[key].numpy().tobytes()
    same(other(IDS), module(IDS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_dtype(module, dtype):
    expected = module(IDS)
    moved = copy.deepcopy(module).to(dtype)
    assert moved.head.weight_packed.dtype == torch.uint8
    assert moved.head.weight_scale.dtype == dtype
    result = moved(IDS)
    assert result.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(result.float(), expected, rtol=5e-2, atol=5e-2)


def test_half_input_on_float_scales():
    for module in readings(LayerDef("L", [Param("w", "TernaryTensor", [6, 5])])).values():
        x = torch.randn(3, 6)
        half = module(x.half())
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.float(), module(x), rtol=1e-2, atol=2e-2)


def test_meta_device_allocates_nothing():
    module = build_module(network(), device="meta")
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    built = build_module(network())
    randomize(built)
    module.load_state_dict(built.state_dict(), strict=True, assign=True)
    same(module(IDS), built(IDS))


def test_built_module_is_in_eval_mode():
    assert not any(module.training for module in build_module(network()).modules())


def test_keyword_arguments(module):
    same(module(ids=IDS), module(IDS))


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((IDS, IDS), {}), ((IDS,), {"ids": IDS}), ((), {"x": IDS})]
)
def test_wrong_arguments(module, args, kwargs):
    with pytest.raises(TypeError):
        module(*args, **kwargs)


@BOTH
def test_unspecified_body(reading):
    layer = LayerDef("Net", [Param("w", "TernaryTensor", [2, 2])], [Unspecified()])
    module = readings(layer)[reading]
    assert sorted(module.state_dict()) == ["w_packed", "w_scale"]
    with pytest.raises(NotImplementedError, match=r"Net: .*example_args"):
        module(torch.ones(2))


def test_repr_names_the_layers():
    text = repr(build_module(network()))
    assert "up=(12, 6)" in text
    assert "Block" in text


@BOTH
def test_dtypes_of_stored_tensors(reading):
    params = [
        Param("w", "TernaryTensor", [4, 4], dtype="bfloat16", scale="row"),
        Param("a", "Tensor", [2], dtype="float16"),
        Param("n", "Buffer", [], dtype="int64"),
        Param("flag", "Buffer", [0, 3], dtype="bool"),
    ]
    state = readings(LayerDef("L", params, [Return(call("linear", X, W))]))[reading].state_dict()
    assert {key: (value.dtype, tuple(value.shape)) for key, value in state.items()} == {
        "w_packed": (torch.uint8, (4, 1)),
        "w_scale": (torch.bfloat16, (4, 1)),
        "a": (torch.float16, (2,)),
        "n": (torch.int64, ()),
        "flag": (torch.bool, (0, 3)),
    }


@pytest.mark.parametrize(
    ("layer", "args", "make"),
    [
        ("Linear", {"in_features": 4, "out_features": 3}, lambda: torch.nn.Linear(4, 3)),
        ("Embedding", {"num_embeddings": 5, "embedding_dim": 3}, lambda: torch.nn.Embedding(5, 3)),
        (
            "Conv2d",
            {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "groups": 2, "padding": 1},
            lambda: torch.nn.Conv2d(4, 6, (3, 2), groups=2, padding=1),
        ),
        ("LayerNorm", {"normalized_shape": 4}, lambda: torch.nn.LayerNorm(4)),
        ("LayerNorm", {"normalized_shape": (2, 4)}, lambda: torch.nn.LayerNorm((2, 4))),
        (
            "LayerNorm",
            {"normalized_shape": 4, "bias": False},
            lambda: torch.nn.LayerNorm(4, bias=False),
        ),
        (
            "LayerNorm",
            {"normalized_shape": 4, "elementwise_affine": False},
            lambda: torch.nn.LayerNorm(4, elementwise_affine=False),
        ),
        ("RMSNorm", {"normalized_shape": 4}, lambda: torch.nn.RMSNorm(4)),
        (
            "RMSNorm",
            {"normalized_shape": 4, "eps": 0.1, "elementwise_affine": False},
            lambda: torch.nn.RMSNorm(4, eps=0.1, elementwise_affine=False),
        ),
        (
            "GroupNorm",
            {"num_groups": 2, "num_channels": 4, "eps": 0.1},
            lambda: torch.nn.GroupNorm(2, 4, eps=0.1),
        ),
        ("BatchNorm1d", {"num_features": 4}, lambda: torch.nn.BatchNorm1d(4)),
        (
            "BatchNorm2d",
            {"num_features": 4, "affine": False},
            lambda: torch.nn.BatchNorm2d(4, affine=False),
        ),
        ("BatchNorm3d", {"num_features": 4}, lambda: torch.nn.BatchNorm3d(4)),
    ],
)
def test_builtin_layers_are_torchs_own(layer, args, make):
    tree = LayerDef(
        "Net",
        [Param("child", "Layer", layer=layer, args=args), Param("x", "Tensor")],
        [Return(LayerCall("child", [X]))],
    )
    reference = make().eval()
    with torch.no_grad():
        for value in reference.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
    inputs = {
        "Embedding": torch.tensor([0, 4]),
        "Conv2d": torch.randn(2, 4, 5, 5),
        "GroupNorm": torch.randn(2, 4, 3),
        "BatchNorm2d": torch.randn(2, 4, 3, 3),
        "BatchNorm3d": torch.randn(2, 4, 3, 2, 3),
    }
    x = inputs.get(layer, torch.randn(3, 2, 4) if layer != "BatchNorm1d" else torch.randn(3, 4))
    names = {slot.name.removeprefix("child.") for slot in slots(Program([tree], "Net"))}
    assert names == set(reference.state_dict())
    for module in readings(tree).values():
        module.child.load_state_dict(reference.state_dict(), strict=True)
        same(module(x), reference(x))
