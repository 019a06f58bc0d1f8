"""Pickles of torch, state dicts and modules as a source."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt
import torch
from torch import Tensor

from tpack.container.opening import open_input
from tpack.container.reader import stored_dtype
from tpack.dtypes import BY_NAME
from tpack.errors import InputError, UnsupportedError, locate, unknown
from tpack.options import Reading
from tpack.sources.archive import Archive, archive_of
from tpack.sources.mapped_file import MappedFile
from tpack.sources.names import Naming, clean_names
from tpack.sources.source import Source, SourceTensor
from tpack.text import listed

#: What the names of training, and not of a model, begin with.
_OF_TRAINERS = ("optimizer", "scheduler", "lr_scheduler", "rng_state", "scaler")
#: Where trainers put the state dict, tried in this order.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def pickle_source(path: Path, reading: Reading, naming: Naming = clean_names) -> Source:
    """Open what ``torch.save`` wrote. Only tensors are unpickled: no code of the file runs.

    Raises:
        InputError: damaged, or asking for code.
    """
    resources = ExitStack()
    with resources, BufferedReader(open_input(path)) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has opinions on pickles that are refused here
        handle = os.dup(file.fileno())
        resources.callback(os.close, handle)
        archive = archive_of(handle)
        if archive is not None:
            _check(archive)
        try:
            data = _load(path, file, archive)
        except InputError:
            raise
        except Exception as error:  # damaged, it fails wherever torch first stumbles
            wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
            if isinstance(error, pickle.UnpicklingError) and wanted:
                raise InputError(
                    "asks for code to run when it is loaded, expected tensors only. It needs "
                    f"{wanted[1]}. Save the state dict instead: torch.save(model.state_dict(), "
                    "path)."
                ) from error
            if archive is not None:
                _check_sizes(path, archive)
            raise InputError(
                "is not a checkpoint of torch, or is damaged. Download or copy it again."
            ) from error
        source = state_dict_source(data, str(path), MappedFile(handle, archive), naming, reading)
        source.resources.push(resources.pop_all())
    source.files = (path,)
    source.nbytes = path.stat().st_size
    if archive is None or not archive.checksums:
        source.notes.append("has no checksums: a flipped bit in its tensors cannot be noticed")
    return source


def _check(archive: Archive) -> None:
    """Check what describes the tensors; their bytes are checked when they are read.

    Raises:
        InputError: a record is damaged.
        UnsupportedError: it is a program of TorchScript.
    """
    if any(name.split("/")[1:] == ["constants.pkl"] for name in archive.names):
        archive.check_all()  # torch.jit.load does not do that
        raise UnsupportedError(
            "is a program of TorchScript, expected a state dict. Save that: "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')."
        )
    if archive.compressed or not MappedFile.tells():
        archive.check_all()
    archive.check_description()


def _check_sizes(path: Path, archive: Archive) -> None:
    """Check the tensors of an archive that torch cannot load, for it does not name the first.

    Raises:
        InputError: a tensor is damaged.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: list[tuple[str, torch.UntypedStorage, int]] = []
    with suppress(Exception), FakeTensorMode():  # no bytes of tensors are read
        for name, value in _unwrap(torch.load(path, weights_only=True), []).items():
            if isinstance(value, Tensor):
                found.append((str(name), value.untyped_storage(), value.element_size()))
    for name, storage, itemsize in found:
        place = getattr(storage, "_checkpoint_offset", None)
        if place is not None and storage.nbytes():
            with locate(tensor=name):
                archive.check_storage(place, storage.nbytes(), itemsize)


def _load(path: Path, file: BinaryIO, archive: Archive | None) -> Any:
    """Map the tensors of a file; where that cannot be, read them."""
    if archive is None or not archive.compressed:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UnicodeEncodeError:  # torch opens paths in UTF-8 only
            if archive is not None:
                archive.check_all()
        except RuntimeError as error:  # files from before torch 1.6
            if "mmap" not in str(error):
                raise
    return torch.load(file, map_location="cpu", weights_only=True)


#: What torch's modules do with their parameters, by how the class is called.
_KINDS = (
    ("embedding", ("Embedding", "EmbeddingBag")),
    ("norm", ("LayerNorm", "RMSNorm", "GroupNorm")),
    ("norm", tuple(f"{kind}Norm{n}d" for kind in ("Batch", "Instance") for n in (1, 2, 3))),
    ("layer", ("Linear", "Bilinear", "MultiheadAttention", "RNNBase", "RNNCellBase")),
    ("layer", tuple(f"Conv{kind}{n}d" for kind in ("", "Transpose") for n in (1, 2, 3))),
)


