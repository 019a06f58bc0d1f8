"""Products: every variant against the numpy definition, around every edge and on odd addresses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from kernel_cases import (
    COLUMNS,
    FLOATS,
    GROUPS,
    ROWS,
    VARIANTS,
    Guarded,
    activations,
    check_bit_linear,
    check_linear,
    packed_reference,
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


@pytest.mark.parametrize("columns", COLUMNS)
def test_products_at_every_edge(variant: str, columns: int) -> None:
    for i, rows in enumerate(ROWS):
        values = trits(rows, columns)
        packed = packed_reference(values)
        for tokens in (0, 1, 2, 4, 7, 13, 33):
            group = GROUPS[(i + tokens + columns) % len(GROUPS)]
            scale = scales(rows, columns, group)
            x, bias = activations(tokens, columns), activations(1, rows)[0]
            check_linear(
                kernels.linear(x, packed, scale, bias, group), x, values, scale, group, bias
            )
            got = kernels.bit_linear(x, packed, scale, bias, group)
            check_bit_linear(got, x, values, scale, group, bias)
            x, bias = activations(tokens, rows), activations(1, columns)[0]
            got = kernels.linear_columns(x, packed, columns, scale, bias, group)
            check_linear(got, x, values, scale, group, bias, along=True)
            for scale in (scales(1, 1, 0), scales(rows, columns, reference.COLUMN)):
                got = kernels.bit_linear_columns(x, packed, columns, scale, bias)
                wanted = reference.bit_linear_columns(x, values, scale, bias)
                assert np.array_equal(got, wanted)


@pytest.mark.parametrize("tokens", [3, 9, 17, 64, 67, 130])
def test_blocks_of_many_tokens(variant: str, tokens: int) -> None:
    """Rows, columns and tokens around the blocks that the products are cut into."""
    for rows, columns in ((4, 2048), (13, 2052), (67, 4100), (259, 515), (261, 1030)):
        if variant == "scalar" and rows * columns > 1 << 16:
            continue
        values, one = trits(rows, columns), scales(1, 1, 0)
        packed, bias = packed_reference(values), activations(1, rows)[0]
        x, y = activations(tokens, columns), activations(tokens, rows)
        for group in (0, 1, 2, 64):
            scale = scales(rows, columns, group)
            got = kernels.linear(x, packed, scale, bias, group)
            check_linear(got, x, values, scale, group, bias)
        for group in (0, 2):
            scale = scales(rows, columns, group)
            got = kernels.bit_linear(x, packed, scale, bias, group)
            check_bit_linear(got, x, values, scale, group, bias)
        for group in (0, 1, 2):
            scale = scales(rows, columns, group)
            got = kernels.linear_columns(y, packed, columns, scale, None, group)
            check_linear(got, y, values, scale, group, None, along=True)
        for scale in (one, scales(rows, columns, 2)):
            got = kernels.bit_linear_columns(y, packed, columns, scale)
            assert np.array_equal(got, reference.bit_linear_columns(y, values, scale, None))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("tokens", [1, 2, 5, 8, 16, 40])
def test_products_with_every_scale(variant: str, group: int, tokens: int) -> None:
    rows, columns = 70, 2 * 1027
    values = trits(rows, columns)
    packed = packed_reference(values)
    for dtype in FLOATS:
        for scale_dtype in FLOATS:
            scale, x = (
                scales(rows, columns, group, scale_dtype),
                activations(tokens, columns, dtype),
            )
            bias = None if dtype == np.float16 else activations(1, rows, scale_dtype)[0]
            check_linear(
                kernels.linear(x, packed, scale, bias, group), x, values, scale, group, bias
            )
            got = kernels.bit_linear(x, packed, scale, bias, group)
            check_bit_linear(got, x, values, scale, group, bias)
            if group != reference.COLUMN:
                continue
            y = activations(tokens, rows, dtype)
            got = kernels.linear_columns(y, packed, columns, scale, None, group)
            check_linear(got, y, values, scale, group, None, along=True)
            got = kernels.bit_linear_columns(y, packed, columns, scale)
            wanted = reference.bit_linear_columns(as_float32(y), values, as_float32(scale), None)
            assert np.array_equal(got, from_float32(wanted, dtype))


def test_the_largest_sums_do_not_overflow(variant: str) -> None:
    columns = 70_000
    x = np.full((1, columns), -1e30, np.float32)
    for tokens in (1, 4, 20):
        for value in (-1, 1):
            packed = packed_reference(np.full((5, columns), value, np.int8))
            one = np.ones(1, np.float32)
            y = kernels.bit_linear(np.repeat(x, tokens, axis=0), packed, one)
            assert np.array_equal(
                y,
                reference.bit_linear(
                    np.repeat(x, tokens, axis=0),
                    np.full((5, columns), value, np.int8),
                    one,
                    0,
                    None,
                ),
            )
    packed = packed_reference(np.ones((columns, 5), np.int8))
    y = kernels.bit_linear_columns(x, packed, 5, one)
    assert np.array_equal(
        y, reference.bit_linear_columns(x, np.ones((columns, 5), np.int8), one, None)
    )


def test_activations_that_are_not_finite(variant: str) -> None:
    """A bit_linear token with an infinity is NaN throughout; its neighbours are untouched."""
    packed, one = packed_reference(trits(9, 300)), np.ones(1, np.float32)
    x = activations(3, 300)
    x[1, 17] = np.inf
    y = kernels.bit_linear(x, packed, one)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()
    z = kernels.linear(x, packed, one)
    assert not np.isfinite(z[1]).any()
    assert np.isfinite(z[[0, 2]]).all()


def test_an_outlier_does_not_drown_the_rest(variant: str) -> None:
    """linear is exact to rounding even where one activation is 10^8 times the others."""
    values = trits(40, 512)
    values[:, 100] = 0
    for tokens in (1, 3, 20):
        x = activations(tokens, 512)
        x[:, 100] = 1e8
        y = kernels.linear(x, packed_reference(values), np.ones(1, np.float32))
        x[:, 100] = 0
        check_linear(y, x, values, np.ones(1, np.float32), 0, None)


@pytest.mark.parametrize("kernel", ["linear", "bit_linear", "linear_columns", "bit_linear_columns"])
def test_nothing_beyond_the_arrays_is_touched(variant: str, kernel: str) -> None:
    native = selection.native
    assert native is not None
    for rows, columns in ((1, 1), (3, 5), (5, 63), (17, 257), (65, 1030), (2, 9000)):
        values = trits(rows, columns)
        for tokens, any_group in (
            (1, 0),
            (1, 32),
            (2, 1),
            (5, 128),
            (17, 64),
            (20, 0),
            (1, 2),
            (17, 2),
        ):
            group = any_group * (any_group == 2) if kernel == "bit_linear_columns" else any_group
            along = kernel.endswith("columns")
            inputs, outputs = (rows, columns) if along else (columns, rows)
            x, scale, bias = (
                activations(tokens, inputs),
                scales(rows, columns, group),
                activations(1, outputs)[0],
            )
            for at_start in (False, True):
                parts = [
                    Guarded(part, at_start) for part in (x, packed_reference(values), scale, bias)
                ]
                out = Guarded(np.zeros((tokens, outputs), np.float32), at_start)
                a, p, s, b = (part.address for part in parts)
                getattr(native, kernel)(
                    a, 0, tokens, p, rows, columns, s, 0, group, b, 0, out.address, 2
                )
                if kernel == "bit_linear":
                    check_bit_linear(out.array(), x, values, scale, group, bias)
                elif not kernel.startswith("bit"):
                    check_linear(out.array(), x, values, scale, group, bias, along)


@pytest.mark.parametrize("offset", [1, 2, 3, 5, 31, 63])
def test_unaligned_addresses(variant: str, offset: int) -> None:
    native = selection.native
    assert native is not None
    values, x, one = trits(33, 515), activations(9, 515), np.full(1, 0.5, np.float32)
    packed = packed_reference(values)
    for tokens in (1, 9):
        line = x[:tokens]
        arrays = []
        for part in (line, packed, one, np.zeros((tokens, 33), np.float32)):
            room = np.zeros(part.nbytes + 64, np.uint8)
            room[offset : offset + part.nbytes] = np.frombuffer(part.tobytes(), np.uint8)
            arrays.append(room)
        a, p, s, y = (room.ctypes.data + offset for room in arrays)
        native.bit_linear(a, 0, tokens, p, 33, 515, s, 0, 0, 0, 0, y, 2)
        got = np.frombuffer(
            arrays[3][offset : offset + 4 * tokens * 33].tobytes(), np.float32
        ).reshape(tokens, 33)
        assert np.array_equal(got, reference.bit_linear(line, values, one, 0, None))


@settings(max_examples=40)
@given(
    rows=st.integers(0, 90),
    columns=st.integers(0, 700),
    tokens=st.integers(0, 20),
    seed=st.integers(0, 2**32),
)
def test_all_variants_give_the_same_bits(rows: int, columns: int, tokens: int, seed: int) -> None:
    local = np.random.default_rng(seed)
    values = local.integers(-1, 2, (rows, columns)).astype(np.int8)
    group = int(local.choice([each for each in GROUPS if each != reference.COLUMN]))
    x = (local.standard_normal((tokens, columns)) * 10.0 ** local.integers(-6, 6)).astype(
        np.float32
    )
    scale = local.uniform(0, 1, scale_shape(rows, columns, group)).astype(np.float32)
    results = []
    for name in kernels.available():
        with kernels.forced(name):
            results.append(kernels.bit_linear(x, packed_reference(values), scale, None, group))
    assert all(np.array_equal(result, results[-1]) for result in results)
