"""Codes of other systems in layout t2, against their own packers and against brute force."""

import json
import struct

import hf_models
import numpy as np
import pytest
import torch
from gguf_files import container
from hypothesis import given, strategies as st
from safetensors.torch import save_file

import tpack
from tpack import codec
from tpack.dialects import (
    codes,
    compressed_tensors,
    gguf_blocks,
    gguf_types,
    hf_bitnet,
    mlx,
)
from tpack.errors import InputError, TpackError

RNG = np.random.default_rng(0)


def trits(*shape):
    return RNG.integers(-1, 2, shape, dtype=np.int8)


# ---- what all share


@pytest.mark.parametrize("columns", range(1, 10))
def test_pad_gives_code_1_and_touches_nothing_else(columns):
    rows = RNG.integers(0, 256, (3, 5), dtype=np.uint8)
    before = rows.copy()
    padded = codes.pad(rows, columns)
    assert padded.shape == (3, -(-columns // 4))
    assert (rows == before).all()
    decoded = codec.LAYOUTS["t2"].decode(padded)
    assert (decoded[:, columns:] == 1).all()
    assert (decoded[:, :columns] == codec.LAYOUTS["t2"].decode(rows)[:, :columns]).all()


def test_check_codes_is_exact_over_all_bytes():
    valid = codec.LAYOUTS["t2"].valid
    for byte in range(256):
        rows = np.full((1, 1), byte, dtype=np.uint8)
        if valid[byte]:
            codes.check_codes(rows, 0)
        else:
            with pytest.raises(InputError, match="holds code 3 at row 0"):
                codes.check_codes(rows, 0)


def test_check_codes_names_the_first_place():
    rows = codec.pack(trits(4, 12))
    rows[2, 1] = 0b11_00_01_10
    with pytest.raises(InputError, match=r"code 3 at row 12, column 7, expected 0, 1 or 2"):
        codes.check_codes(rows, 10)


# ---- Hugging Face bitnet


@pytest.mark.parametrize("stored", [1, 2, 5])
@pytest.mark.parametrize("columns", [1, 3, 4, 5, 64])
def test_bitnet_against_the_library(stored, columns):
    weight = trits(4 * stored, columns)
    pack = hf_models.transformers().integrations.bitnet.pack_weights
    packed = pack(torch.from_numpy(weight.copy())).numpy()
    for stripe in range(4):
        own = weight[stripe * stored : (stripe + 1) * stored]
        assert (hf_bitnet.to_t2(packed, stripe) == codec.pack(own)).all()
    parts = [(weight[i * stored : (i + 1) * stored] + 1).astype(np.uint8) for i in range(4)]
    assert (hf_bitnet.from_codes(parts) == packed).all()


@given(st.integers(1, 9), st.data())
def test_stripes_cover_a_range_in_order(stored, data):
    first = data.draw(st.integers(0, 4 * stored))
    last = data.draw(st.integers(first, 4 * stored))
    found = [
        stripe * stored + row
        for stripe, start, stop in hf_bitnet.stripes(first, last, stored)
        for row in range(start, stop)
    ]
    assert found == list(range(first, last))


def test_bitnet_refuses_code_3_where_it_is():
    stored = np.zeros((2, 5), dtype=np.uint8)
    stored[1, 4] = 3 << 4
    hf_bitnet.to_t2(stored, 1)
    with pytest.raises(InputError, match="row 11, column 4"):
        hf_bitnet.to_t2(stored, 2, first=10)


# ---- compressed-tensors


@pytest.mark.parametrize("columns", [1, 3, 4, 15, 16, 17, 31, 32, 33, 100])
def test_compressed_tensors_against_the_library(columns):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    weight = trits(3, columns)
    words = helpers.pack_to_int32(torch.from_numpy(weight.copy()), 2).numpy()
    assert (compressed_tensors.to_t2(words, columns) == codec.pack(weight)).all()


def test_compressed_tensors_by_hand():
    values = [-1, 0, 1, 1, 0, -1] + [0] * 10 + [1, 1]
    words = [0, 0]
    for k, value in enumerate(values):
        words[k // 16] |= (value + 2) << 2 * (k % 16)
    packed = np.array([words], dtype=np.uint32).view(np.int32)
    assert (codec.unpack(compressed_tensors.to_t2(packed, 18), 18) == values).all()
    packed[0, 0] &= ~(3 << 8)  # the value -2 at column 4
    with pytest.raises(InputError, match="the value -2 at row 7, column 4, expected -1, 0 or 1"):
        compressed_tensors.to_t2(packed, 18, first=7)


# ---- MLX


def test_mlx_by_hand():
    weight = trits(3, 48)
    words = np.zeros((3, 3), dtype=np.uint32)
    for (row, column), trit in np.ndenumerate(weight):
        words[row, column // 16] |= np.uint32(int(trit) + 1 << 2 * (column % 16))
    assert (mlx.to_t2(words) == codec.pack(weight)).all()
    words[2, 2] |= np.uint32(3 << 30)
    with pytest.raises(InputError, match="code 3 at row 6, column 47"):
        mlx.to_t2(words, first=4)


# ---- a file with a code that is no trit is refused, whatever dialect and place it is in

ROWS, COLUMNS = 8, 256
ILLEGAL_TQ1 = sorted({*range(256)} - {-(-256 * value // 243) for value in range(243)})


def stored_codes(offset=1):
    """Codes of random trits two bits each, four in a byte, as uint8 (ROWS, COLUMNS / 4)."""
    packed = np.zeros((ROWS, COLUMNS // 4), dtype=np.uint8)
    for (row, column), trit in np.ndenumerate(trits(ROWS, COLUMNS)):
        packed[row, column // 4] |= np.uint8(trit + offset) << 2 * (column % 4)
    return packed


def folder_of(path, config, **tensors):
    """A folder of one layer, from arrays."""
    path.mkdir()
    state = {name.replace("__", "."): torch.from_numpy(array) for name, array in tensors.items()}
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


def bitnet_folder(path, place, damage):
    stripes = np.zeros((ROWS // 4, COLUMNS), dtype=np.uint8)
    for (row, column), trit in np.ndenumerate(trits(ROWS, COLUMNS)):
        stripes[row % (ROWS // 4), column] |= np.uint8(trit + 1) << 2 * (row // (ROWS // 4))
    if damage:
        stripes.reshape(-1)[place] |= 3 << 2 * (place % 4)
    config = {"quantization_config": {"quant_method": "bitnet"}}
    scale = np.ones(1, dtype=np.float32)
    return folder_of(path, config, a__weight=stripes, a__weight_scale=scale)


def compressed_folder(path, place, damage):
    packed = stored_codes(offset=2)
    if damage:
        packed.reshape(-1)[place] &= ~np.uint8(3 << 2 * (place % 4))
    weights = {"num_bits": 2, "type": "int", "symmetric": True, "strategy": "tensor"}
    config = {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }
    }
    return folder_of(
        path,
        config,
        a__weight_packed=packed.view(np.int32),
        a__weight_scale=np.ones(1, dtype=np.float32),
        a__weight_shape=np.array([ROWS, COLUMNS]),
    )


def mlx_folder(path, place, damage):
    packed = stored_codes()
    if damage:
        packed.reshape(-1)[place] |= 3 << 2 * (place % 4)
    scales = np.ones((ROWS, COLUMNS // 64), dtype=np.float32)
    return folder_of(
        path,
        {"quantization": {"group_size": 64, "bits": 2}},
        a__weight=packed.view(np.uint32),
        a__scales=scales,
        a__biases=-scales,
    )


def gguf_file(kind, number):
    def write(path, place, damage):
        scales = np.ones((ROWS, COLUMNS // kind.weights), dtype=np.float16)
        blocks = gguf_blocks.pack_blocks(kind, codec.pack(trits(ROWS, COLUMNS)), scales)
        bodies = blocks.reshape(-1, kind.nbytes)[:, kind.body]  # a view
        if damage:
            block, byte = divmod(place % bodies.size, bodies.shape[1])
            is_base_3 = kind.name in ("TQ1_0", "PTQ1_0")
            bodies[block, byte] = (
                ILLEGAL_TQ1[place % len(ILLEGAL_TQ1)]
                if is_base_3
                else bodies[block, byte] | 3 << 2 * (place % 4)
            )
        tail = struct.pack("<f", 1.0) + bytes(28) if kind.name == "I2_S" else b""
        path = path.with_suffix(".gguf")
        path.write_bytes(
            container((), [("a.weight", (ROWS, COLUMNS), number, blocks.tobytes() + tail)])
        )
        return path

    return write


DIALECTS = {
    "hf-bitnet": bitnet_folder,
    "compressed-tensors": compressed_folder,
    "mlx": mlx_folder,
    **{kind.name: gguf_file(kind, number) for number, kind in gguf_types.TERNARY.items()},
}


@pytest.mark.parametrize("place", [0, 1, 2, 3, 101, 446, 447])
@pytest.mark.parametrize("write", DIALECTS.values(), ids=DIALECTS)
def test_an_illegal_code_is_refused_and_nothing_written(tmp_path, write, place):
    target = tmp_path / "out"
    with pytest.raises(TpackError, match=r"code (3 )?(at|in)|the value -2 at") as caught:
        tpack.convert(write(tmp_path / "bad", place, damage=True), target)
    # a fourth value is legal in formats of two bits, and not ternary
    assert caught.value.code == (4 if write in (compressed_folder, mlx_folder) else 3)
    assert caught.value.tensor in ("a.weight", "a.weight_packed")
    assert not target.exists()
    tpack.convert(write(tmp_path / "good", place, damage=False), target)
