"""Models whose experts have a matrix each, as most files do.

transformers merges the matrices of the experts of a layer into stacks as it loads them. A
checkpoint keeps their names and, packed, a scale for each; so here the model gets a module for each
expert, and the rules that merge are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from tpack.architectures.building import Built, made
from tpack.architectures.names import STACKS, Names
from tpack.errors import LayerDefError
from tpack.nn import by_expert

_MATRIX = re.compile(r"\.(\d+)\.(\w+)\.weight$")


@dataclass
class Stack:
    """What a file has for one stack of a model, matrix by matrix.

    Attributes:
        rule: the conversion that would merge them.
        found: the name in the file of a matrix, by its expert and part.
    """

    rule: WeightConverter
    found: dict[tuple[int, str], str] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """The matrices of an expert whose rows the rule joins, in order."""
        return tuple(map(_part, self.rule.source_patterns))


def stacks_of(names: Names, tensors: Iterable[str]) -> dict[str, Stack]:
    """Return the stacks of a model that are made from a matrix for each expert, by name."""
    rules = {pattern: rule for rule in names.converters for pattern in rule.source_patterns}
    found: dict[str, Stack] = {}
    for name in tensors:
        target, pattern = names.target(name)
        if pattern is None:
            continue
        rule = rules[pattern]
        matrix = _MATRIX.search(names.renamed(name))
        if joins(rule) and matrix is not None and target in names.expected:
            expert, part = int(matrix[1]), matrix[2]
            found.setdefault(target, Stack(rule)).found[expert, part] = name
    return found


def joining(names: Names) -> frozenset[str]:
    """Return the patterns of all conversions that merge experts."""
    rules = filter(joins, names.converters)
    return frozenset(pattern for rule in rules for pattern in rule.source_patterns)


def joins(rule: WeightConverter) -> bool:
    """Return whether a conversion stacks matrices of experts, and joins the rows of several."""
    kinds = [
        (type(operation), operation.dim)
        for operation in rule.operations
        if hasattr(operation, "dim")
    ]
    return len(kinds) == len(rule.operations) and kinds in (
        [(MergeModulelist, 0)],
        [(MergeModulelist, 0), (Concatenate, 1)],
    )


def _part(pattern: str) -> str:
    """Return the part of an expert that a pattern of transformers is for.

    Example:
        >>> _part(r"mlp.experts.*.gate_proj.weight")
        'gate_proj'
    """
    return pattern.rstrip("$").replace("\\.", ".").removesuffix(".weight").rpartition(".")[2]


class Matrix(nn.Module):
    """A linear layer without bias. It is no ``nn.Linear``, as the experts are none either."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # named so in torch
        """Map (n, in) to (n, out)."""
        return F.linear(input, self.weight)


class Expert(nn.Module):
    """What one expert of a layer computes.

    Args:
        plain: the module of all experts in transformers.
        parts: the layers whose results are joined, first of the gate and what it gates, then of
            the second product.
    """

    def __init__(self, plain: Any, parts: Mapping[str, Mapping[str, nn.Module]]) -> None:
        super().__init__()
        self._plain = (plain,)  # in a tuple, so that it is not a child
        self._first, self._last = (tuple(some) for some in parts.values())
        for some in parts.values():
            for name, layer in some.items():
                self.add_module(name, layer)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (n, features) to (n, features)."""
        (plain,) = self._plain
        gate = plain._apply_gate if plain.has_gate else plain.act_fn  # noqa: SLF001
        return self.joined(self._last, gate(self.joined(self._first, hidden_states)))

    def joined(self, parts: tuple[str, ...], x: Tensor) -> Tensor:
        """Return the results of several layers, side by side."""
        found = [self.get_submodule(part)(x) for part in parts]
        return torch.cat(found, -1) if len(found) > 1 else found[0]


class Experts(nn.Module):
    """The experts of a layer, each a child by its number.

    It is for tracing: of the experts, which compute the same from other matrices, only the first
    is called.

    Args:
        plain: the module that is replaced, of a class with ``use_experts_implementation``.
        experts: the children.
    """

    def __init__(self, plain: Any, experts: Iterable[Expert]) -> None:
        super().__init__()
        self._plain = (plain,)
        for name, child in plain.named_children():
            self.add_module(name, child)
        for i, expert in enumerate(experts):
            self.add_module(str(i), expert)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum what the chosen experts make of each token, as transformers does."""
        (plain,) = self._plain
        chosen = top_k_index.shape[-1]
        ids = top_k_index.reshape(-1)
        rows = hidden_states.repeat_interleave(chosen, dim=0)
        outputs = by_expert([self.get_submodule("0")], rows, ids)
        if plain.has_post_expert_norm:
            outputs = plain.post_expert_norm(outputs)
        weighted = outputs * top_k_weights.reshape(-1, 1)
        summed = weighted.view(-1, chosen, weighted.shape[-1]).sum(dim=1)
        return summed.to(hidden_states.dtype)


