"""Nothing depends on pieces, threads or kernels."""

import dataclasses
import itertools
import math
import time

import numpy as np
import pytest
import torch
from weights import FLOATS, GRANULARITIES, restore, scales_for, sets_of, trits, trits_of, weight_of

import tpack.quantize.methods
import tpack.quantize.pieces
from tpack import kernels
from tpack.codec import unpack
from tpack.errors import InputError, NotTernaryError
from tpack.kernels import selection
from tpack.quantize import Weight, detect, encode, encode_blocks, fit, quantize, widen

pytestmark = pytest.mark.usefixtures("blocks")

METHODS = ["absmean", "twn", "mse"]


SHAPES = [(5, 41), (3, 256), (2, 20480 + 37), (1, 3 * 20480 + 1), (700, 3)]


def random_weight(shape, dtype, seed=0):
    """Values over many magnitudes, some zeros of both signs, and a row and a group of zeros."""
    random = np.random.default_rng(seed)
    values = random.normal(size=shape) * 2.0 ** random.integers(-3, 4, shape)
    values[random.random(shape) < 0.1] = -0.0
    values[-1, :32] = 0
    if shape[0] > 2:
        values[1] = 0
    return torch.from_numpy(values).to(FLOATS[dtype])


def outcome(weight, method, text):
    """Everything that a file holds of a weight."""
    found = fit(weight, method, text)
    encoded = encode(weight, found)
    return (
        (found.method, str(found.granularity), found.scale.tobytes(), found.threshold.tobytes()),
        encoded.packed.tobytes(),
        encoded.relative_error,
    )


