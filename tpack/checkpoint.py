"""Load a checkpoint as a module on its packed bytes, save a module, unpack a checkpoint (torch)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tpack import codec
from tpack.build import build_module, program_of
from tpack.capturing.arguments import unwrapped
from tpack.capturing.built import changed_layer
from tpack.codec import Scale, rows_and_columns
from tpack.container import Checkpoint, Origin, Piece
from tpack.container.header import Entry
from tpack.container.reader import stored_dtype
from tpack.describing import Packer, Stored, describe
from tpack.dtypes import BY_NAME, elements_of
from tpack.errors import (
    FormatError,
    InputError,
    LayerDefError,
    UnsupportedError,
    UsageError,
    locate,
)
from tpack.layerdef import LayerDef, Program, Slot, as_program, slots
from tpack.nn import is_unfrozen
from tpack.nn.code_check import check_legal, remember
from tpack.parallel import ColumnLinear, Part, RowLinear, split as divide
from tpack.readback import read_or_capture
from tpack.text import plural
from tpack.unpacking import WEIGHT_FLOATS, plain_array, plain_pieces
from tpack.verification import verify_file
from tpack.wording import spell, spell_call

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
        device: where the module goes; a device other than the CPU gets copies.
        verify: check all codes, padding, scales and digests first, as ``tpack.verify`` does. This
            reads every byte, at the speed of SHA-256, and finds any change since the file was
            written; without it only the structure is checked.
        device_mesh: processes that share the work.
        parallel: how each layer is divided between them: a pattern of names → ``column``,
            ``column-gather`` or ``row``, see ``tpack.parallel``. Each process maps or reads only
            its own part of these layers.

    Raises:
        InputError: the file cannot be read, or its structure is broken.
        FormatError: ``verify`` is asked for, and the data is not what was written.
        LayerDefError: the file has no LayerDefs.
        UsageError: the device cannot be used, or ``parallel`` names no packed linear layer.
        UnsupportedError: a weight does not divide evenly.
    """
    with Checkpoint(path) as file, locate(file=path):
        if verify:
            check_whole(file)
        program = file.document.program
        if program is None:
            raise LayerDefError(
                f"has no LayerDefs. Convert it again with {spell(layerdef=...)}, or use "
                f"{spell_call('unpack')}."
            )
        module = build_module(program, device="meta")
        parts = {}
        if device_mesh is not None and parallel is not None:
            parts = divide(module, device_mesh, parallel)
        elif device_mesh is not None or parallel is not None:
            raise UsageError(
                "load: one of device_mesh and parallel is given, expected both or neither."
            )
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


def check_whole(file: Checkpoint) -> None:
    """Read every byte of a checkpoint, and refuse one that was changed.

    Raises:
        FormatError: with the first problem of ``tpack.verify``.
    """
    report = verify_file(file)
    if not report.ok:
        raise FormatError(
            f"is damaged: {report.problems[0]} {plural(len(report.problems), 'problem')} in "
            f"all: {spell_call('verify')} shows them. Get the file again.",
            rule="R17",
        )


def map_tensors(
    file: Checkpoint, parts: Mapping[str, Part] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a checkpoint by name, as views of its mapped bytes.

    Args:
        parts: the part that is wanted of a tensor, by name; a part that does not lie in one
            stretch is copied.
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
    dtype: torch.dtype = getattr(torch, BY_NAME[entry.dtype].held)
    shape = BY_NAME[entry.dtype].held_shape(entry.shape)
    start = data_start + entry.start
    if entry.nbytes == 0:
        return torch.empty(shape, dtype=dtype)
    if start % dtype.itemsize:  # not written by tpack: no address to compute on
        data = bytearray(mapped[start : start + entry.nbytes])
        return torch.frombuffer(data, dtype=dtype).view(shape)
    count = entry.nbytes // dtype.itemsize
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=start).view(shape)