def take_apart(built: Built, tensors: Iterable[str]) -> tuple[dict[str, int], frozenset[str]]:
    """Give a model a module for each expert, where the checkpoint has a matrix for each.

    Args:
        built: its model is changed.
        tensors: the names in the checkpoint.

    Returns:
        How many experts there are, by the path of their module; and the patterns of the
        conversions that must not be applied any more.

    Raises:
        LayerDefError: an expert lacks a matrix, or there is one too many.
    """
    model, names = built.model, Names(built.model)
    stacks = stacks_of(names, tensors)
    counts: dict[str, int] = {}
    for path in dict.fromkeys(target.rpartition(".")[0] for target in stacks):
        plain: Any = model.get_submodule(path)
        if not _may_be_apart(plain, path, stacks):
            continue
        order = [name for name in STACKS if f"{path}.{name}" in stacks]
        count = len(getattr(plain, order[0]))
        experts = [Expert.__new__(_class(plain)) for _ in range(count)]
        for i, expert in enumerate(experts):
            parts = {n: _layers(built, stacks[f"{path}.{n}"], getattr(plain, n), i) for n in order}
            expert.__init__(plain, parts)  # type: ignore[misc]
        _check_complete(model, path, [stacks[f"{path}.{name}"] for name in order], count)
        model.set_submodule(path, type(type(plain).__name__, (Experts,), {})(plain, experts))
        counts[path] = count
    return counts, joining(names) if counts else frozenset()


def _may_be_apart(plain: Any, path: str, stacks: Mapping[str, Stack]) -> bool:
    """Return whether all stacks of a module are made from matrices, and it computes with them."""
    own = [name for name, _ in plain.named_parameters(recurse=False)]
    usual = hasattr(plain, "is_transposed") and not plain.is_transposed and not plain.has_bias
    return usual and len(own) == 2 and all(n in STACKS and f"{path}.{n}" in stacks for n in own)


def _class(plain: Any) -> type[Expert]:
    """Return a class for one expert, named after the class of all."""
    return type(type(plain).__name__.removesuffix("s"), (Expert,), {})


def _layers(built: Built, stack: Stack, weight: Tensor, expert: int) -> dict[str, nn.Module]:
    """Make the layers of one expert whose rows a stack joins."""
    rows, columns = weight.shape[1] // len(stack.parts), weight.shape[2]
    return {
        part: Matrix(made(built.mode, (rows, columns), weight.dtype))
        for part in stack.parts
        if (expert, part) in stack.found
    }


def _check_complete(model: PreTrainedModel, path: str, stacks: Iterable[Stack], count: int) -> None:
    """Check that a checkpoint has each matrix of each expert, and no other.

    Raises:
        LayerDefError: it lacks one, or has one too many.
    """
    for stack in stacks:
        wanted = {(expert, part) for expert in range(count) for part in stack.parts}
        if lacking := sorted(wanted - stack.found.keys()):
            expert, part = lacking[0]
            raise LayerDefError(
                f"{len(lacking)} of {len(wanted)} matrices of {path}.* are not in the files: "
                f"{path}.{expert}.{part}.weight is the first."
            )
        if extra := sorted(stack.found.keys() - wanted):
            raise LayerDefError(
                f"{stack.found[extra[0]]!r} has no place in {type(model).__name__}, which has "
                f"{count} experts by config.json."
            )
