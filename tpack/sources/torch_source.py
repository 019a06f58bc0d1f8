"""State dicts and modules in memory as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from tpack.container.reader import stored_dtype
from tpack.dtypes import BY_NAME, elements_of
from tpack.errors import UnsupportedError
from tpack.options import Reading
from tpack.sources.names import Naming, clean_names
from tpack.sources.packed_modules import (
    PackedWeight,
    aliases_of,
    origin_of,
    packed_weights,
)
from tpack.sources.source import PackedTensor, Source, SourceTensor
from tpack.sources.state_dicts import KINDS, Tensors, collect


def state_dict_source(
    data: object,
    label: str = "state dict",
    naming: Naming = clean_names,
    reading: Reading = Reading(),  # noqa: B008  # frozen
) -> Source:
    """Take the tensors of a state dict, of what wraps one, or of a module.

    Args:
        naming: what to call them.
        reading: its key says which nested dict to take.

    Raises:
        InputError: no tensors in it, or not under names.
        UnsupportedError: tensors of a kind that cannot be stored.
    """
    roles: dict[str, str] = {}
    trained: dict[str, bool] = {}
    packed: dict[int, PackedWeight] = {}
    weights: dict[str, PackedWeight] = {}
    module = data if isinstance(data, torch.nn.Module) else None
    if module is not None:
        roles = dict(_roles(module))
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        weights = packed_weights(module)
        data, packed = _with_packed(module.state_dict(), weights)
        trained = {name: name in parameters for name in data}
    held = _Held()

    def read(name: str, tensor: Tensor) -> SourceTensor | PackedTensor:
        weight = packed.get(id(tensor))
        return weight.as_source(name) if weight is not None else _source_tensor(name, tensor, held)

    kind = Tensors(
        _measure,
        _identity,
        read,
        lambda name, _: roles.get(name),
        lambda name, _: trained.get(name),
        lambda value: value.state_dict() if isinstance(value, torch.nn.Module) else value,
    )
    source = collect(data, label, kind, naming, reading)
    if module is not None and weights:
        names, _ = naming(_with_packed(module.state_dict(), weights)[0])
        _remember(source, module, {names[name]: weight for name, weight in weights.items()})
    return source


def _with_packed(
    state: Mapping[str, Tensor], weights: Mapping[str, PackedWeight]
) -> tuple[dict[str, Tensor], dict[int, PackedWeight]]:
    """Let one tensor of a state dict stand for each packed weight.

    Returns:
        The state dict, and the packed weights by the ``id`` of the tensor that stands for each. A
        master that has changed since it was unfrozen stays the float weight that it is.
    """
    there = {name: weight for name, weight in weights.items() if weight.rounding is None}
    parts = {f"{name}_{part}": name for name in there for part in ("packed", "scale")}
    places = {id(weight): weight.placeholder() for weight in there.values()}
    whole = {
        parts.get(name, name): places[id(there[parts.get(name, name)])]
        if parts.get(name, name) in there
        else tensor
        for name, tensor in state.items()
    }
    return whole, {id(places[id(weight)]): weight for weight in there.values()}


def _remember(source: Source, module: torch.nn.Module, weights: Mapping[str, PackedWeight]) -> None:
    """Note what a module knows of its packed weights beside their bytes."""
    source.int8_inputs = frozenset(name for name, one in weights.items() if one.rounds_inputs)
    source.rounded = {n: one.rounding for n, one in weights.items() if one.rounding is not None}
    source.origin = origin_of(module)
    source.aliases = {**aliases_of(module), **source.aliases}


def _measure(value: Any) -> tuple[tuple[int, ...], int] | None:
    """Return the shape of a tensor and its bytes; None for any other value."""
    if not isinstance(value, Tensor):
        return None
    shape = (value.numel(),) if value.is_nested else tuple(value.shape)
    return shape, value.numel() * value.element_size()


def _roles(module: torch.nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the roles of a module's tensors by its classes: name in the state dict, role."""
    kinds = [(role, tuple(getattr(torch.nn, name) for name in names)) for role, names in KINDS]
    for prefix, owner in module.named_modules(remove_duplicate=False):
        role = next((role for role, classes in kinds if isinstance(owner, classes)), None)
        if role is not None:
            for name, _ in owner.named_parameters(recurse=False):
                yield (f"{prefix}.{name}" if prefix else name), role


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


def _identity(tensor: Tensor) -> object:
    """Return a key that views of the same elements share; None for a tensor without elements."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested or not tensor.numel():
        return None
    bits = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return (*bits, tensor.is_conj(), tensor.is_neg())


class _Held:
    """The last tensor that had to be copied to become contiguous: one at a time."""

    def __init__(self) -> None:
        self.original: Tensor | None = None
        self.flat = torch.empty(0)

    def flatten(self, tensor: Tensor) -> Tensor:
        if tensor.is_contiguous() and not tensor.is_quantized and tensor.device.type == "cpu":
            return tensor.reshape(-1)
        if self.original is not tensor:
            self.original = tensor
            plain = tensor.dequantize() if tensor.is_quantized else tensor
            self.flat = plain.cpu().contiguous().reshape(-1)
        return self.flat


def _source_tensor(name: str, tensor: Tensor, held: _Held) -> SourceTensor:
    _check_class(name, tensor)
    tensor = tensor.detach()
    if tensor.is_nested:
        raise UnsupportedError("is nested, of no one shape. Pad it to a tensor.", tensor=name)
    if tensor.is_meta:
        raise UnsupportedError("is on the meta device and has no values.", tensor=name)
    if tensor.layout != torch.strided:
        raise UnsupportedError(f"is {tensor.layout}. Make it dense: .to_dense().", tensor=name)
    kind = torch.float32 if tensor.is_quantized else tensor.dtype
    dtype, convert = element_reader(kind, name, tuple(tensor.shape))

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        piece = held.flatten(tensor)[start:stop]
        return convert(piece.resolve_conj().resolve_neg())

    coded = f"{str(tensor.dtype).removeprefix('torch.')} of torch" if tensor.is_quantized else ""
    return SourceTensor(name, dtype, tuple(tensor.shape), read, coded=coded).of_elements()


def element_reader(
    kind: torch.dtype, name: str, shape: tuple[int, ...]
) -> tuple[str, Callable[[Tensor], npt.NDArray[Any]]]:
    """Return the name of a dtype, and the function that gives numpy a flat tensor as stored.

    Raises:
        UnsupportedError: safetensors has no such dtype.
    """
    dtype = str(kind).removeprefix("torch.")
    if elements_of(dtype, shape)[0] not in BY_NAME:
        raise UnsupportedError(
            f"has dtype {dtype}, which safetensors cannot hold. Cast it first.", tensor=name
        )
    bits = {"bfloat16": torch.uint16}.get(dtype)
    if stored_dtype(dtype) == "uint8":
        bits = torch.uint8
    return dtype, lambda piece: (piece if bits is None else piece.view(bits)).numpy()
