"""Every kind of number and tensor: what becomes of it is said here, and nothing changes in silence.

A row of ``CASES`` is a tensor and what convert does with it: pack it ``exact`` (it unpacks to the
same values), quantize it with a relative error, keep it bit for bit, or refuse it by name.
"""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import tpack
from tpack.dtypes import BY_CODE, DTYPES
from tpack.errors import InputError, TpackError, UsageError

T = torch.tensor
BASE = T([[1.0, 0, -1, 1]] * 4)
NAN, INF = math.nan, math.inf
EXACT, KEPT = "exact", "kept"
NOISE = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))


def quantized_by_torch(tensor):
    return torch.quantize_per_tensor(tensor, 0.5, 0, torch.qint8)


#: name → (tensor, what becomes of it): EXACT, KEPT, the least relative error, or a refusal.
CASES = {
    # scales
    "f32 largest": (BASE * 3.4e38, EXACT),
    "f32 subnormal": (BASE * 1e-45, EXACT),
    "f16 largest": ((BASE * 65504).half(), EXACT),
    "f16 subnormal": ((BASE * 6e-8).half(), EXACT),
    "bf16 subnormal": ((BASE * 1e-40).bfloat16(), EXACT),
    "f64 that f32 holds": (BASE.double() * 0.5, EXACT),
    "f64 that f32 rounds": (BASE.double() * 0.1, 1e-9),
    "f64 beyond f32": (BASE.double() * 1e300, "needs a scale of 7.5e.299, which float32 cannot"),
    "f64 below f32": (BASE.double() * 1e-300, 1.0),
    "f64 noise beyond f32": (NOISE.double() * 1e300, "which float32 cannot hold"),
    "f64 noise whose squares vanish": (NOISE.double() * 1e-170, 1.0),
    "f32 noise below the floor of absmean": (NOISE * 1e-9, 1.0),
    "f32 noise, large": (NOISE * 3e38, 0.1),
    "f16 noise, large": ((NOISE * 65504).half(), 0.1),
    # zeros
    "all zero": (torch.zeros(4, 4), EXACT),
    "all -0.0": (-torch.zeros(4, 4), EXACT),
    "f64 zero": (torch.zeros(4, 4).double(), EXACT),
    "rows of zeros": (torch.cat([torch.zeros(2, 4), BASE]), EXACT),
    "groups of zeros": (torch.cat([torch.zeros(4, 32), BASE.repeat(1, 8)], 1), EXACT),
    "some -0.0": (T([[1.0, -0.0, -1, 0]] * 2), EXACT),
    # no numbers
    "one NaN": (torch.where(torch.eye(4) > 0, NAN, BASE), r"holds nan at index \(0, 0\)"),
    "inf": (BASE * INF, "at index"),
    "one -inf": (T([[0.0, -INF]]), r"holds -inf at index \(0, 1\)"),
    # integers
    "int8 trits": (BASE.to(torch.int8), EXACT),
    "int8 of -128": (BASE.abs().mul(-128).to(torch.int8), EXACT),
    "int8 of 127 and -128": (T([[127, -128, 0, 0]], dtype=torch.int8), 0.4),
    "int8 outside of the set": (T([[1, 2, 3, -5]], dtype=torch.int8), 0.1),
    "int64 matrix": (BASE.long(), KEPT),
    "uint8 matrix": (BASE.abs().to(torch.uint8), KEPT),
    "bool matrix": (BASE > 0, KEPT),
    # shapes
    "no dims": (T(-0.0), KEPT),
    "no rows": (torch.zeros(0, 4), KEPT),
    "no columns": (torch.zeros(4, 0), KEPT),
    "empty and huge": (torch.zeros(0, 2**40), KEPT),
    "one by one": (T([[-0.5]]), EXACT),
    "17 dims": (torch.ones([1] * 17), KEPT),
    # storage
    "transposed": (T([[1.0, 0], [-1, 1], [1, 1]]).T, EXACT),
    "strided": (torch.stack([BASE, NOISE], -1)[..., 0], EXACT),
    "expanded": (torch.ones(1).expand(4, 4), EXACT),
    "offset": (torch.cat([NOISE, BASE])[4:], EXACT),
    "negating view": (torch._neg_view(BASE), EXACT),
    "parameter": (torch.nn.Parameter(BASE), EXACT),
    "channels last": (
        BASE.reshape(2, 2, 2, 2).contiguous(memory_format=torch.channels_last),
        EXACT,
    ),
    # other kinds
    "meta": (BASE.to("meta"), "meta device"),
    "sparse": (BASE.to_sparse(), "sparse_coo.*to_dense"),
    "mkldnn": (BASE.to_mkldnn(), "mkldnn"),
    "complex64 matrix": (BASE.to(torch.complex64), "is a weight in complex64"),
    "complex64 vector": (T([1 + 2j, NAN - 1j]).to(torch.complex64), KEPT),
    "complex128": (BASE.to(torch.complex128), "complex128, which safetensors cannot hold"),
    "float8 matrix": (BASE.to(torch.float8_e4m3fn), "is a weight in float8_e4m3fn"),
    "float4": (torch.zeros(4, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), KEPT),
    "uint4": (torch.zeros(4, 4, dtype=torch.uint8).view(torch.uint4), "uint4"),
    "kept NaN, infinities and -0.0": (T([NAN, INF, -INF, -0.0, 1e-45]), KEPT),
    "kept NaN with a payload": (
        T([0x7FC01234, 0x7F800001], dtype=torch.int32).view(torch.float32),
        KEPT,
    ),
}


