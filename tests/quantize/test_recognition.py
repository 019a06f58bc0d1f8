"""Weights that are not ternary, recognised: by name, with their numbers."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tpack
from tpack.cli.main import main
from tpack.errors import NotTernaryError
from tpack.quantize import Weight, detect, narrow, recognise


def found(values, dtype=None):
    weight = Weight.of(values, dtype)
    return recognise(weight, detect(weight))


def trits(*shape, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float32)


def scales(*shape):
    return np.random.default_rng(1).uniform(0.5, 1.5, shape).astype(np.float32)


def pick(levels, *shape, seed=0):
    levels = np.array(levels, np.float32)
    return levels[np.random.default_rng(seed).integers(0, len(levels), shape)]


def short(value):
    return str(np.float32(value)).removesuffix(".0")


# ---- nearly ternary


@pytest.mark.parametrize(
    ("scale", "words", "option"),
    [
        (np.float32(0.0213), "is ternary but for", "tensor"),
        (scales(64, 1), "is ternary with a scale for each row, but for", "row"),
        (scales(1, 256), "is ternary with a scale for each column, but for", "column"),
        (scales(64, 2).repeat(128, axis=1), "for each group of 128, but for", "group:128"),
        (scales(64, 8).repeat(32, axis=1), "for each group of 32, but for", "group:32"),
    ],
)
@pytest.mark.parametrize("other", [0.0214, 5.0, 1e-8])
def test_one_value_that_is_not_ternary_is_named(scale, words, option, other):
    values = trits(64, 256) * scale
    values[3, 5] = other
    values[60, 7] = -other
    it = found(values)
    assert it.kind == "nearly ternary"
    assert f"{words} 2 of 16384 values: at index (3, 5) {short(other)} is found" in it.text
    size = np.broadcast_to(scale, values.shape)[3, 5]
    assert it.text.endswith(f"expected ±{short(size)} or 0")
    assert f"quantize='mse', scale={option!r}" in it.advice


def test_one_in_a_hundred_may_deviate_and_no_more():
    for share, kind in ((0.009, "nearly ternary"), (0.02, None)):
        values = trits(200, 200)
        nonzero = np.flatnonzero(values)
        some = nonzero[: int(len(nonzero) * share)]
        values.reshape(-1)[some] = np.random.default_rng(2).normal(size=len(some))
        it = found(values)
        assert (it and it.kind) == kind
        if it:
            assert f"for {len(some)} of 40000 values" in it.text


@pytest.mark.parametrize("scale", [np.float32(0.1), scales(64, 1), scales(1, 256)])
def test_rounding_of_all_values_is_no_other_weight(scale):
    values = trits(64, 256)
    values += np.random.default_rng(3).uniform(-5e-4, 5e-4, values.shape).astype(np.float32)
    it = found(values * scale)
    assert it.kind == "nearly ternary"
    assert "but for rounding: 16" in it.text
    assert "times the scale" in it.text
    values[2, 2] = 0.3
    assert "but for rounding and for 1 of 16384 values: at index (2, 2)" in found(values).text
    assert found(values + np.float32(3e-3) * np.abs(trits(64, 256, seed=9))) is None


def test_the_index_is_that_of_the_shape_and_of_the_file():
    values = trits(1500, 4, 500) * np.float32(0.5)  # more than one piece is read
    values[1400, 2, 17] = 0.7
    weight = Weight.of(values, split=2)
    it = recognise(weight, detect(weight))
    assert "at index (1400, 2, 17) 0.7 is found, expected ±0.5 or 0" in it.text


def test_zeros_at_the_begin_do_not_hide_what_follows():
    values = trits(1000, 256) * np.float32(0.5)
    values[:600] = 0
    values[999, 3] = 0.7
    assert "for 1 of 256000 values: at index (999, 3)" in found(values).text


def test_a_weight_that_is_ternary_otherwise_is_not_named_nearly_so():
    weight = Weight.of(trits(64, 96) * scales(64, 1))
    assert recognise(weight, detect(weight, "tensor")) is None
    doubles = Weight.of(trits(8, 64).astype(np.float64) * 0.1)
    assert recognise(doubles, detect(doubles)) is None


# ---- levels


def test_two_scales():
    assert found(pick([-1.4813, 0, 0.4256], 32, 32)).text == "has two scales: -1.4813 and 0.4256"
    it = found(pick([-1.5, 0, 0.5], 64, 64) * scales(64, 1))
    low, high = -1.5 * scales(64, 1)[0, 0], 0.5 * scales(64, 1)[0, 0]
    assert it.kind == "two scales in each row"
    assert it.text.endswith(
        f"values in each row; row 0 has two scales: {short(low)} and {short(high)}"
    )


def test_four_levels():
    it = found(pick([-1, -1 / 3, 1 / 3, 1], 4, 64))
    assert it.kind == "four levels"
    assert it.text == "has four levels and no zero: -1, -0.33333334, 0.33333334, 1 (2-bit SEQ)"
    it = found(pick([-3, -1, 1, 3], 64, 256) * scales(64, 2).repeat(128, axis=1))
    assert it.kind == "four levels in each group"
    assert "the group of row 0 that begins at column 0 has four levels and no zero: -" in it.text
    assert found(pick([-1, 0, 0.25, 1], 16, 64)).text == "has four levels: -1, 0, 0.25, 1"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_offset(dtype):
    values = narrow(pick([-0.04, 0.01, 0.06], 64, 64), dtype)
    it = found(values, dtype)
    assert it.kind == "an offset"
    assert "0.01" in it.text
    if dtype == "float32":
        assert (
            it.text == "has an offset: its values are 0.01 - s, 0.01 and 0.01 + s, where s is 0.05"
        )
    two = found(pick([-0.04, 0.06], 64, 64))
    assert (two.kind, two.text[-21:]) == ("two levels", "(binary: 0.01 ± 0.05)")


@pytest.mark.parametrize("count", range(4, 17))
def test_a_few_levels(count):
    levels = np.sort(np.random.default_rng(count).normal(size=count)).astype(np.float32)
    it = found(pick(levels, 64, 64))
    assert it.kind.endswith(" levels")
    assert str(levels[0]) in it.text
    assert str(levels[-1]) in it.text
    assert found(pick([*levels, *range(9, 23)], 64, 64)) is None
    it = found(np.random.default_rng(0).integers(0, count, (64, 64)).astype(np.int8) - np.int8(2))
    assert "(whole numbers)" in it.text
    assert "-2, -1" in it.text


def test_codes_that_were_dequantized_in_groups():
    codes = np.random.default_rng(0).integers(-8, 8, (64, 512)).astype(np.float32)
    it = found(codes * scales(64, 4).repeat(128, axis=1))
    assert it.kind == "sixteen levels in each group"


# ---- sparse


@pytest.mark.parametrize("zeros", [1, 2])
def test_structured_sparsity(zeros):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(64 * 64, 4)).astype(np.float32)
    np.put_along_axis(values, rng.random(values.shape).argsort(axis=1)[:, :zeros], 0, axis=1)
    assert found(values.reshape(64, 256)).kind == f"{4 - zeros}:4 sparse"
    values[5] = 1.5, 2.5, -3, 4
    assert found(values.reshape(64, 256)) is None
    values[:, :zeros] = 0
    values[:, zeros:] = rng.normal(size=(64 * 64, 4 - zeros))
    assert found(values.reshape(64, 256)) is None  # columns that were pruned


# ---- what is nothing of this


@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (16, 100), (64, 256), (300, 3), (100, 1)])
@pytest.mark.parametrize("pruned", [0, 0.5, 0.9, 0.99])
def test_float_weights_are_not_recognised(shape, pruned):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        for numbers in (rng.normal(size=shape), rng.laplace(size=shape), rng.random(shape) - 0.5):
            values = np.where(rng.random(shape) < pruned, 0, numbers * 0.02)
            if seed % 2:
                values.flat[seed % values.size] = 50  # an outlier
            for dtype in ("float32", "float16", "bfloat16"):
                assert found(narrow(values.astype(np.float32), dtype), dtype) is None


def test_int8_codes_of_many_values_are_not_recognised():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        assert found(rng.integers(-128, 128, (64, 64)).astype(np.int8)) is None
        bell = np.clip(rng.normal(size=(64, 64)) * 30, -127, 127)
        assert found(bell.astype(np.int8)) is None


def test_a_float_weight_is_settled_by_a_few_values():
    values = np.random.default_rng(0).normal(size=(2048, 1024)).astype(np.float32)
    read = []

    def load(start, stop):
        read.append(stop - start)
        return values.reshape(-1)[start:stop]

    weight = Weight(values.shape, 1, "float32", load)
    detected = detect(weight)
    read.clear()
    assert recognise(weight, detected) is None
    assert sum(read) <= 1 << 16


def test_pruned_columns_are_no_rule_for_zeros():
    values = np.random.default_rng(0).normal(size=(100, 16))
    for columns in ([0, 5, 8, 15], [0, 1, 4, 6, 9, 10, 14, 15], [*range(3, 16, 4), 0]):
        pruned = values.copy()
        pruned[:, columns] = 0
        assert found(pruned.astype(np.float32)) is None


def test_the_steps_of_tiny_numbers_are_no_levels():
    values = np.random.default_rng(0).normal(size=(64, 256))
    for size in (1e-8, 3e-8, 1e-7, 3e-7, 1e-6):
        assert found((values * size).astype(np.float16)) is None
    assert found((values * 2.0**-147).astype(np.float32)) is None


# ---- through convert

NAMED = {
    "nearly ternary": torch.from_numpy(trits(64, 64) * np.float32(0.5)).index_put(
        (torch.tensor(3), torch.tensor(5)), torch.tensor(0.7)
    ),
    "two scales": torch.from_numpy(pick([-1.4813, 0, 0.4256], 32, 32)),
    "four levels": torch.from_numpy(pick([-1, -1 / 3, 1 / 3, 1], 4, 64)),
    "an offset": torch.from_numpy(pick([-0.04, 0.01, 0.06], 64, 64)),
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_is_recognised_is_not_rounded_unasked(kind, tmp_path):
    state = {"a.weight": NAMED[kind]}
    text = found(NAMED[kind].numpy()).text
    with pytest.raises(NotTernaryError) as caught:
        tpack.convert(state, tmp_path / "out")
    assert f"'a.weight' {text}" in str(caught.value)
    assert not (tmp_path / "out").exists()

    ternary = state | {"b.weight": torch.from_numpy(trits(64, 64))}
    report = tpack.convert(ternary, tmp_path / "out")
    assert {t.name: t.action for t in report.tensors} == {"a.weight": "kept", "b.weight": "packed"}
    assert f"a.weight {text}. " in report.warnings[0]
    with pytest.raises(NotTernaryError) as caught:
        tpack.convert(ternary, tmp_path / "out", exact=True, force=True)
    assert f"'a.weight' {text}" in str(caught.value)
    report = tpack.convert(state, tmp_path / "out", quantize="absmean", force=True)
    assert [t.action for t in report.tensors] == ["quantized"]


def test_the_command_refuses_by_name(tmp_path, capsys):
    save_file({"a.weight": NAMED["two scales"]}, tmp_path / "m.safetensors")
    with pytest.raises(SystemExit) as caught:
        main(["convert", "-q", str(tmp_path / "m.safetensors")])
    assert caught.value.code == 4
    assert "'a.weight' has two scales: -1.4813 and 0.4256. One scale" in capsys.readouterr().err


def test_the_levels_of_seq_are_called_so():
    values = np.random.default_rng(0).choice(np.float32([-1, -1 / 3, 1 / 3, 1]) * 0.7, (64, 64))
    weight = Weight.of(values)
    assert recognise(weight, detect(weight)).text.endswith("(2-bit SEQ)")
