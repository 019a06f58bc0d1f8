"""pack_ternary and unpack_ternary against brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from strategies import trit_arrays

from tpack import codec
from tpack.errors import UsageError
from tpack.pack import pack_ternary, unpack_ternary

DTYPES = [
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
]


@pytest.mark.parametrize("length", range(7))
def test_every_short_row(length):
    for row in itertools.product((-1, 0, 1), repeat=length):
        padded = [*row, *[0] * (-length % 4)]
        expected = [
            sum((trit + 1) << 2 * place for place, trit in enumerate(padded[i : i + 4]))
            for i in range(0, len(padded), 4)
        ]
        packed = pack_ternary(torch.tensor(row, dtype=torch.int8))
        assert packed.dtype == torch.uint8
        assert packed.tolist() == expected
        assert unpack_ternary(packed, length).tolist() == list(row)


def test_every_byte():
    for byte in range(256):
        packed = torch.tensor([0x55, byte], dtype=torch.uint8)
        codes = [byte >> 2 * place & 3 for place in range(4)]
        if 3 in codes:
            with pytest.raises(ValueError, match=rf"0x{byte:02x} .*\(1,\)"):
                unpack_ternary(packed, 8)
        else:
            assert unpack_ternary(packed, 8).tolist() == [0] * 4 + [code - 1 for code in codes]


@given(trit_arrays(max_dims=4))
def test_agrees_with_the_codec(trits):
    packed = pack_ternary(torch.from_numpy(trits))
    assert packed.shape == (*trits.shape[:-1], -(-trits.shape[-1] // 4))
    assert np.array_equal(packed.numpy(), codec.pack(trits))
    again = unpack_ternary(packed, trits.shape)
    assert again.dtype == torch.int8
    assert np.array_equal(again.numpy(), trits)
    flat = unpack_ternary(pack_ternary(torch.from_numpy(trits).flatten()), trits.size)
    assert np.array_equal(flat.numpy(), trits.flatten())


@given(trit_arrays(min_side=1), st.data())
def test_rows_wanted_flat(trits, data):
    packed = pack_ternary(torch.from_numpy(trits))
    assert np.array_equal(unpack_ternary(packed, trits.size).numpy(), trits.flatten())


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    trits = torch.tensor([[1, 0, -1, 1, 1], [0, 0, -1, -1, 1]])
    assert torch.equal(pack_ternary(trits.to(dtype)), pack_ternary(trits))


def test_negative_zero_and_bool():
    assert torch.equal(pack_ternary(torch.tensor([-0.0, 1.0])), pack_ternary(torch.tensor([0, 1])))
    assert torch.equal(
        pack_ternary(torch.tensor([False, True])), pack_ternary(torch.tensor([0, 1]))
    )


def test_uint8_is_taken_by_value():
    assert torch.equal(
        pack_ternary(torch.tensor([0, 1], dtype=torch.uint8)), pack_ternary(torch.tensor([0, 1]))
    )
    with pytest.raises(ValueError, match=r"255 at index \(1,\)"):
        pack_ternary(torch.tensor([0, 255], dtype=torch.uint8))


@pytest.mark.parametrize("bad", [2.0, -2.0, 0.5, 1.0001, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("index", [(0, 0, 0), (1, 0, 2), (1, 2, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_first_other_value_is_named(bad, index, dtype):
    trits = torch.zeros(2, 3, 5, dtype=dtype)
    trits[index] = bad
    trits[1, 2, 4] = 7 if index != (1, 2, 4) else bad
    with pytest.raises(ValueError, match="not ternary") as caught:
        pack_ternary(trits)
    text = str(caught.value)
    assert str(index) in text
    assert f"{bad:g}" in text


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("bad", [2, -2, 127, -128])
def test_other_integers_are_named(dtype, bad):
    with pytest.raises(ValueError, match=rf"{bad} at index \(2,\)"):
        pack_ternary(torch.tensor([0, 1, bad], dtype=dtype))


@pytest.mark.parametrize("bad", [256, 257, 2**32 + 1, -255, 2**40])
def test_integers_that_wrap_are_refused(bad):
    with pytest.raises(ValueError, match="not ternary"):
        pack_ternary(torch.tensor([bad, 0]))


@pytest.mark.parametrize("value", [[1, 0], None, 1, np.zeros(3)])
def test_what_is_no_tensor(value):
    said = f"is a {type(value).__name__}, expected a torch.Tensor"
    with pytest.raises(UsageError, match=said):
        pack_ternary(value)
    with pytest.raises(UsageError, match=said):
        unpack_ternary(value, 2)


def test_no_dim():
    with pytest.raises(ValueError, match="no dim"):
        pack_ternary(torch.tensor(1))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (2, 0, 3)])
def test_empty(shape):
    packed = pack_ternary(torch.zeros(shape))
    assert packed.shape == (*shape[:-1], -(-shape[-1] // 4))
    assert unpack_ternary(packed, shape).shape == shape


def test_non_contiguous():
    trits = torch.randint(-1, 2, (6, 10), dtype=torch.int8)
    for view in (trits.T, trits[:, ::2], trits[::2, 1:], trits[0].expand(3, 10), trits.flip(1)):
        assert torch.equal(pack_ternary(view), pack_ternary(view.contiguous()))
        packed = pack_ternary(view)
        strided = torch.stack([packed, packed], -1)[..., 0]
        assert not strided.is_contiguous()
        assert torch.equal(unpack_ternary(strided, view.shape), view)


def test_meta_of_requires_grad():
    weights = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    assert not pack_ternary(weights).requires_grad


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float32])
def test_unpack_takes_bytes_alone(dtype):
    with pytest.raises(ValueError, match="uint8"):
        unpack_ternary(torch.zeros(2, dtype=dtype), 8)


@pytest.mark.parametrize(
    ("packed", "numel"),
    [((2,), 9), ((2,), 4), ((2,), 0), ((0,), 1), ((2, 2), 17), ((2, 2), (3, 8)), ((2,), (2, 5))],
)
def test_bytes_that_do_not_fit(packed, numel):
    with pytest.raises(ValueError, match="expected"):
        unpack_ternary(torch.full(packed, 0x55, dtype=torch.uint8), numel)


@pytest.mark.parametrize("numel", [-1, (-1, 4), (2, -4)])
def test_negative_sizes_are_refused(numel):
    with pytest.raises(ValueError, match=r"expected|negative"):
        unpack_ternary(torch.full((2,), 0x55, dtype=torch.uint8), numel)


def test_numel_may_be_a_torch_size():
    trits = torch.randint(-1, 2, (3, 5), dtype=torch.int8)
    assert torch.equal(unpack_ternary(pack_ternary(trits), trits.shape), trits)


def test_code_3_in_the_padding_is_refused():
    with pytest.raises(ValueError, match="0xc0"):
        unpack_ternary(torch.tensor([0xC0], dtype=torch.uint8), 3)
