"""Bytes that hold no codes are an error where a weight is used, with each kernel."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import tpack
from tpack.codec import LAYOUTS, pack
from tpack.errors import FormatError
from tpack.kernels import available, forced, selection
from tpack.nn import (
    BitLinear,
    TernaryConv2d,
    TernaryEmbedding,
    TernaryLinear,
    code_check,
    ternary_conv1d,
    ternary_matmul,
)

ROWS, COLUMNS = 6, 40
#: A byte of each layout that no encoder writes.
NO_CODE = {"t2": 0b11_01_01_01, "t5": 1}


def packed(layout="t2", rows=ROWS, columns=COLUMNS, seed=0):
    trits = np.random.default_rng(seed).integers(-1, 2, (rows, columns), dtype=np.int8)
    return torch.from_numpy(pack(trits, layout))


def filled(module, layout="t2"):
    """A module with random trits, the last byte of which can be spoiled."""
    columns = int(np.prod(module.shape[1:]))
    module.weight_packed = packed(layout, module.shape[0], columns)
    return module.eval()


X = torch.randn(3, COLUMNS, generator=torch.Generator().manual_seed(0))
CASES = {
    "linear": (lambda **o: TernaryLinear(COLUMNS, ROWS, **o), X),
    "bit_linear": (lambda **o: BitLinear(COLUMNS, ROWS, **o), X),
    "one_token": (lambda **o: TernaryLinear(COLUMNS, ROWS, **o), X[0]),
    "embedding": (lambda **o: TernaryEmbedding(ROWS, COLUMNS, **o), torch.tensor([0])),
    "conv2d": (lambda **o: TernaryConv2d(10, ROWS, 2, **o), X.reshape(1, 10, 3, 4)),
}


@pytest.mark.parametrize("kernel", available())
@pytest.mark.parametrize("layout", ["t2", "t5"])
@pytest.mark.parametrize("case", CASES)
def test_an_illegal_byte_is_an_error_with_each_kernel(case, layout, kernel):
    make, x = CASES[case]
    module = filled(make(layout=layout), layout)
    with forced(kernel), torch.no_grad():
        module(x)
        module.weight_packed[-1, -1] = NO_CODE[layout]
        with pytest.raises(FormatError, match=rf"\(5, {module.weight_packed.shape[1] - 1}\)"):
            module(x)


@pytest.mark.skipif(selection.native is None, reason="torch traces through the reference")
@pytest.mark.parametrize("case", CASES)
def test_gradients_and_compiled_programs_raise_too(case):
    make, x = CASES[case]
    module = filled(make())
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    compiled(x)
    module.weight_packed[-1, -1] = 0xFF
    with pytest.raises(FormatError):
        module(x)
    if "linear" in case or case == "one_token":  # others are traced into torch's own ops
        with pytest.raises(FormatError):
            compiled(x)


def test_the_operators_themselves_raise():
    bad, scale = packed(), torch.ones(1)
    bad[0, 3] = 0xC0
    with pytest.raises(FormatError, match="index \\(0, 3\\)"):
        torch.ops.tpack.linear(X, bad, scale)
    with pytest.raises(FormatError):
        torch.ops.tpack.bit_linear(X.double(), bad, scale)
    with pytest.raises(FormatError):
        torch.ops.tpack.matmul(X[:, :ROWS], bad, scale, COLUMNS)
    with pytest.raises(FormatError):
        ternary_matmul(X[:, :ROWS], bad, scale, (ROWS, COLUMNS))
    with pytest.raises(FormatError):
        ternary_conv1d(X.reshape(1, 10, 12), bad, scale, (ROWS, 10, 4))


def test_bytes_are_read_once_until_they_change(monkeypatch):
    read = []
    first = code_check._first_illegal
    monkeypatch.setattr(code_check, "_first_illegal", lambda *a: read.append(1) or first(*a))
    module = filled(TernaryLinear(COLUMNS, ROWS))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        module(X)
        compiled(X)
        with torch.no_grad():
            module(X)
    assert len(read) == 1
    module.load_state_dict(module.state_dict())  # copies in place
    module(X)
    module.weight_packed = packed(seed=1)
    module(X)
    assert len(read) == 3
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        other(X)
    assert len(read) == 5
    with torch.inference_mode():
        weight = packed()  # has no version
        for _ in range(2):
            torch.ops.tpack.linear(X, weight, torch.ones(1))
    assert len(read) == 6


def test_what_is_known_goes_with_its_tensor():
    before = len(code_check._KNOWN)
    module = filled(TernaryLinear(COLUMNS, ROWS))
    module(X)
    assert len(code_check._KNOWN) == before + 1
    del module
    assert len(code_check._KNOWN) == before


def test_a_loaded_model_names_the_file_and_the_tensor(tmp_path):
    path = tmp_path / "m.safetensors"
    trits = torch.from_numpy(np.random.default_rng(0).integers(-1, 2, (8, 16))).float()
    tpack.convert({"up.weight": trits}, path)
    blob = bytearray(path.read_bytes())
    blob[-2] = 0xFF
    path.write_bytes(blob)
    model = tpack.load(path)
    with pytest.raises(FormatError) as caught:
        model.up(torch.ones(16))
    assert (caught.value.file, caught.value.tensor) == (str(path), "up.weight_packed")
    assert caught.value.rule == "R14"
    assert "byte 0xff at index (7, 2)" in str(caught.value)
    with pytest.raises(FormatError):
        tpack.load(path, device="meta")  # stands for any device that gets copies


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 8 * code_check._WORDS + 9])
def test_every_place_of_every_illegal_byte_is_found(count):
    good = np.full(count, 0x55, np.uint8)
    assert code_check._first_code_3(good) is None
    for at in {0, 6, 7, 8, count // 2, count - 1} & set(range(count)):
        for bad in (0x03, 0x0C, 0x30, 0xC0, 0xFF):
            data = good.copy()
            data[at:] = bad
            assert code_check._first_code_3(data) == at


@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_other_devices_find_the_same_bytes(layout):
    every = torch.arange(256, dtype=torch.uint8)
    bad = code_check._illegal(every, layout)
    assert (~bad).tolist() == LAYOUTS[layout].valid.tolist()
    for value in range(256):
        data = torch.tensor([[value]], dtype=torch.uint8)
        assert (code_check._first_illegal(data, layout) is None) == bool(
            LAYOUTS[layout].valid[value]
        )


def test_modules_in_training_have_no_bytes():
    module = nn.Sequential(filled(TernaryLinear(COLUMNS, ROWS)))
    tpack.nn.unfreeze(module)
    module(X).sum().backward()


@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_a_master_is_not_made_of_bytes_without_codes(layout):
    module = filled(TernaryLinear(COLUMNS, ROWS, layout=layout), layout)
    module.weight_packed[2, 1] = NO_CODE[layout]
    with pytest.raises(FormatError, match="index \\(2, 1\\)") as caught:
        tpack.nn.unfreeze(nn.Sequential(module))
    assert caught.value.tensor == "0.weight_packed"
    assert "weight_packed" in module.state_dict()
