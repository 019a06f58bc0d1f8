"""Ops on the kernels: what modules call, equal to the reference in every way they are called."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import tpack.nn as tn
from tpack import kernels
from tpack.nn import extension, functional, reference
from tpack.pack import pack_ternary, unpack_ternary

ROWS, COLUMNS = 33, 100
SCALES = {"tensor": (1,), "row": (ROWS, 1), "column": (1, COLUMNS), "group": (ROWS, 4)}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(params=[name for name in kernels.available() if name != "numpy"] or ["numpy"])
def variant(request):
    with kernels.forced(request.param):
        yield request.param


def case(scale="row", dtype=torch.float32, tokens=(2, 5)):
    generator = torch.Generator().manual_seed(0)
    trits = torch.randint(-1, 2, (ROWS, COLUMNS), generator=generator)
    x = torch.randn(*tokens, COLUMNS, generator=generator).to(dtype)
    scales = torch.rand(SCALES[scale], generator=generator) + 0.1
    bias = torch.randn(ROWS, generator=generator)
    return x, pack_ternary(trits), scales, bias


def close(found, expected):
    tolerance = TOLERANCE[expected.dtype] * float(expected.detach().abs().max() + 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["ternary_linear", "ternary_bit_linear"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [(1,), (2, 5), (70,), ()])
def test_rows_equal_the_reference(name, scale, dtype, tokens, variant):
    x, packed, scales, bias = case(scale, dtype, tokens)
    with torch.no_grad():
        found = getattr(tn, name)(x, packed, scales, bias)
    close(found, getattr(reference, name)(x, packed, scales, bias))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_matmul_equals_the_reference(dtype, variant):
    x, _, _, _ = case(dtype=dtype)
    packed = pack_ternary(torch.randint(-1, 2, (COLUMNS, ROWS)))
    scale = torch.rand(COLUMNS, 1)
    found = tn.ternary_matmul(x, packed, scale, (COLUMNS, ROWS))
    close(found, reference.ternary_matmul(x, packed, scale, (COLUMNS, ROWS)))


@pytest.mark.parametrize("scale", SCALES)
def test_embedding_and_dequantize_are_exact(scale, variant):
    _, packed, scales, _ = case(scale)
    ids = torch.randint(0, ROWS, (3, 4))
    shape = (ROWS, COLUMNS)
    found = tn.ternary_embedding(ids, packed, scales, shape)
    assert torch.equal(found, reference.ternary_embedding(ids, packed, scales, shape))
    assert torch.equal(
        tn.dequantize(packed, scales, shape), reference.dequantize(packed, scales, shape)
    )


def test_scales_of_single_weights_are_those_of_no_row(variant):
    x, packed, _, bias = case()
    scales = torch.rand(ROWS, COLUMNS) + 0.1
    weight = unpack_ternary(packed, (ROWS, COLUMNS)) * scales
    with torch.no_grad():
        assert torch.equal(tn.dequantize(packed, scales, (ROWS, COLUMNS)), weight)
        close(tn.ternary_linear(x, packed, scales, bias), F.linear(x, weight, bias))
        ids = torch.tensor([3, 0])
        found = tn.ternary_embedding(ids, packed, scales, (ROWS, COLUMNS), group_size=1)
    assert torch.equal(found, weight[ids])


@pytest.mark.parametrize(
    ("shape", "group_size"),
    [((1, COLUMNS), 32), ((1, 4), 0), ((COLUMNS,), 0), ((2, COLUMNS), 0), ((ROWS, 101), 0)],
)
def test_scales_that_fit_no_granularity_are_refused(shape, group_size, variant):
    x, packed, _, _ = case()
    for call in (
        lambda s: tn.ternary_linear(x, packed, s, group_size=group_size),
        lambda s: tn.dequantize(packed, s, (ROWS, COLUMNS), group_size=group_size),
    ):
        with torch.no_grad(), pytest.raises(ValueError, match="scale has"):
            call(torch.ones(shape))


@pytest.mark.parametrize("tokens", [(1,), (2, 5), (70,)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_matmul_with_a_scale_for_each_output(dtype, tokens, variant):
    x = torch.randn(*tokens, COLUMNS, generator=torch.manual_seed(1)).to(dtype)
    trits = torch.randint(-1, 2, (COLUMNS, ROWS))
    packed, scale = pack_ternary(trits), torch.rand(1, ROWS) + 0.1
    with torch.no_grad():
        found = tn.ternary_matmul(x, packed, scale, (COLUMNS, ROWS))
    close(found, (x.float() @ (trits * scale)).to(dtype))


@pytest.mark.parametrize("bad", [-1, ROWS, 2**40])
def test_an_id_outside_the_table_is_refused(bad):
    _, packed, scales, _ = case()
    with pytest.raises(IndexError, match="out of"):
        tn.ternary_embedding(torch.tensor([0, bad]), packed, scales, (ROWS, COLUMNS))


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (1, 2)},
    {"dilation": 2},
    {"padding": "same"},
    {"padding": "valid", "dilation": (1, 2)},
    {"stride": (2, 1), "padding": 1, "groups": 2},
]


@pytest.mark.parametrize("large", [1, 1 << 40])
@pytest.mark.parametrize("size", [3, 5, 20])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 3)])
@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_conv2d_by_both_ways(large, size, kernel, options, variant, monkeypatch):
    monkeypatch.setattr(functional, "LARGE", large)
    x = torch.randn(2, 6, size + 2, size + 2)
    groups = options.get("groups", 1)
    shape = (4, 6 // groups, *kernel)
    weight, scale, bias = torch.randint(-1, 2, shape), torch.rand(4, 1), torch.randn(4)
    packed = pack_ternary(weight.flatten(1))
    for given in (x, x[:1], x[0], x.to(memory_format=torch.channels_last), x[:0]):
        with torch.no_grad():
            found = tn.ternary_conv2d(given, packed, scale, shape, bias, **options)
        expected = F.conv2d(given, weight * scale.view(4, 1, 1, 1), bias, **options)
        assert found.shape == expected.shape
        if given.numel():
            close(found, expected)


def test_conv2d_of_few_positions_meets_the_packed_rows(variant, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("unpacked")

    x, weight = torch.randn(1, 64, 4, 4), torch.randint(-1, 2, (128, 64, 3, 3))
    packed, scale = pack_ternary(weight.flatten(1)), torch.rand(1)
    monkeypatch.setattr(functional, "dequantize", refuse)
    with torch.no_grad():
        if variant != "numpy":
            found = tn.ternary_conv2d(x, packed, scale, weight.shape, padding=1)
            close(found, F.conv2d(x, weight * scale, padding=1))
            assert found.is_contiguous()
        with pytest.raises(AssertionError, match="unpacked"):
            tn.ternary_conv2d(x.repeat(2, 1, 1, 1), packed, scale, weight.shape, padding=1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [4, 9])
def test_conv2d_keeps_the_dtype(dtype, size, variant):
    x, weight = torch.randn(1, 64, size, size).to(dtype), torch.randint(-1, 2, (128, 64, 3, 3))
    packed, scale, bias = pack_ternary(weight.flatten(1)), torch.rand(128, 1), torch.randn(128)
    with torch.no_grad():
        found = tn.ternary_conv2d(x, packed, scale, weight.shape, bias)
    wide = F.conv2d(x.float(), weight * scale.view(128, 1, 1, 1), bias)
    close(found, wide.to(dtype))


def test_conv2d_gradients_and_symbolic_sizes():
    weight, scale = torch.randint(-1, 2, (64, 128, 3, 3)), torch.rand(1)
    packed = pack_ternary(weight.flatten(1))
    x = torch.randn(1, 128, 4, 4, requires_grad=True)
    (found,) = torch.autograd.grad(
        tn.ternary_conv2d(x, packed, scale, weight.shape).square().sum(), x
    )
    (expected,) = torch.autograd.grad(F.conv2d(x, weight * scale).square().sum(), x)
    close(found, expected)
    module = tn.TernaryConv2d(128, 64, 3)
    module.weight_packed = packed
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(
        module, (torch.randn(2, 128, 4, 4),), dynamic_shapes={"x": batch}
    )
    x = torch.randn(5, 128, 4, 4)
    close(exported.module()(x), module(x))


@pytest.mark.parametrize("name", ["linear", "bit_linear"])
@pytest.mark.parametrize("scale", SCALES)
def test_operators_pass_opcheck(name, scale):
    x, packed, scales, bias = case(scale)
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in (x, packed, scales, bias)]
    opcheck(getattr(torch.ops.tpack, name).default, leaves)


def test_matmul_passes_opcheck():
    packed = pack_ternary(torch.randint(-1, 2, (COLUMNS, ROWS)))
    x = torch.randn(3, COLUMNS, requires_grad=True)
    opcheck(torch.ops.tpack.matmul.default, (x, packed, torch.rand(1, requires_grad=True), ROWS))


@pytest.mark.parametrize("name", ["ternary_linear", "ternary_bit_linear"])
@pytest.mark.parametrize("scale", SCALES)
def test_gradients_equal_those_of_the_reference(name, scale):
    x, packed, scales, bias = case(scale)
    leaves = [t.requires_grad_() for t in (x, scales, bias)]
    found, expected = (
        torch.autograd.grad(getattr(home, name)(x, packed, scales, bias).square().sum(), leaves)
        for home in (tn, reference)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@pytest.mark.parametrize("grad", [False, True])
def test_modules_compile_and_export(grad):
    module = torch.nn.Sequential(tn.TernaryLinear(64, 32), tn.BitLinear(32, 8))
    for layer in module:
        layer.weight_packed = pack_ternary(torch.randint(-1, 2, layer.shape))
    x = torch.randn(3, 64)
    with torch.set_grad_enabled(grad):
        compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
        close(compiled(x), module(x))
        exported = torch.export.export(module, (x,))
        close(exported.module()(x), module(x))


@pytest.mark.skipif(kernels.selection.native is None, reason="the reference is no operator")
def test_tracing_records_the_operator():
    module = tn.TernaryLinear(64, 32).requires_grad_(False)
    module.weight_packed = pack_ternary(torch.randint(-1, 2, (32, 64)))
    names = {
        str(node.target) for node in torch.export.export(module, (torch.randn(2, 64),)).graph.nodes
    }
    assert "tpack.linear.default" in names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, p, s, b: (x[..., :50], p, s, b), "packed is"),
        (lambda x, p, s, b: (x, p[:, :3], s, b), "packed is"),
        (lambda x, p, s, b: (x, p, s[:5], b), "scale has"),
        (lambda x, p, s, b: (x, p, s, b[:5]), "bias has"),
        (lambda x, p, s, b: (x, p.int(), s, b), "packed is"),
    ],
)
def test_bad_arguments_never_reach_c(change, message):
    if kernels.variant() == "numpy":
        return
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        tn.ternary_linear(*change(*case()))


def test_strided_arguments_are_taken():
    x, packed, scales, bias = case()
    wide = torch.stack([x, x], -1)[..., 0]
    tall = torch.stack([packed, packed], -1)[..., 0]
    with torch.no_grad():
        assert torch.equal(
            tn.ternary_linear(wide, tall, scales, bias),
            tn.ternary_linear(x, packed, scales, bias),
        )


def test_vmap_and_float64_use_the_reference():
    x, packed, scales, bias = case()
    batched = torch.vmap(lambda row: tn.ternary_linear(row, packed, scales, bias))(x)
    close(batched, reference.ternary_linear(x, packed, scales, bias))
    double = tn.ternary_linear(x.double(), packed, scales.double(), bias.double())
    assert double.dtype == torch.float64


def test_threads_give_equal_results():
    x, packed, scales, bias = case(tokens=(40,))
    with torch.no_grad():
        expected = tn.ternary_bit_linear(x, packed, scales, bias)
        with ThreadPoolExecutor(2) as pool:
            futures = [
                pool.submit(torch.no_grad()(tn.ternary_bit_linear), x, packed, scales, bias)
                for _ in range(20)
            ]
            assert all(torch.equal(future.result(), expected) for future in futures)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 3, 4, 5, 63, 64, 65, 257])
def test_packing_in_c_is_that_of_the_reference(dtype, columns, variant):
    trits = torch.randint(-1, 2, (7, columns)).to(dtype)
    packed = pack_ternary(trits)
    assert torch.equal(packed, reference.pack_trits(trits))
    assert torch.equal(unpack_ternary(packed, trits.shape), trits.to(torch.int8))
    bad = trits.clone()
    bad[3, columns - 1] = 2
    with pytest.raises(ValueError, match=rf"2 at index \(3, {columns - 1}\)"):
        pack_ternary(bad)


def test_the_extension_serves_here():
    assert extension.serves(*case()[:3], "t2") == (kernels.variant() != "numpy")


def test_more_features_than_integer_sums_hold_never_reach_c(monkeypatch):
    x, packed, scales, bias = case()
    monkeypatch.setattr(extension, "MOST_COLUMNS", COLUMNS - 1)
    monkeypatch.setattr(extension.selection, "native", object())  # any call of it would fail
    with torch.no_grad():
        found = tn.ternary_bit_linear(x, packed, scales, bias)
    assert torch.equal(found, reference.ternary_bit_linear(x, packed, scales, bias))


@pytest.mark.parametrize("which", ["packed", "scale", "bias"])
@pytest.mark.parametrize("name", ["ternary_linear", "ternary_bit_linear"])
def test_a_weight_on_another_device_never_reaches_c(name, which, variant):
    x, packed, scales, bias = case()
    given = {"packed": packed, "scale": scales, "bias": bias}
    given[which] = given[which].to("meta")
    with torch.no_grad(), pytest.raises((ValueError, RuntimeError), match="meta"):
        getattr(tn, name)(x, given["packed"], given["scale"], given["bias"])


@pytest.mark.parametrize("width", [3, COLUMNS - 1, COLUMNS + 1, 2 * COLUMNS])
def test_matmul_refuses_an_input_of_another_width(width, variant):
    packed, scale = torch.zeros((COLUMNS, (ROWS + 3) // 4), dtype=torch.uint8), torch.ones(1)
    x = torch.ones(2, width)
    for call in (tn.ternary_matmul, lambda *a: torch.ops.tpack.matmul(*a[:3], ROWS)):
        with pytest.raises((ValueError, RuntimeError), match=f"{COLUMNS}"):
            call(x, packed, scale, (COLUMNS, ROWS))


@pytest.mark.parametrize("channels", [253, 255, 257])
def test_conv2d_refuses_other_channels(channels, variant):
    packed, scale = torch.zeros((256, 64), dtype=torch.uint8), torch.ones(1)
    with pytest.raises((ValueError, RuntimeError), match="256"):
        tn.ternary_conv2d(torch.ones(1, channels, 2, 2), packed, scale, (256, 256, 1, 1))