def bits(tensor):
    """The bytes of a tensor, row by row."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.safetensors"


@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_it(name, out):
    tensor, wanted = CASES[name]
    state = {"fc.weight": tensor, "other.weight": BASE}
    if isinstance(wanted, str) and wanted not in (EXACT, KEPT):
        with pytest.raises(TpackError, match=wanted) as caught:
            tpack.convert(state, out, quantize="absmean")
        assert caught.value.tensor == "fc.weight"
        assert not out.exists()
        return
    report = tpack.convert(state, out, quantize="absmean")
    report = {row.name: row for row in report.tensors}["fc.weight"]
    result = tpack.unpack(out)["fc.weight"]
    assert result.shape == tensor.shape
    if wanted == KEPT:
        assert (report.action, report.relative_error) == ("kept", 0)
        assert (result.dtype, bits(result)) == (tensor.dtype, bits(tensor))
    elif wanted == EXACT:
        assert (report.method, report.relative_error) == ("exact", 0)
        assert result.dtype == tensor.dtype
        assert torch.equal(result, tensor)
        assert not (result.float().signbit() & (result == 0)).any()
    else:
        assert report.action == "quantized"
        assert report.relative_error >= wanted
        numbers = tensor.detach().double() / float(tensor.detach().double().abs().max())
        error = (numbers - result.double() / float(tensor.double().abs().max())).norm()
        assert report.relative_error == pytest.approx(float(error / numbers.norm()), rel=1e-3)
        if tensor.dtype != torch.int8:
            assert result.dtype == tensor.dtype
    verified = tpack.verify(out, state)
    assert verified.ok
    assert verified.lossless == (wanted in (EXACT, KEPT))
    json.dumps(verified.to_dict(), allow_nan=False)


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore::DeprecationWarning")
def test_kinds_that_warn_when_they_are_made(out):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for tensor, word in (
        (nested, "is nested"),
        (BASE.to_sparse_csr(), "sparse_csr"),
        (BASE.to(torch.complex32), "complex32"),
    ):
        with pytest.raises(TpackError, match=word) as caught:
            tpack.convert({"fc.weight": tensor}, out)
        assert caught.value.tensor == "fc.weight"
        with pytest.raises(UsageError, match="pack_ternary: tensor is"):
            tpack.pack_ternary(tensor)
    report = tpack.convert({"fc.weight": quantized_by_torch(BASE)}, out)
    assert any("quantized by torch" in note for note in report.notes)
    assert torch.equal(tpack.unpack(out)["fc.weight"], BASE)
    with pytest.raises(UsageError, match="is quantized"):
        tpack.pack_ternary(quantized_by_torch(BASE))


@pytest.mark.parametrize("dtype", list(dict.fromkeys(d.held for d in DTYPES)))
def test_kept_tensors_of_every_dtype_are_bit_equal(dtype, out):
    """All 256 bytes in every place: whatever they mean, they are kept."""
    raw = torch.arange(256, dtype=torch.uint8).repeat(8)
    kept = raw.view(torch.bool) if dtype == "bool" else raw.view(getattr(torch, dtype))
    tpack.convert({"fc.weight": BASE, "kept": kept}, out)
    assert bits(tpack.unpack(out)["kept"]) == bytes(range(256)) * 8
    assert bits(load_file(out)["kept"]) == bytes(range(256)) * 8
    assert tpack.verify(out, {"fc.weight": BASE, "kept": kept}).ok


def test_the_dtypes_are_those_of_safetensors(tmp_path):
    """A code that the crate knows is known, or refused by its name."""
    known = set()
    for code in (*BY_CODE, "F128", "I4", "U2"):
        header = {"t": {"dtype": code, "shape": [0], "data_offsets": [0, 0]}}
        text = json.dumps(header).encode()
        path = tmp_path / f"{code}.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        try:
            with safe_open(path, "np") as file:
                known.add(file.get_slice("t").get_dtype())
        except Exception:  # noqa: BLE001 -- of its own kind
            assert code not in BY_CODE
        if code not in BY_CODE:
            with pytest.raises(InputError, match=f"has dtype '{code}'"):
                tpack.convert(path, tmp_path / "out.safetensors")
    assert known >= set(BY_CODE)
    assert known - set(BY_CODE) <= {"F4", "F6_E2M3", "F6_E3M2"}


# ---- storage that several names share


def test_what_shares_storage_is_tied_or_copied_and_said(out):
    one = BASE.clone()
    state = {"a.weight": one, "b.weight": one, "turned.weight": one.T, "part.weight": one[:2]}
    report = tpack.convert(state, out)
    assert any("b.weight shares the storage of a.weight" in note for note in report.notes)
    for name, tensor in tpack.unpack(out).items():
        assert torch.equal(tensor, state[name])


# ---- dtypes that are asked for


def test_kept_tensors_in_another_dtype_are_rounded_or_refused(out):
    values = T([1.0, -0.0, NAN, INF, 1e-7, 65504.0])
    tpack.convert({"fc.weight": BASE, "b": values}, out, keep_dtype="f16")
    assert bits(tpack.unpack(out)["b"]) == bits(values.half())
    with pytest.raises(InputError, match="beyond float16") as caught:
        tpack.convert({"fc.weight": BASE, "b": T([65520.0])}, out, keep_dtype="f16", force=True)
    assert caught.value.tensor == "b"


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_a_scale_that_the_dtype_cannot_hold_is_refused_when_it_is_unpacked(scale, out):
    tpack.convert({"fc.weight": BASE * scale}, out)
    assert torch.equal(tpack.unpack(out, dtype=torch.float64)["fc.weight"], (BASE * scale).double())
    with pytest.raises(InputError, match="a scale that float16 cannot hold") as caught:
        tpack.unpack(out, dtype=torch.float16)
    assert caught.value.tensor == "fc.weight"


@pytest.mark.parametrize("method", ["twn", "mse"])
def test_a_scale_that_becomes_nothing_is_refused(method, out):
    with pytest.raises(InputError, match="which float32 cannot hold"):
        tpack.convert({"fc.weight": NOISE.double() * 1e-100}, out, quantize=method)


# ---- pack_ternary and unpack_ternary


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (T([NAN]), "value nan at index"),
        (T([2**62]), "not ternary"),
        (T([257]), "value 257"),
        (T([255], dtype=torch.uint8), "value 255"),
        (T([1 + 0j]), "real dtype"),
        (T(1.0), "no dim"),
        (BASE.to_sparse(), "sparse_coo"),
        (BASE.to_mkldnn(), "mkldnn"),
        (BASE.to("meta"), "meta device"),
        (torch.zeros(4, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "float4"),
        ([1, 0], "is a list"),
        (np.ones(3), "is a ndarray"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_packed(tensor, word):
    with pytest.raises(ValueError, match=word):
        tpack.pack_ternary(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch._neg_view(BASE),
        torch.complex(BASE, BASE).conj().imag,
        BASE.T,
        BASE[:, ::2],
        T([[-0.0, 1.0]]),
        BASE > 0,
        BASE.to(torch.float8_e4m3fn),
        torch.zeros(0),
        torch.zeros(3, 0),
        torch.zeros(0, 3),
        torch.ones(1).expand(3, 7),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_what_is_packed_comes_back(tensor):
    assert torch.equal(
        tpack.unpack_ternary(tpack.pack_ternary(tensor), tensor.shape).double(), tensor.double() + 0
    )


@pytest.mark.parametrize("numel", [-1, 5, 2**62, (2**40, 2**40), (0,), (1, -4)])
def test_bytes_that_do_not_fit_are_refused(numel):
    with pytest.raises(ValueError, match="unpack_ternary"):
        tpack.unpack_ternary(tpack.pack_ternary(torch.ones(4)), numel)
