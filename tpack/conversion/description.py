"""Describe what was packed: the program, and the documents of the output files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tpack.codec import Scale
from tpack.container import digest
from tpack.container.document import NO_DIGEST, Document, Shard, program_digest
from tpack.conversion.packing import Batch
from tpack.conversion.running import about_experts, about_forward
from tpack.errors import LayerDefError
from tpack.layerdef import Param, Program, validate
from tpack.layerdef.completion import Found, complete
from tpack.layerdef.from_names import mirror
from tpack.layerdef.tensors import Slot, kept_param, ternary_param
from tpack.options import Options
from tpack.sources import Source


def describe(
    batches: Sequence[Batch],
    source: Source,
    program: Program | None,
    options: Options,
    notes: list[str],
) -> list[Document]:
    """The description of each output file; scales take their final granularity.

    Args:
        batches: what each file holds; changed where a scale must be repeated.
        source: takes warnings of what cannot be run.
        program: the LayerDefs given by the user; None to draw them from the names.
        notes: takes why there is no program, if there is none, or that it has no forward.
    """
    found = {
        name: Found(t.shape, t.dtype) for batch in batches for name, t in batch.kept.items()
    } | {
        name: Found(item.entry.shape, item.dtype, Scale.parse(item.entry.scale))
        for batch in batches
        for name, item in batch.packed.items()
    }
    if program is not None:
        program, scales = complete(program, found, options.layout)
        for batch in batches:
            for name in batch.packed:
                batch.packed[name] = batch.packed[name].at(scales[name])
    else:
        splits = {name: i.entry.split for batch in batches for name, i in batch.packed.items()}
        program = _mirrored(found, splits, source, options, notes)
    source.warnings += about_experts(source, (n for batch in batches for n in batch.packed))
    metadata = {key: digest([value.encode()]) for key, value in source.metadata.items()}
    return [
        Document(
            program if number == 1 else None,
            {name: item.entry for name, item in batch.packed.items()},
            dict.fromkeys(batch.kept, NO_DIGEST),
            {a: t for a, t in source.aliases.items() if t in batch.packed or t in batch.kept},
            Shard(number, len(batches), program_digest(program)) if len(batches) > 1 else None,
            metadata if number == 1 else {},
        )
        for number, batch in enumerate(batches, 1)
    ]


def _mirrored(
    found: Mapping[str, Found],
    splits: Mapping[str, int],
    source: Source,
    options: Options,
    notes: list[str],
) -> Program | None:
    """The program that the names of the state dict draw; None if they are no names."""
    stored = [
        Slot(name, _param(name, found[name], splits.get(name), options, source.trained.get(name)))
        for name in source.tensors
        if name in found
    ]
    try:
        program = mirror(stored, int8_inputs=source.int8_inputs)
        validate(program)
    except LayerDefError as error:
        notes.append(f"no LayerDefs: {error}")
        return None
    notes += about_forward(source, program)
    return program


def _param(
    name: str, found: Found, split: int | None, options: Options, trained: bool | None
) -> Param:
    if found.scale is None or split is None:
        return kept_param(name, found.shape, found.dtype, trained=trained)
    return ternary_param(name, found.shape, found.dtype, found.scale, options.layout, split)