def unpack(
    path: str | os.PathLike[str], dtype: torch.dtype | str | None = None
) -> dict[str, Tensor]:
    """Return the plain state dict of a checkpoint: weights dequantized, the rest as it is.

    Args:
        path: the checkpoint.
        dtype: float dtype of the weights; if not given, that of their source.

    Raises:
        InputError: the file cannot be read, or is damaged.
        UsageError: the dtype is not a float dtype of weights.
        UnsupportedError: torch cannot hold a shape.
    """
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    if name is not None and name not in WEIGHT_FLOATS:
        raise UsageError(f"dtype {name!r} is unknown, expected {', '.join(WEIGHT_FLOATS)}.")
    with Checkpoint(path) as file, locate(file=path):
        return {piece.name: _to_torch(piece) for piece in plain_pieces(file, name)}


def _to_torch(piece: Piece) -> Tensor:
    dtype = BY_NAME[piece.dtype]
    try:
        flat = torch.from_numpy(plain_array(piece)).view(getattr(torch, dtype.held))
        return flat.view(dtype.held_shape(piece.shape))
    except RuntimeError as error:  # the strides of an empty tensor may overflow
        raise UnsupportedError(
            f"has shape {piece.shape}, which torch cannot hold. Write it to a file: tpack unpack.",
            tensor=piece.name,
        ) from error


