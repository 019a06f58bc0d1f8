"""Checkpoints in deployment: load a module on the packed bytes, save it, unpack it (torch)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tpack import codec
from tpack.build import build_module, program_of
from tpack.codec import Scale
from tpack.container import (
    Checkpoint,
    Document,
    Origin,
    Piece,
    TernaryEntry,
    digest,
    write_checkpoint,
)
from tpack.container.document import NO_DIGEST, UNKNOWN
from tpack.container.header import Entry
from tpack.dtypes import BY_NAME
from tpack.errors import (
    FormatError,
    InputError,
    LayerDefError,
    UnsupportedError,
    UsageError,
    locate,
)
from tpack.layerdef import LayerDef, Program, as_program, slots
from tpack.layerdef.completion import Found, complete
from tpack.nn import is_unfrozen
from tpack.nn.code_check import check_legal, remember
from tpack.parallel import ColumnLinear, Part, RowLinear, split
from tpack.readback import read_program
from tpack.text import plural
from tpack.unpacking import WEIGHT_FLOATS, plain_array, plain_pieces
from tpack.verification import verify_file

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    verify: bool = False,
    *,
    device_mesh: DeviceMesh | None = None,
    parallel: Mapping[str, str] | None = None,
) -> nn.Module:
    """Load a checkpoint as a module in eval mode.

    The module is built from the embedded LayerDefs; no text of the file is run. On the CPU
    its tensors map the file: nothing is read before it is used, and pages are shared between
    processes. The mapping is private: writing to a tensor does not change the file. The first
    use of a packed weight reads it whole and raises FormatError where its bytes hold no codes.
    A tensor that the source had under several names is there once, by the name that the file
    stores it by; the others are in ``module.ternary_aliases``, and ``save`` writes them again.

    Args:
        path: the checkpoint.
        device: where the module goes; another device gets copies.
        verify: check all codes, padding, scales and digests first, as ``tpack.verify`` does. This
            reads every byte, at the speed of SHA-256, and finds any change since the file was
            written; without it only the structure is checked.
        device_mesh: processes that share the work.
        parallel: how they do: pattern of layers → ``column``, ``column-gather`` or ``row``, see
            ``tpack.parallel``. Each process maps or reads its part of these layers only.

    Raises:
        InputError: the file cannot be read, or its structure is broken.
        FormatError: ``verify`` is asked for, and the data is not what was written.
        LayerDefError: it carries no LayerDefs.
        UsageError: no such device, or a plan that names nothing to divide.
        UnsupportedError: a weight that does not divide evenly.
    """
    with Checkpoint(path) as file, locate(file=path):
        if verify and not (report := verify_file(file)).ok:
            raise FormatError(
                f"is damaged: {report.problems[0]} {plural(len(report.problems), 'problem')} in "
                "all: tpack verify shows them. Get the file again.",
                rule="R17",
            )
        program = file.document.program
        if program is None:
            raise LayerDefError(
                "has no LayerDefs. Convert it again with --layerdef FILE, or use tpack unpack."
            )
        module = build_module(program, device="meta")
        parts = {}
        if device_mesh is not None and parallel is not None:
            parts = split(module, device_mesh, parallel)
        elif device_mesh is not None or parallel is not None:
            raise UsageError("load: device_mesh and parallel are given together, or neither.")
        tensors = dict(map_tensors(file, parts))
        layouts = {f"{name}_packed": entry.layout for name, entry in file.document.tensors.items()}
        # plain data, no part of the state
        aliases: Any = dict(file.document.aliases)
        origin: Any = Origin.of(file)
    module.ternary_aliases = aliases
    module._tpack_origin = origin  # noqa: SLF001
    module.load_state_dict(tensors, strict=True, assign=True)
    for name in layouts:
        remember(tensors[name], os.fspath(path), name)
    try:
        if torch.device(device).type == "cpu":
            return module
        for name, layout in layouts.items():  # copies are made of them, so they are read now
            check_legal(tensors[name], layout)
        return module.to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a missing device
        raise UsageError(f"load: device {str(device)!r} cannot be used: {error}.") from error


def map_tensors(
    file: Checkpoint, parts: Mapping[str, Part] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint as views of its mapped bytes.

    Args:
        parts: of tensors that are not wanted whole; what lies in pieces is copied.
    """
    for shard in file.files:
        size = os.fstat(shard.fileno()).st_size
        mapped = mmap.mmap(shard.fileno(), size, access=mmap.ACCESS_COPY)
        for name, entry in shard.entries.items():
            part = (parts or {}).get(name)
            if part is None:
                yield name, _view(mapped, entry, shard.data_start)
            elif part.dim == 0:
                yield name, _view(mapped, part.of_entry(entry), shard.data_start)
            else:
                yield name, part.of(_view(mapped, entry, shard.data_start))


