"""Put packed experts into a model: from a stack in the file, or from a matrix for each expert.

transformers keeps the experts of a layer in two stacks. Most files have a matrix for each expert,
which transformers merges as it loads them, after the layers were replaced. Packed matrices have
scales of their own, of any granularity, so they are not merged: the model gets a layer for each,
under the names that the file has, and the rules that merge are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from tpack.architectures.experts import Stack, joining, stacks_of
from tpack.architectures.names import STACKS, Names
from tpack.container import Checkpoint, TernaryEntry
from tpack.errors import InputError, UnsupportedError
from tpack.grouping import Place
from tpack.hf.experts import PackedExperts
from tpack.nn import TernaryLinear
from tpack.selection import is_of_experts
from tpack.wording import spell


def place_stacks(
    model: PreTrainedModel, file: Checkpoint, names: Names
) -> tuple[dict[str, str], frozenset[str]]:
    """Replace the experts whose matrices are packed, in stacks or one by one.

    Returns:
        The name of each packed weight in the checkpoint, by its name in the model; and the
        patterns of the conversions that must not be applied any more.

    Raises:
        InputError: an expert lacks a matrix, or there is one too many, or it has another shape.
        UnsupportedError: the experts have no packed form.
    """
    ternary = dict(file.ternary())
    packed = {names.target(name)[1] for name in ternary} - {None}
    rules = [rule for rule in names.converters if packed & set(rule.source_patterns)]
    sources: dict[str, str] = {}
    if rules:
        for target, stack in stacks_of(names, (*ternary, *file.document.kept)).items():
            sources |= _take_apart(model, target, stack, ternary, file)
    for name, entry in ternary.items():
        target, pattern = names.target(name)
        if pattern is None and entry.split == 2 and target in names.expected:
            experts = _experts(model, target, ternary)
            _check_shape(entry, names.expected[target].shape, 2, name)
            dtype = getattr(torch, file.entries[f"{name}_scale"].dtype)
            experts.pack_stack(target.rpartition(".")[2], entry.scale, entry.layout, dtype)
            sources[target] = name
    return sources, joining(names) if rules else frozenset()


def _take_apart(
    model: PreTrainedModel,
    target: str,
    stack: Stack,
    ternary: Mapping[str, TernaryEntry],
    file: Checkpoint,
) -> dict[str, str]:
    """Put a layer for each matrix in the place of a stack; return the packed ones."""
    path, _, last = target.rpartition(".")
    experts = _experts(model, target, ternary)
    weight = getattr(experts, last)
    count, rows, columns = weight.shape
    order = stack.parts
    rows //= len(order)
    sources: dict[str, str] = {}
    layers: list[nn.Module] = []
    for expert in range(count):
        for part in order:
            name = stack.found.pop((expert, part), None)
            if name is None:
                raise InputError(
                    "is missing. Convert the model again.", tensor=f"{path}.{expert}.{part}.weight"
                )
            entry = ternary.get(name)
            if entry is None:
                layer = nn.Linear(columns, rows, bias=False, device="meta", dtype=weight.dtype)
                layers.append(layer)
                continue
            _check_shape(entry, (rows, columns), 1, name)
            with torch.device("meta"):
                layers.append(
                    TernaryLinear(
                        columns,
                        rows,
                        bias=False,
                        scale=entry.scale,
                        scale_dtype=getattr(torch, file.entries[f"{name}_scale"].dtype),
                        layout=entry.layout,
                        dtype=weight.dtype,
                    )
                )
            sources[f"{path}.{expert}.{part}.weight"] = name
    for name in stack.found.values():
        raise InputError(
            f"has no place in {type(model).__name__}, which has {count} experts. The config.json "
            "belongs to another checkpoint: convert the folder again.",
            tensor=name,
        )
    experts.take_apart(last, order, layers)
    return sources


def _experts(
    model: PreTrainedModel, target: str, ternary: Mapping[str, TernaryEntry]
) -> PackedExperts:
    """Return the module of a stack, made to take packed matrices."""
    path, _, last = target.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, PackedExperts):
        return module
    if not hasattr(module, "is_transposed") or last not in STACKS:
        raise refusal(model, ternary)
    experts = PackedExperts(module)
    model.set_submodule(path, experts)
    for parent in (experts, model.get_submodule(path.rpartition(".")[0])):
        if not list(parent.parameters(recurse=False)):  # else it would be asked for its stacks
            parent._is_hf_initialized = True  # noqa: SLF001
    return experts


def _check_shape(entry: TernaryEntry, shape: Iterable[int], split: int, name: str) -> None:
    if entry.shape != tuple(shape) or entry.split != split:
        raise InputError(
            f"has shape {entry.shape}, expected {tuple(shape)} by config.json. It belongs to "
            "another checkpoint.",
            tensor=name,
        )


def refusal(model: PreTrainedModel, ternary: Mapping[str, TernaryEntry]) -> UnsupportedError:
    """Return the error for experts that cannot run packed, with the patterns that keep them."""
    names = [name for name, entry in ternary.items() if entry.split == 2 or is_of_experts(name)]
    patterns = sorted({_pattern(name) for name in names})
    return UnsupportedError(
        f"matches {len(names)} packed weights of experts, which {type(model).__name__} computes in "
        f"a way of its own that needs floats. Convert with {spell(exclude=patterns)}.",
        tensor=", ".join(patterns),
    )


def _pattern(name: str) -> str:
    return "*.experts.*" if is_of_experts(name) else Place.of(name).role
