"""Write a checkpoint as a GGUF file: blocks are made of its codes, nothing is quantized again."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.container import Checkpoint
from tpack.container.atomic import check_not_input, check_target
from tpack.container.reader import stored_dtype
from tpack.dialects.gguf_architectures import LLAMA_CPP
from tpack.dialects.gguf_blocks import BlockFormat
from tpack.dialects.gguf_names import RowOrder
from tpack.dialects.gguf_quants import QUANT_IDS, Quant
from tpack.dialects.gguf_types import PLAIN_IDS, TERNARY_IDS, WRITTEN
from tpack.dialects.gguf_values import Value, value
from tpack.dtypes import BY_NAME
from tpack.errors import InputError, UnsupportedError, locate
from tpack.exporting.gguf_metadata import Model, model_of
from tpack.exporting.gguf_weights import (
    AUTO,
    FORMATS,
    block_chunks,
    fit_blocks,
    float_chunks,
    permuted,
    row_blocks,
)
from tpack.exporting.gguf_writer import OutTensor, write_gguf
from tpack.exporting.report import ExportedTensor, ExportReport
from tpack.quantize import narrow, widen
from tpack.sources.gguf_kept import kept_blocks
from tpack.wording import spell

_BLOCK = re.compile(r"\.([0-9]{1,9})\.")
#: Floats that llama.cpp wants in float32 where they are vectors.
_WIDENED = ("float16", "bfloat16")


def export_gguf(
    checkpoint: Checkpoint,
    destination: str | os.PathLike[str],
    *,
    type: str = "auto",  # noqa: A002  # GGUF calls it so
    allow_inexact: bool = False,
    force: bool = False,
) -> ExportReport:
    """Write a GGUF file.

    Args:
        checkpoint: made of a GGUF file, or of the folder of a model whose architecture is one of
            ``dialects.gguf_architectures``.
        destination: the file to be written.
        type: ``tq1_0``, ``tq2_0``, ``q2_0``, or ``auto``: the type that a weight had in the GGUF
            file that it came from, else the first of tq2_0 and q2_0 that is exact and that the
            program for the architecture reads.
        allow_inexact: round scales that float16 cannot hold, and write a weight that fits into no
            blocks as floats.
        force: replace an existing file.

    Raises:
        UnsupportedError: a weight that is not exact in the type, or that GGUF has no form for; a
            model of another architecture; a type that no program for the architecture reads.
        InputError: damaged data; a model that nothing describes.
        ExistsError, StorageError: as ``new_file``.
    """
    target = Path(destination)
    check_not_input(target, checkpoint.path, *(file.path for file in checkpoint.files))
    check_target(target, force=force)
    with locate(file=checkpoint.path):
        work = _Export(checkpoint, model_of(checkpoint), type, allow_inexact=allow_inexact)
        work.run()
        size = write_gguf(target, work.metadata(), work.tensors, force=force)
    return ExportReport("gguf", str(target), size, tuple(work.reports), tuple(work.notes))


@dataclass
class _Export:
    """One run: every tensor is decided on, and refused, before the first byte is written."""

    checkpoint: Checkpoint
    model: Model
    type: str
    allow_inexact: bool = field(kw_only=True)
    tensors: list[OutTensor] = field(default_factory=list)
    reports: list[ExportedTensor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unpacked: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, Quant] = field(default_factory=dict)

    @property
    def runner(self) -> str:
        """The program that runs the model."""
        known = self.model.naming.known
        return known.runner if known else LLAMA_CPP

    @property
    def read(self) -> tuple[str, ...]:
        """The types of trits that the runner reads, among those that tpack writes."""
        known = self.model.naming.known
        return known.types if known else tuple(WRITTEN)

    def run(self) -> None:
        stated = self.model.naming.stated
        if self.type != "auto" and FORMATS[self.type].name not in self.read:
            raise UnsupportedError(
                f"is a model of {stated!r}, which only {self.runner} runs: it reads "
                f"{' and '.join(self.read)}, not {self.type.upper()}. Choose one of those."
            )
        if self.runner != LLAMA_CPP:
            self.notes.append(
                f"open the file with {self.runner}: llama.cpp itself has no architecture "
                f"{stated!r}, and refuses it"
            )
        self.notes += self.model.notes
        self.blocks = kept_blocks(self.checkpoint)
        seen: dict[str, str] = {}
        document = self.checkpoint.document
        self.model.check_head({*document.tensors, *document.kept, *document.aliases})
        for name in self.ordered():
            if self.model.is_left_out(name):
                self.notes.append(f"{name} is left out: llama.cpp has no use for it")
                continue
            inside = self.model.name(name)
            if inside in seen:
                raise InputError(
                    f"and {seen[inside]!r} would both be {inside!r} in GGUF. Rename one.",
                    tensor=name,
                )
            seen[inside] = name
            if name in document.aliases and inside == "output.weight":
                self.notes.append(f"{name} is left out: llama.cpp takes the embedding for it")
                continue
            held = document.aliases.get(name, name)
            if held in document.tensors:
                self.weight(held, inside)
            else:
                self.plain(held, inside)
        for name, problem in [*self.unpacked.items()][:1]:
            self.notes.append(
                f"{len(self.unpacked)} weights are written as floats, without loss, such as "
                f"{name}, which {problem}; {self.runner} reads {' and '.join(self.read)} only"
            )

    def ordered(self) -> list[str]:
        """Return the names of all tensors: in the order of their GGUF file, or by block."""
        document = self.checkpoint.document
        places = {name: number for number, name in enumerate(self.model.names)}

        def place(name: str) -> tuple[int, int, str]:
            block = _BLOCK.search(name)
            return places.get(name, len(places)), int(block[1]) if block else -1, name

        return sorted({*document.tensors, *document.kept, *document.aliases}, key=place)

    def kinds(self, inside: str) -> list[BlockFormat]:
        """Return the formats to try for a weight, the preferred one first."""
        if self.type != "auto":
            return [FORMATS[self.type]]
        before = self.model.kinds.get(inside, "").lower()
        names = [kind for kind in dict.fromkeys((before, *AUTO)) if kind in FORMATS]
        return [FORMATS[n] for n in names if n == before or FORMATS[n].name in self.read]

    def weight(self, name: str, inside: str) -> None:
        entry = self.checkpoint.document.tensors[name]
        with locate(tensor=name):
            fitted = fit_blocks(self.checkpoint, name, self.kinds(inside))
            order = self.order(inside, entry.shape)
        if fitted.kind is None and len(self.read) < len(WRITTEN) and self.type == "auto":
            self.unpacked[name] = fitted.problem
        elif fitted.problem and not self.allow_inexact:
            what = "round it" if fitted.kind else f"write the weight unpacked, in {fitted.dtype}"
            raise UnsupportedError(
                f"{fitted.problem}. {spell(allow_inexact=True)} would {what}.", tensor=name
            )
        if fitted.kind is not None:
            kind = fitted.kind.name
            number, nbytes = TERNARY_IDS[kind], entry.rows * fitted.kind.row_bytes(entry.columns)
            chunks = partial(block_chunks, self.checkpoint, name, fitted, order)
        else:
            kind, number = fitted.dtype, PLAIN_IDS[fitted.dtype]
            nbytes = BY_NAME[kind].nbytes(math.prod(entry.shape))
            chunks = partial(float_chunks, self.checkpoint, name, kind, order)
        self.tensors.append(OutTensor(inside, number, entry.shape, nbytes, chunks))
        self.reports.append(
            ExportedTensor(inside, name, kind, entry.shape, fitted.error, fitted.problem)
        )

    def plain(self, name: str, inside: str) -> None:
        entry = self.checkpoint.entries[name]
        if quant := self.blocks.get(name):
            shape = (*entry.shape[:-1], quant.columns(entry.shape[-1]))
            with locate(tensor=name):
                order = self.order(inside, shape)
            chunks = partial(_plain_chunks, self.checkpoint, name, entry.dtype, order)
            number = QUANT_IDS[quant.name]
            self.tensors.append(OutTensor(inside, number, shape, entry.nbytes, chunks))
            self.reports.append(ExportedTensor(inside, name, quant.name, shape))
            return
        if entry.dtype not in PLAIN_IDS:
            again = f"Convert the model again with {spell(keep_dtype='f32')}."
            if not BY_NAME[entry.dtype].is_cast:
                again = "Convert a model that has it in one of these."
            raise UnsupportedError(
                f"is {entry.dtype}, expected {', '.join(PLAIN_IDS)} in GGUF. {again}", tensor=name
            )
        wide = len(entry.shape) < 2 and entry.dtype in _WIDENED and inside not in self.model.kinds
        dtype = "float32" if wide else entry.dtype
        with locate(tensor=name):
            order = self.order(inside, entry.shape)
        nbytes = BY_NAME[dtype].nbytes(math.prod(entry.shape))
        chunks = partial(_plain_chunks, self.checkpoint, name, dtype, order)
        self.tensors.append(OutTensor(inside, PLAIN_IDS[dtype], entry.shape, nbytes, chunks))
        self.reports.append(ExportedTensor(inside, name, dtype, entry.shape))

    def order(self, inside: str, shape: tuple[int, ...]) -> RowOrder | None:
        return self.model.naming.order(inside, shape[0]) if shape else None

    def metadata(self) -> dict[str, Value]:
        """Return the metadata, with the commonest type as file type if types have changed."""
        written = [t.type for t in self.reports if t.type in WRITTEN]
        before = [self.model.kinds.get(t.name) for t in self.reports if t.type in WRITTEN]
        if written and written != before:
            most = max(WRITTEN, key=written.count)
            return self.model.metadata | {"general.file_type": value("uint32", WRITTEN[most])}
        return self.model.metadata


def _plain_chunks(
    checkpoint: Checkpoint, name: str, dtype: str, order: RowOrder | None
) -> Iterator[Any]:
    """Yield the bytes of a kept tensor, from top to bottom."""
    entry = checkpoint.entries[name]
    if order is None and dtype == entry.dtype:
        yield from checkpoint.chunks(name)
        return
    width, nbytes = math.prod(entry.shape[1:]), BY_NAME[entry.dtype].nbytes

    def read(first: int, last: int) -> npt.NDArray[Any]:
        data = checkpoint.read(name, nbytes(first * width), nbytes(last * width))
        return np.frombuffer(data, dtype=stored_dtype(entry.dtype)).reshape(last - first, width)

    rows = permuted(read, order)
    for first, last in row_blocks(entry.shape[0] if entry.shape else 1, width):
        values = rows(first, last).reshape(-1)
        yield values if dtype == entry.dtype else narrow(widen(values, entry.dtype), dtype)
