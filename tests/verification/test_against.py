"""verify against a source: what equals it, and where it first differs."""

import json

import pytest
import torch
from corpus import make
from safetensors.torch import save_file
from verified_files import STATE, failed, masters

import tpack
from tpack.layerdef import LayerDef, Param, Program, Unspecified
from tpack.verification import Difference

# ---- masters: quantized again


@pytest.mark.parametrize("scale", ["tensor", "row", "column", "group:32", "group:40"])
@pytest.mark.parametrize("method", ["absmean", "twn", "mse"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_master_gives_the_file_again(method, scale, dtype, tmp_path):
    state = {"fc.weight": masters().to(dtype), "fc.bias": torch.ones(8)}
    layout = "t5" if scale == "row" else "t2"
    tpack.convert(state, tmp_path / "m", quantize=method, scale=scale, layout=layout)
    report = tpack.verify(tmp_path / "m", state)
    assert report.ok
    assert report.equals == {f"{method} of the source": 1, "the source": 1}
    state["fc.weight"][5, 7] += 4
    report = tpack.verify(tmp_path / "m", state)
    assert failed(report) == {("fc.weight", "same_method")}


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 3, 8)])
def test_a_master_of_any_rank(shape, tmp_path):
    state = {"a.weight": masters(shape=shape), "b.weight": masters()}
    tpack.convert(state, tmp_path / "m", include=["*"])
    assert tpack.verify(tmp_path / "m", state).equals == {"absmean of the source": 2}


def test_an_int8_master_with_and_without_a_scale(tmp_path):
    whole = masters().mul(20).to(torch.int8)
    state = {"a.weight": whole, "b.weight": whole, "b.weight_scale": torch.tensor([0.25])}
    state["b.weight"] = whole.clone()
    tpack.convert(state, tmp_path / "m", quantize="twn")
    report = tpack.verify(tmp_path / "m", state)
    assert report.ok
    assert report.equals == {"twn of the source": 2}


def test_a_scale_that_was_rounded_only(tmp_path):
    """Ternary in float64: the trits are exact, the scale is the nearest float32."""
    state = {"a.weight": make.trits(8, 64).double() * 0.1}
    tpack.convert(state, tmp_path / "m")
    assert tpack.inspect(tmp_path / "m").tensors[0].method == "mse"
    assert tpack.verify(tmp_path / "m", state).equals == {"mse of the source": 1}


