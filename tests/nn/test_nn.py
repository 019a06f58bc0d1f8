"""The ternary ops and layers against torch on weights written out."""

import pytest
import torch
import torch.nn.functional as F
from running import dequantized

import tpack.nn as tnn
from tpack import codec
from tpack.nn.modules import repack_trits, scale_ones
from tpack.nn.reference import spread_scale
from tpack.pack import pack_ternary

SCALES = ["tensor", "row", "column", "group:2", "group:3", "group:32"]
LAYOUTS = list(codec.LAYOUTS)  # a new one needs a form in torch, too
TOLERANCE = {
    torch.float64: {"rtol": 1e-6, "atol": 1e-6},
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.float16: {"rtol": 1e-2, "atol": 5e-2},
    torch.bfloat16: {"rtol": 5e-2, "atol": 2e-1},
}
DTYPES = list(TOLERANCE)


def make(shape, scale="tensor", layout="t2", dtype=torch.float32, seed=0):
    """Packed bytes, scale, options, and the weight written out in float64."""
    generator = torch.Generator().manual_seed(seed)
    trits = torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)
    rows, columns = shape[0], trits[0].numel()
    packed = torch.from_numpy(codec.pack(trits.reshape(rows, columns).numpy(), layout))
    size = int(scale.partition(":")[2] or 0)
    sizes = {"tensor": (1,), "row": (rows, 1), "column": (1, columns)}.get(scale)
    sizes = sizes or (rows, -(-columns // size))
    scales = (torch.rand(sizes, generator=generator) + 0.5).to(dtype)
    weight = torch.empty(rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            place = {"tensor": 0, "row": (i, 0), "column": (0, j)}.get(scale)
            one = scales[place if size == 0 else (i, j // size)]
            weight[i, j] = trits.reshape(rows, columns)[i, j].double() * one.double()
    return packed, scales, {"layout": layout, "group_size": size}, weight.reshape(shape)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("columns", [1, 4, 5, 7, 64, 67])
def test_dequantize(scale, layout, columns):
    packed, scales, options, weight = make((3, columns), scale, layout)
    result = tnn.dequantize(packed, scales, (3, columns), **options)
    assert result.dtype == scales.dtype
    assert torch.equal(result.double(), weight)


def test_dequantize_follows_a_float_and_not_an_integer():
    packed, scales, options, _ = make((3, 5))
    for like, dtype in ((torch.half, torch.half), (torch.int64, torch.float32)):
        made = tnn.dequantize(packed, scales, (3, 5), torch.zeros(1, dtype=like), **options)
        assert made.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [False, True])
def test_linear(dtype, scale, layout, bias):
    packed, scales, options, weight = make((3, 7), scale, layout)
    x = torch.randn(2, 4, 7).to(dtype)
    b = torch.randn(3) if bias else None
    result = tnn.ternary_linear(x, packed, scales, b, **options)
    assert result.dtype == dtype
    expected = F.linear(x.double(), weight, None if b is None else b.double())
    torch.testing.assert_close(result.double(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_matmul(dtype, scale, layout):
    packed, scales, options, weight = make((7, 3), scale, layout)
    x = torch.randn(2, 4, 7).to(dtype)
    result = tnn.ternary_matmul(x, packed, scales, (7, 3), **options)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), x.double() @ weight, **TOLERANCE[dtype])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding(scale, layout, dtype):
    packed, scales, options, weight = make((6, 7), scale, layout, dtype)
    for ids in (torch.tensor([[0, 5], [3, 3]]), torch.tensor(2), torch.zeros(0, dtype=torch.int64)):
        result = tnn.ternary_embedding(ids, packed, scales, (6, 7), **options)
        assert result.dtype == dtype
        assert torch.equal(result.double(), F.embedding(ids, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "dilation": 2},
        {"groups": 2, "padding": (1,)},
    ],
)
def test_convolutions(dtype, scale, layout, options):
    for shape, function, plain in (
        ((4, 2, 3), tnn.ternary_conv1d, F.conv1d),
        ((4, 2, 3, 2), tnn.ternary_conv2d, F.conv2d),
    ):
        given = {
            key: value * (len(shape) - 2) if isinstance(value, tuple) else value
            for key, value in options.items()
        }
        packed, scales, stored, weight = make(shape, scale, layout)
        x = torch.randn(2, 2 * given.get("groups", 1), *[9] * (len(shape) - 2)).to(dtype)
        for bias in (None, torch.randn(4)):
            result = function(x, packed, scales, shape, bias, **given, **stored)
            assert result.dtype == dtype
            b = None if bias is None else bias.double()
            expected = plain(x.double(), weight, b, **given)
            torch.testing.assert_close(result.double(), expected, **TOLERANCE[dtype])


# ---- bit_linear


def brute_force_bit_linear(x, weight, bias):
    """Integers, one token at a time; x in float32."""
    tokens = x.float().reshape(-1, x.shape[-1])
    rows = []
    for token in tokens:
        gain = torch.tensor(127.0) / max(token.abs().max(), torch.tensor(1e-5))
        levels = [max(-128, min(127, round((value * gain).item()))) for value in token]
        total = weight @ torch.tensor(levels, dtype=torch.float64) / gain.double()
        rows.append(total if bias is None else total + bias.double())
    return torch.stack(rows).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bit_linear(dtype, scale, layout):
    packed, scales, options, weight = make((3, 7), scale, layout)
    x = torch.randn(2, 5, 7).to(dtype)
    x[0, 0] = 0
    x[0, 1] = torch.tensor([127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5])
    x[0, 2] *= 1e-4
    for bias in (None, torch.randn(3)):
        result = tnn.ternary_bit_linear(x, packed, scales, bias, **options)
        assert result.dtype == dtype
        tolerance = TOLERANCE[torch.float32 if dtype == torch.float64 else dtype]
        expected = brute_force_bit_linear(x, weight, bias)
        if dtype == torch.bfloat16:
            tolerance = {"rtol": 2e-2, "atol": 1e-1}
        torch.testing.assert_close(result.double(), expected, **tolerance)


def test_bit_linear_rounds_half_to_even():
    packed = pack_ternary(torch.eye(5, dtype=torch.int8))
    x = torch.tensor([[127, 0.5, 1.5, 2.5, -2.5]])
    result = tnn.ternary_bit_linear(x, packed, torch.ones(1))
    assert result.tolist() == [[127, 0, 2, 2, -2]]


def test_bit_linear_of_zeros_is_the_bias():
    packed, scales, _, _ = make((3, 8))
    bias = torch.randn(3)
    assert torch.equal(tnn.ternary_bit_linear(torch.zeros(2, 8), packed, scales, bias)[0], bias)


def test_bit_linear_passes_gradients_through():
    packed, scales, _, weight = make((3, 8))
    x = torch.randn(4, 8, requires_grad=True)
    tnn.ternary_bit_linear(x, packed, scales).sum().backward()
    torch.testing.assert_close(x.grad.double(), weight.sum(0).expand(4, 8), rtol=1e-4, atol=1e-4)


# ---- autograd


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(scale, layout):
    packed, scales, options, _ = make((3, 7), scale, layout, torch.float64)
    scales.requires_grad_()
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, s, b: tnn.ternary_linear(x, packed, s, b, **options), (x, scales, bias)
    )
    y = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda y, s: tnn.ternary_matmul(y, packed, s, (3, 7), **options), (y, scales)
    )
    ids = torch.tensor([0, 2, 2])
    assert torch.autograd.gradcheck(
        lambda s: tnn.ternary_embedding(ids, packed, s, (3, 7), **options), (scales,)
    )


@pytest.mark.parametrize("scale", SCALES)
def test_gradcheck_of_convolution(scale):
    packed, scales, options, _ = make((2, 2, 3, 2), scale, dtype=torch.float64)
    scales.requires_grad_()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, s: tnn.ternary_conv2d(x, packed, s, (2, 2, 3, 2), **options), (x, scales)
    )


