"""Convert a checkpoint: plan, pack into a spool, describe, write.

``plan`` sorts the tensors, ``packing`` makes batches of them, ``outputs`` describes and writes
them. A file is one batch; ``folder`` makes one for each shard, perhaps in several processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpack.choices import Means
from tpack.container.atomic import check_not_input, check_target, storage_errors
from tpack.container.kinds import is_called_as_file
from tpack.conversion.captures import OWN_RULE, captured, captured_graph, own_program
from tpack.conversion.folder import Folder, convert_folder
from tpack.conversion.outputs import Job, convert_file, unwritten
from tpack.conversion.ranks import Ranks
from tpack.conversion.restoring import restore
from tpack.errors import LayerDefError, UsageError, locate
from tpack.layerdef import LayerDef, Program
from tpack.options import Options, Progress
from tpack.report import ConversionReport
from tpack.sources import Source, open_source
from tpack.sources.description import read_layerdef
from tpack.sources.hub import SCHEME
from tpack.sources.remote import is_remote, remote_target
from tpack.wording import spell, spell_call

if TYPE_CHECKING:
    from tpack.capturing import Captured

__all__ = ["convert", "default_output"]


def convert(
    source: str | os.PathLike[str] | Mapping[str, Any] | Any,
    destination: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    i2s_order: str | None = None,
    exact: bool = False,
    quantize: str = "auto",
    scale: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_dtype: str | None = None,
    layout: str = "t2",
    scale_means: Means | None = None,
    layerdef: LayerDef | Program | str | os.PathLike[str] | None = None,
    example_args: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    capture: bool = True,
    dry_run: bool = False,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a checkpoint to packed ternary safetensors.

    A weight that already is ternary, at any granularity, is packed losslessly; others are
    kept or quantized, and the report says so. Tensors that are not weights are kept bit for bit.

    Args:
        source: path of a file or folder, a state dict, or an ``nn.Module``.
        destination: path of the output. If not given: beside a source file
            ``<stem>.tpack.safetensors``, beside a folder ``<name>.tpack``.
        key: which nested dict of weights to take, where the source holds several: ``ema`` or
            ``model.encoder``.
        i2s_order: ``x86``, ``arm`` or ``rows``: the order of weights in I2_S of a GGUF file.
        exact: refuse a weight that is not ternary.
        quantize: ``auto`` (absmean), ``absmean``, ``twn`` or ``mse``.
        scale: ``auto``, ``tensor``, ``row``, ``column`` or ``group:N``.
        include: patterns of names to pack, and no others.
        exclude: patterns of names to keep.
        keep_dtype: ``f32``, ``f16`` or ``bf16`` for floats that are not packed.
        layout: ``t2`` or ``t5``.
        scale_means: ``multiply`` or ``divide``: what scales beside int8 and uint8 weights do,
            if the source does not record it.
        layerdef: the description of the model, or the path of its JSON; decides what is packed.
        example_args: arguments for a module's forward: its computation is captured too, as
            ``tpack.capture`` does it.
        example_kwargs: keyword arguments likewise.
        dynamic_shapes: which sizes of the arguments are free, as ``torch.export`` takes them.
        capture: describe what the model of a transformers folder computes, if transformers is
            installed; if false, only its layers are described.
        dry_run: write nothing.
        resume: continue an interrupted conversion of a folder.
        force: replace an existing output.
        progress: called with a phase, bytes done and bytes in all.

    Raises:
        TpackError: see ``tpack.errors``; nothing is left behind, except the shards that ``resume``
            takes up.
    """
    given = locals() | {"progress": progress or (lambda *_: None)}
    options = Options(**{each.name: given[each.name] for each in fields(Options)})
    program = None if layerdef is None else read_layerdef(layerdef)
    trace = None
    if program is None:
        trace = captured(source, example_args, example_kwargs, dynamic_shapes)
    paths = [Path(p) for p in (source, layerdef) if isinstance(p, str | os.PathLike)]
    address = _address(source, destination)
    if resume and address is not None:
        raise UsageError(
            f"{spell(resume=True)} needs folders on disks, but {address} is an address, for which "
            "an interrupted conversion keeps nothing. Leave it out, or copy the folder first."
        )
    with ExitStack() as stack:
        place = destination
        if isinstance(destination, str) and is_remote(destination):
            check_not_input(destination, *paths)
            place = stack.enter_context(remote_target(destination, force=force or dry_run))
        opened = stack.enter_context(open_source(source, options))
        target = _target(source, opened, place)
        if opened.carried is not None:
            return restore(opened, options, layerdef, target, *paths)
        if program is None and trace is None:
            trace = captured_graph(opened)
        if program is None:
            opened.program = own_program(source, opened)
        if opened.shards:
            if address is not None and Ranks.here().of > 1:
                raise UsageError(
                    f"several processes cannot share {address}: each has its own temporary copy. "
                    "Convert in one process, or on a disk that they share."
                )
            report = convert_folder(
                Folder(Job.of(opened, options, program), target, resumable=address is None)
            )
        else:
            if resume:
                raise UsageError(
                    f"{spell(resume=True)} continues the conversion of a folder, but the source is "
                    "not a folder. Leave it out."
                )
            if not dry_run:
                check_not_input(target, *paths)
                if Ranks.here().number:
                    return unwritten(opened, "a single file: left to rank 0")
                check_target(target, force=force)
            with locate(file=opened.label), storage_errors(target):
                report = convert_file(_job(opened, options, program, trace), target)
        if place is not destination and report.output:
            report = replace(report, output=str(destination))
        return report


