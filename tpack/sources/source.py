"""Named tensors that are read in pieces, whatever they come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tpack.codec import Scale, rows_and_columns, unpack
from tpack.container import Origin
from tpack.describing import Output
from tpack.dtypes import BY_NAME, elements_of
from tpack.errors import InputError
from tpack.layerdef import Program, slots
from tpack.quantize import Rounding, Weight, narrow, widen
from tpack.quantize.fitting import spread
from tpack.quantize.weight import BLOCK

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a source.

    Attributes:
        name: cleaned of wrappers' prefixes.
        dtype: one of ``dtypes.BY_NAME``.
        shape: logical shape.
        read: elements ``start`` to ``stop`` (flat, row-major) as stored: bfloat16 as bits in
            uint16, float8 and bool as uint8, complex64 as complex64; of dtypes of less than a
            byte the bytes, from a ``start`` at a whole one.
        factor: multiplies the values; None for 1. Float32, in as many dims as the tensor, each
            of size 1, of the tensor's, or of a divisor of it: blocks share a factor.
        coded: what its source says of it, where that is another system's code: completes "it …"
            for codes, "is …" for the values that they stand for.
        stored: the codes that the values stand for, where they are kept if the values are not
            packed; None if the tensor itself is kept.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Array]
    factor: Array | None = field(default=None, compare=False)
    coded: str = ""
    system: str = ""
    beside: tuple[str, ...] = ()
    stored: SourceTensor | None = field(default=None, compare=False)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes as stored."""
        return BY_NAME[self.dtype].nbytes(self.numel)

    def chunks(self) -> Iterator[memoryview]:
        """Yield the bytes as stored, in pieces."""
        for start in range(0, self.numel, BLOCK):
            piece = self.read(start, min(start + BLOCK, self.numel))
            yield memoryview(np.ascontiguousarray(piece)).cast("B")

    def of_elements(self) -> SourceTensor:
        """Return a tensor of torch, whose items may hold several elements, as one of elements."""
        dtype, shape = elements_of(self.dtype, self.shape)
        if dtype == self.dtype:
            return self
        nbytes = BY_NAME[dtype].nbytes
        return replace(
            self, dtype=dtype, shape=shape, read=lambda a, b: self.read(nbytes(a), nbytes(b))
        )

    def cast(self, dtype: str) -> SourceTensor:
        """Return a float tensor in another dtype.

        Raises:
            InputError: a value overflows; when it is read.
        """

        def read(start: int, stop: int) -> Array:
            values = widen(self.read(start, stop), self.dtype)
            result = narrow(values, dtype)
            if not np.array_equal(np.isfinite(widen(result, dtype)), np.isfinite(values)):
                raise InputError(
                    f"has values beyond {dtype}. Keep it in {self.dtype}.", tensor=self.name
                )
            return result

        return replace(self, dtype=dtype, read=read)

    def dtype_unpacked(self, method: str) -> str:
        """Return the dtype after unpacking: float32 for an int8 tensor whose scale is a float."""
        scaled = self.factor is not None or method != "exact"
        return "float32" if self.dtype == "int8" and scaled else self.dtype

    def _factors(self, factor: Array, start: int, stop: int) -> Array:
        """Return the factor of each element, flat; a single one if all share it."""
        if factor.size == 1:
            return factor.reshape(1)
        columns = self.shape[-1]
        first, last = start // columns, -(-stop // columns)
        places = np.unravel_index(np.arange(first, last), self.shape[:-1])
        sizes = zip(places, self.shape, factor.shape, strict=False)
        rows = factor[tuple(place // (size // count) for place, size, count in sizes)]
        wide = np.repeat(rows, columns // factor.shape[-1], axis=1)
        return wide.reshape(-1)[start - first * columns : stop - first * columns]

    def weight(self, split: int, dtype: str | None = None) -> Weight:
        """Return the tensor as a weight to be packed."""

        def load(start: int, stop: int) -> Array:
            stored = self.read(start, stop)
            if self.factor is None:
                return stored
            return widen(stored, self.dtype) * self._factors(self.factor, start, stop)

        return Weight(self.shape, split, dtype or self.dtype, load)


@dataclass(frozen=True)
class PackedTensor:
    """A weight that its source stores as trits and scales already.

    Attributes:
        name: cleaned of wrappers' prefixes, without what the dialect adds.
        dtype: of the weight when it is unpacked.
        shape: logical shape.
        rows: packed rows ``first`` to ``last`` in layout t2, ``(last - first, bytes per row)``
            uint8. Codes and padding are the dialect's affair: an illegal code is raised as
            InputError when it is read.
        scale: as stored in ``scale_dtype``, in the shape that the granularity gives.
        scale_dtype: float32, float16 or bfloat16 (bits in uint16).
        granularity: what shares one scale.
        nbytes: bytes that it takes in the source.
        divisor: the number that the source divides by, if it divides; scale is then 1 / divisor.
        column_dims: how many trailing dims are the columns.
        layout: the layout that it keeps in the output; None for the one that is asked for.
        method: how its trits were found; None if only ``Source.origin`` may say it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], npt.NDArray[np.uint8]]
    scale: Array = field(compare=False)
    scale_dtype: str
    granularity: Scale
    nbytes: int
    divisor: float | None = None
    column_dims: int = 1
    layout: str | None = None
    method: str | None = "exact"

    @property
    def split(self) -> int:
        """Leading dims that index rows."""
        return len(self.shape) - self.column_dims

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Yield ``(first row, packed rows)`` from top to bottom."""
        count, columns = rows_and_columns(self.shape, self.split)
        step = max(1, BLOCK // columns)
        for first in range(0, count, step):
            yield first, self.rows(first, min(first + step, count))

    def check(self) -> Self:
        """Read all codes once.

        Raises:
            InputError: an illegal code.
        """
        for _ in self.blocks():
            pass
        return self

    def dense(self) -> SourceTensor:
        """Return the weight as floats, ``scale * trit`` in ``dtype``."""
        columns = rows_and_columns(self.shape, self.split)[1]
        scale = widen(self.scale, self.scale_dtype)

        def read(start: int, stop: int) -> Array:
            first, last = start // columns, -(-stop // columns)
            trits = unpack(self.rows(first, last), columns)
            values = spread(scale, self.granularity, first, *trits.shape) * trits
            flat = narrow(values, self.dtype).reshape(-1)
            return flat[start - first * columns : stop - first * columns]

        return SourceTensor(self.name, self.dtype, self.shape, read)


@dataclass(frozen=True)
class SourceShard:
    """One file of a folder: where it is, what the output calls it, and its tensors in order."""

    path: Path
    output: str
    names: tuple[str, ...]


@dataclass
class Source:
    """An opened source.

    Attributes:
        label: what to call it in messages.
        tensors: by name, in the order of the source.
        metadata: what the output carries on in ``__metadata__``, by key.
        aliases: names that shared the storage of another tensor, which is in ``tensors``.
        notes: what was changed or left out on the way, for the report.
        warnings: notes that are shown also where notes are not.
        rounded: weights that the source's own model rounds as it runs, with the rule. They are
            packed by that rule, even if they already are ternary.
        floats: tensors that the source's own model rounds or measures by a rule that tpack does
            not have: they stay as they are, each with the reason.
        int8_inputs: weights of linear layers that round their inputs to int8, per token.
        roles: what is known of a tensor by more than its name: ``layer`` for the weight of a
            module that multiplies with it, else a role as ``capturing.Captured.roles`` has them.
        in_out: weights of linear layers whose rows are the inputs, ``(in, out)``.
        splits: how many leading dims index the rows of a weight, where the source knows it; names
            and shapes tell of others.
        trained: whether a tensor is a parameter of its module, by name; empty where the source
            does not record it.
        program: LayerDefs that a module brings along; they hold if they declare as packed what is.
        origin: what is known of packed weights by the checkpoint that they were loaded from.
        graph: what the model computes, where the source says it and not as code of Python: an
            ``OnnxGraph``.
        carried: the checkpoint that it was made from, whole, where it carries one.
        files: the files it reads, which an output must not replace.
        nbytes: size of the input, without what is left of it.
        path: of a file or folder; None for what is in memory.
        shards: of a folder, in the order of their names; none for anything else.
        copies: files of a folder that go with the model, by their names in the output.
        parts: sub-folders of a folder that have weights of their own and belong to the model.
        left_out: names in the folder of weights that may belong to the model, and are not read.
        config: of a folder, the content of its config.json.
        repository: its name on a hub, ``org/name``.
        card: its model card, README.md.
        resources: what to close with it.
    """

    label: str
    tensors: Mapping[str, SourceTensor | PackedTensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    rounded: Mapping[str, Rounding] = field(default_factory=dict)
    floats: Mapping[str, str] = field(default_factory=dict)
    int8_inputs: frozenset[str] = frozenset()
    roles: Mapping[str, str] = field(default_factory=dict)
    in_out: frozenset[str] = frozenset()
    splits: Mapping[str, int] = field(default_factory=dict)
    trained: Mapping[str, bool] = field(default_factory=dict)
    program: Program | None = None
    origin: Origin = field(default_factory=Origin)
    graph: Any = None
    carried: Output | None = None
    files: tuple[Path, ...] = ()
    nbytes: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    shards: tuple[SourceShard, ...] = ()
    copies: Mapping[str, Path] = field(default_factory=dict)
    parts: Mapping[str, Source] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    repository: str = ""
    card: str = ""
    resources: ExitStack = field(default_factory=ExitStack)

    def program_of(self, packed: Collection[str]) -> Program | None:
        """Return the LayerDefs that it brings along, if they declare these weights as packed."""
        if self.program is None:
            return None
        found = {slot.name: slot.param for slot in slots(self.program)}
        ternary = {name for name, param in found.items() if param.param_type == "TernaryTensor"}
        return self.program if ternary == {*packed} and {*found} == {*self.tensors} else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.resources.close()
