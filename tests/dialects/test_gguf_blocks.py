"""GGUF's ternary blocks against the gguf package, and against their formulas element by element."""

import re

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, strategies as st

from tpack import codec
from tpack.dialects import gguf_blocks as blocks
from tpack.errors import InputError

KINDS = [blocks.TQ1_0, blocks.TQ2_0, blocks.Q2_0, blocks.PQ2_0, blocks.PTQ1_0]
ALL = [*KINDS, blocks.I2_S]
KNOWN = {"TQ1_0": Type.TQ1_0, "TQ2_0": Type.TQ2_0}


def two_bits(place):
    """The codes of a block by a formula: column → (byte, shift)."""

    def codes(body, column):
        byte, shift = place(column)
        return body[byte] >> shift & 3

    return codes


def digits(place):
    """The same for base 3: column → (byte, digit). Bytes may stand for no digits at all."""

    def codes(body, column):
        byte, digit = place(column)
        return ((body[byte] * 3**digit % 256) * 3) >> 8

    return codes


#: From the sources' C, one element at a time; of the bytes without the scale.
FORMULAS = {
    "TQ2_0": two_bits(lambda e: (32 * (e // 128) + e % 32, 2 * (e % 128 // 32))),
    "Q2_0": two_bits(lambda e: (e // 4, 2 * (e % 4))),
    "PQ2_0": two_bits(lambda e: (e // 4, 2 * (e % 4))),
    "I2_S": two_bits(lambda e: (e % 32, 6 - 2 * (e // 32))),
    "TQ1_0": digits(
        lambda e: (
            (e % 32, e // 32)
            if e < 160
            else (32 + (e - 160) % 16, (e - 160) // 16)
            if e < 240
            else (48 + (e - 240) % 4, (e - 240) // 4)
        )
    ),
    "PTQ1_0": digits(
        lambda e: (
            (e % 16, e // 16)
            if e < 80
            else (16 + (e - 80) % 8, (e - 80) // 8)
            if e < 120
            else (24 + (e - 120) % 2, (e - 120) // 2)
        )
    ),
}


def example(kind, rows=3, count=2, seed=0):
    """Trits, scales and their blocks."""
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (rows, count * kind.weights)).astype(np.int8)
    scales = rng.standard_normal((rows, count)).astype(np.float16)
    return trits, scales, blocks.pack_blocks(kind, codec.pack(trits), scales)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_every_element_is_where_the_formula_says(kind):
    trits, scales, stored = example(kind)
    assert stored.shape == (3, 2 * kind.nbytes) == (3, kind.row_bytes(trits.shape[1]))
    for row in range(3):
        for block in range(2):
            data = stored[row, block * kind.nbytes : (block + 1) * kind.nbytes]
            body = [int(byte) for byte in data[kind.body]]
            found = [FORMULAS[kind.name](body, e) - 1 for e in range(kind.weights)]
            assert found == trits[row, block * kind.weights :][: kind.weights].tolist()
            if kind.scale_at is not None:
                scale = data[kind.scale_at : kind.scale_at + 2].tobytes()
                assert scale == scales[row, block].tobytes()
                assert len(body) + 2 == kind.nbytes


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 2, 300])
def test_there_and_back(kind, rows):
    trits, scales, stored = example(kind, rows, 3)
    assert np.array_equal(codec.unpack(blocks.unpack_blocks(kind, stored), trits.shape[1]), trits)
    if kind.scale_at is not None:
        assert blocks.scales_of(kind, stored).tobytes() == scales.tobytes()


@pytest.mark.parametrize("kind", [blocks.TQ1_0, blocks.TQ2_0], ids=lambda kind: kind.name)
@given(st.integers(0, 2**32))
def test_gguf_reads_what_is_written(kind, seed):
    trits, scales, stored = example(kind, seed=seed)
    found = gguf.quants.dequantize(stored, KNOWN[kind.name])
    wanted = np.repeat(scales.astype(np.float32), kind.weights, 1) * trits
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("kind", [blocks.TQ1_0, blocks.TQ2_0], ids=lambda kind: kind.name)
def test_what_gguf_writes_is_read(kind):
    trits = np.random.default_rng(1).integers(-1, 2, (5, 512)).astype(np.int8)
    stored = gguf.quants.quantize(trits * np.float32(0.25), KNOWN[kind.name])
    assert np.array_equal(codec.unpack(blocks.unpack_blocks(kind, stored), 512), trits)
    assert (blocks.scales_of(kind, stored) == 0.25).all()
    again = blocks.pack_blocks(kind, codec.pack(trits), blocks.scales_of(kind, stored))
    assert again.tobytes() == stored.tobytes()


def places(kind):
    """Bytes of a block with codes: the ends of each run, and some between."""
    first, stop, _ = kind.body.indices(kind.nbytes)
    ends = {first, stop - 1, 15, 16, 23, 24, 25, 31, 32, 47, 48, 51}
    return sorted(place for place in ends if first <= place < stop)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_every_byte_in_every_place_is_read_or_refused(kind):
    _, _, stored = example(kind, 1, 1)
    formula = FORMULAS[kind.name]
    for place in places(kind):
        changed = np.repeat(stored, 256, 0)
        changed[:, place] = np.arange(256)
        for row in range(256):
            body = [int(byte) for byte in changed[row, kind.body]]
            codes = [formula(body, e) for e in range(kind.weights)]
            again = np.array(codes, dtype=np.uint8)[None] - np.int8(1)
            legal = 3 not in codes and np.array_equal(
                blocks.pack_blocks(
                    kind, codec.pack(again.astype(np.int8)), np.zeros((1, 1), np.float16)
                )[:, kind.body],
                changed[row : row + 1, kind.body],
            )
            if legal:
                found = blocks.unpack_blocks(kind, changed[row : row + 1])
                assert codec.unpack(found, kind.weights)[0].tolist() == again[0].tolist()
            else:
                with pytest.raises(InputError, match="illegal code in block 0 of row 7"):
                    blocks.unpack_blocks(kind, changed[row : row + 1], 7)


@pytest.mark.parametrize(
    ("kind", "legal"), [(blocks.TQ2_0, 81), (blocks.TQ1_0, 243), (blocks.PTQ1_0, 243)]
)
def test_how_many_bytes_are_legal(kind, legal):
    stored = np.repeat(example(kind, 1, 1)[2], 256, 0)
    stored[:, 0] = np.arange(256)
    good = 0
    for row in stored:
        try:
            blocks.unpack_blocks(kind, row[None])
            good += 1
        except InputError:
            pass
    assert good == legal


def test_an_illegal_code_is_named_by_its_place():
    stored = example(blocks.Q2_0, 4, 5)[2].copy()
    stored[2, 3 * 18 + 9] = 0b11000000
    with pytest.raises(InputError, match=re.escape("block 3 of row 12, expected the trits")):
        blocks.unpack_blocks(blocks.Q2_0, stored, 10)


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_scales_are_finite(kind, bits):
    _, scales, stored = example(kind, 4, 3)
    stored = stored.copy()
    at = kind.nbytes + kind.scale_at
    stored[1, at : at + 2] = np.array([bits], dtype="<u2").view(np.uint8)
    with pytest.raises(InputError, match=r"in block 1 of row 21, expected a finite number"):
        blocks.scales_of(kind, stored, 20)
    assert np.array_equal(blocks.scales_of(kind, stored[2:]), scales[2:])
