"""Convert a folder of shards: shard by shard, in one process or several, resumable.

Each process packs its shards into the working folder; whoever finds all of them there writes
the output. No process waits for another, so one that fails is run again alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpack.container import SINGLE, program_digest
from tpack.container.atomic import storage_errors, sync_folder
from tpack.container.strictjson import canonical_json
from tpack.container.writer import checkpoint_size, write_checkpoint
from tpack.conversion.beside import (
    named_rows,
    with_parts,
    write_config,
    write_copies,
    write_shard_index,
    write_text,
)
from tpack.conversion.card import model_card
from tpack.conversion.cases import Cases
from tpack.conversion.description import describe
from tpack.conversion.needs import Needs, check_room
from tpack.conversion.packing import Batch, pack_batch
from tpack.conversion.partial import Work
from tpack.conversion.plan import Plan, everything_kept, make_plan
from tpack.conversion.ranks import Ranks
from tpack.conversion.telling import check_refused, warnings
from tpack.errors import ExistsError, InputError, NotTernaryError, StorageError, TpackError, locate
from tpack.layerdef import Program
from tpack.options import Options
from tpack.report import ConversionReport, TensorReport
from tpack.sources import Source

#: Bytes at the beginning of a source file that tell it from another.
BEGIN = 1 << 16


@dataclass(frozen=True)
class Folder:
    """A folder to be converted: an opened source with shards, and where its output goes.

    Attributes:
        place: of a sub-folder that goes with another folder, its name.
        work: where it is put together; None for a hidden folder beside the target.
        as_it_is: keep all tensors.
    """

    source: Source
    options: Options
    program: Program | None
    target: Path
    place: str = ""
    work: Path | None = None
    as_it_is: bool = False

    @property
    def key(self) -> str:
        """What manifests must be of to be taken up: this source, as it is now, and the options.

        A file is the same if its size, both its times and its first bytes are, which hold the
        header of safetensors. Only the time of the last change of anything, ctime, notices a
        file that was written to and given its old time of modification again.
        """
        return hashlib.sha256(
            canonical_json(
                [self.asked, str(self.source.path), [_state(path) for path in self.source.files]]
            ).encode("ascii")
        ).hexdigest()

    @property
    def asked(self) -> dict[str, Any]:
        """The options, and which LayerDefs were given, as plain data."""
        return self.options.to_dict() | {"layerdef": program_digest(self.program)}


def _state(path: Path) -> list[Any]:
    """What tells a file of the source from itself after a change."""
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
    source, target, options = folder.source, folder.target, folder.options
    with locate(file=source.label):
        plan = (
            everything_kept(source)
            if folder.as_it_is
            else make_plan(source, options, folder.program)
        )
    needs = Needs.of(plan, source, options)
    if options.dry_run:
        return _measure(folder, plan, needs)
    ranks = Ranks() if folder.place else Ranks.here()
    work = Work.of(target, folder.work, folder.key, folder.asked)
    with storage_errors(target):
        _check_target(folder)
        work.restore(target)
        exists = target.exists()  # asked first: another process may finish at this moment
        if ranks.of > 1 and work.is_done(target):
            return _late(folder, work, ranks, needs)
        if exists and not options.force:
            raise ExistsError("exists already. Use --force to replace it.", file=target)
        check_room(target.parent, needs)
        with ExitStack() as stack:
            # processes of one conversion share the folder, others are kept out
            if not stack.enter_context(work.lock("all", shared=ranks.of > 1)):
                raise StorageError("is being written by another process.", file=target)
            if not stack.enter_context(work.lock(f"rank-{ranks.number}")):
                raise StorageError(f"is being written by another rank {ranks.number}.", file=target)
            if ranks.of == 1 and not options.resume:
                work.clear()
            work.enter(ranks.number)
            try:
                own = _pack_own(folder, plan, work, ranks, stack)
                report = _finish(folder, plan, work, needs, own, shared=ranks.of > 1)
            except TpackError as error:
                # a source that is refused is refused again; a disk may have room another time
                if ranks.of == 1 and not options.resume and not isinstance(error, StorageError):
                    work.remove()
                raise
        if ranks.of > 1:
            work.leave(ranks.number, ranks.of, target)
        else:
            work.remove()
    return report or _unfinished(folder, work, needs)


def _check_target(folder: Folder) -> None:
    """Refuse a target that is no place for a folder, or lies in the source."""
    target = folder.target
    if not target.parent.is_dir():
        raise StorageError(
            f"cannot be written: folder {str(target.parent)!r} does not exist.", file=target
        )
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise StorageError("is no folder, but the source is one. Choose another.", file=target)
    if folder.source.path is not None:
        own, other = target.resolve(), folder.source.path.resolve()
        if own == other or own in other.parents or other in own.parents:
            raise ExistsError("is or holds the input itself. Choose another.", file=target)


def _convert_parts(folder: Folder, work: Work | None) -> dict[str, ConversionReport]:
    """Convert the sub-folders with weights of their own into the output, or into nothing.

    They are not what the options were chosen for: one is packed if that loses nothing, and
    rounded only if the options ask for it. Else it is kept bit for bit.
    """
    reports = {}
    for place, source in folder.source.parts.items():
        options = folder.options
        target = (work.output if work else folder.target) / place
        asked = options.exact or options.quantize != Options().quantize
        part = Folder(
            source,
            replace(
                options,
                exact=options.exact or not asked,
                dry_run=work is None,
                resume=False,
                force=False,
            ),
            None,
            target,
            place,
            work.folder / f"part-{place}" if work else None,
        )
        try:
            make_plan(source, part.options, None)
        except InputError:  # no weights to pack among its tensors
            part = replace(part, as_it_is=True)
        except NotTernaryError:  # as below
            pass
        with locate(file=source.label):
            try:
                reports[place] = convert_folder(part)
            except NotTernaryError:
                if options.exact:
                    raise
                reports[place] = convert_folder(replace(part, as_it_is=True))
    return reports


def _about_name(target: Path) -> list[str]:
    """A note for who may have thought of a file."""
    named = target.suffix in (".safetensors", ".bin", ".pt")
    return [f"{target.name} is a folder, as the source is one"] if named else []


def _pack_own(
    folder: Folder, plan: Plan, work: Work, ranks: Ranks, stack: ExitStack
) -> dict[int, Batch]:
    """Pack the shards of this process that are not there yet; gives all of its shards."""
    shards = folder.source.shards
    sizes = [sum(folder.source.tensors[name].nbytes for name in shard.names) for shard in shards]
    batches: dict[int, Batch] = {}
    cases = Cases(plan)
    done = 0
    for position in ranks.own(sizes):
        number, shard = position + 1, shards[position]
        batch = work.load(number, plan, stack)
        if batch is None:
            spool = stack.enter_context(work.spool(number))
            batch = pack_batch(cases, shard.names, spool, str(shard.path), done)
            if not batch.refused:
                work.finish(number, batch)
        batches[number] = batch
        done += sizes[position]
    if any(batch.refused for batch in batches.values()):
        check_refused(list(batches.values()), plan)
    return batches


def _finish(
    folder: Folder,
    plan: Plan,
    work: Work,
    needs: Needs,
    own: Mapping[int, Batch],
    *,
    shared: bool,
) -> ConversionReport | None:
    """Write the output if all shards are packed and nobody else does."""
    count = len(folder.source.shards)
    if not all(number in own or work.has(number) for number in range(1, count + 1)):
        return None
    with work.lock("finish", wait=True), ExitStack() as stack:
        if work.is_done(folder.target):
            return None
        batches = []
        for number in range(1, count + 1):
            batch = own.get(number) or work.load(number, plan, stack)
            if batch is None:
                return None
            batches.append(batch)
        check_refused(batches, plan)
        out = work.output
        if out.exists():
            shutil.rmtree(out)
        out.mkdir()
        notes = _about_name(folder.target)
        sizes = _write_shards(folder, batches, out, notes)
        reports = _reports(folder, batches)
        parts = _convert_parts(folder, work)
        _write_beside(folder, batches, reports, parts, sizes, out)
        if shared:
            work.mark_done()
        work.publish(folder.target, force=folder.options.force)
        sync_folder(folder.target.parent)
    report = ConversionReport(
        str(folder.target),
        folder.source.nbytes,
        sum(sizes),
        tuple(reports),
        (*folder.source.notes, *plan.notes, *notes),
        needs.memory,
        needs.disk,
        (*folder.source.warnings, *plan.warnings, *warnings(batches, plan)),
    )
    return with_parts(report, parts)


def _write_shards(
    folder: Folder, batches: Sequence[Batch], out: Path, notes: list[str]
) -> list[int]:
    """Write the shards; returns their sizes."""
    source, options = folder.source, folder.options
    documents = describe(batches, source, folder.program, options, notes)
    pieces = [list(batch.pieces()) for batch in batches]
    total = sum(piece.nbytes for group in pieces for piece in group)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        options.progress("writing", done, total)

    return [
        write_checkpoint(
            out / shard.output,
            document,
            group,
            metadata=source.metadata if not number else {},
            progress=advance,
        )
        for number, (shard, document, group) in enumerate(
            zip(source.shards, documents, pieces, strict=True)
        )
    ]


def _write_beside(
    folder: Folder,
    batches: Sequence[Batch],
    reports: Sequence[TensorReport],
    parts: Mapping[str, ConversionReport],
    sizes: Sequence[int],
    out: Path,
) -> None:
    """Write what goes beside the shards, and bring all of it to the disk."""
    write_copies(folder.source, out)
    write_config(folder.source, out, inner=bool(folder.place))
    if len(batches) > 1:
        write_shard_index(folder.source, batches, reports, out)
    else:
        assert folder.source.shards[0].output == SINGLE
    if not folder.place:
        rows = [row for place, part in parts.items() for row in named_rows(place, part)]
        size = sum(sizes) + sum(part.output_bytes for part in parts.values())
        write_text(out / "README.md", model_card(folder.source, [*reports, *rows], size))
    elif folder.source.card:
        write_text(out / "README.md", folder.source.card)
    for place in {out, *((out / name).parent for name in folder.source.copies)}:
        sync_folder(place)


def _reports(folder: Folder, batches: Sequence[Batch]) -> list[TensorReport]:
    return [
        report
        for batch, shard in zip(batches, folder.source.shards, strict=True)
        for report in batch.reports(folder.source, shard.names)
    ]


def _measure(folder: Folder, plan: Plan, needs: Needs) -> ConversionReport:
    """Pack into nowhere: the report of a conversion, with its exact size."""
    batches: list[Batch] = []
    notes: list[str] = []
    cases = Cases(plan)
    with ExitStack() as stack:
        done = 0
        for shard in folder.source.shards:
            spool = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=64 << 20))
            batches.append(pack_batch(cases, shard.names, spool, str(shard.path), done))
            done += sum(folder.source.tensors[name].nbytes for name in shard.names)
        check_refused(batches, plan)
        documents = describe(batches, folder.source, folder.program, folder.options, notes)
        size = sum(
            checkpoint_size(document, list(batch.pieces()), {} if n else folder.source.metadata)
            for n, (document, batch) in enumerate(zip(documents, batches, strict=True))
        )
        reports = _reports(folder, batches)
    report = ConversionReport(
        None,
        folder.source.nbytes,
        size,
        tuple(reports),
        (*folder.source.notes, *plan.notes, *notes),
        needs.memory,
        needs.disk,
        (*folder.source.warnings, *plan.warnings, *warnings(batches, plan)),
    )
    return with_parts(report, _convert_parts(folder, None))


def _unfinished(folder: Folder, work: Work, needs: Needs) -> ConversionReport:
    """The report of a process that left the rest to others."""
    shards = folder.source.shards
    missing = [number for number in range(1, len(shards) + 1) if not work.has(number)]
    what = "another process finishes"
    if missing and not folder.target.exists():
        names = ", ".join(shards[number - 1].output for number in missing[:4])
        what = f"still missing from others: {names}"
    notes = [f"packed the shards of this process; {what}"]
    for number in missing:
        if told := work.difference(number):
            notes.append(
                f"{shards[number - 1].output} was packed with {told}, and cannot be joined with "
                "those of this process: run every rank with the same options"
            )
            break
    return ConversionReport(None, folder.source.nbytes, 0, (), (*notes,), needs.memory, needs.disk)


def _late(folder: Folder, work: Work, ranks: Ranks, needs: Needs) -> ConversionReport:
    work.leave(ranks.number, ranks.of, folder.target)
    return _unfinished(folder, work, needs)
