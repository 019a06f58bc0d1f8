"""Kernels against the memory and against torch, side by side in one run.

Equality comes first. Then the two sides of a row run in turn, so that a busy machine slows both,
and medians are compared. Weights are cold: each call takes the next ones from a pool far larger
than the caches. torch is needed, and imported here only; transformers is compared with where it is
installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tpack import kernels
from tpack.kernels import reference, selection

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = ((2560, 2560), (6912, 2560), (2560, 6912), (4096, 4096), (14336, 4096))
SQUARE = 4096
PIECES = 64 << 20  # weights in the codec rows
POOL_BYTES = 448 << 20
STRETCH = 64 << 20  # bytes read at a time to measure the memory

Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One comparison: ours against a baseline, as medians.

    Attributes:
        unit: What ``ours`` and ``baseline`` count: "ms" (less is better), "GB/s" or "G/s".
        ratio: How many times faster ours is.
        goal: The least ratio wanted, or None.
    """

    name: str
    shape: str
    ours: float
    baseline_name: str
    baseline: float
    unit: str
    ratio: float
    goal: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON data."""
        return asdict(self)


def in_turn(*calls: Call, repeats: int, burst: int = 1) -> list[float]:
    """Give the median time in ms of each call; the calls take turns.

    Args:
        burst: calls in a turn that count. With more than one, the first call of a turn does not:
            the other side has pushed the interpreter itself out of the caches, which no model
            does to its own layers.
    """
    times: list[list[float]] = [[] for _ in calls]
    lead = burst > 1
    for turn in range(-(-repeats // burst) + 1):
        for call, record in zip(calls, times, strict=True):
            for place in range(burst + lead):
                start = time.perf_counter()
                call()
                if turn and place >= lead:  # the first turn touches memory and starts threads
                    record.append((time.perf_counter() - start) * 1e3)
    return [median(record) for record in times]


def aligned(count: int) -> npt.NDArray[np.uint8]:
    """Give bytes that begin at a page, as those of a mapped file do."""
    room = np.empty(count + 4096, np.uint8)
    start = -room.ctypes.data % 4096
    return room[start : start + count]


def check_equality() -> None:
    """Compare the variant in use with the definition, in every operation that is timed.

    Raises:
        AssertionError: They differ.
    """
    random = np.random.default_rng(0)
    trits = random.integers(-1, 2, (300, 1030)).astype(np.int8)
    packed = reference.pack_codes((trits + 1).astype(np.int8))
    one = np.ones(1, np.float32)
    same = [
        np.array_equal(kernels.pack(trits), packed),
        np.array_equal(kernels.unpack(packed, 1030), trits),
    ]
    for tokens in (1, 8, 32, 128):
        x = random.standard_normal((tokens, 1030)).astype(np.float32)
        y = kernels.bit_linear(x, packed, one)
        same.append(np.array_equal(y, reference.bit_linear(x, trits, one, 0, None)))
        y, exact = (
            kernels.linear(x, packed, one).astype(np.float32),
            reference.linear(x, trits, one, 0, None),
        )
        same.append(bool((np.abs(y - exact) <= 1e-6 * np.abs(x).sum(1, keepdims=True)).all()))
    weights = random.standard_normal((64, 1030)).astype(np.float32)
    got, scale = kernels.quantize_absmean(weights)
    wanted = np.clip(np.rint(weights / scale), -1, 1).astype(np.int8)
    same.append(np.array_equal(kernels.unpack(got, 1030), wanted))
    if not all(same):
        raise AssertionError(f"kernels: variant {kernels.variant()} differs from the reference.")


class Bench:
    """The pools of weights and activations that the rows draw from."""

    def __init__(
        self, threads: int | None = None, repeats: int = 31, pool: int = POOL_BYTES
    ) -> None:
        import torch

        if selection.native is None:
            raise ImportError(f"kernels: the variant is numpy. {selection.missing}".rstrip())
        self.native = selection.native
        if threads:
            torch.set_num_threads(threads)
        self.torch, self.threads, self.repeats = torch, torch.get_num_threads(), repeats
        random = np.random.default_rng(0)
        self.packed = aligned(pool)
        codes = random.integers(0, 3, (1 << 22, 4)).astype(np.int8)
        pattern = reference.pack_codes(codes).ravel()
        self.packed.reshape(-1, len(pattern))[:] = pattern
        self.floats = torch.randn(pool // 4)
        self.activations = random.standard_normal((512, 14336)).astype(np.float32)
        self.out, self.one = np.empty(512 * 14336, np.float32), np.ones(1, np.float32)
        self.at = 0

    def next_packed(self, size: int) -> int:
        """Give the address of packed bytes that have not been used for long."""
        if self.at + size > len(self.packed):
            self.at = 0
        self.at += size
        return int(self.packed.ctypes.data) + self.at - size

    def product(self, name: str, tokens: int, rows: int, columns: int) -> Call:
        """Give a call of the extension's product ``name`` on cold weights."""
        function = getattr(self.native, name)
        x, one, out = (int(a.ctypes.data) for a in (self.activations, self.one, self.out))
        size = rows * ((columns + 3) // 4)
        return lambda: function(
            x, 0, tokens, self.next_packed(size), rows, columns, one, 0, 0, 0, 0, out, self.threads
        )

    def x(self, tokens: int, columns: int) -> Tensor:
        """Give the activations that ``product`` uses, as a tensor."""
        flat = self.activations.ravel()[: tokens * columns]
        return self.torch.from_numpy(flat.reshape(tokens, columns))

    def f_linear(self, tokens: int, rows: int, columns: int, dtype: str = "float32") -> Call:
        """Give a call of F.linear on cold weights."""
        weights = (
            self.floats if dtype == "float32" else self.floats.view(getattr(self.torch, dtype))
        )
        size, state = rows * columns, [0]
        x = self.x(tokens, columns).to(weights.dtype)

        def call() -> object:
            start = state[0] if state[0] + size <= weights.numel() else 0
            state[0] = start + size
            return self.torch.nn.functional.linear(
                x, weights[start : start + size].view(rows, columns)
            )

        return call

    def reading(self) -> Row:
        """Measure how fast memory can be read: the pool, from end to end."""
        address, count = int(self.packed.ctypes.data), len(self.packed)
        (ms,) = in_turn(lambda: self.native.read_bytes(address, count, self.threads), repeats=7)
        speed = count / ms / 1e6
        return Row("read memory", f"{count >> 20} MiB", speed, "", speed, "GB/s", 1.0)

    def matvec(self) -> Iterator[Row]:
        """One token, the shapes of language models: memory is the limit."""
        for rows, columns in SHAPES:
            shape, size = f"({rows}, {columns})", rows * columns // 4
            repeats = max(self.repeats, min(200, (400 << 20) // size // 2))
            stretch, piece, ours = in_turn(
                lambda: self.native.read_bytes(self.next_packed(STRETCH), STRETCH, self.threads),
                lambda size=size: self.native.read_bytes(  # type: ignore[misc]
                    self.next_packed(size), size, self.threads
                ),
                self.product("bit_linear", 1, rows, columns),
                repeats=repeats,
                burst=4,
            )
            plain, full, half = in_turn(
                self.product("linear", 1, rows, columns),
                self.f_linear(1, rows, columns),
                self.f_linear(1, rows, columns, "bfloat16"),
                repeats=repeats,
                burst=4,
            )
            speed = size / ours / 1e6
            streamed, pieces = STRETCH / stretch / 1e6, size / piece / 1e6
            for name, limit, goal in (
                ("read 64 MiB at a time", streamed, 0.85),
                ("read as many bytes", pieces, None),
            ):
                ratio = speed / limit
                yield Row("bit_linear, M=1", shape, speed, name, limit, "GB/s", ratio, goal)
            yield Row("linear f32, M=1", shape, plain, "F.linear f32", full, "ms", full / plain, 8)
            yield Row("linear f32, M=1", shape, plain, "F.linear bf16", half, "ms", half / plain)

    def matmul(self) -> Iterator[Row]:
        """More tokens against a square weight: multiplications are the limit."""
        torch, n = self.torch, SQUARE
        int_mm = torch._int_mm  # noqa: SLF001 - the only integer product torch has
        shape, weight = f"({n}, {n})", torch.randint(-1, 2, (n, n), dtype=torch.int8)
        goals = {8: 2.5, 32: 1.5, 128: 0.9, 512: 0.9}
        for tokens, goal in goals.items():
            x = torch.randint(-128, 128, (tokens, n), dtype=torch.int8)
            repeats = max(7, self.repeats * 8 // tokens)
            ours, theirs = in_turn(
                self.product("bit_linear", tokens, n, n),
                lambda x=x: int_mm(x, weight.t()),  # type: ignore[misc]
                repeats=repeats,
            )
            yield Row(
                f"bit_linear, M={tokens}",
                shape,
                ours,
                "torch._int_mm",
                theirs,
                "ms",
                theirs / ours,
                goal,
            )
            plain, full = in_turn(
                self.product("linear", tokens, n, n), self.f_linear(tokens, n, n), repeats=repeats
            )
            wanted = 1.0 if tokens >= 128 else None
            yield Row(
                f"linear f32, M={tokens}",
                shape,
                plain,
                "F.linear f32",
                full,
                "ms",
                full / plain,
                wanted,
            )

    def orientation(self) -> Iterator[Row]:
        """The weight as (inputs, outputs) against (outputs, inputs)."""
        n = SQUARE
        for tokens in (1, 32):
            for name in ("linear", "bit_linear"):
                along, other = in_turn(
                    self.product(f"{name}_columns", tokens, n, n),
                    self.product(name, tokens, n, n),
                    repeats=self.repeats,
                    burst=4,
                )
                title, shape = f"{name}_columns, M={tokens}", f"({n}, {n})"
                yield Row(title, shape, along, name, other, "ms", other / along, 1 / 1.5)

    def codec(self) -> Iterator[Row]:
        """Packing, unpacking and quantizing, in weights per second; the baseline is the goal."""
        trits = reference.unpack(self.packed[: PIECES // 4].reshape(1, -1), PIECES)[0]
        packed = aligned(PIECES // 4)
        weights = self.floats[:PIECES].numpy()
        ternary, ones = trits.astype(np.float32), np.ones(PIECES // 128, np.float32)
        limit, sums = np.array([0.4], np.float32), np.zeros(PIECES // 128)
        ranges = np.empty((2, PIECES // 32), np.float32)
        arrays = (trits, packed, weights, ternary, ones, limit, sums, *ranges)
        t, p, w, x, one, m, s, high, low = (int(a.ctypes.data) for a in arrays)

        def absmean() -> None:
            self.native.survey(w, 0, 1, PIECES, 0, s, 0, 0, self.threads)
            self.native.quantize(w, 0, 1, PIECES, m, 0, 0, p, 0, self.threads)

        def exact() -> None:
            self.native.survey(x, 0, 1, PIECES, 0, s, high, low, self.threads)
            self.native.quantize(x, 0, 1, PIECES, one, one, 128, p, 0, self.threads)

        times = in_turn(
            lambda: self.native.pack(t, 3, 1, PIECES, p, self.threads),
            lambda: self.native.unpack(p, 1, PIECES, t, 3, self.threads),
            absmean,
            exact,
            lambda: self.native.read_bytes(w, 4 * PIECES, self.threads),
            repeats=9,
        )
        pack, unpack, quantized, proved, read = (PIECES / ms / 1e6 for ms in times)
        shape, first, second = (
            f"{PIECES >> 20} M weights", "f32 to absmean to packed", "f32 of groups, proved exact"
        )  # fmt: skip
        for name, speed, other, baseline, goal in (
            ("pack int8", pack, "goal", 12, 1),
            ("unpack int8", unpack, "goal", 12, 1),
            (first, quantized, "goal", 4, 1),
            (first, quantized, "read the floats once", read, None),
            (second, proved, first, quantized, 0.5),
        ):
            yield Row(name, shape, speed, other, baseline, "G/s", speed / baseline, goal)

    def small(self) -> Iterator[Row]:
        """A weight so small that the call itself is what takes time."""
        torch = self.torch
        layer, x = torch.nn.Linear(256, 256), self.x(1, 256)
        ours = self.product("linear", 1, 256, 256)
        with torch.no_grad():
            a, b = in_turn(
                lambda: [ours() for _ in range(100)],
                lambda: [layer(x) for _ in range(100)],
                repeats=self.repeats,
            )
        name = "linear f32, M=1, the extension alone"
        yield Row(name, "(256, 256)", a / 100, "nn.Linear", b / 100, "ms", b / a)

    def transformers(self) -> Iterator[Row]:
        """transformers' BitLinear where it is installed: its forward, without torch.compile."""
        try:
            from transformers.integrations import bitnet
        except ImportError:
            return
        torch, n = self.torch, SQUARE
        weight, x = self.torch.randint(0, 86, (n // 4, n), dtype=torch.uint8), self.x(1, n)

        def forward() -> object:
            factor = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
            quantized = (x * factor).round().clamp(-128, 127)
            unpacked = bitnet.unpack_weights(weight, dtype=torch.float32)
            return torch.nn.functional.linear(quantized, unpacked) / factor

        ours, theirs = in_turn(self.product("bit_linear", 1, n, n), forward, repeats=5)
        yield Row(
            "bit_linear, M=1",
            f"({n}, {n})",
            ours,
            "transformers BitLinear",
            theirs,
            "ms",
            theirs / ours,
        )


def run(threads: int | None = None, repeats: int = 31) -> list[Row]:
    """Check equality, then measure everything with the variant in use.

    Args:
        threads: For torch and the kernels alike; None leaves torch's setting.
        repeats: How often each side of a fast row runs.

    Raises:
        ImportError: There is no extension, or no torch.
        AssertionError: The variant does not equal the reference.
    """
    check_equality()
    bench = Bench(threads, repeats)
    parts = (
        bench.matvec,
        bench.matmul,
        bench.orientation,
        bench.codec,
        bench.small,
        bench.transformers,
    )
    return [bench.reading(), *(row for part in parts for row in part())]


def table(rows: list[Row]) -> str:
    """Lay rows out as text."""
    lines = []
    for row in rows:
        goal = (
            ""
            if row.goal is None
            else f"  goal {row.goal:.2f} {'ok' if row.ratio >= row.goal else 'MISSED'}"
        )
        lines.append(
            f"{row.name:<37} {row.shape:<14} {row.ours:9.3f} {row.unit:<4} "
            f"{row.ratio:8.2f} x {row.baseline_name} ({row.baseline:.3f}){goal}"
        )
    return "\n".join(lines)
