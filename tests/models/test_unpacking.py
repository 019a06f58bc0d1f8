"""Unpacking: the source's dtype and bits come back."""

import pytest
import torch
from corpus import make
from safetensors.torch import load_file

import tpack
from tpack.errors import ExistsError, InputError, TpackError, UsageError
from tpack.unpacking import unpack_file

EXACT = [name for name in sorted(make.checkpoints()) if name != "quantized"]


@pytest.mark.parametrize("name", EXACT)
def test_the_source_comes_back(name, tmp_path):
    source, _ = make.checkpoints()[name]
    path = make.ACCEPT / f"{name}.safetensors"
    out = tmp_path / "plain.safetensors"
    assert unpack_file(path, out) == out.stat().st_size
    for back in (tpack.unpack(path), load_file(out)):
        assert back.keys() == source.keys()
        for key, tensor in source.items():
            assert back[key].dtype == tensor.dtype
            assert back[key].shape == tensor.shape
            if tensor.numel():
                one, two = (
                    t.contiguous().reshape(-1).view(torch.uint8) for t in (back[key], tensor)
                )
                assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_dtype_of_the_source(tmp_path, dtype, layout):
    kind = getattr(torch, dtype)
    w = (make.trits(5, 77) * torch.tensor([[1.0], [2], [3], [4], [5]])).to(kind)
    tpack.convert({"w": w}, tmp_path / "m", exact=True, layout=layout)
    back = tpack.unpack(tmp_path / "m")["w"]
    assert back.dtype == kind
    assert torch.equal(back, w)


def test_explicit_dtype(tmp_path):
    w = (make.trits(4, 4) * 0.5).half()
    tpack.convert({"w": w, "b": torch.ones(2).double()}, tmp_path / "m")
    for dtype in (torch.float32, "bfloat16", torch.float64):
        back = tpack.unpack(tmp_path / "m", dtype)
        assert str(back["w"].dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")
        assert torch.equal(back["w"].double(), w.double())
        assert back["b"].dtype == torch.float64
    for bad in (torch.int8, "float8", "f32"):
        with pytest.raises(UsageError, match="dtype"):
            tpack.unpack(tmp_path / "m", bad)


def test_a_scale_that_the_dtype_cannot_hold(tmp_path):
    tpack.convert({"w": make.trits(4, 4) * 1e6}, tmp_path / "m")
    with pytest.raises(InputError, match="float16 cannot hold") as caught:
        tpack.unpack(tmp_path / "m", torch.float16)
    assert caught.value.tensor == "w"


def test_int8_scale_out_of_range_is_refused_not_wrapped(tmp_path):
    path = tmp_path / "m"
    tpack.convert({"w": (make.trits(4, 4) * 5).to(torch.int8)}, path)
    header, description, data = make.parts(path.read_bytes())
    start = header["w_scale"]["data_offsets"][0]
    for value in (300.0, 0.5, 128.0):
        raw = torch.tensor([value]).numpy().tobytes()
        path.write_bytes(make.build(header, description, data[:start] + raw + data[start + 4 :]))
        with pytest.raises(TpackError) as caught:
            tpack.unpack(path)
        assert caught.value.code == 3


def test_quantized_weights_unpack_to_scale_times_trit(tmp_path):
    w = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    tpack.convert({"w": w}, tmp_path / "m", quantize="mse", scale="row")
    back = tpack.unpack(tmp_path / "m")["w"]
    for row in back:
        assert len(set(row.abs()[row != 0].tolist())) == 1


def test_damaged_codes_leave_no_file(tmp_path):
    path, out = tmp_path / "m", tmp_path / "out"
    tpack.convert({"w": make.trits(4, 4)}, path)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(TpackError) as caught:
        unpack_file(path, out)
    assert caught.value.tensor == "w_packed"
    assert caught.value.file == str(path)
    assert not out.exists()


def test_a_damaged_file_is_malformed_input(tmp_path):
    path = tmp_path / "m"
    tpack.convert({"w": make.trits(4, 4)}, path)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(TpackError) as caught:
        tpack.unpack(path)
    assert caught.value.code == 3


def test_output_is_not_replaced(tmp_path):
    path, out = tmp_path / "m", tmp_path / "out"
    tpack.convert({"w": make.trits(4, 4)}, path)
    out.write_bytes(b"old")
    with pytest.raises(ExistsError):
        unpack_file(path, out)
    assert out.read_bytes() == b"old"
    unpack_file(path, out, force=True)
    assert torch.equal(load_file(out)["w"], make.trits(4, 4))
