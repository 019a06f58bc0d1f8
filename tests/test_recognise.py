"""What a weight is that is not ternary: each kind by name, and no ordinary weight by any."""

import re

import numpy as np
import pytest
import torch

import tpack
from tpack.errors import NotTernaryError
from tpack.quantize import Recognised, Weight, detect, recognise

RNG = np.random.default_rng(0)


def look(values, dtype=None):
    weight = Weight.of(values, dtype)
    detected = detect(weight)
    assert detected.fit is None
    return recognise(weight, detected)


def trits(*shape):
    return RNG.integers(-1, 2, shape).astype(np.float32)


def scales(*shape):
    return (RNG.random(shape) + 0.5).astype(np.float32)


def pick(levels, *shape):
    return RNG.choice(np.float32(levels), shape)


def off(values, index, by):
    values[index] += np.float32(by)
    return values


def sparse(zeros):
    blocks = RNG.standard_normal((1024, 4)).astype(np.float32)
    blocks[:, :zeros] = 0
    return RNG.permuted(blocks, axis=1).reshape(64, 64)


KINDS = {
    "one value": (off(trits(64, 96) * 2, (3, 5), 9), "nearly ternary", r"but for 1 of 6144 values"),
    "a row": (off(trits(64, 96) * scales(64, 1), (7, 2), 9), "nearly ternary", "per row but for 1"),
    "a column": (
        off(trits(64, 96) * scales(1, 96), (7, 2), 9),
        "nearly ternary",
        r"per column but for 1 of 6144 values: at index \(7, 2\) it holds",
    ),
    "a group": (
        off((trits(64, 2, 128) * scales(64, 2, 1)).reshape(64, 256), (9, 200), 9),
        "nearly ternary",
        "per group:128 but for 1",
    ),
    "rounding": (
        (trits(64, 96) * (1 + 1e-5 * RNG.standard_normal((64, 96)))).astype(np.float32),
        "nearly ternary",
        "but for rounding, which moves",
    ),
    "ttq": (pick([-1.48, 0, 0.43], 64, 64), "two scales", "-1.48 for -1 and 0.43 for"),
    "ttq of rows": (
        np.where((t := trits(64, 64)) > 0, t * scales(64, 1), t * scales(64, 1)),
        "two scales",
        "two scales per row",
    ),
    "seq": (pick([-1, -1 / 3, 1 / 3, 1], 64, 64), "four levels", "no zero.*2-bit SEQ"),
    "seq of rows": (
        pick([-1, -1 / 3, 1 / 3, 1], 64, 64) * scales(64, 1),
        "four levels",
        "four levels per row, no zero",
    ),
    "codes": (pick([0, 1, 2, 3], 64, 64), "four levels", "0, 1, 2, 3, evenly spaced"),
    "offset": (trits(64, 64) * np.float32(0.05) + np.float32(0.01), "an offset", "0.01 ± 0.05"),
    "binary": (pick([0.1, 0.3], 64, 64), "an offset", "binary around an offset: 0.2 ± 0.1"),
    "int4": (pick(np.arange(-8, 8) * 0.1, 64, 64), "16 levels", "codes|levels"),
    "2:4": (sparse(2), "2:4 sparse", "2 of every 4"),
    "3:4": (sparse(1), "3:4 sparse", "1 of every 4"),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_by_its_name(name):
    values, kind, text = KINDS[name]
    found = look(values)
    assert isinstance(found, Recognised)
    assert found.kind == kind
    assert re.search(text, found.text)


def test_the_first_value_that_is_off_is_named():
    values = trits(64, 96) * np.float32(0.0213)
    values[3, 5], values[40, 1] = 0.5, -3
    found = look(values)
    assert "but for 2 of 6144 values: at index (3, 5) it holds 0.5, expected 0 or ±0.0213" in (
        found.text
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kept", [1.0, 0.5, 0.03])
def test_ordinary_weights_are_nothing_else(dtype, kept):
    """Gaussian and other weights, pruned at random, of any size."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for shape in ((4, 4), (8, 8), (2, 64), (64, 48), (16, 8, 3, 3), (1, 300), (300, 2)):
            for draw in (rng.standard_normal, rng.random, lambda s, r=rng: r.laplace(size=s)):
                values = draw(shape) * (rng.random(shape) < kept)
                tensor = torch.from_numpy(values).to(dtype)
                plain = tensor.view(torch.uint16) if dtype == torch.bfloat16 else tensor
                weight = Weight.of(plain.numpy(), str(dtype).removeprefix("torch."))
                detected = detect(weight)
                assert detected.fit is not None or recognise(weight, detected) is None


def test_it_is_refused_alone_kept_beside_ternary_ones_and_rounded_where_that_is_asked(tmp_path):
    near = torch.from_numpy(off(trits(64, 96) * 2, (3, 5), 9))
    exact = torch.from_numpy(trits(64, 96))
    out = tmp_path / "out.safetensors"
    for options, others in (({}, {}), ({"exact": True}, {"b.weight": exact})):
        with pytest.raises(NotTernaryError, match=r"a\.weight is ternary but for 1 of 6144"):
            tpack.convert({"a.weight": near} | others, out, **options)
        assert not out.exists()
    report = tpack.convert({"a.weight": near, "b.weight": exact}, out)
    assert "a.weight is ternary but for 1 of 6144 values" in report.warnings[0]
    assert torch.equal(tpack.unpack(out)["a.weight"], near)
    report = tpack.convert({"a.weight": near}, out, quantize="mse", force=True)
    assert report.tensors[0].action == "quantized"