def save(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    layerdef: LayerDef | Program | None = None,
    example_args: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Write a packed module, loaded or generated, with its LayerDefs.

    A weight that still is what ``load`` read keeps its method, its error, the dtype of its source
    and its divisor; a checkpoint that is loaded and saved has the same bytes again. Any other
    weight, one that was trained or set by hand, gets the method ``unknown`` and no error, since it
    has no source to compare with.

    Args:
        module: what ``load`` or ``build_module`` returned, or an instance of a generated class.
        path: the file to write.
        layerdef: the LayerDefs of a generated module; if not given, they are read from its
            forward methods.
        example_args: arguments of its forward. If its methods, which may have been edited, cannot
            be read, it is captured with them; else they prove that it was read rightly. A loaded
            module whose layers were changed is captured too.
        example_kwargs: keyword arguments likewise.
        force: replace an existing file.

    Raises:
        LayerDefError: the module does not fit its description, or its forward does what LayerDef
            cannot express: the error has the file and line.
        InputError: a scale is not finite.
        NotTernaryError: a packed byte holds no valid codes.
        UsageError: the module is unfrozen, or shares its weights with other processes.
        ExistsError, StorageError: as ``new_file``.
    """
    _check_whole(module)
    module = unwrapped(module)
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    built = program_of(module) if layerdef is None else as_program(layerdef)
    if built is not None and layerdef is None:
        built = _unchanged(module, built, captured=example_args is not None)
    program = built or read_or_capture(module, example_args, example_kwargs)
    stored = [_stored(slot, module, state, given=layerdef is not None) for slot in slots(program)]
    expected = {piece.name for one in stored for piece in one.pieces()}
    if surplus := sorted(set(state) - expected):
        raise LayerDefError(f"is in no LayerDef of {program.root}.", tensor=surplus[0])
    description = describe(
        stored,
        program,
        origin=getattr(module, "_tpack_origin", Origin()),
        aliases=getattr(module, "ternary_aliases", {}),
    )
    (output,) = description.files()
    output.write(Path(path), force=force)


def _unchanged(module: nn.Module, program: Program, *, captured: bool) -> Program | None:
    """Return the program of a loaded module; None if it was changed since, and may be captured.

    Raises:
        LayerDefError: it was changed, and there are no arguments to capture it with.
    """
    changed = changed_layer(module, program)
    if changed is None:
        return program
    if captured:
        return None
    raise LayerDefError(
        "was replaced or hooked into since the module was loaded, so its LayerDefs do not describe "
        f"it. Give save {spell(example_args=...)} to capture it.",
        node=changed or program.root,
    )


def _check_whole(module: nn.Module) -> None:
    """Check that all weights are packed, and not divided between processes.

    Raises:
        UsageError: the module is unfrozen, or shares its weights with other processes.
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


def _stored(slot: Slot, module: nn.Module, state: Mapping[str, Tensor], *, given: bool) -> Stored:
    """Return the tensor or packed weight that a module holds for a slot of its program.

    Args:
        given: whether the user gave the LayerDefs: then scales must have the granularity that
            they declare.
    """
    param, name = slot.param, slot.name
    shape, split = param.shape or (), param.rows_split
    if param.param_type != "TernaryTensor":
        dtype = BY_NAME[param.dtype]
        tensor = _required(state, name, dtype.held_shape(shape), dtype.held)
        found = stored_tensor(name, tensor, trained=param.param_type == "Tensor")
        return replace(found, shape=shape, dtype=dtype.name)
    packed = _required(state, f"{name}_packed", param.packed_shape, "uint8")
    granularity, now = Scale.parse(param.scale), state.get(f"{name}_scale")
    if now is not None and now.shape != param.scale_shape and not given:
        prefix, _, own = name.rpartition(".")  # training may have given it another form
        groups: Any = module.get_submodule(prefix).ternary_groups
        granularity = Scale.of(now.shape, shape, split, groups.get(own, 0))
    scale = _required(state, f"{name}_scale", granularity.shape(shape, split), param.dtype)
    return stored_weight(name, shape, split, param.layout, granularity, packed, scale)


def stored_tensor(name: str, tensor: Tensor, *, trained: bool | None) -> Stored:
    """Return a tensor to store as it is; its bytes are read when the file is written."""
    dtype, shape = elements_of(dtype_name(tensor), tuple(tensor.shape))
    return Stored(name, shape, dtype, lambda: [_bytes(tensor)], trained)


def stored_weight(
    name: str,
    shape: tuple[int, ...],
    split: int,
    layout: str,
    granularity: Scale,
    packed: Tensor,
    scale: Tensor,
) -> Stored:
    """Return a packed weight of a module to store, its padding set as the format wants.

    Args:
        packed: uint8 (rows, row bytes), in ``layout``.
        scale: the stored elements, in the shape that ``granularity`` gives.

    Raises:
        InputError: the scale is not finite.
        NotTernaryError: a byte without valid codes.
    """
    if not scale.isfinite().all():
        raise InputError(
            "has a scale with NaN or infinity, expected finite values. Training may have diverged.",
            tensor=name,
        )
    dtype, columns = dtype_name(scale), rows_and_columns(shape, split)[1]
    numbers = np.frombuffer(_bytes(scale), stored_dtype(dtype)).reshape(scale.shape)
    found = packed.cpu().contiguous().numpy()
    wanted: list[Any] = []
    packer = Packer(layout, wanted.append)
    with locate(tensor=f"{name}_packed"):
        packer.rows(codec.pack(codec.unpack(found, columns, layout)), columns)
    entry = packer.entry(shape, split, granularity, numbers, dtype)
    if np.array_equal(found, wanted[0]):  # as a rule: then no copy waits to be written
        return Stored(name, shape, dtype, lambda: [_bytes(packed)], entry=entry, scale=numbers)
    return Stored(name, shape, dtype, lambda: [wanted[0].reshape(-1)], entry=entry, scale=numbers)


def _required(state: Mapping[str, Tensor], name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    tensor = state.get(name)
    if tensor is None:
        raise LayerDefError("is in the LayerDefs, but not in the module.", tensor=name)
    if tuple(tensor.shape) != shape or dtype_name(tensor) != dtype:
        raise LayerDefError(
            f"is {dtype_name(tensor)} {tuple(tensor.shape)}, expected {dtype} {shape} by the "
            "LayerDefs.",
            tensor=name,
        )
    return tensor


def dtype_name(tensor: Tensor) -> str:
    """Return the dtype of a tensor as files spell it: ``float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def _bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of the elements of a tensor, row by row."""
    flat = tensor.cpu().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy())