def _view(mapped: mmap.mmap, entry: Entry, data_start: int) -> Tensor:
    dtype = getattr(torch, entry.dtype)
    start = data_start + entry.start
    if entry.nbytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    if start % BY_NAME[entry.dtype].size:  # not written by tpack: no address to compute on
        return torch.frombuffer(bytearray(mapped[start : start + entry.nbytes]), dtype=dtype).view(
            entry.shape
        )
    count = entry.nbytes // BY_NAME[entry.dtype].size
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=start).view(entry.shape)


def unpack(
    path: str | os.PathLike[str], dtype: torch.dtype | str | None = None
) -> dict[str, Tensor]:
    """The plain state dict of a checkpoint: weights dequantized, the rest as it is.

    Args:
        dtype: float dtype of the weights; that of their source, if not given.

    Raises:
        TpackError: the file is damaged.
    """
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    if name is not None and name not in WEIGHT_FLOATS:
        raise UsageError(f"dtype {name!r} is unknown, expected {', '.join(WEIGHT_FLOATS)}.")
    with Checkpoint(path) as file, locate(file=path):
        return {piece.name: _to_torch(piece) for piece in plain_pieces(file, name)}


def _to_torch(piece: Piece) -> Tensor:
    dtype = getattr(torch, piece.dtype)
    try:
        return torch.from_numpy(plain_array(piece)).view(dtype).view(piece.shape)
    except RuntimeError as error:  # the strides of an empty tensor may overflow
        raise UnsupportedError(
            f"has shape {piece.shape}, which torch cannot hold. Use tpack unpack.",
            tensor=piece.name,
        ) from error


def save(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    layerdef: LayerDef | Program | None = None,
    force: bool = False,
) -> None:
    """Write a packed module, loaded or generated, with its LayerDefs.

    A weight that still is what ``load`` read keeps its method, its error, the dtype of its source
    and its divisor; a checkpoint that is loaded and saved has the same bytes again. Any other
    weight, one that was trained or set by hand, gets the method ``unknown`` and no error: there is
    no source that it could be compared with.

    Args:
        module: what ``load`` or ``build_module`` returned, or an instance of a generated class.
        path: where it goes.
        layerdef: the description of a generated module, if it is not to be read off its
            forward methods.
        force: replace an existing file.

    Raises:
        LayerDefError: the module does not fit its description.
        InputError: a scale is not finite.
        UsageError: the module is unfrozen, or shares its weights with other processes.
        TpackError: as ``new_file``.
    """
    if is_unfrozen(module):
        raise UsageError(
            "save: the module is unfrozen, expected packed weights. Use tpack.nn.freeze(module)."
        )
    for layer, part in module.named_modules():
        if isinstance(part, ColumnLinear | RowLinear):
            raise UsageError(
                f"save: {layer} holds the part of one process, expected whole weights. Load the "
                "checkpoint without device_mesh to save it."
            )
    module = getattr(module, "_orig_mod", module)  # what torch.compile wrapped
    origin = getattr(module, "_tpack_origin", Origin())
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    if layerdef is not None:
        program = as_program(layerdef)
    elif (built := program_of(module)) is not None:
        program = _as_scaled(built, module, state)
    else:
        program = read_program(module)
    ternary: dict[str, TernaryEntry] = {}
    packed: dict[str, npt.NDArray[np.uint8]] = {}
    kept: dict[str, str] = {}
    for slot in slots(program):
        param, name = slot.param, slot.name
        if param.param_type != "TernaryTensor":
            kept[name] = NO_DIGEST
            _require(state, name, param.shape or (), param.dtype)
            continue
        entry = TernaryEntry(
            shape=param.shape or (),
            split=param.rows_split,
            layout=param.layout,
            scale=param.scale,
            method=UNKNOWN,
            source_dtype=param.dtype,
            relative_error=None,
            sha256=NO_DIGEST,
            scale_sha256=NO_DIGEST,
        )
        _require(state, f"{name}_packed", entry.packed_shape, "uint8")
        _require(state, f"{name}_scale", entry.scale_shape, param.dtype)
        scale = state[f"{name}_scale"]
        if not scale.isfinite().all():
            raise InputError(
                "has NaN or infinity, expected finite values. Training may have diverged.",
                tensor=f"{name}_scale",
            )
        with locate(tensor=f"{name}_packed"):
            entry, packed[name] = repacked(entry, state[f"{name}_packed"], scale)
        ternary[name] = origin.entry(name, entry, param.dtype)
    aliases = {
        alias: name
        for alias, name in getattr(module, "ternary_aliases", {}).items()
        if name in ternary or name in kept
    }
    document = Document(program, ternary, kept, aliases, metadata=origin.digests)
    expected = set(kept) | {f"{name}_{part}" for name in ternary for part in ("packed", "scale")}
    if surplus := sorted(set(state) - expected):
        raise LayerDefError(f"is in no LayerDef of {program.root}.", tensor=surplus[0])
    pieces = [
        Piece.of(name, _name(tensor), tuple(tensor.shape), tensor_bytes(tensor))
        for name, tensor in state.items()
        if name.removesuffix("_packed") not in packed
    ]
    pieces += [
        Piece.of(f"{name}_packed", "uint8", data.shape, data) for name, data in packed.items()
    ]
    write_checkpoint(path, document, pieces, metadata=origin.metadata, force=force)