def state_dict_source(
    data: object,
    label: str = "state dict",
    mapped: MappedFile | None = None,
    naming: Naming = clean_names,
    reading: Reading = Reading(),  # noqa: B008  # frozen
) -> Source:
    """Take the tensors of a state dict, of what wraps one, or of a module.

    Args:
        mapped: the file that torch may have mapped them from.
        naming: what to call them.
        reading: its key says which nested dict to take.

    Raises:
        InputError: no tensors in it, or not under names.
        UnsupportedError: tensors of a kind that cannot be stored.
    """
    notes: list[str] = []
    roles: dict[str, str] = {}
    trained: dict[str, bool] = {}
    if isinstance(data, torch.nn.Module):
        roles = dict(_roles(data))
        parameters = {name for name, _ in data.named_parameters(remove_duplicate=False)}
        data = data.state_dict()
        trained = {name: name in parameters for name in data}
    if not isinstance(data, Mapping):
        raise InputError(
            f"holds {type(data).__name__}, expected a state dict. Save model.state_dict()."
        )
    if reading.key is not None:
        data = _at(data, reading.key, notes)
    data = _unwrap(data, notes)
    tensors: dict[str, Tensor] = {}
    lost: list[str] = []
    for name, value in data.items():
        if isinstance(value, Tensor):
            if not isinstance(name, str):
                raise InputError(f"has a tensor under the key {name!r:.60}, expected a name.")
            _check_class(name, value)
            tensors[name] = value.detach()
        else:
            notes.append(f"left out {str(name)!r}: {type(value).__name__}, not a tensor")
            if not str(name).startswith(_OF_TRAINERS) and _holds_tensors(value):
                lost.append(str(name))
    if not tensors and lost:
        raise InputError(
            f"holds tensors only inside of {', '.join(map(repr, lost[:8]))}, expected a state "
            f"dict. Save the one that you want: torch.save(contents[{lost[0]!r}], 'model.pt')."
        )
    if not tensors:
        raise InputError("holds no tensors, expected a state dict.")
    names, stripped = naming(tensors)
    held = _Held(mapped)
    found: dict[str, SourceTensor] = {}
    aliases: dict[str, str] = {}
    owners: dict[object, str] = {}
    for name, tensor in tensors.items():
        key = _identity(tensor)
        if key is not None and key in owners:
            aliases[names[name]] = owners[key]
            continue
        if key is not None:
            owners[key] = names[name]
        found[names[name]] = _source_tensor(names[name], tensor, held)
    notes += [
        f"{names[name]} is quantized by torch: taken as float32"
        for name, tensor in tensors.items()
        if tensor.is_quantized
    ]
    notes += stripped + [f"{alias} shares the storage of {name}" for alias, name in aliases.items()]
    size = sum(tensor.nbytes for tensor in found.values())
    roles = {names[name]: role for name, role in roles.items() if name in names}
    trained = {names[name]: it for name, it in trained.items() if name in names}
    return Source(
        label,
        found,
        aliases=aliases,
        notes=notes,
        warnings=_warning(lost),
        roles=roles,
        trained=trained,
        nbytes=size,
    )


