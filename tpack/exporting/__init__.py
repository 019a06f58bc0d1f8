"""Write a checkpoint for other systems: one module a target, and a row for each in ``TARGETS``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, Literal

from tpack.choices import Choice
from tpack.dialects.gguf_types import WRITTEN
from tpack.errors import UnsupportedError, UsageError, locate, unknown
from tpack.exporting.report import ExportedTensor, ExportReport
from tpack.options import check, option
from tpack.wording import either, spell, spell_name

__all__ = ["TARGETS", "ExportReport", "ExportedTensor", "Target", "export"]


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a target that has none."""


@dataclass(frozen=True, kw_only=True)
class GgufOptions:
    """The options of ``gguf``."""

    type: str = option(
        "auto",
        "Of GGUF's blocks; auto is as it came, else tq2_0 or q2_0.",
        among={name.lower(): Choice(name.lower(), f"blocks of {name}") for name in WRITTEN},
    )
    allow_inexact: bool = option(False, "Round scales, unpack what fits no GGUF block.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """The options of ``onnx``."""

    form: str = option(
        "exact",
        "How packed layers compute.",
        among={
            "exact": Choice("exact", "in float32"),
            "fast": Choice("fast", "activations may be rounded to eight bits in blocks"),
        },
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Target(Choice):
    """A system that checkpoints are written for.

    Attributes:
        output: what it is given.
        function: its module and function, imported when it is used. It is called with the open
            checkpoint, the destination, ``force`` and the options, and returns an ExportReport.
        options: a record of ``tpack.options.option`` fields.
    """

    output: Literal["file", "folder"]
    function: tuple[str, str]
    options: type[Any] = NoOptions

    def write(self, *args: Any, **given: Any) -> ExportReport:
        """Call the target's function."""
        module, name = self.function
        run: Callable[..., ExportReport] = getattr(import_module(module), name)
        return run(*args, **given)


TARGETS = {
    row.name: row
    for row in (
        Target(
            "hf-bitnet",
            "the bitnet packing, for transformers",
            "folder",
            ("tpack.exporting.hf_bitnet", "export_hf_bitnet"),
        ),
        Target(
            "gguf",
            "ternary blocks, for llama.cpp and what is built on it",
            "file",
            ("tpack.exporting.gguf", "export_gguf"),
            GgufOptions,
        ),
        Target(
            "onnx",
            "a graph on the packed weights, for ONNX Runtime",
            "file",
            ("tpack.exporting.onnx", "export_onnx"),
            OnnxOptions,
        ),
    )
}


def export(
    path: str | os.PathLike[str],
    to: str,
    destination: str | os.PathLike[str],
    *,
    force: bool = False,
    **options: Any,
) -> ExportReport:
    """Write a checkpoint for another system.

    Args:
        path: of a tpack file or folder.
        to: the target: ``hf-bitnet``, ``gguf`` or ``onnx``.
        destination: a folder for ``hf-bitnet``, a file for the others.
        force: replace an existing output.
        options: for ``gguf``: ``type`` of its blocks (``auto``, ``tq1_0``, ``tq2_0`` or
            ``q2_0``); ``allow_inexact`` rounds scales that float16 cannot hold, and writes weights
            that fit into no blocks as floats. For ``onnx``: ``form``, which is ``exact`` (float32)
            or ``fast`` (ONNX Runtime may round activations to eight bits in blocks).

    Raises:
        UsageError: an unknown target, or an option that it does not have.
        UnsupportedError: something that the target cannot hold exactly, by name; for ``onnx`` an
            op that it has no form for, or results that differ in ONNX Runtime.
        LayerDefError: for ``onnx``, no complete program.
        InputError: a file of the folder is a link that leads out of it.
        TpackError: as ``Checkpoint``, ``new_file`` and ``new_folder``.
    """
    from tpack.container import Checkpoint  # here, for --help lists the targets without them
    from tpack.sources.beside import check_inside, is_copied
    from tpack.sources.gguf_kept import kept_blocks

    if to not in TARGETS:
        raise unknown("target", to, TARGETS)
    target = TARGETS[to]
    known = [each.name for each in fields(target.options)]
    for name in options:
        if name not in known:
            has = f"expected {either(map(spell_name, known))}" if known else "which has none"
            raise UsageError(f"{spell_name(name)} is not an option of {to}, {has}.")
    chosen = target.options(**options)
    with Checkpoint(path) as checkpoint, locate(file=path):
        if checkpoint.path.is_dir():  # whose files a target may copy, or take in
            for file in filter(is_copied, checkpoint.path.iterdir()):
                check_inside(checkpoint.path, file)
        if to != "gguf" and (blocks := kept_blocks(checkpoint)):
            name, quant = next(iter(blocks.items()))
            raise UnsupportedError(
                f"holds blocks of GGUF ({quant.name}), which {to} has no form for. Convert the "
                f"GGUF file again with {spell(keep_dtype='f32')}.",
                tensor=name,
            )
        return target.write(checkpoint, destination, force=force, **vars(chosen))
