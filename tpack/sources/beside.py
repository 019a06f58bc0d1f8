"""The other files of a folder of weights: those that go with the model, and those left out."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tpack.container import INDEX, SINGLE, parse_json
from tpack.container.index import PICKLE_INDEX
from tpack.container.opening import input_errors, open_input
from tpack.errors import InputError, TpackError
from tpack.wording import spell_call

#: Single files of weights, tried in this order.
SINGLES = (SINGLE, "pytorch_model.bin")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
#: What goes with a model: its configs, tokenizer, templates, texts and pictures, and its licence.
COPIED = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".md")
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
_COPIED_NAMES = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY)[\w.-]*", re.IGNORECASE)
#: What trainers save beside a model; nothing of it is opened.
_TRAINER = re.compile(
    r"(optimizer|(lr_)?scheduler|rng_state|random_states|(grad_)?scaler|sampler|dl_state_dict"
    r"|custom_checkpoint|training_state)([_.-].*)?\.(pt|pth|bin|pkl|ckpt|npz|safetensors)"
    r"|.*optim_states\.pt|training_args\.(bin|json)|trainer_state\.json|zero_to_fp32\.py|latest",
    re.IGNORECASE,
)
_TRAINER_FOLDERS = re.compile(r"checkpoint-\d+|global_step\d*|runs|wandb|lightning_logs|logs")
_ADAPTER = re.compile(r"adapter_(config\.json|model\..*)")
#: Folders with the same weights for another program.
_FORMS = re.compile(
    r"onnx|openvino|original|gguf|coreml|mlx|flax|tflite|tensorrt|ctranslate2", re.IGNORECASE
)
_MAX_MODULES = 1_000_000
#: Characters of a model card that are kept.
MAX_CARD = 1_000_000


@dataclass
class Beside:
    """What lies beside the weights of a folder.

    Attributes:
        copies: what goes with the model: files by their names in the output, ``assets/a.png``.
        parts: sub-folders with weights of their own that belong to the model.
        left_out: further weights that belong, or may belong, to the model and are not read.
        notes, warnings: for the report.
    """

    copies: dict[str, Path] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def is_candidate(file: Path) -> bool:
    """Return whether a file may hold the weights of a model, by its name."""
    left = _TRAINER.fullmatch(file.name) or _ADAPTER.fullmatch(file.name)
    return file.suffix in WEIGHTS and not left and not file.name.startswith(".")


def adapters(folder: Path) -> list[str]:
    """Return the files with the weights of an adapter."""
    found = sorted(folder.glob("adapter_model.*"))
    return [file.name for file in found if file.suffix in WEIGHTS]


def folders_with_weights(folder: Path) -> list[str]:
    """Return the sub-folders that have weights of their own, as those of a pipeline do."""
    return [f.name for f in sorted(folder.iterdir()) if not _hidden(f) and _has_own_weights(f)]


def parts_of(folder: Path) -> list[str]:
    """Return the sub-folders with weights of their own that belong to the model of a folder.

    Raises:
        InputError: ``modules.json`` is a link that leads out of the folder, or cannot be read.
    """
    if not folder.is_dir():
        return []
    modules = _modules(folder)
    return [name for name in folders_with_weights(folder) if name in modules]


def unread(folder: Path, read: Collection[Path]) -> list[str]:
    """Return what else of a folder has weights or code: files, and sub-folders as ``onnx/``.

    Args:
        read: the files of weights, and the sub-folders, that are read.
    """
    return [
        path.name + "/" * path.is_dir()
        for path in sorted(folder.iterdir())
        if path not in read
        and any(
            file.suffix in (*WEIGHTS, ".distcp", ".pkl", ".py")
            for file in (_files(path) if path.is_dir() else [path])
        )
    ]


def look_beside(folder: Path, taken: Collection[Path]) -> Beside:
    """Sort the files and sub-folders of a folder into those copied and those left out.

    Args:
        taken: the files of weights that are read.

    Raises:
        InputError: a link that leads out of the folder.
    """
    found = Beside()
    modules = _modules(folder)
    trainer: list[str] = []
    adapter: list[str] = []
    forms: list[str] = []
    unknown: list[str] = []
    other: list[str] = []
    for path in sorted(folder.iterdir()):
        name = path.name
        if path in taken or _hidden(path) or name.endswith(".index.json"):
            continue
        if path.is_dir():
            if name in modules:
                check_inside(folder, path)
                if _has_own_weights(path):
                    found.parts += (name,)
                else:
                    found.copies |= _tree(folder, path)
            elif _TRAINER_FOLDERS.fullmatch(name):
                trainer.append(f"{name}/")
            elif (path / "adapter_config.json").exists():
                adapter.append(f"{name}/")
            elif any(file.suffix in (*WEIGHTS, ".distcp") for file in _files(path)):
                (forms if _FORMS.fullmatch(name) else unknown).append(f"{name}/")
            else:
                check_inside(folder, path)
                copies = _tree(folder, path)
                found.copies |= copies
                if not copies:
                    other.append(f"{name}/")
        elif _TRAINER.fullmatch(name):
            trainer.append(name)
        elif _ADAPTER.fullmatch(name):
            adapter.append(name)
        elif path.suffix in WEIGHTS:
            forms.append(name)
        elif name in ("README.md", "config.json"):
            continue
        elif is_copied(path):
            check_inside(folder, path)
            found.copies[name] = path
        else:
            other.append(name)
    if trainer:
        found.notes.append(f"left out what a trainer saved: {listed(trainer)}")
    if forms:
        found.notes.append(f"left out other files of weights: {listed(forms)}")
    if code := [name for name in other if name.endswith(".py")]:
        found.notes.append(
            f"did not copy code, {listed(code)}: if the model needs it, copy it yourself"
        )
    if rest := [name for name in other if name not in code]:
        found.notes.append(f"did not copy {listed(rest)}")
    if adapter:
        found.warnings.append(
            f"left out an adapter, with which the model computes something else: "
            f"{listed(adapter)}. To have it in the output, merge it into the masters (peft's "
            "merge_and_unload) and convert what that gives: ternary weights would not stay ternary."
        )
    for name in unknown:
        found.warnings.append(
            f"left out {name}, which has weights of its own. If they belong to the model, convert "
            f"them apart: {spell_call('convert', folder / name)}"
        )
    found.left_out = (*adapter, *unknown)
    return found


def check_inside(folder: Path, file: Path) -> None:
    """Refuse a link out of the folder: what it leads to is not the model's, and may be secret.

    A snapshot in the cache of a hub is made of links to the blobs of its repository.

    Raises:
        InputError: it is one.
    """
    if not file.is_symlink():
        return
    root, target = folder.resolve(), file.resolve()
    blobs = [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]
    if not any(target.is_relative_to(place) for place in (root, *blobs[:1])):
        raise InputError(
            "is a link that leads out of the folder. Put the file itself there, or remove it.",
            file=file,
        )


def check_texts(folder: Path) -> None:
    """Refuse a config or a model card that is a link out of the folder.

    Raises:
        InputError: one is.
    """
    for name in ("config.json", "README.md"):
        check_inside(folder, folder / name)


def read_card(folder: Path) -> str:
    """Read the model card of a folder; empty if there is none."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    with card.open(encoding="utf-8", errors="replace") as file:
        return file.read(MAX_CARD)


