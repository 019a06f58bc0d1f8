"""Folders as model hubs serve them: one file or several shards, a config, a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tpack.container import INDEX, SINGLE, Index, read_index
from tpack.container.index import PICKLE_INDEX
from tpack.errors import InputError, locate
from tpack.grouping import Place
from tpack.hfconfig import read_config
from tpack.sources.beside import (
    SINGLES,
    adapters,
    check_inside,
    check_texts,
    folders_with_weights,
    is_candidate,
    look_beside,
    read_card,
)
from tpack.sources.dialects import adapt
from tpack.sources.hf_rounding import rounding
from tpack.sources.names import clean_names
from tpack.sources.rotations import refuse_rotated
from tpack.sources.source import PackedTensor, Source, SourceShard, SourceTensor
from tpack.wording import spell_call

OpenFile = Callable[[Path], Source]


def open_folder(path: Path, open_file: OpenFile) -> Source:
    """Open a folder of one or several files of weights.

    Args:
        open_file: opens one of them.

    Raises:
        InputError: no weights, or more than one candidate; shards that are missing, too many, or
            hold other tensors than the index says.
        InputError: a link that leads out of the folder.
        UnsupportedError: it is a tpack checkpoint already, or in an unknown dialect.
    """
    check_texts(path)
    config = read_config(path)
    refuse_rotated(config or {}, "config.json")
    index, files = _files(path)
    resources = ExitStack()
    with resources:
        opened = [resources.enter_context(open_file(file)) for file in files]
        if index is not None:
            for file, source in zip(files, opened, strict=True):
                _check_against(index, file, source)
        stripped = _clean(opened)
        tensors: dict[str, SourceTensor | PackedTensor] = {}
        homes: dict[str, int] = {}
        aliases: dict[str, str] = {}
        for number, (file, source) in enumerate(zip(files, opened, strict=True)):
            for name, tensor in source.tensors.items():
                if name in tensors:
                    raise InputError(
                        f"is in two files, {files[homes[name]].name} and {file.name}.", tensor=name
                    )
                tensors[name], homes[name] = tensor, number
            aliases |= source.aliases
        if len(files) > 1:  # a block that two shards share must look like its siblings
            in_order = sorted(tensors, key=lambda name: Place.of(name).sort_key)
            tensors = {name: tensors[name] for name in in_order}
        plain = {name: t for name, t in tensors.items() if isinstance(t, SourceTensor)}
        # a file that knows its trits itself, GGUF, needs no config
        adapted, notes = adapt(plain, config) if len(plain) == len(tensors) else (tensors, [])
        for name in adapted:  # a dialect may rename what it unpacks
            homes.setdefault(name, homes.get(f"{name}_packed", 0))
        notes = [note for source in opened for note in source.notes] + stripped + notes
        shards = tuple(
            SourceShard(file, _output_name(number, len(files), file, index), names)
            for number, file in enumerate(files)
            for names in [tuple(n for n in adapted if homes[n] == number)]
        )
        beside = look_beside(path, files)
        parts: dict[str, Source] = {}
        for place in beside.parts:
            with locate(file=path / place):
                parts[place] = resources.enter_context(open_folder(path / place, open_file))
        rounded, int8_inputs = rounding(adapted, aliases, config)
        return Source(
            str(path),
            adapted,
            aliases,
            notes=notes + beside.notes,
            warnings=[w for source in opened for w in source.warnings] + beside.warnings,
            rounded=rounded,
            int8_inputs=int8_inputs.union(*(source.int8_inputs for source in opened)),
            files=(*files, *(file for part in parts.values() for file in part.files)),
            nbytes=sum(source.nbytes for source in (*opened, *parts.values())),
            metadata={key: value for source in opened for key, value in source.metadata.items()},
            path=path,
            shards=shards,
            copies=beside.copies,
            parts=parts,
            left_out=beside.left_out,
            config=config,
            card=read_card(path),
            resources=resources.pop_all(),
        )
    raise AssertionError  # the block returns or raises


def _clean(sources: list[Source]) -> list[str]:
    """Strip the prefixes of wrappers from the names of all files together; note which."""
    names, notes = clean_names([n for s in sources for n in (*s.tensors, *s.aliases)])
    if notes:
        for source in sources:
            source.tensors = {
                names[name]: replace(tensor, name=names[name])
                for name, tensor in source.tensors.items()
                if name in names
            }
            source.aliases = {names[a]: names[name] for a, name in source.aliases.items()}
    return notes


def _files(path: Path) -> tuple[Index | None, list[Path]]:
    """Return the index, if there is one, and the files of weights."""
    for single, name in zip(SINGLES, (INDEX, PICKLE_INDEX), strict=True):
        if (path / name).exists():
            check_inside(path, path / name)
            index = read_index(path / name)
            return index, _checked(path, [path / shard for shard in index.files])
        if (path / single).exists():
            return None, _checked(path, [path / single])
    found = sorted(file for file in path.iterdir() if is_candidate(file))
    shards = [file for file in found if re.fullmatch(r".*-\d+-of-\d+", file.stem)]
    if len(found) == 1 and not shards:
        return None, _checked(path, found)
    if shards and len(shards) == len(found):
        return None, _checked(path, _complete(shards))
    if found:
        names = ", ".join(file.name for file in found[:4])
        raise InputError(f"holds several files of weights, {names}. Name one of them.")
    if adapter := adapters(path):
        raise InputError(
            f"holds an adapter, {adapter[0]}, expected the weights of a model. Merge it into its "
            "model first: merge_and_unload() of peft."
        )
    if inner := folders_with_weights(path):
        raise InputError(
            f"holds no weights of its own, but its folders {', '.join(inner[:8])} do. Convert "
            f"each: {spell_call('convert', path / inner[0])}"
        )
    raise InputError(
        f"holds no weights, expected {INDEX}, {PICKLE_INDEX}, {' or '.join(SINGLES)}. Name the "
        "folder or the file that holds them."
    )


def _checked(folder: Path, files: list[Path]) -> list[Path]:
    """Return files of a folder; refuse a link that leads out of it."""
    for file in files:
        check_inside(folder, file)
    return files


def _complete(shards: list[Path]) -> list[Path]:
    """Return shards without an index; by their names they must be 1 to n."""
    numbers = [tuple(map(int, re.findall(r"\d+", file.stem)[-2:])) for file in shards]
    of = numbers[0][1]
    if numbers != [(number, of) for number in range(1, of + 1)]:
        there = {number for number, _ in numbers}
        missing = [str(n) for n in range(1, of + 1) if n not in there][:4]
        raise InputError(
            f"holds {len(shards)} shards, expected 1 to {of}"
            + (f": {', '.join(missing)} missing. Download them again." if missing else ".")
        )
    return shards


def _check_against(index: Index, file: Path, source: Source) -> None:
    """Make sure that a shard holds what the index says."""
    named = {name for name, home in index.weight_map.items() if home == file.name}
    there = {*source.tensors, *source.aliases}
    if missing := sorted(named - set(there)):
        raise InputError(
            f"is not in {file.name}, where {index.path.name} says that it is. Download both again.",
            tensor=missing[0],
        )
    if extra := sorted(set(source.tensors) - named):
        raise InputError(
            f"is in {file.name}, but not in {index.path.name}. Download both again.",
            tensor=extra[0],
        )


def _output_name(number: int, count: int, file: Path, index: Index | None) -> str:
    """Return the name of a shard in the output: unchanged if it is a safetensors name."""
    if count == 1:
        return SINGLE
    if index is not None and file.suffix == ".safetensors":
        return file.name
    return f"model-{number + 1:05}-of-{count:05}.safetensors"
