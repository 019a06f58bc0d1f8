"""Freezing: what nothing trained comes back bit for bit; what cannot be packed is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from running import inputs_of, readings
from strategies import UNSHRUNK, Runnable, runnables
from torch import nn
from training_models import SCALES, close, layer_of, network, states_equal
from trees import INPUT, X

import tpack
from tpack.build import build_module
from tpack.codec import Scale, unpack
from tpack.errors import InputError, UsageError
from tpack.layerdef import FunctionCall, Identifier, LayerCall, LayerDef, Param, Return
from tpack.nn import (
    TernaryLinear,
    freeze,
    is_unfrozen,
    unfreeze,
)
from tpack.quantize import METHODS

# ---- freezing what nothing trained


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["t2", "t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "embedding"])
def test_nothing_is_lost(kind, dtype, layout, method, scale):
    layer, x = layer_of(kind, scale=scale, layout=layout, scale_dtype=dtype)
    with torch.no_grad():  # rows of zeros, scales that are zero, negative, tiny or huge
        layer.weight_packed[1] = {"t2": 0x55, "t5": 0x80}[layout]
        for value, place in zip((0, -0.7, 6e-8, 6e4), layer.weight_scale.view(-1), strict=False):
            place.fill_(value)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    scale_before, kind_before = layer.weight_scale, type(layer)
    assert unfreeze(layer, method) is layer
    assert "weight_packed" not in layer.state_dict()
    assert layer.weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    layer(x)
    assert freeze(layer) is layer
    states_equal(before, layer.state_dict())
    assert layer.weight_scale is scale_before
    assert type(layer) is kind_before
    assert layer.__dict__.keys() == layer_of(kind)[0].__dict__.keys()


@settings(max_examples=40, phases=UNSHRUNK)
@given(runnables(), st.sampled_from(sorted(METHODS)))
def test_any_module_computes_the_same_unfrozen_and_is_frozen_as_it_was(
    example: Runnable, method: str
):
    for module in readings(example.program).values():
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        packed = {name.removesuffix("_packed") for name in before if name.endswith("_packed")}
        if not packed:
            with pytest.raises(UsageError, match="has no packed weights"):
                unfreeze(module)
            continue
        weights = {name: own(module, f"{name}_packed", f"{name}_scale") for name in packed}
        unfreeze(module, method)
        names = {
            n for n in before if n.removesuffix("_packed").removesuffix("_scale") not in packed
        }
        assert set(module.state_dict()) == names | packed
        for name, (values, scale) in weights.items():
            found, one = own(module, f"{name}_packed", f"{name}_scale")
            close(found.float() * one.float(), values.float() * scale.float())
        with torch.no_grad():
            module(*inputs_of(example))
        freeze(module)
        after = module.state_dict()
        states_equal({n: before[n] for n in sorted(before)}, {n: after[n] for n in sorted(after)})


def own(module, packed, scale):
    """The trits (or, unfrozen, weights) and the scales of a weight, spread to one shape."""
    prefix, _, name = packed.rpartition(".")
    owner = module.get_submodule(prefix)
    name = name.removesuffix("_packed")
    shape = owner.ternary_shapes[name]
    values, scale = getattr(owner, f"{name}_packed"), getattr(owner, scale.rpartition(".")[2])
    columns = int(np.prod(shape[values.dim() - 1 :]))
    if values.dtype == torch.uint8:
        layout = owner.ternary_layouts.get(name, "t2")
        values = torch.from_numpy(unpack(values.numpy(), columns, layout)).float()
    if scale.shape[-1] > 1:
        size = owner.ternary_groups.get(name) or 1  # none: a scale for each column
        scale = torch.stack([scale[..., i // size] for i in range(columns)], -1)
    return values, scale.detach()


# ---- another granularity


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tensor", "row"),
        ("row", "group:32"),
        ("group:32", "column"),
        ("column", "group:5"),
        *[("group:32", "tensor"), ("tensor", "group:5"), ("group:32", "group:64")],
    ],
)
@pytest.mark.parametrize("reading", ["build", "source", "standalone"])
def test_layers_take_another_granularity(reading, old, new, tmp_path):
    args = {"in_features": 80, "out_features": 6, "scale": old}
    tree = LayerDef(
        "Net",
        [Param("fc", "Layer", layer="TernaryLinear", args=args), INPUT],
        [Return(LayerCall("fc", [X]))],
    )
    module = readings(tree)[reading]
    unfreeze(module, scale=new)
    with torch.no_grad():
        module.fc.weight.copy_(torch.randn(6, 80, generator=torch.manual_seed(0)))
    x = torch.randn(3, 80)
    with torch.no_grad():
        expected = module(x)
        freeze(module)
        assert module.fc.weight_scale.shape == Scale.parse(new).shape((6, 80), 1)
        close(module(x), expected)
        tpack.save(module, tmp_path / "m")
        assert tpack.inspect(tmp_path / "m").tensors[0].scale == new
        close(tpack.load(tmp_path / "m")(x), expected)


@pytest.mark.parametrize("reading", ["build", "source"])
def test_source_takes_the_granularities_that_it_can_infer(reading, tmp_path):
    def made(scale):
        weight = Param("w", "TernaryTensor", [6, 80], scale=scale)
        return LayerDef("L", [weight], [Return(FunctionCall("linear", [X, Identifier("w")]))])

    x = torch.randn(3, 80)
    ways = [("tensor", "row"), ("row", "group:32"), ("row", "column"), ("column", "group:32")]
    for old, new in (*ways, ("group:32", "row")):
        module = unfreeze(readings(made(old))[reading], "mse", new)
        with torch.no_grad():
            module.w.add_(torch.randn(6, 80, generator=torch.manual_seed(0)))
            expected = module(x)
            close(freeze(module)(x), expected)
            if old != "group:32":
                tpack.save(module, tmp_path / "m", force=True)
                close(tpack.load(tmp_path / "m")(x), expected)
    for old, new in (("group:32", "group:64"), ("tensor", "group:5"), ("group:32", "column")):
        module = readings(made(old))[reading]
        with pytest.raises(UsageError, match=f"tensor 'w' has scales per {old}, and the source"):
            unfreeze(module, scale=new)
        assert not is_unfrozen(module)


def test_copies_of_one_layer_share_a_granularity(tmp_path):
    module = build_module(network())
    unfreeze(module.blocks[0], scale="tensor")
    with torch.no_grad():
        module.blocks[0].up.add_(1)
    freeze(module)
    tpack.save(module, tmp_path / "m")  # the coarser scale is repeated
    again = tpack.load(tmp_path / "m")
    assert len({block.up_scale.shape for block in again.blocks}) == 1
    for found, made in zip(again.blocks, module.blocks, strict=True):
        assert (found.up_scale == made.up_scale).all()
        assert torch.equal(found.up_packed, made.up_packed)


# ---- refusals


def test_divergence_is_named_and_nothing_is_packed():
    module = nn.Sequential(TernaryLinear(4, 4), nn.Sequential(TernaryLinear(4, 4)))
    unfreeze(module)
    with torch.no_grad():
        module[0].weight.add_(1)
        module[1][0].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"tensor '1\.0\.weight' has NaN or infinity"):
        freeze(module)
    assert set(module.state_dict()) == {"0.weight", "0.bias", "1.0.weight", "1.0.bias"}


def test_a_scale_that_overflows_is_refused():
    layer = unfreeze(TernaryLinear(4, 4, scale_dtype=torch.float16))
    with torch.no_grad():
        layer.weight.fill_(1e6)
    with pytest.raises(InputError, match=r"scale of more than 65504, which torch.float16"):
        freeze(layer)


def test_misuse_is_refused(tmp_path):
    with pytest.raises(UsageError, match="method 'best' is unknown"):
        unfreeze(TernaryLinear(4, 4), "best")
    with pytest.raises(UsageError, match="scale 'columns' is unknown"):
        unfreeze(TernaryLinear(4, 4), scale="columns")
    with pytest.raises(UsageError, match="Linear has no packed weights"):
        unfreeze(nn.Linear(4, 4))
    module = unfreeze(build_module(network()))
    with pytest.raises(UsageError, match="has no packed weights"):
        unfreeze(module)
    with pytest.raises(UsageError, match="save: the module is unfrozen"):
        tpack.save(module, tmp_path / "m")
    with pytest.raises(UsageError, match="is unfrozen, expected its float weight"):
        module.head.weight_packed = torch.zeros(4, 4, dtype=torch.uint8)
    assert freeze(nn.Linear(2, 2)) is not None


def test_print():
    assert repr(unfreeze(TernaryLinear(4, 2), "mse", "row")) == (
        "TernaryLinear(4, 2, bias=True, weight: mse per row)"
    )


@pytest.mark.parametrize("reading", ["build", "source", "standalone"])
def test_groups_of_any_size_are_saved(reading, tmp_path):
    weight = Param("w", "TernaryTensor", [6, 100], scale="group:60")
    tree = LayerDef("L", [weight], [Return(FunctionCall("linear", [X, Identifier("w")]))])
    module = unfreeze(readings(tree)[reading], "twn")
    with torch.no_grad():
        module.w.add_(torch.randn(6, 100, generator=torch.manual_seed(0)))
    x = torch.randn(3, 100)
    expected = freeze(module)(x).detach()
    tpack.save(module, tmp_path / "m")
    assert tpack.inspect(tmp_path / "m").tensors[0].scale == "group:60"
    close(tpack.load(tmp_path / "m")(x).detach(), expected)