def _modules(folder: Path) -> set[str]:
    """Return the sub-folders that ``modules.json`` of sentence-transformers names."""
    path = folder / "modules.json"
    if not path.is_file():
        return set()
    check_inside(folder, path)
    with open_input(path) as file, input_errors():
        text = file.read(_MAX_MODULES)
    try:
        data = parse_json(text, "R18", "modules.json")
    except TpackError:  # not theirs: what it may name is found, and said to be left out
        return set()
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    return {str(entry.get("path", "")) for entry in entries}


def _has_own_weights(folder: Path) -> bool:
    names = (*SINGLES, INDEX, PICKLE_INDEX)
    if not folder.is_dir():
        return False
    return any((folder / name).is_file() for name in names) or any(
        is_candidate(file) for file in folder.iterdir()
    )


def _files(folder: Path) -> Iterator[Path]:
    """Find all files below a folder; links to folders are not followed."""
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def _tree(root: Path, folder: Path) -> dict[str, Path]:
    """Return the files of a sub-folder that are copied."""
    found = {}
    for file in sorted(_files(folder)):
        name = file.relative_to(root)
        if is_copied(file) and not any(part.startswith(".") for part in name.parts):
            check_inside(root, file)
            found[name.as_posix()] = file
    return found


def is_copied(file: Path) -> bool:
    """Return whether a file goes with a model: tokenizer, settings, texts, pictures or licence."""
    known = file.suffix in COPIED or file.suffix.lower() in PICTURES
    return file.is_file() and (known or _COPIED_NAMES.fullmatch(file.name) is not None)


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def listed(names: list[str]) -> str:
    """Return names in a row, the first six of many."""
    return ", ".join(names[:6]) + f" and {len(names) - 6} others" * (len(names) > 6)
