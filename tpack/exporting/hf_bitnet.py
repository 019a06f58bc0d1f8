"""Write a folder that the transformers library loads as a BitNet model, from a tpack folder.

Only weights that its packing holds exactly are written: matrices with one scale each, and a number
of rows that is a multiple of four. Codes are moved, never quantized again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tpack.codec import LAYOUTS, unpack
from tpack.container import Checkpoint, Piece, TernaryEntry, write_plain_shards
from tpack.container.atomic import check_not_input, copy_file, write_json
from tpack.container.folders import new_folder
from tpack.container.reader import CheckpointFile
from tpack.dialects.hf_bitnet import STRIPES, from_codes
from tpack.dtypes import SCALE_DTYPES
from tpack.errors import FormatError, InputError, NotTernaryError, UnsupportedError, locate
from tpack.exporting.bitnet_layers import check_layer, has_experts, tied_heads
from tpack.exporting.bitnet_scales import SETTINGS, Convention, Number, Scaled, choose, scaled
from tpack.exporting.report import ExportedTensor, ExportReport
from tpack.hfconfig import plain_config, quant_method, read_config
from tpack.layerdef.from_names import is_embedding
from tpack.quantize import widen
from tpack.quantize.weight import BLOCK
from tpack.sources.beside import is_copied
from tpack.sources.packed_layouts import packed_groups
from tpack.sources.safetensors_source import as_source

#: Keys of a config that state how the source was packed.
REPLACED = ("quantization_config", "quantization", "compression_config", "transformers_weights")
#: Settings of the source's own packing that are written back.
CARRIED = ("use_rms_norm", "rms_norm_eps")


def export_hf_bitnet(
    checkpoint: Checkpoint, destination: str | os.PathLike[str], *, force: bool = False
) -> ExportReport:
    """Write a packed folder for the transformers library.

    Args:
        checkpoint: a tpack folder with the ``config.json`` of its model.
        destination: the folder to be written.
        force: replace a model that is there.

    Raises:
        UnsupportedError: something that the packing cannot hold exactly, by name.
        InputError: no ``config.json``; damaged data.
        ExistsError, StorageError: as ``new_folder``.
    """
    target = Path(destination)
    check_not_input(target, checkpoint.path)
    with locate(file=checkpoint.path):
        plan = _Plan(checkpoint)
        with new_folder(target, force=force) as folder:
            size = plan.write(folder)
    return ExportReport(
        "hf-bitnet",
        str(target),
        size,
        plan.rows(),
        plan.notes(),
        {
            "linear_class": SETTINGS[plan.convention]["linear_class"],
            "packed": len(plan.weights),
            "kept": len(checkpoint.document.kept),
        },
    )


def _refuse_codes(checkpoint: Checkpoint) -> None:
    """Refuse weights that another system packed: transformers would load a layer without one.

    Raises:
        UnsupportedError: with the name of the first.
    """
    kept = {name: as_source(checkpoint, name, name) for name in checkpoint.document.kept}
    for group in packed_groups(kept):
        raise UnsupportedError(
            f"{group.reason}, expected floats: a folder has one packing, and this has bitnet's. "
            "Convert a model that has this weight in floats.",
            tensor=group.codes,
        )


class _Plan:
    """The tensors to be written: decided on, and refused, before the first byte is written."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.config = _config(checkpoint)
        _refuse_codes(checkpoint)
        self.dtype = self.model_dtype()
        self.weights: dict[str, Scaled] = {}
        experts = has_experts(checkpoint.entries)
        for name, entry in checkpoint.ternary():
            with locate(tensor=name):
                check_layer(name, entry, self.config, experts=experts)
                self.weights[name] = self.scaled(name, entry)
        if not self.weights:
            raise UnsupportedError(
                "holds no packed weight, expected at least one. Convert the model again: the "
                "report says why weights are kept."
            )
        self.convention: Convention = choose(list(self.weights.values()))
        self.settings = self.quantization()

    def model_dtype(self) -> str:
        """The dtype that the model is loaded in.

        Raises:
            UnsupportedError: it is a dtype that no scale can be stored in.
        """
        stated = self.config.get("dtype", self.config.get("torch_dtype"))
        if stated is None:  # then it is that of the weights
            floats = {entry.source_dtype for _, entry in self.checkpoint.ternary()}
            stated = floats.pop() if len(floats) == 1 else "float32"
            stated = stated if stated in SCALE_DTYPES else "float32"
        name = str(stated).removeprefix("torch.")
        if name not in SCALE_DTYPES:
            raise UnsupportedError(
                f"is a model in {name:.40}, expected {', '.join(SCALE_DTYPES)}. Correct the dtype "
                "in its config.json."
            )
        return name

    def scaled(self, name: str, entry: TernaryEntry) -> Scaled:
        """Return the scale of a weight, with the bias of its layer."""
        stored, dtype, _ = self.checkpoint.scale(name)
        bias = self.checkpoint.entries.get(f"{name.removesuffix('.weight')}.bias")
        number = None
        if bias is not None:
            if bias.dtype not in SCALE_DTYPES:
                raise UnsupportedError(
                    f"is a bias in {bias.dtype}, expected {', '.join(SCALE_DTYPES)}. "
                    "Store it as a float.",
                    tensor=bias.name,
                )
            number = Number(self.checkpoint.array(bias.name), bias.dtype)
        return scaled(
            name,
            float(widen(stored, dtype)[0]),
            entry.divisor,
            entry.source_dtype,
            self.dtype,
            number,
        )

    # ---- config

    def source_settings(self) -> Mapping[str, Any]:
        """The ``quantization_config`` of the source, if it was in this packing."""
        if quant_method(self.config) != "bitnet":
            return {}
        settings: Mapping[str, Any] = self.config["quantization_config"]
        return settings

    def notes(self) -> tuple[str, ...]:
        """The changes for a model that was not in this packing."""
        if self.source_settings():
            return ()
        return ("transformers rounds the inputs of packed layers to int8, token by token",)

    def quantization(self) -> dict[str, Any]:
        """Return the ``quantization_config`` to be written.

        Raises:
            UnsupportedError: the names do not distinguish packed layers from others.
        """
        before = self.source_settings()
        settings: dict[str, Any] = {"quant_method": "bitnet", **SETTINGS[self.convention]}
        settings |= {key: before[key] for key in CARRIED if key in before}
        settings["modules_to_not_convert"] = self.plain_modules()
        norm = next((n for n in self.weights if _norm_of(n) in self.checkpoint.entries), None)
        if norm is not None and not settings.get("use_rms_norm"):
            raise UnsupportedError(
                "has a norm before it, but config.json does not say use_rms_norm and its eps. "
                "Convert the original folder again.",
                tensor=norm,
            )
        return settings

    def plain_modules(self) -> list[str] | None:
        """Return linear layers that are not packed; None if transformers finds it itself."""
        packed = {name.removesuffix(".weight") for name in self.weights}
        plain = sorted(
            name.removesuffix(".weight")
            for name in self.checkpoint.document.kept
            if name.endswith(".weight")
            and len(self.checkpoint.entries[name].shape) == 2
            and not is_embedding(name)
        )
        if not packed & {"lm_head"} and not set(plain) - {"lm_head"}:
            return None
        for head in tied_heads(self.config, self.checkpoint.entries):
            if not any(name.endswith(head) for name in (*packed, *plain)):
                plain.append(head)
        for name in plain:  # versions of transformers compare names in several ways
            if clash := next((other for other in sorted(packed) if name in other), None):
                raise UnsupportedError(
                    f"is packed and {name!r} is not: transformers cannot tell them apart. Convert "
                    "the model again with both packed or both kept.",
                    tensor=f"{clash}.weight",
                )
        return plain

    # ---- output

    def rows(self) -> tuple[ExportedTensor, ...]:
        """Return a row for each tensor: all are exact, or nothing is written."""
        entries, document = self.checkpoint.entries, self.checkpoint.document
        packed = [ExportedTensor(n, n, "bitnet", e.shape) for n, e in self.checkpoint.ternary()]
        kept = [ExportedTensor(n, n, entries[n].dtype, entries[n].shape) for n in document.kept]
        return (*packed, *kept)

    def write(self, folder: Path) -> int:
        """Write all files; return the size of those with weights."""
        files = {file.path.name: list(self.pieces(file)) for file in self.checkpoint.files}
        size = write_plain_shards(folder, files)
        for path in sorted(self.checkpoint.path.iterdir()):
            if _belongs_to_model(path):
                copy_file(path, folder / path.name)
        config = {key: value for key, value in self.config.items() if key not in REPLACED}
        write_json(folder / "config.json", config | {"quantization_config": self.settings})
        return size

    def pieces(self, file: CheckpointFile) -> Iterator[Piece]:
        """Yield the tensors of one file."""
        made: dict[str, list[Piece]] = {}
        for name, entry in file.document.tensors.items():
            made[name] = [self.packed_piece(name, entry), self.scale_piece(name)]
        for name in file.document.kept:
            made[name] = [self.kept_piece(name)]
        for pieces in made.values():
            yield from pieces
        tied = bool(self.config.get("tie_word_embeddings"))
        for alias, target in file.document.aliases.items():
            if tied and alias == "lm_head.weight":
                continue  # the model makes it of the embedding
            for piece in made[target]:
                name = alias + piece.name.removeprefix(target)
                yield Piece(name, piece.dtype, piece.shape, piece.chunks)

    def packed_piece(self, name: str, entry: TernaryEntry) -> Piece:
        shape = (entry.rows // STRIPES, entry.columns)
        return Piece(name, "uint8", shape, partial(_stored_rows, self.checkpoint, name, entry))

    def scale_piece(self, name: str) -> Piece:
        weight = self.weights[name]
        number = weight.divide if self.convention == "divide" else weight.multiply
        assert number is not None, f"{name}: chosen without a scale"
        return Piece.of(f"{name}_scale", number.dtype, (1,), number.raw)

    def kept_piece(self, name: str) -> Piece:
        entry = self.checkpoint.entries[name]
        owner, _, last = name.rpartition(".")
        weight = self.weights.get(f"{owner}.weight") if last == "bias" else None
        if self.convention == "multiply" and weight is not None and weight.bias is not None:
            return Piece.of(name, weight.bias.dtype, entry.shape, weight.bias.raw)
        return Piece(name, entry.dtype, entry.shape, partial(self.checkpoint.chunks, name))


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the config of the plain model.

    Raises:
        InputError: the checkpoint is not a folder with a config.json.
    """
    config = read_config(checkpoint.path) if checkpoint.path.is_dir() else None
    if config is None:
        raise InputError(
            "has no config.json, expected a folder made of a Hugging Face model. Convert the whole "
            "folder."
        )
    return plain_config(config)


def _stored_rows(
    checkpoint: Checkpoint, name: str, entry: TernaryEntry
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the packed tensor from top to bottom: each block takes a block of each stripe."""
    stored = entry.rows // STRIPES
    step = max(1, BLOCK // STRIPES // entry.columns)
    for first in range(0, stored, step):
        last = min(first + step, stored)
        yield from_codes(
            [
                _codes(checkpoint, name, entry, stripe * stored + first, stripe * stored + last)
                for stripe in range(STRIPES)
            ]
        ).reshape(-1)


def _codes(
    checkpoint: Checkpoint, name: str, entry: TernaryEntry, first: int, last: int
) -> npt.NDArray[np.uint8]:
    """Read codes ``(last - first, columns)`` of some rows of a weight.

    Raises:
        FormatError: a byte without valid codes.
    """
    layout = LAYOUTS[entry.layout]
    width = entry.packed_shape[-1]
    data = checkpoint.read(f"{name}_packed", first * width, last * width)
    packed = np.frombuffer(data, dtype=np.uint8).reshape(last - first, width)
    if not layout.valid[packed].all():
        try:
            unpack(packed, entry.columns, entry.layout)
        except NotTernaryError as error:
            raise FormatError(error.message, rule="R14", tensor=f"{name}_packed") from error
    codes: npt.NDArray[np.uint8] = layout.decode(packed)[:, : entry.columns]
    return codes


def _norm_of(name: str) -> str:
    return f"{name.removesuffix('.weight')}.rms_norm.weight"


def _belongs_to_model(path: Path) -> bool:
    """Return whether a file goes with the weights: tokenizer, generation settings, licence."""
    if path.name in ("config.json", "README.md") or path.name.endswith(".index.json"):
        return False
    return is_copied(path)
