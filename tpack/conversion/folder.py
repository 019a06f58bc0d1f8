"""Convert a folder of shards: shard by shard, in one process or several, resumable.

Each process packs its shards into the working folder; a process that finds all of them there
writes the output. No process waits for another: if one fails, run that one again.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpack.container import SINGLE, program_digest
from tpack.container.atomic import copy_files, storage_errors, sync_folder, write_text
from tpack.container.folders import check_apart, check_place, check_replaceable
from tpack.container.strictjson import canonical_json
from tpack.conversion.beside import with_parts, write_config
from tpack.conversion.card import model_card
from tpack.conversion.cases import Cases
from tpack.conversion.needs import check_room
from tpack.conversion.outputs import Job, measure, unwritten, write_outputs
from tpack.conversion.packing import Batch, pack_batch
from tpack.conversion.partial import Work
from tpack.conversion.ranks import Ranks
from tpack.conversion.telling import check_refused
from tpack.describing import Shards
from tpack.errors import InputError, NotTernaryError, StorageError, TpackError, locate
from tpack.options import Options
from tpack.report import ConversionReport
from tpack.sources import Source
from tpack.text import plural
from tpack.wording import spell_again

#: Bytes at the beginning of a source file that go into its state.
BEGIN = 1 << 16


@dataclass(frozen=True)
class Folder:
    """A folder to convert: the job, and where its output goes.

    Attributes:
        place: the name of a sub-folder that is converted with its parent; else empty.
        work: where the output is put together; None for a hidden folder beside the target.
        resumable: whether a later run can take up what this one leaves.
    """

    job: Job
    target: Path
    place: str = ""
    work: Path | None = None
    resumable: bool = True

    @property
    def source(self) -> Source:
        """The source that is converted."""
        return self.job.source

    @property
    def key(self) -> str:
        """Identifies this conversion: the state of the source, and the options.

        ``resume`` takes up only manifests with this key. A file counts as unchanged if its size,
        mtime, ctime and first bytes are equal; the first bytes hold the header of safetensors.
        ctime is needed for a file that was written to and then given its old mtime again.
        """
        return hashlib.sha256(
            canonical_json(
                [self.asked, str(self.source.path), [_state(path) for path in self.source.files]]
            ).encode("ascii")
        ).hexdigest()

    @property
    def asked(self) -> dict[str, Any]:
        """The options and the digest of the LayerDefs given, as plain JSON data."""
        return self.job.options.to_dict() | {"layerdef": program_digest(self.job.program)}


def _state(path: Path) -> list[Any]:
    """Return data of a source file that differs once the file was changed."""
    with path.open("rb") as file:
        stat, begin = os.fstat(file.fileno()), file.read(BEGIN)
    digest = hashlib.sha256(begin).hexdigest()
    return [path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digest]


def convert_folder(folder: Folder) -> ConversionReport:
    """Convert a folder into a folder with the same sharding.

    Raises:
        ExistsError: the output exists, and the options do not force.
        StorageError: another process converts to the same target; no room; I/O errors.
        TpackError: as ``convert``.
    """
    target, options = folder.target, folder.job.options
    if options.dry_run:
        return with_parts(measure(folder.job), _convert_parts(folder, None))
    ranks = Ranks() if folder.place else Ranks.here()
    work = Work.of(target, folder.work, folder.key, folder.asked)
    with storage_errors(target):
        _check_target(folder)
        work.restore(target)
        exists = target.exists()  # asked first: another process may finish at this moment
        if ranks.of > 1 and work.is_done(target):
            return _late(folder, work, ranks)
        if exists:
            check_replaceable(target, force=options.force)
        check_room(target.parent, folder.job.needs)
        with ExitStack() as stack:
            # processes of one conversion share the folder, others are kept out
            if not stack.enter_context(work.lock("all", shared=ranks.of > 1)):
                raise StorageError("is being written by another process.", file=target)
            if not stack.enter_context(work.lock(f"rank-{ranks.number}")):
                raise StorageError(f"is being written by another rank {ranks.number}.", file=target)
            if ranks.of == 1 and not options.resume:
                work.clear()
            work.enter(ranks.number)
            with _unfinished_kept(folder, work, alone=ranks.of == 1), storage_errors(target):
                own = _pack_own(folder.job, work, ranks, stack)
                report = _finish(folder, work, own, shared=ranks.of > 1)
        if ranks.of > 1:
            work.leave(ranks.number, ranks.of, target)
        else:
            work.remove()
    return report or _unfinished(folder, work)


@contextmanager
def _unfinished_kept(folder: Folder, work: Work, *, alone: bool) -> Iterator[None]:
    """Keep packed shards for a later run if the block fails and that may help; a note says so."""
    try:
        yield
    except (KeyboardInterrupt, StorageError) as error:  # a disk may have room another time
        count = len(folder.source.shards)
        packed = sum(work.has(number) for number in range(1, count + 1))
        if alone and not (packed and folder.resumable):
            work.remove()
        elif packed and not folder.place:
            again = spell_again(resume=True) if alone else "Start this process again as before"
            error.add_note(
                f"Packed so far: {packed} of {plural(count, 'shard')}, kept in {work.folder}. "
                f"{again} to continue."
            )
        raise
    except TpackError:  # a source that is refused is refused again
        if alone and not folder.job.options.resume:
            work.remove()
        raise


def _check_target(folder: Folder) -> None:
    """Refuse a target that cannot be a folder, or that is, holds or lies in the source."""
    check_place(folder.target)
    if folder.source.path is not None:
        check_apart(folder.target, folder.source.path)


def _convert_parts(folder: Folder, work: Work | None) -> dict[str, ConversionReport]:
    """Convert the sub-folders with weights of their own into the output, or into nothing.

    The options were chosen for the model itself. So a sub-folder is packed if that loses
    nothing, rounded only if a method was named, and else kept bit for bit.
    """
    reports = {}
    for place, source in folder.source.parts.items():
        target = (work.output if work else folder.target) / place
        spools = work.folder / f"part-{place}" if work else None
        part = Folder(_part(source, folder.job.options), target, place, spools)
        with locate(file=source.label):
            try:
                reports[place] = convert_folder(part)
            except NotTernaryError:
                if folder.job.options.exact:
                    raise
                job = Job.of(source, part.job.options, as_it_is=True)
                reports[place] = convert_folder(replace(part, job=job))
    return reports


def _part(source: Source, options: Options) -> Job:
    """Plan the conversion of a sub-folder, by the options of the whole."""
    asked = options.exact or options.quantize != Options().quantize
    careful = replace(options, exact=options.exact or not asked, resume=False, force=False)
    try:
        return Job.of(source, careful)
    except NotTernaryError:
        if options.exact:
            raise
    except InputError:  # no weights to pack among its tensors
        pass
    return Job.of(source, careful, as_it_is=True)


def _about_name(target: Path) -> list[str]:
    """Return a note if the name of the folder looks like the name of a file."""
    named = target.suffix in (".safetensors", ".bin", ".pt")
    return [f"{target.name} is a folder, as the source is one"] if named else []


def _pack_own(job: Job, work: Work, ranks: Ranks, stack: ExitStack) -> dict[int, Batch]:
    """Pack the shards of this process that are not packed yet; return all of its shards."""
    plan, shards = job.plan, job.shards
    sizes = [sum(job.source.tensors[name].nbytes for name in names) for _, names in shards]
    batches: dict[int, Batch] = {}
    cases = Cases(plan)
    done = 0
    for position in ranks.own(sizes):
        number, (label, names) = position + 1, shards[position]
        batch = work.load(number, plan, stack)
        if batch is None:
            spool = stack.enter_context(work.spool(number))
            batch = pack_batch(cases, names, spool, label, done)
            if not batch.refused:
                work.finish(number, batch)
        batches[number] = batch
        done += sizes[position]
    if any(batch.refused for batch in batches.values()):
        check_refused(list(batches.values()), plan)
    return batches


def _finish(
    folder: Folder, work: Work, own: Mapping[int, Batch], *, shared: bool
) -> ConversionReport | None:
    """Write the output, if all shards are packed and no other process has written it."""
    job, count = folder.job, len(folder.source.shards)
    if not all(number in own or work.has(number) for number in range(1, count + 1)):
        return None
    with work.lock("finish", wait=True), ExitStack() as stack:
        if work.is_done(folder.target):
            return None
        batches = []
        for number in range(1, count + 1):
            batch = own.get(number) or work.load(number, job.plan, stack)
            if batch is None:
                return None
            batches.append(batch)
        check_refused(batches, job.plan)
        out = work.output
        if out.exists():
            shutil.rmtree(out)
        out.mkdir()
        job.plan.notes.extend(_about_name(folder.target))
        sink = Shards(out, [shard.output for shard in folder.source.shards])
        report = write_outputs(job, batches, sink, folder.target)
        parts = _convert_parts(folder, work)
        _write_beside(folder, report, parts, sink)
        if shared:
            work.mark_done()
        work.publish(folder.target, force=job.options.force)
        sync_folder(folder.target.parent)
    return with_parts(report, parts)


def _write_beside(
    folder: Folder, report: ConversionReport, parts: Mapping[str, ConversionReport], sink: Shards
) -> None:
    """Write the files beside the shards, and sync all folders to the disk."""
    source, out = folder.source, sink.folder
    copy_files(source.copies, out)
    write_config(source, out, inner=bool(folder.place))
    if len(source.shards) > 1:
        sink.write_index(total_parameters=sum(math.prod(row.shape) for row in report.tensors))
    else:
        assert source.shards[0].output == SINGLE
    if not folder.place:
        whole = with_parts(report, parts)
        write_text(out / "README.md", model_card(source, whole.tensors, whole.output_bytes))
    elif source.card:
        write_text(out / "README.md", source.card)
    for place in {out, *((out / name).parent for name in source.copies)}:
        sync_folder(place)


def _unfinished(folder: Folder, work: Work) -> ConversionReport:
    """Return the report of a process that leaves the rest to others."""
    shards = folder.source.shards
    missing = [number for number in range(1, len(shards) + 1) if not work.has(number)]
    what = "another process finishes"
    if missing and not folder.target.exists():
        names = ", ".join(shards[number - 1].output for number in missing[:4])
        what = f"still missing from others: {names}"
    notes = [f"packed the shards of this process; {what}"]
    for number in missing:
        if told := work.other(number):
            notes.append(
                f"{shards[number - 1].output} was packed with {told}, and cannot be joined with "
                "those of this process: run every rank with the same options"
            )
            break
    return unwritten(folder.source, *notes, needs=folder.job.needs)


def _late(folder: Folder, work: Work, ranks: Ranks) -> ConversionReport:
    work.leave(ranks.number, ranks.of, folder.target)
    return _unfinished(folder, work)