def _as_scaled(program: Program, module: nn.Module, state: Mapping[str, Tensor]) -> Program:
    """The program of a built module with its scales as they lie now: training may change that."""
    found: dict[str, Found] = {}
    changed = False
    for slot in slots(program):
        param, scale = slot.param, None
        shape = param.shape or ()
        if param.param_type == "TernaryTensor":
            scale = Scale.parse(param.scale)
            stored = state.get(f"{slot.name}_scale")
            if stored is not None and stored.shape != param.scale_shape:
                prefix, _, own = slot.name.rpartition(".")
                groups: Any = module.get_submodule(prefix).ternary_groups
                scale = Scale.of(stored.shape, shape, param.rows_split, groups.get(own, 0))
                changed = True
        found[slot.name] = Found(shape, param.dtype, scale)
    return complete(program, found)[0] if changed else program


def repacked(
    entry: TernaryEntry, packed: Tensor, scale: Tensor
) -> tuple[TernaryEntry, npt.NDArray[np.uint8]]:
    """The entry with its digests, and the bytes with their padding as the format wants it.

    Args:
        entry: with placeholders for the digests.
        packed: (rows, row bytes) uint8, in the layout of the entry.
        scale: as stored.

    Raises:
        NotTernaryError: a byte without valid codes.
    """
    trits = codec.unpack(packed.cpu().contiguous().numpy(), entry.columns, entry.layout)
    canonical = codec.pack(trits)
    sha256, scale_sha256 = digest([canonical.tobytes()]), digest([tensor_bytes(scale)])
    stored = canonical if entry.layout == "t2" else codec.pack(trits, entry.layout)
    return replace(entry, sha256=sha256, scale_sha256=scale_sha256), stored


def _require(state: dict[str, Any], name: str, shape: tuple[int, ...], dtype: str) -> None:
    tensor = state.get(name)
    if tensor is None:
        raise LayerDefError("is in the LayerDefs, but not in the module.", tensor=name)
    if tuple(tensor.shape) != shape or _name(tensor) != dtype:
        raise LayerDefError(
            f"is {_name(tensor)} {tuple(tensor.shape)}, expected {dtype} {shape} by the LayerDefs.",
            tensor=name,
        )


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements of a tensor, row by row."""
    flat = tensor.cpu().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy())