@pytest.mark.parametrize("method", ["absmean", "twn"])
@pytest.mark.parametrize("text", ["tensor", "row", "column", "group:96", "group:32", "group:5"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_methods_by_brute_force(method, text, dtype, shape):
    tensor = random_weight(shape, dtype)
    weight = weight_of(tensor)
    found = quantize(weight, method, text, detect(weight, text))
    real = np.float64 if dtype == "float64" else np.float32
    values = tensor.to(torch.float64).numpy()
    scale, trit, sets = [], [], sets_of(values, text)
    for part in sets:
        mean = math.fsum(np.abs(part)) / len(part)
        if method == "absmean":
            scale.append(max(real(mean), real(1e-5)))
            trit.append(np.clip(np.rint(part.astype(real) * (real(1) / scale[-1])), -1, 1))
        else:
            kept = np.abs(part).astype(real) > real(0.7 * mean)
            scale.append(math.fsum(np.abs(part[kept])) / kept.sum() if kept.any() else 1.0)
            trit.append(np.sign(part) * kept)
    stored = torch.tensor(np.array(scale, np.float64)).float().to(FLOATS[found.dtype]).float()
    got = widen(found.scale, found.dtype).reshape(-1)
    np.testing.assert_allclose(got, stored.numpy(), rtol=1e-6 if method == "twn" else 0)
    q = trits_of(weight, found)
    assert np.array_equal(np.concatenate(sets_of(q, text)), np.concatenate(trit))
    lost = values - restore(weight, found)
    wanted = math.sqrt((lost**2).sum() / (values**2).sum())
    assert encode(weight, found).relative_error == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("variant", kernels.available())
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", ["tensor", "row", "column", "group:96", "group:5"])
def test_nothing_depends_on_pieces_threads_or_variant(variant, dtype, text, monkeypatch):
    for shape, method in itertools.product(SHAPES, METHODS):
        if method == "mse" and shape[1] > 256:
            continue  # sorts every set by itself
        weight = weight_of(random_weight(shape, dtype, seed=1))
        with monkeypatch.context() as patch:
            patch.setattr(tpack.quantize.pieces, "BLOCK", 1 << 21)
            wanted = outcome(weight, method, text)
        for block, threads in ((1, 1), (100, 3), (20480, 2), (50_000, 3)):
            with monkeypatch.context() as patch, kernels.forced(variant):
                patch.setattr(tpack.quantize.pieces, "BLOCK", block)
                patch.setattr(selection, "default_threads", lambda count=threads: count)
                assert outcome(weight, method, text) == wanted


@pytest.mark.parametrize("variant", kernels.available())
@pytest.mark.parametrize("text", GRANULARITIES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_exact_at_any_place_by_any_variant(variant, text, dtype):
    for shape in ((7, 600), (7 if text == "column" else 2, 2 * 20480 + 600)):
        values = trits(*shape) * scales_for(text, *shape)
        values[0, :3] = [-0.0, 0.0, -0.0]
        tensor = torch.from_numpy(values).to(FLOATS[dtype])
        weight = weight_of(tensor)
        with kernels.forced(variant):
            found = fit(weight, exact_only=True)
            assert (found.method, str(found.granularity)) == ("exact", text)
            back = torch.from_numpy(restore(weight, found)).to(tensor.dtype)
            assert torch.equal(back, tensor)
            tensor[:, -8:-6] = 1 + torch.arange(2 * len(tensor)).view(-1, 2)
            with pytest.raises(NotTernaryError):
                fit(weight, exact_only=True)


def test_packed_rows_come_in_order_and_in_whole_bytes():
    columns = 3 * 20480 + 5
    values = (trits(2, columns) * 0.5).astype(np.float32)
    weight = Weight.of(values)
    taken = []
    encode_blocks(weight, fit(weight), lambda packed, count: taken.append((packed, count)))
    rows = [unpack(packed, count) for packed, count in taken]
    flat = np.concatenate([row.reshape(-1) for row in rows])
    assert np.array_equal(flat.reshape(2, columns), np.sign(values))
    ends = np.cumsum([row.size for row in rows])
    assert all(
        count % 20 == 0 for (_, count), end in zip(taken, ends, strict=True) if end % columns
    )


@pytest.mark.parametrize("index", [0, 300, 1023])
def test_a_source_that_changes_between_the_passes_is_refused(index):
    tensor = torch.from_numpy(trits(4, 256))
    weight = weight_of(tensor)
    found = fit(weight)
    tensor.view(-1)[index] = 0.75
    with pytest.raises(InputError, match="other values than when it was read before"):
        encode(weight, found)


@pytest.mark.parametrize("text", GRANULARITIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_ternary_weight_is_read_once(dtype, text):
    values = trits(40, 256) * scales_for(text, 40, 256)
    weight = weight_of(torch.from_numpy(values).to(FLOATS[dtype]))
    spans = []

    def load(start, stop):
        spans.append((start, stop))
        return weight.load(start, stop)

    once = dataclasses.replace(weight, load=load)
    packed = encode(once, fit(once)).packed
    assert np.array_equal(unpack(packed, 256), np.sign(values))
    assert sum(stop - start for start, stop in spans) == values.size


def test_another_weight_is_read_twice():
    weight = Weight.of(np.random.default_rng(0).normal(size=(40, 256)).astype(np.float32))
    spans = []

    def load(start, stop):
        spans.append((start, stop))
        return weight.load(start, stop)

    twice = dataclasses.replace(weight, load=load)
    encode(twice, fit(twice))
    assert sum(stop - start for start, stop in spans) == 2 * 40 * 256


@pytest.mark.parametrize("text", ["tensor", "row", "group:32", "group:7"])
def test_the_first_value_that_is_not_finite_is_named_in_any_piece(text):
    values = np.ones((40, 64), dtype=np.float32)
    values[17, 5] = math.nan
    values[17, 4] = math.inf
    values[39, 0] = math.nan
    with pytest.raises(InputError, match=r"inf at index \(17, 4\)"):
        fit(Weight.of(values), scale=text)


def test_a_reader_is_called_alone_at_first(monkeypatch):
    """Sources make ready what all later reads share: they need no lock."""
    monkeypatch.setattr(selection, "default_threads", lambda: 3)
    flat, events = np.ones(64 * 512, dtype=np.float32), []

    def load(start, stop):
        events.append("begin")
        time.sleep(0.005)
        events.append("end")
        return flat[start:stop]

    fit(Weight((64, 512), 1, "float32", load))
    assert events[:2] == ["begin", "end"]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_nothing_to_pack(shape, method):
    weight = Weight.of(np.zeros(shape, dtype=np.float32))
    found = fit(weight, method)
    assert encode(weight, found).packed.shape == (shape[0], -(-shape[1] // 4))