# ---- torch.ops


@pytest.mark.parametrize("columns", [5, 32, 33, 64, 96, 100, 128, 256, 300])
@pytest.mark.parametrize("scale", ["tensor", "row", "group:32", "group:64", "group:128"])
def test_registered_ops_find_the_group_size(columns, scale):
    packed, scales, options, weight = make((2, columns), scale)
    x, bias = torch.randn(3, columns), torch.randn(2)
    size = options["group_size"]
    linear = torch.ops.tpack.linear(x, packed, scales, bias, group_size=size)
    torch.testing.assert_close(
        linear.double(), F.linear(x.double(), weight, bias.double()), rtol=1e-4, atol=1e-4
    )
    bit = torch.ops.tpack.bit_linear(x, packed, scales, group_size=size)
    torch.testing.assert_close(
        bit.double(), brute_force_bit_linear(x, weight, None), rtol=1e-4, atol=1e-3
    )
    candidates = {-(-columns // s) for s in (32, 64, 128, 256)}
    if len(candidates) == 4 and 1 not in candidates:
        found = torch.ops.tpack.linear(x, packed, scales, bias)
        torch.testing.assert_close(found, linear)


def test_registered_ops_compile_and_export():
    packed, scales, _, _ = make((3, 8), "row")

    class Net(torch.nn.Module):
        def forward(self, x):
            return torch.ops.tpack.bit_linear(
                torch.ops.tpack.linear(x, packed, scales), packed[:, :1], scales
            )

    x = torch.randn(2, 8)
    torch._dynamo.reset()
    compiled = torch.compile(Net(), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), Net()(x))
    assert torch.equal(torch.export.export(Net(), (x,)).module()(x), Net()(x))


def test_scales_that_do_not_fit():
    with pytest.raises(ValueError, match="3 groups a row, expected 2"):
        spread_scale(torch.ones(1, 3), 8, 4)


# ---- layers


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", SCALES)
def test_linear_layers(bias, layout, scale):
    packed, scales, _, weight = make((3, 7), scale, layout)
    x = torch.randn(2, 7)
    for cls in (tnn.TernaryLinear, tnn.BitLinear):
        layer = cls(7, 3, bias, scale=scale, layout=layout)
        assert list(layer.state_dict()) == [
            *(["weight_scale", "bias"] if bias else ["weight_scale"]),
            "weight_packed",
        ]
        assert layer.weight_packed.shape == packed.shape
        assert layer.weight_scale.shape == scales.shape
        assert torch.equal(layer(x), torch.zeros(2, 3))
        with torch.no_grad():
            layer.weight_packed.copy_(packed)
            layer.weight_scale.copy_(scales)
            if bias:
                layer.bias.fill_(2)
        b = torch.full((3,), 2.0) if bias else None
        expected = (
            F.linear(x.double(), weight, None if b is None else b.double())
            if cls is tnn.TernaryLinear
            else brute_force_bit_linear(x, weight, b)
        )
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
        assert "7, 3" in repr(layer)


def test_embedding_and_convolution_layers():
    packed, scales, _, weight = make((6, 7), "row")
    table = tnn.TernaryEmbedding(6, 7, scale="row")
    table.load_state_dict({"weight_packed": packed, "weight_scale": scales}, strict=True)
    ids = torch.tensor([1, 5])
    assert torch.equal(table(ids).double(), weight[ids])
    packed, scales, _, weight = make((4, 2, 3, 3), "row")
    conv = tnn.TernaryConv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False, scale="row")
    conv.load_state_dict({"weight_packed": packed, "weight_scale": scales}, strict=True)
    x = torch.randn(2, 4, 8, 8)
    expected = F.conv2d(x.double(), weight, None, 2, 1, 1, 2)
    torch.testing.assert_close(conv(x).double(), expected, rtol=1e-4, atol=1e-4)
    assert "6, 7" in repr(table)
    assert "stride=2" in repr(conv)


