"""Which tensor of a checkpoint is which of the model, and the dtypes and ties that follow."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from tpack.architectures.building import made
from tpack.architectures.names import Names
from tpack.dtypes import KEEP_DTYPES
from tpack.errors import LayerDefError
from tpack.text import listed, plural
from tpack.wording import spell

#: Shape and dtype of tensors, by name.
Tensors = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Match:
    """Names of the model and of the checkpoint.

    Attributes:
        names: the name in the checkpoint, by that in the model; aliases lead to what they share.
        tied: tensors of the model that the checkpoint lacks, each with the one that it shares.
        extra: tensors of the checkpoint that the model does not have.
    """

    names: Mapping[str, str]
    tied: Mapping[str, str]
    extra: tuple[str, ...]

    @property
    def unused(self) -> str:
        """Say which tensors the model does not use; empty if it uses all."""
        if not self.extra:
            return ""
        return f"it does not use {plural(len(self.extra), 'tensor')}: {listed(self.extra)}"


def match(
    model: PreTrainedModel,
    tensors: Tensors,
    aliases: Mapping[str, str],
    dropped: Collection[str] = (),
) -> Match:
    """Find the tensor of the checkpoint for each of the model.

    Args:
        dropped: patterns of conversions that are not applied.

    Raises:
        LayerDefError: one is missing, has another shape, or is made from several as transformers
            loads them.
    """
    names, kind = Names(model, dropped), type(model).__name__
    found: dict[str, str] = {}
    extra = []
    for name in (*tensors, *aliases):
        owner = aliases.get(name, name)
        target, merged = names.target(name)
        if merged is not None:
            raise LayerDefError(
                f"transformers merges {name!r} with others as it loads {kind}, or changes its "
                "shape, so the model has no such tensor."
            )
        if target not in names.expected:
            extra += [name] if name in tensors else []
            continue
        shape, wanted = tensors[owner][0], tuple(names.expected[target].shape)
        if shape != wanted:
            raise LayerDefError(
                f"{name!r} has shape {shape}, but {wanted} in {kind} by config.json."
            )
        if target in found and found[target] != owner:
            raise LayerDefError(f"{found[target]!r} and {name!r} are one tensor in {kind}.")
        found[target] = owner
    tied = _ties(model)
    missing = [name for name in names.expected if name not in found]
    lacking = [name for name in missing if tied.get(name) not in found]
    if lacking:
        raise LayerDefError(
            f"{plural(len(lacking), 'tensor')} of {kind} "
            f"{'are' if len(lacking) > 1 else 'is'} not in the files: {listed(lacking)}."
        )
    if not found:
        raise LayerDefError(f"no tensor has a name of {kind}.")
    return Match(found, {name: tied[name] for name in missing}, tuple(extra))


def fill(model: PreTrainedModel, found: Match, tensors: Tensors, mode: FakeTensorMode) -> None:
    """Give parameters the dtypes of the checkpoint, and share those that it shares."""
    placed: dict[str, nn.Parameter] = {}
    for name in {**found.names, **found.tied}:
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        source = found.names[found.tied.get(name, name)]
        shape, dtype = tensors[source]
        if last in module._buffers:  # noqa: SLF001
            buffer = module.get_buffer(last)
            setattr(module, last, buffer.to(dtype))
            continue
        if source not in placed:
            placed[source] = made(mode, shape, dtype)
        setattr(module, last, placed[source])


def check_dtypes(
    model: PreTrainedModel, found: Match, tensors: Tensors, dtype: torch.dtype
) -> None:
    """Check that transformers would load the tensors in the dtypes that they have.

    Raises:
        LayerDefError: it would cast one, and compute with what the checkpoint does not hold.
    """
    asked = model._get_dtype_plan(dtype)  # noqa: SLF001
    plan = {re.compile(pattern.replace("*", ".*")): one for pattern, one in asked.items()}
    for name, source in found.names.items():
        own = tensors[source][1]
        wanted = next((one for pattern, one in plan.items() if pattern.search(name)), dtype)
        if own.is_floating_point and own != wanted:
            short = next((key for key, one in KEEP_DTYPES.items() if _of(one.name) == wanted), "")
            raise LayerDefError(
                f"{source!r} is {_called(own)}, and transformers loads it as {_called(wanted)}, "
                f"beside {_called(dtype)}."
                + (f" {spell(keep_dtype=short)} stores it so." if short else "")
            )


def _of(name: str) -> torch.dtype | None:
    return getattr(torch, name, None)


def _called(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _ties(model: PreTrainedModel) -> dict[str, str]:
    """Return the tensors that transformers ties, each with every one that it may be tied to."""
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    found = dict(model.all_tied_weights_keys)
    found |= {source: head for head, source in found.items()}
    for group in groups.values():
        found |= dict.fromkeys(group[1:], group[0])
    return found