def _roles(module: torch.nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the roles of a module's tensors by its classes: name in the state dict, role."""
    kinds = [(role, tuple(getattr(torch.nn, name) for name in names)) for role, names in _KINDS]
    for prefix, owner in module.named_modules(remove_duplicate=False):
        role = next((role for role, classes in kinds if isinstance(owner, classes)), None)
        if role is not None:
            for name, _ in owner.named_parameters(recurse=False):
                yield (f"{prefix}.{name}" if prefix else name), role


def _unwrap(data: Mapping[Any, Any], notes: list[str]) -> Mapping[Any, Any]:
    """Go down to the state dict inside what a trainer saved."""
    bare = not _has_tensors(data)
    for key in WRAPPERS:
        inner = data.get(key)
        if isinstance(inner, Mapping) and inner and (bare or _has_tensors(inner)):
            others = ", ".join(sorted(str(other) for other in data if other != key))
            notes.append(f"took the state dict under {key!r}" + (f", left {others}" * bool(others)))
            return _unwrap(inner, notes)
    return data


def _at(data: Mapping[Any, Any], key: str, notes: list[str]) -> Mapping[Any, Any]:
    """Return the dict that a dotted key names.

    Raises:
        InputError: there is none.
    """
    for part in key.split("."):
        inner = data.get(part)
        if not isinstance(inner, Mapping):
            known = [str(name) for name, value in data.items() if isinstance(value, Mapping)]
            raise unknown("key", key, known or ["none"])
        data = inner
    notes.append(f"took the state dict under {key!r}")
    return data


def _holds_tensors(value: object) -> bool:
    """Return whether a value holds tensors, at any depth."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(isinstance(item, Tensor) or _holds_tensors(item) for item in value)
    return False


def _check_class(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that another library puts together from parts, such as codes and scales.

    Raises:
        UnsupportedError: it is one.
    """
    kind = type(tensor)
    library = kind.__module__.partition(".")[0]
    if hasattr(tensor, "__tensor_flatten__") and library != "torch":
        raise UnsupportedError(
            f"is a {kind.__name__} of {library}, which is packed, expected a plain tensor. Convert "
            "the unquantized model, or call dequantize() on it first.",
            tensor=name,
        )


def _warning(lost: list[str]) -> list[str]:
    """Return a warning about values that hold tensors, but are not tensors themselves."""
    if not lost:
        return []
    return [
        f"left out {listed(lost)}, which "
        f"{'holds' if len(lost) == 1 else 'hold'} tensors in a tuple or dict, as "
        "torch.ao.quantization, HQQ and SINQ save packed weights: they are not in the output."
    ]


def _has_tensors(data: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in data.values())


def _identity(tensor: Tensor) -> object:
    """Return a key that views of the same elements share; None for a tensor without elements."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested or not tensor.numel():
        return None
    bits = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return (*bits, tensor.is_conj(), tensor.is_neg())


class _Held:
    """The last tensor that had to be copied to become contiguous: one at a time."""

    def __init__(self, mapped: MappedFile | None) -> None:
        self.original: Tensor | None = None
        self.flat = torch.empty(0)
        self.mapped = mapped

    def piece(self, tensor: Tensor, start: int, stop: int) -> Tensor:
        """Return elements of a tensor, row by row.

        Raises:
            InputError: the file that it is mapped from is damaged.
        """
        if self.mapped is not None:
            self.mapped.check(tensor)
        found = self.flatten(tensor)[start:stop]
        return found if self.mapped is None else self.mapped.read(found)

    def flatten(self, tensor: Tensor) -> Tensor:
        if tensor.is_contiguous() and not tensor.is_quantized and tensor.device.type == "cpu":
            return tensor.reshape(-1)
        if self.original is not tensor:
            self.original = tensor
            if self.mapped is not None and not tensor.is_quantized:
                tensor = self.mapped.read_strided(tensor)
            plain = tensor.dequantize() if tensor.is_quantized else tensor
            self.flat = plain.cpu().contiguous().reshape(-1)
        return self.flat


def _source_tensor(name: str, tensor: Tensor, held: _Held) -> SourceTensor:
    if tensor.is_nested:
        raise UnsupportedError("is nested, of no one shape. Pad it to a tensor.", tensor=name)
    if tensor.is_meta:
        raise UnsupportedError("is on the meta device and has no values.", tensor=name)
    if tensor.layout != torch.strided:
        raise UnsupportedError(f"is {tensor.layout}. Make it dense: .to_dense().", tensor=name)
    kind = torch.float32 if tensor.is_quantized else tensor.dtype
    dtype, convert = element_reader(kind, name)

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        with locate(tensor=name):
            piece = held.piece(tensor, start, stop)
        return convert(piece.resolve_conj().resolve_neg())

    coded = f"{str(tensor.dtype).removeprefix('torch.')} of torch" if tensor.is_quantized else ""
    return SourceTensor(name, dtype, tuple(tensor.shape), read, coded=coded)


def element_reader(
    kind: torch.dtype, name: str
) -> tuple[str, Callable[[Tensor], npt.NDArray[Any]]]:
    """Return the name of a dtype, and the function that gives numpy a flat tensor as stored.

    Raises:
        UnsupportedError: safetensors has no such dtype.
    """
    dtype = str(kind).removeprefix("torch.")
    if dtype not in BY_NAME:
        raise UnsupportedError(
            f"has dtype {dtype}, which safetensors cannot hold. Cast it first.", tensor=name
        )
    bits = {"bfloat16": torch.uint16}.get(dtype)
    if stored_dtype(dtype) == "uint8":
        bits = torch.uint8
    return dtype, lambda piece: (piece if bits is None else piece.view(bits)).numpy()