def _job(source: Source, options: Options, program: Program | None, trace: Captured | None) -> Job:
    """Plan the conversion of one file; without its graph, if the packed weights do not fit that.

    Raises:
        TpackError: those of ``Job.of``.
    """
    if trace is None:
        return Job.of(source, options, program)
    known = replace(
        source,
        notes=[*trace.notes, *source.notes],
        roles=trace.roles(),
        rounded={**source.rounded, **trace.rounded},
        floats={**source.floats, **dict.fromkeys(trace.measured, OWN_RULE)},
    )
    try:
        return Job.of(known, options, program, trace)
    except LayerDefError as error:
        if source.graph is None:
            raise
        source.notes.append(f"the graph is not captured: {error}")
        return Job.of(source, options, program)


def _address(source: object, destination: object) -> str | None:
    """Return the source or destination that needs a temporary copy: an address, if one is.

    A repository of the hub needs none: it lies in the cache of the hub.
    """
    hub = isinstance(source, str) and source.startswith(SCHEME)
    for end in (None if hub else source, destination):
        if isinstance(end, str) and is_remote(end):
            return end
    return None


def default_output(source: Path, *, folder: bool = False) -> Path:
    """Return ``<stem>.tpack.safetensors`` beside a file, ``<name>.tpack`` beside a folder.

    Example:
        >>> print(default_output(Path("models/a.pt")))
        models/a.tpack.safetensors
    """
    if folder:
        return source.parent / f"{source.name}.tpack"
    return source.parent / f"{source.stem}.tpack.safetensors"


def _target(source: Any, opened: Source, destination: str | os.PathLike[str] | None) -> Path:
    if destination is not None:
        target = Path(destination)
        if is_called_as_file(target) and target.suffix.lower() != ".safetensors":
            raise UsageError(
                f"output {os.fspath(destination)!r} has suffix {target.suffix!r}, expected "
                f".safetensors. {spell_call('unpack')} and {spell_call('export')} write other "
                "files of what convert gives."
            )
        return target
    if isinstance(source, str | os.PathLike):
        beside = opened.path or Path(source)
        if beside.name in ("", ".."):
            beside = Path(os.path.abspath(beside))  # noqa: PTH100  # not where a link leads
        return default_output(beside, folder=bool(opened.shards))
    raise UsageError("convert needs a destination for a state dict or module.")
