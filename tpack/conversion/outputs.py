"""From a plan to a report: pack, describe, write. A file is a folder of one shard."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tpack.container import digest
from tpack.conversion.architecture import of_architecture
from tpack.conversion.captures import packed_note
from tpack.conversion.cases import Cases
from tpack.conversion.needs import Needs, check_room
from tpack.conversion.packing import Batch, pack_batch
from tpack.conversion.plan import Plan, everything_kept, make_plan
from tpack.conversion.running import about_experts, about_forward
from tpack.conversion.telling import check_refused, warnings
from tpack.describing import Advance, Description, Output, Stored, describe
from tpack.dtypes import BY_NAME
from tpack.errors import locate
from tpack.layerdef import Program
from tpack.options import Options
from tpack.report import ConversionReport, TensorReport
from tpack.sources import PackedTensor, Source

if TYPE_CHECKING:
    from tpack.capturing import Captured

#: Writes one file of an output, calling ``Advance`` with the bytes written; returns the size of
#: the file. It is called for each file, in order.
Sink = Callable[[Output, Advance], int]


@dataclass(frozen=True)
class Job:
    """A source with its options and the plan for its tensors.

    Attributes:
        program: the LayerDefs that decide what is packed, if they are given.
        trace: the captured computation of the source, if it has one; the LayerDefs are made from
            it once it is known which weights are packed.
    """

    source: Source
    options: Options
    plan: Plan
    needs: Needs
    program: Program | None = None
    trace: Captured | None = None

    @classmethod
    def of(
        cls,
        source: Source,
        options: Options,
        program: Program | None = None,
        trace: Captured | None = None,
        *,
        as_it_is: bool = False,
    ) -> Job:
        """Plan a conversion; raises the errors of ``make_plan``.

        Args:
            as_it_is: whether to keep all tensors.
        """
        with locate(file=source.label):
            plan = everything_kept(source) if as_it_is else make_plan(source, options, program)
            if trace is not None:
                plan.restrict(trace.program(plan.weights))
        return cls(source, options, plan, Needs.of(plan, source, options), program, trace)

    @property
    def shards(self) -> list[tuple[str, Collection[str]]]:
        """The files of the source, each with the names of its tensors."""
        if not self.source.shards:
            return [(self.source.label, self.source.tensors)]
        return [(str(shard.path), shard.names) for shard in self.source.shards]


def unwritten(source: Source, *notes: str, needs: Needs = Needs(0, 0)) -> ConversionReport:  # noqa: B008
    """Return the report of a process that leaves the output to others."""
    return ConversionReport(None, source.nbytes, 0, (), notes, needs.memory, needs.disk)


def convert_file(job: Job, target: Path) -> ConversionReport:
    """Convert a source into one file."""
    if job.options.dry_run:
        return measure(job)
    check_room(target.parent, job.needs)

    def sink(output: Output, advance: Advance) -> int:
        return output.write(target, force=job.options.force, advance=advance)

    return _at_once(job, sink, target)


def measure(job: Job) -> ConversionReport:
    """Convert a source without writing; the report has the exact size of the output."""
    return _at_once(job, lambda output, _: output.size, None)


def _at_once(job: Job, sink: Sink, target: Path | None) -> ConversionReport:
    """Pack all shards into nameless files beside the output, and write them."""
    folder = None if target is None else str(target.parent)
    cases, batches, done = Cases(job.plan), [], 0
    with ExitStack() as stack:
        for label, names in job.shards:
            spool = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=1 << 20, dir=folder))
            batches.append(pack_batch(cases, names, spool, label, done))
            done += sum(job.source.tensors[name].nbytes for name in names)
        return write_outputs(job, batches, sink, target)


def write_outputs(
    job: Job, batches: Sequence[Batch], sink: Sink, target: Path | None
) -> ConversionReport:
    """Describe what was packed and write it, one file for each batch.

    Args:
        sink: writes a file.
        target: the file, or the folder of the files; None if nothing is written.

    Raises:
        NotTernaryError: a weight that must be packed is not ternary.
        LayerDefError: the packed weights do not fit the LayerDefs.
        StorageError: there is no room for the files.
    """
    source, plan = job.source, job.plan
    check_refused(batches, plan)
    notes: list[str] = []
    description = _described(job, batches, notes)
    outputs = description.files([[*batch.kept, *batch.packed] for batch in batches])
    spooled = sum(item.length for batch in batches for item in batch.packed.values())
    total = sum(output.nbytes for output in outputs)
    needs = job.needs.with_output(spooled, total)
    if target is not None:
        check_room(target.parent, needs.left(spooled))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        job.options.progress("writing", done, total)

    size = sum(sink(output, advance) for output in outputs)
    return ConversionReport(
        None if target is None else str(target),
        source.nbytes,
        size,
        tuple(_reports(job, batches, description)),
        (*source.notes, *plan.notes, *notes),
        needs.memory,
        needs.disk,
        (*source.warnings, *plan.warnings, *warnings(batches, plan)),
    )


def _described(job: Job, batches: Sequence[Batch], notes: list[str]) -> Description:
    """Describe the output; append to ``notes`` what it lacks: LayerDefs, or a forward."""
    source = job.source
    stored = {one.name: one for batch in batches for one in batch.stored(source)}
    packed = [name for batch in batches for name in batch.packed]
    digests = {key: digest([value.encode()]) for key, value in source.metadata.items()}
    origin = replace(source.origin, metadata={**source.origin.metadata, **source.metadata})
    describe_as = partial(
        describe,
        [stored[name] for name in source.tensors if name in stored],
        origin=replace(origin, digests={**origin.digests, **digests}),
        aliases=source.aliases,
        int8_inputs=source.int8_inputs,
        in_out=source.in_out,
    )
    source.warnings += about_experts(source, packed)
    program = job.program or source.program_of(packed)
    if program is None and job.trace is not None:
        program = job.trace.program(packed)
    if program is None:
        found = of_architecture(source, job.plan, job.options, stored, describe_as, notes)
        if found is not None:
            return found
    description = describe_as(program)
    if description.program is None:
        notes.append(f"no LayerDefs: {description.problem}")
    elif program is None:
        notes += about_forward(source, description.program)
    if job.trace is not None:
        notes += packed_note(job.trace, description)
    return description


def _reports(
    job: Job, batches: Sequence[Batch], description: Description
) -> Iterator[TensorReport]:
    """Yield a report for each tensor, and for each alias that shares its storage."""
    source = job.source
    for batch, (_, names) in zip(batches, job.shards, strict=True):
        for name in names:
            if (one := description.tensors.get(name)) is not None:
                tensor = source.tensors[name]
                found = _report(one, batch, rounded=name in source.rounded)
                if isinstance(tensor, PackedTensor) and one.entry is not None:
                    found = replace(found, action="packed")  # by whatever method, it is not now
                yield replace(found, dtype=tensor.dtype)
        for name, target in source.aliases.items():
            if target in names:
                shape, dtype = source.tensors[target].shape, source.tensors[target].dtype
                why = f"shares {target}"
                yield TensorReport(name, "kept", None, None, 0.0, 0.0, shape, why, dtype=dtype)


def _report(one: Stored, batch: Batch, *, rounded: bool) -> TensorReport:
    name, entry = one.name, one.entry
    if entry is None:
        bits = float(BY_NAME[one.dtype].bits)
        left = name in batch.left and not batch.left[name].silent
        reason = batch.reasons[name]
        return TensorReport(name, "kept", None, None, 0.0, bits, one.shape, reason, left)
    return TensorReport(
        name,
        "packed" if entry.method == "exact" else "quantized",
        entry.scale,
        entry.method,
        entry.relative_error or 0.0,
        round(8 * one.nbytes / math.prod(entry.shape), 4),
        entry.shape,
        "as its model rounds it" if rounded and entry.method != "exact" else "",
    )