@pytest.mark.parametrize(
    ("split", "layout"), [(0, "t2"), (1, "t2"), (2, "t2"), (1, "t5"), (0, "t5")]
)
def test_packed_zeros_hold_trits_0(split, layout):
    shape = (3, 5, 7)
    packed = tnn.packed_zeros(*shape, split=split, layout=layout)
    made = tnn.dequantize(packed, torch.ones(1), shape, layout=layout)
    assert torch.equal(made, torch.zeros(shape))
    columns = 105 // torch.Size(shape[:split]).numel()
    width = codec.LAYOUTS[layout].bytes_for(columns)
    assert packed.shape == (*shape[:split], width)


def test_scale_ones():
    for scale, shape in (("tensor", (1,)), ("row", (3, 1)), ("group:4", (3, 9))):
        made = scale_ones(scale, 3, 5, 7, dtype=torch.float16)
        assert made.shape == shape
        assert made.dtype == torch.float16
        assert made.requires_grad
        assert bool((made == 1).all())


@pytest.mark.parametrize("shape", [(3, 5), (4, 8), (2, 3, 3, 3), (7,), (5, 1)])
@pytest.mark.parametrize("flat", [False, True])
def test_repack(shape, flat):
    trits = torch.randint(-1, 2, shape, dtype=torch.int8)
    split = min(1, len(shape) - 1)
    stored = tnn.packed_zeros(*shape)
    packed = pack_ternary(trits.flatten() if flat else trits)
    made = repack_trits(packed, shape, split)
    assert made.shape == stored.shape
    assert torch.equal(dequantized(made, torch.ones(1), shape, split), trits.double())


def test_unpack_trits_agrees_with_the_codec():
    for layout, kind in codec.LAYOUTS.items():
        data = torch.tensor([b for b in range(256) if kind.valid[b]], dtype=torch.uint8)
        count = len(data) * kind.per_byte
        expected = codec.unpack(data.numpy(), count, layout)
        assert tnn.unpack_trits(data, count, layout).tolist() == expected.tolist()


@pytest.mark.parametrize("layer", [tnn.TernaryLinear, tnn.BitLinear])
@pytest.mark.parametrize("width", [60, 61, 63, 65])
def test_an_input_of_another_width_is_refused(layer, width):
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 64\)"):
        layer(64, 10)(torch.randn(2, width))


def test_packed_bytes_of_another_width_are_refused():
    packed = pack_ternary(torch.ones(5, 70))
    with pytest.raises(ValueError, match="packed is"):
        torch.ops.tpack.linear(torch.randn(3, 60), packed, torch.ones(1))


def test_negative_ids_are_refused():
    with pytest.raises(IndexError):
        tnn.TernaryEmbedding(4, 8)(torch.tensor([-1]))


@pytest.mark.parametrize("columns", [30, 33])
def test_assigning_packed_trits_to_a_layer_in_t5(columns):
    trits = torch.randint(-1, 2, (4, columns))
    layer = tnn.TernaryLinear(columns, 4, bias=False, layout="t5")
    layer.weight_packed = pack_ternary(trits)
    assert torch.equal(layer(torch.eye(columns)).T, trits.float())
