"""Packing and quantization: every variant against the numpy definition, around every edge."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from kernel_cases import (
    COLUMNS,
    FLOATS,
    GROUPS,
    ROWS,
    VARIANTS,
    Guarded,
    activations,
    packed_reference,
    random,
    scales,
    trits,
)

from tpack import kernels
from tpack.kernels import reference, selection
from tpack.kernels.arrays import as_float32, from_float32, scale_shape


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels.forced(request.param):
        yield request.param


# --- the definition itself, by hand -------------------------------------------------------------


def test_the_layout_by_hand() -> None:
    assert reference.pack(np.array([[-1, 0, 1, -1]], np.int8))[0].tolist() == [[0b00_10_01_00]]
    assert reference.pack(np.array([[1]], np.int8))[0].tolist() == [[0b01_01_01_10]]


@pytest.mark.parametrize("scale", [1.0, 1.9999999, 0.3, 1e-5, 1.1754944e-38, 3.3e37])
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_absmean_threshold_is_where_the_product_rounds_to_one(scale: float, real: type) -> None:
    scales = np.array([scale], real)
    threshold = reference.absmean_threshold(scales)
    above = np.nextafter(threshold, real(np.inf))
    factor = real(1) / scales
    for values, trit in ((threshold, 0), (above, 1)):
        assert np.rint(values * factor) == trit
        assert np.rint(-values * factor) == -trit


# --- codec --------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", COLUMNS)
def test_pack_and_unpack(variant: str, columns: int) -> None:
    for rows in ROWS:
        values = trits(rows, columns)
        packed = packed_reference(values)
        for dtype in (np.int8, *FLOATS):
            source = values if dtype == np.int8 else from_float32(values.astype(np.float32), dtype)
            assert np.array_equal(kernels.pack(source), packed)
            assert np.array_equal(kernels.unpack(packed, columns, dtype), source)


def test_negative_zero_packs_as_zero(variant: str) -> None:
    for dtype in FLOATS:
        assert (
            kernels.pack(from_float32(np.full((1, 70), -0.0, np.float32), dtype)).tolist()[0][:17]
            == [0x55] * 17
        )


@pytest.mark.parametrize("dtype", [np.int8, *FLOATS])
def test_the_first_bad_trit_is_named(variant: str, dtype: type) -> None:
    for columns in (5, 64, 259):
        for where in random.integers(0, 3 * columns, 20):
            values = trits(3, columns).astype(np.float32)
            for bad in (2.0, -2.0, 0.5, np.nan, np.inf, 127.0, -128.0):
                if dtype == np.int8 and not float(bad).is_integer():
                    continue
                values.ravel()[[where, -1]] = bad
                source = values.astype(np.int8) if dtype == np.int8 else from_float32(values, dtype)
                with pytest.raises(
                    ValueError, match=rf"index \({where // columns}, {where % columns}\)"
                ):
                    kernels.pack(source)


@pytest.mark.parametrize("dtype", [np.int8, *FLOATS])
def test_the_first_bad_code_is_named(variant: str, dtype: type) -> None:
    for columns in (5, 64, 259):
        packed = packed_reference(trits(3, columns))
        for where in random.integers(0, 3 * columns, 20):
            row, column = divmod(int(where), columns)
            damaged = packed.copy()
            damaged[row, column // 4] |= 3 << 2 * (column % 4)
            with pytest.raises(ValueError, match=rf"code 3 at index \({row}, {column}\)"):
                kernels.unpack(damaged, columns, dtype)


@pytest.mark.parametrize("columns", [256, 4 << 18, (4 << 18) + 3])
def test_long_rows_are_split(variant: str, columns: int) -> None:
    if variant == "scalar":  # it takes a trit at a time
        columns = min(columns, 1 << 14)
    values = trits(3, columns)
    packed = packed_reference(values)
    assert np.array_equal(kernels.pack(values, threads=3), packed)
    assert np.array_equal(kernels.unpack(packed, columns, threads=3), values)
    values[1, columns - 2], values[2, 0] = 2, 2
    with pytest.raises(ValueError, match=rf"2 at index \(1, {columns - 2}\)"):
        kernels.pack(values, threads=3)


def test_all_bytes(variant: str) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(256, 1)
    for value in range(256):
        codes = [(value >> shift) & 3 for shift in (0, 2, 4, 6)]
        if 3 in codes:
            with pytest.raises(ValueError, match=rf"\(0, {codes.index(3)}\)"):
                kernels.unpack(every[value : value + 1], 4)
        else:
            assert kernels.unpack(every[value : value + 1], 4).tolist() == [
                [code - 1 for code in codes]
            ]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("group", GROUPS)
def test_dequantize_and_embedding(variant: str, dtype: type, group: int) -> None:
    for columns in (1, 5, 64, 257, 1027):
        packed = packed_reference(trits(7, columns))
        for scale_dtype in FLOATS:
            scale = scales(7, columns, group, scale_dtype)
            expected = from_float32(
                reference.dequantize(packed, columns, as_float32(scale), group)[0], dtype
            )
            got = kernels.dequantize(packed, columns, scale, group, dtype)
            assert np.array_equal(got, expected)
            indices = random.integers(0, 7, (2, 5))
            looked_up = kernels.embedding(indices, packed, columns, scale, group, dtype)
            assert np.array_equal(looked_up, expected[indices])


def test_the_first_bad_index_is_named(variant: str) -> None:
    packed = packed_reference(trits(7, 9))
    for bad in (-1, 7, 1 << 62, -(1 << 63)):
        with pytest.raises(ValueError, match=f"{bad} at position 2, expected 0 to 6"):
            kernels.embedding(np.array([0, 6, bad, 9]), packed, 9, np.ones(1, np.float32))


# --- quantization -------------------------------------------------------------------------------


def test_embedding_of_rows_with_code_3_is_refused(variant: str) -> None:
    packed = np.array([[0x55, 0x55], [0x55, 0x35]], np.uint8)
    kernels.embedding(np.array([0, 0]), packed, 7, np.ones(1, np.float32))
    with pytest.raises(ValueError, match="a row holds code 3"):
        kernels.embedding(np.array([0, 1]), packed, 7, np.ones(1, np.float32))


SETS = [0, 1, 32, 96, 128, 4096, 4128, 8192]  # groups that the ranges take


def exact_sum(values: np.ndarray) -> float:
    return math.fsum(np.abs(values.astype(np.float64)).ravel().tolist())


def spans(columns: int, group: int) -> list[slice]:
    width = group if group > 1 else max(columns, 1)
    return [slice(i, i + width) for i in range(0, columns, width)]


@pytest.mark.parametrize("group", sorted({*GROUPS, *SETS} - {reference.COLUMN}))
@pytest.mark.parametrize("columns", [0, 1, 5, 31, 32, 33, 64, 257, 1027, 9000])
def test_quantization(variant: str, columns: int, group: int) -> None:
    for rows, dtype in ((1, np.float32), (5, np.float16), (5, np.uint16)):
        weights = activations(rows, columns, dtype)
        if columns:
            weights[:, ::3] = 0
        floats = as_float32(weights)
        sums, wanted = kernels.abs_sums(weights, group), np.zeros(scale_shape(rows, columns, group))
        reference.abs_sums(floats, group, wanted)
        assert np.array_equal(sums, wanted)
        if group == 0:
            true = [exact_sum(floats)]
        else:
            true = [exact_sum(row[span]) for row in floats for span in spans(columns, group)]
        np.testing.assert_allclose(sums.ravel(), true or np.zeros(sums.size), rtol=1e-14)
        packed, scale = kernels.quantize_absmean(weights, group)
        factor = np.float32(1) / reference.spread_scale(scale, (rows, columns), group)
        expected = np.clip(np.rint(floats * factor), -1, 1).astype(np.int8)
        assert np.array_equal(packed, packed_reference(expected))


@pytest.mark.parametrize("group", SETS)
@pytest.mark.parametrize("columns", [0, 1, 31, 32, 33, 257, 511, 513, 1027, 9000])
def test_survey_is_the_sums_and_the_ranges(variant: str, columns: int, group: int) -> None:
    for rows, dtype in ((1, np.float32), (5, np.float16), (5, np.uint16), (3, np.float32)):
        weights = activations(rows, columns, dtype)
        if columns:
            weights[:, ::3] = 0
        weights[rows - 1, :40] = 0
        floats = np.abs(as_float32(weights))
        sums = np.zeros(scale_shape(rows, columns, group))
        largest, smallest = kernels.survey(weights, group, sums)
        assert np.array_equal(sums, kernels.abs_sums(weights, group))
        for i, span in enumerate(spans(columns, 32)):
            part = floats[:, span]
            assert np.array_equal(largest[:, i], part.max(axis=1))
            assert np.array_equal(smallest[:, i], np.where(part > 0, part, np.inf).min(axis=1))
        for got, wanted in zip(kernels.survey(weights), (largest, smallest), strict=True):
            assert np.array_equal(got, wanted)


def test_ranges_of_subnormals_zeros_and_what_is_not_finite(variant: str) -> None:
    weights = np.zeros((1, 160), np.float32)
    weights[0, [3, 31]] = 1e-45, -3e-45
    weights[0, 32:64] = -0.0
    weights[0, 70] = -np.inf
    weights[0, 96:128] = np.nan
    weights[0, [128, 130]] = np.nan, 0.5
    largest, smallest = kernels.survey(weights)
    np.testing.assert_array_equal(largest, np.float32([[3e-45, 0, np.inf, np.nan, np.nan]]))
    np.testing.assert_array_equal(smallest, np.float32([[1e-45, np.inf, np.inf, np.inf, 0.5]]))


@pytest.mark.parametrize("columns", [0, 1, 7, 15, 16, 33, 257, 4096, 9000])
def test_sizes_of_columns(variant: str, columns: int) -> None:
    for rows, dtype in ((1, np.float32), (5, np.float16), (5, np.uint16), (40, np.float32)):
        trits = random.integers(-1, 2, (rows, columns))
        trits[:, ::5] = 0
        weights = from_float32(
            (trits * 2.0 ** random.integers(-9, 9, columns)).astype(np.float32), dtype
        )
        weights[trits == 0] = from_float32(np.float32([-0.0]), dtype)
        expected = np.abs(as_float32(weights)).max(axis=0, initial=0)
        for threads in (1, 2):
            assert np.array_equal(kernels.column_sizes(weights, threads=threads), expected)
        sizes = np.zeros(columns, np.float32)
        for row in range(rows):
            assert kernels.column_sizes(weights[row : row + 1], sizes) is sizes
        assert np.array_equal(sizes, expected)
        for column in {0, columns // 2, columns - 1} if rows > 1 and columns else ():
            other = weights.copy()
            other[[0, rows - 1], column] = from_float32(np.float32([0.5, -0.25]), dtype)
            assert kernels.column_sizes(other) is None
            other[0, column] = from_float32(np.float32([-0.25]), dtype)[0]
            other[1 : rows - 1, column] = 0
            assert kernels.column_sizes(other)[column] == 0.25


def test_sizes_of_columns_that_are_tiny_or_infinite(variant: str) -> None:
    weights = np.float32([[1e-45, -0.0, np.inf, 0], [-1e-45, 0.0, -np.inf, 3]])
    assert kernels.column_sizes(weights).tolist() == [np.float32(1e-45), 0, np.inf, 3]
    assert kernels.column_sizes(np.float32([[1e-45], [3e-45]])) is None


def test_sums_do_not_depend_on_variant_threads_or_parts(variant: str) -> None:
    weights = (
        random.standard_normal((3, 300_001)) * 10.0 ** random.integers(-30, 30, (3, 300_001))
    ).astype(np.float32)
    columns, step = 300_001, 4096 * 6  # a multiple of every group
    for group in (0, 1, 96, 8192):
        expected = np.zeros(scale_shape(3, columns, group))
        reference.abs_sums(weights, group, expected)
        for threads in (1, 2, 3):
            assert np.array_equal(kernels.abs_sums(weights, group, threads=threads), expected)
        sums = np.zeros_like(expected)
        for row in range(3):
            if group == 0:
                kernels.abs_sums(weights[row : row + 1], group, sums)
                continue
            for start in range(0, columns, step):
                part = weights[row : row + 1, start : start + step]
                first = 0 if group == 1 else start // group
                last = first + (1 if group == 1 else -(-part.shape[1] // group))
                kernels.abs_sums(part, group, sums[row : row + 1, first:last])
        assert np.array_equal(sums, expected)


def test_what_is_not_finite_is_named(variant: str) -> None:
    for bad in (np.inf, -np.inf, np.nan):
        for group in (0, 1, 32):
            weights = activations(3, 5000)
            weights[1, 4999] = weights[2, 3] = bad
            with pytest.raises(ValueError, match=r"at index \(1, 4999\), expected a finite number"):
                kernels.abs_sums(weights, group)
        assert not np.isfinite(kernels.survey(weights)[0][1, 156])


@pytest.mark.parametrize("group", [0, 1, 4, 32, 96, 128, 8192])
@pytest.mark.parametrize("columns", [0, 1, 5, 33, 257, 4095, 4097, 9000])
def test_what_packing_loses(variant: str, columns: int, group: int) -> None:
    for rows, dtype in ((1, np.float32), (5, np.float16), (5, np.uint16)):
        weights = activations(rows, columns, dtype)
        shape = scale_shape(rows, columns, group)
        limits, scale = (random.uniform(0.2, 0.9, shape).astype(np.float32) for _ in range(2))
        squares, wanted = np.full((rows, 2), 0.25), np.full((rows, 2), 0.25)
        packed = kernels.quantize_measured(weights, limits, scale, group, squares)
        assert np.array_equal(packed, kernels.quantize(weights, limits, group))
        floats = as_float32(weights)
        restored = reference.dequantize(packed, columns, scale, group)[0]
        reference.square_sums(floats, restored, wanted)
        assert np.array_equal(squares, wanted)
        wide = floats.astype(np.float64)
        for i, true in enumerate((wide - restored, wide)):
            np.testing.assert_allclose(squares[:, i], np.square(true).sum(1) + 0.25, rtol=1e-6)
        for threads in (1, 3):
            again = np.full((rows, 2), 0.25)
            kernels.quantize_measured(weights, limits, scale, group, again, threads=threads)
            assert np.array_equal(again, squares)


@pytest.mark.parametrize("group", [0, 1, 32, 96, 8192])
@pytest.mark.parametrize("columns", [1, 33, 257, 4097, 9000])
def test_proof_of_exactness(variant: str, columns: int, group: int) -> None:
    for rows, dtype in ((1, np.float32), (3, np.float16), (3, np.uint16)):
        scale = np.abs(scales(rows, columns, group))
        scale = as_float32(from_float32(scale, dtype))
        values = trits(rows, columns)
        floats = values * reference.spread_scale(scale, values.shape, group)
        floats[0, 0] = -0.0
        weights = from_float32(floats, dtype)
        packed, different = kernels.quantize_exact(weights, scale, group)
        assert different == -1
        wanted = np.sign(floats).astype(np.int8)
        assert np.array_equal(packed, packed_reference(wanted))
        for index in {0, columns - 1, weights.size // 2, weights.size - 1}:
            other = weights.copy().reshape(-1)
            bits = other.view(np.uint32 if dtype == np.float32 else np.uint16)
            bits[index] ^= 1
            bits[-1] ^= 1 * (index != weights.size - 1)
            assert kernels.quantize_exact(other.reshape(weights.shape), scale, group)[1] == index


def test_signs_pack_with_threshold_zero(variant: str) -> None:
    weights = trits(3, 131) * np.float32(1e-45)
    assert np.array_equal(
        kernels.quantize(weights, np.zeros(1, np.float32)),
        packed_reference(np.sign(weights).astype(np.int8)),
    )


def test_sixteen_bit_floats_of_every_value(variant: str) -> None:
    """Widening and rounding agree with numpy for all 65536 halves and bfloat16s."""
    every = np.arange(65536, dtype=np.uint16)
    packed = packed_reference(np.ones((1, 1), np.int8))
    for bits, dtype in ((every.view(np.float16), np.float16), (every, np.uint16)):
        scale = bits.reshape(-1, 1)
        rows = np.repeat(packed, 65536, axis=0)
        with np.errstate(invalid="ignore"):
            wide = kernels.dequantize(rows, 1, scale, 1, np.float32)[:, 0]
            assert np.array_equal(wide, as_float32(bits), equal_nan=True)
            back = kernels.dequantize(rows, 1, wide.reshape(-1, 1), 1, dtype)[:, 0]
            assert np.array_equal(as_float32(back), as_float32(bits), equal_nan=True)
            between = np.nextafter(wide, np.float32(np.inf)) + wide * np.float32(2**-12)
            rounded = kernels.dequantize(rows, 1, between.reshape(-1, 1), 1, dtype)[:, 0]
            assert np.array_equal(
                as_float32(rounded), as_float32(from_float32(between, dtype)), equal_nan=True
            )


# --- memory ---


def test_codec_touches_nothing_beyond(variant: str) -> None:
    native = selection.native
    assert native is not None
    for rows, columns in ((1, 1), (3, 5), (5, 63), (2, 64), (17, 257), (3, 4099)):
        values = trits(rows, columns)
        packed = packed_reference(values)
        for at_start in (False, True):
            for dtype, kind in enumerate((np.float32, np.float16, np.uint16, np.int8)):
                source = values if dtype == 3 else from_float32(values.astype(np.float32), kind)
                given_, out = Guarded(source, at_start), Guarded(np.zeros_like(packed), at_start)
                assert native.pack(given_.address, dtype, rows, columns, out.address, 2) == -1
                assert np.array_equal(out.array(), packed)
                back = Guarded(np.zeros_like(source), at_start)
                assert native.unpack(out.address, rows, columns, back.address, dtype, 2) == -1
                assert np.array_equal(back.array(), source)
                if dtype < 3:
                    groups = -(-columns // 32)
                    high, low = (
                        Guarded(np.zeros((rows, groups), np.float32), at_start) for _ in range(2)
                    )
                    sums, squares = (
                        Guarded(np.zeros(1), at_start),
                        Guarded(np.zeros((rows, 2)), at_start),
                    )
                    native.survey(
                        given_.address, dtype, rows, columns,
                        0, sums.address, high.address, low.address, 2,
                    )  # fmt: skip
                    sizes = Guarded(np.zeros(columns, np.float32), at_start)
                    native.column_sizes(given_.address, dtype, rows, columns, sizes.address, 2)
                    assert np.array_equal(sizes.array(), np.abs(values).max(0))
                    limit, one = (
                        Guarded(np.full(1, value, np.float32), at_start) for value in (0, 1)
                    )
                    for address in (0, squares.address):
                        different = native.quantize(
                            given_.address, dtype, rows, columns,
                            limit.address, one.address, 0, out.address, address, 2,
                        )  # fmt: skip
                        assert different == -1
                        assert np.array_equal(out.array(), packed)
                    assert np.array_equal(squares.array()[:, 1], np.abs(values).sum(1))
                    assert not squares.array()[:, 0].any()
                    assert sums.array()[0] == np.abs(values).sum()
