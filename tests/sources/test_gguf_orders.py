"""The orders of I2_S, and the forms of type 42: neither is in the file as a name."""

import struct

import numpy as np
import pytest
from gguf_files import container
from gguf_sources import plain, put, ternary

import tpack
from tpack import codec
from tpack.choices import I2S_ORDERS
from tpack.dialects import gguf_blocks
from tpack.errors import InputError, UnsupportedError, UsageError
from tpack.options import Reading
from tpack.sources import open_source


def brute_force(data, rows, columns, order):
    """Codes by the descriptions of the orders, weight by weight."""
    found = np.zeros((rows, columns), np.int8)
    for r in range(rows):
        for k in range(columns):
            at = r * columns + k
            if order == "x86":
                byte, place = data[at // 128 * 32 + at % 32], at % 128 // 32
            elif order == "arm":
                byte, place = data[at // 64 * 16 + at % 16], at % 64 // 16
            else:
                byte, place = data[r // 4 * columns + k], r % 4
            found[r, k] = (int(byte) >> (6 - 2 * place) & 3) - 1
    return found


@pytest.mark.parametrize(
    ("order", "shape"),
    [("x86", (4, 256)), ("arm", (3, 192)), ("rows", (8, 12)), ("rows", (4, 128))],
)
def test_i2_s_in_the_order_that_is_said(tmp_path, order, shape):
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 3, (shape[0] * shape[1] // 4, 4), dtype=np.uint8)
    data = (codes << np.array([6, 4, 2, 0], np.uint8)).sum(axis=1, dtype=np.uint8)
    tensor = ("w", shape, 36, data.tobytes() + struct.pack("<f", 0.25) + bytes(28))
    path = put(tmp_path, container((), [tensor]))
    wanted = brute_force(data, *shape, order) * np.float32(0.25)
    with open_source(path, Reading(i2s_order=order)) as source:
        assert np.array_equal(plain(source.tensors["w"]), wanted)
        assert np.array_equal(
            np.concatenate([codec.unpack(source.tensors["w"].rows(i, i + 1), shape[1])
                            for i in range(shape[0])]) * np.float32(0.25), wanted)  # fmt: skip
        assert any(f"order that {order} has" in note for note in source.notes)
        assert source.warnings == []
    tpack.convert(path, tmp_path / "o", i2s_order=order)
    assert np.array_equal(tpack.unpack(tmp_path / "o")["w"].numpy(), wanted)
    assert tpack.verify(tmp_path / "o", path, i2s_order=order).ok
    if order != "x86" and shape[1] % 128 == 0:
        assert not tpack.verify(tmp_path / "o", path).ok


def test_an_order_that_nobody_said_is_warned_of(tmp_path):
    data = bytes(32) + struct.pack("<f", 0.25) + bytes(28)
    path = put(tmp_path, container((), [("w", (1, 128), 36, data)]))
    (warning,) = tpack.convert(path, tmp_path / "o", exact=True).warnings
    assert "in the order that x86 has" in warning
    assert "try i2s_order='arm' or 'rows'" in warning


def test_the_orders_of_i2_s_have_blocks_and_a_meaning():
    assert I2S_ORDERS.keys() == gguf_blocks.I2_S_ORDERS.keys()
    with pytest.raises(UsageError, match="expected x86, arm or rows"):
        Reading(i2s_order="tl1")


def test_a_row_order_that_the_shape_forbids(tmp_path):
    path = put(tmp_path, container((), [("w", (2, 128), 36, bytes(96))]))
    with pytest.raises(InputError, match="expected a multiple of 4 rows in this order"):
        open_source(path, Reading(i2s_order="rows"))


# ---- forms of type 42


@pytest.mark.parametrize("number", [42, 43])
def test_stq1_0_is_named_and_refused(tmp_path, number):
    path = put(tmp_path, container((), [("w", (64, 256), number, bytes(64 * 42))]))
    with pytest.raises(UnsupportedError, match=rf"type {number} in STQ1_0 \(42 bytes for 256"):
        open_source(path)


def test_a_size_that_fits_two_forms_is_refused_with_both(tmp_path):
    tensor, _ = ternary(gguf_blocks.PQ2_0, 42, (1, 128))  # 34 bytes or 36, in 64
    path = put(tmp_path, container((), [tensor]))
    with pytest.raises(
        UnsupportedError, match="tensor 'w' has type 42, and its 64 bytes fit Q2_0 and PQ2_0"
    ):
        open_source(path)


def test_one_tensor_that_fits_a_single_form_decides_for_all(tmp_path):
    small, wanted = ternary(gguf_blocks.PQ2_0, 42, (1, 128))
    large, more = ternary(gguf_blocks.PQ2_0, 42, (64, 128), name="v")
    with open_source(put(tmp_path, container((), [small, large]))) as source:
        assert np.array_equal(plain(source.tensors["w"]), wanted)
        assert np.array_equal(plain(source.tensors["v"]), more)