def test_a_scale_that_was_repeated_for_a_layerdef(tmp_path):
    """A block whose other copy has a scale per row: that of the tensor is stored per row too."""
    block = LayerDef("Block", [Param("weight", "TernaryTensor", [8, 96])], [Unspecified()])
    root = LayerDef("Root", [Param("blocks", "Layer", layer="Block", repeat=2)], [Unspecified()])
    rows = torch.randint(-1, 2, (8, 96)).float() * torch.arange(1.0, 9)[:, None]
    state = {"blocks.0.weight": masters(), "blocks.1.weight": rows}
    tpack.convert(state, tmp_path / "m", layerdef=Program([block, root], "Root"), quantize="mse")
    first = tpack.inspect(tmp_path / "m").tensors[0]
    assert (first.scale, first.method) == ("row", "mse")
    report = tpack.verify(tmp_path / "m", state)
    assert report.ok
    assert report.equals == {"mse of the source": 1, "the source": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_source_that_cannot_be_quantized(value, tmp_path):
    state = {"fc.weight": masters()}
    tpack.convert(state, tmp_path / "m")
    state["fc.weight"][2, 3] = value
    report = tpack.verify(tmp_path / "m", state)
    assert failed(report) == {("fc.weight", "same_method")}
    told = f"is not what absmean makes of the source, which holds {value} at index (2, 3)"
    assert told in report.problems[0]


def test_a_quantized_file_against_its_own_unpacking(tmp_path):
    tpack.convert({"fc.weight": masters()}, tmp_path / "m")
    assert tpack.verify(tmp_path / "m", tpack.unpack(tmp_path / "m")).equals == {"the source": 1}


def test_where_masters_differ(tmp_path):
    """Counts by brute force: absmean in torch, written out."""

    def absmean(w):
        scale = w.abs().mean().clamp(min=1e-5)
        return (w * (1 / scale)).round().clamp(-1, 1), scale

    before, after = masters(), masters()
    after[4, 9:60] *= -1
    tpack.convert({"fc.weight": before}, tmp_path / "m")
    report = tpack.verify(tmp_path / "m", {"fc.weight": after})
    one, two = absmean(before)[0], absmean(after)[0]
    index = tuple((one != two).nonzero()[0].tolist())
    found = report.tensors[0].difference
    assert (found.what, found.index, found.of) == ("trits", index, 8 * 96)
    assert found.count == int((one != two).sum())
    assert (found.stored, found.expected) == (one[index].item(), two[index].item())
    assert found.source == after[index].item()
    for part in (f"at index {index}", f"{found.count} of 768 trits differ", str(found.source)):
        assert part in report.problems[0]
    report = tpack.verify(tmp_path / "m", {"fc.weight": 2 * before})
    found = report.tensors[0].difference
    assert (found.what, found.index, found.count, found.of) == ("scales", (0,), 1, 1)
    assert found.expected == 2 * found.stored == 2 * absmean(before)[1].item()


# ---- the first difference


def test_where_an_exact_weight_differs(file):
    other = STATE["fc.weight"].clone()
    other[0, 4], other[1, 1] = -0.5, 0.25
    report = tpack.verify(file, STATE | {"fc.weight": other})
    found = report.tensors[0].difference
    assert found == Difference("values", (0, 4), 0.5, -0.5, None, 2, 10)
    assert report.problems == [
        "tensor 'fc.weight' does not unpack to the values of the source: at index (0, 4) it has "
        "0.5, the source has -0.5; 2 of 10 values differ."
    ]


KEPT = {
    "float32": (torch.tensor([1.0, -0.0]), torch.tensor([1.0, 0.0]), -0.0, 0.0),
    "bfloat16": (torch.tensor([1, 2]).bfloat16(), torch.tensor([1, 3]).bfloat16(), 2.0, 3.0),
    "int64": (torch.tensor([1, 2**62]), torch.tensor([1, 3]), 2**62, 3),
    "bool": (torch.tensor([True, True]), torch.tensor([True, False]), True, False),
    "complex": (torch.tensor([1j, 2j]), torch.tensor([1j, 3j]), 2j, 3j),
    "float8": (
        torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
        "the byte 40",
        "the byte c0",
    ),
    "payload": (
        torch.tensor([0x3F800000, 0x7FC00000], dtype=torch.int32).view(torch.float32),
        torch.tensor([0x3F800000, 0x7FC00001], dtype=torch.int32).view(torch.float32),
        "nan (0000c07f)",
        "nan (0100c07f)",
    ),
}


@pytest.mark.parametrize("kind", KEPT)
def test_where_a_kept_tensor_differs(kind, tmp_path):
    one, two, stored, expected = KEPT[kind]
    state = {"fc.weight": make.trits(2, 4), "fc.bias": one}
    tpack.convert(state, tmp_path / "m")
    assert tpack.verify(tmp_path / "m", state).ok
    report = tpack.verify(tmp_path / "m", state | {"fc.bias": two})
    found = report.tensors[1].difference
    assert found == Difference("values", (1,), stored, expected, None, 1, 2)
    json.dumps(report.to_dict(), allow_nan=False)


def test_large_tensors_are_compared_piece_by_piece(tmp_path):
    size = (3 << 20) + 5
    state = {"fc.weight": make.trits(2, 4), "fc.bias": torch.zeros(size)}
    tpack.convert(state, tmp_path / "m")
    state["fc.bias"][[(1 << 21) - 1, 1 << 21, size - 1]] = 1
    found = tpack.verify(tmp_path / "m", state).tensors[1].difference
    assert (found.index, found.count, found.of) == (((1 << 21) - 1,), 3, size)


# ---- casts


@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep", ["f32", "f16", "bf16"])
def test_a_kept_tensor_that_was_cast(source, keep, tmp_path):
    state = {"fc.weight": make.trits(2, 4).to(source), "fc.bias": masters(shape=(9,)).to(source)}
    tpack.convert(state, tmp_path / "m", keep_dtype=keep)
    report = tpack.verify(tmp_path / "m", state)
    assert report.ok
    wanted = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[keep]
    equals = "the source" if f"torch.{wanted}" == str(source) else f"the source cast to {wanted}"
    assert {row.name: row.equals for row in report.tensors}["fc.bias"] == equals
    state["fc.bias"][4] += 1
    report = tpack.verify(tmp_path / "m", state)
    assert not report.ok
    assert (report.tensors[1].difference.index, report.tensors[1].difference.count) == ((4,), 1)


def test_a_cast_that_would_overflow_is_a_difference(tmp_path):
    state = {"fc.weight": make.trits(2, 4), "fc.bias": torch.ones(3)}
    tpack.convert(state, tmp_path / "m", keep_dtype="f16")
    state["fc.bias"][1] = 1e30
    report = tpack.verify(tmp_path / "m", state)
    assert failed(report) == {("fc.bias", "same_cast")}


# ---- what comes packed, and what was saved


def test_a_packed_source_whose_rows_share_one_scale(tmp_path):
    """MLX and compressed-tensors store a scale for each group or row; one was asked for."""
    rows = torch.full((4, 1), 0.5)
    codes = (make.trits(4, 16).int() + 2) & 3
    packed = torch.zeros(4, 1, dtype=torch.int64)
    for i in range(16):
        packed[:, 0] |= codes[:, i].long() << (2 * i)
    folder = tmp_path / "ct"
    folder.mkdir()
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    tensors = {"fc.weight_packed": packed, "fc.weight_scale": rows}
    save_file(tensors | {"fc.weight_shape": torch.tensor([4, 16])}, folder / "model.safetensors")
    weights = {"num_bits": 2, "type": "int", "symmetric": True, "strategy": "channel"}
    group = {"targets": ["Linear"], "weights": weights}
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    config = {"quantization_config": quantization | {"config_groups": {"group_0": group}}}
    (folder / "config.json").write_text(json.dumps(config))
    for scale in ("auto", "tensor", "row", "group:32"):
        tpack.convert(folder, tmp_path / "m", scale=scale, force=True)
        report = tpack.verify(tmp_path / "m", folder)
        assert report.ok, report.problems
        assert report.equals == {"the source": 1}


def test_a_weight_that_was_saved_from_a_module(tmp_path):
    state = {"fc.weight": make.trits(2, 4).half(), "fc.bias": torch.ones(2)}
    tpack.convert(state, tmp_path / "m")
    module = tpack.load(tmp_path / "m")
    with torch.no_grad():
        module.state_dict()["fc.weight_scale"].mul_(2)
    tpack.save(module, tmp_path / "again")
    assert tpack.verify(tmp_path / "again").ok
    report = tpack.verify(tmp_path / "again", state)
    assert failed(report) == {("fc.weight", "same_values")}
    for dtype in (torch.float16, torch.float32):  # it claims no dtype of a source
        doubled = state | {"fc.weight": 2 * make.trits(2, 4).to(dtype)}
        assert tpack.verify(tmp_path / "again", doubled).equals == {"the source": 2}
