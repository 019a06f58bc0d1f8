"""Decide what becomes of weights that another system has packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tpack.options import Options
from tpack.selection import unwanted
from tpack.sources import PackedTensor, Source, SourceTensor
from tpack.sources.packed_layouts import PackedGroup, packed_groups
from tpack.sources.packed_systems import OURS
from tpack.sources.scaled_codes import ReadGroup, read_group


@dataclass
class Others:
    """What becomes of the tensors of other systems.

    Attributes:
        read: weights whose codes are trits, by the name of the codes.
        taken: names of the scales and other parts that these weights were read from.
        kept: names of the tensors that are kept bit for bit, with the reason.
        groups: the weights that are kept, each with all its parts.
        refused: those of ``groups`` that neither a name nor an option keeps; they forbid an output
            unless another weight is ternary.
    """

    read: dict[str, ReadGroup] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    kept: dict[str, str] = field(default_factory=dict)
    groups: list[PackedGroup] = field(default_factory=list)
    refused: list[PackedGroup] = field(default_factory=list)

    @property
    def never(self) -> list[PackedGroup]:
        """The refused weights that tpack itself packed, which no output may hold."""
        return [group for group in self.refused if group.system == OURS]


def sort_others(
    source: Source, options: Options, by_name: Callable[[PackedGroup], str | None]
) -> Others:
    """Read weights of other systems whose codes are trits, and keep the rest as it is.

    Args:
        by_name: returns why codes are kept and not read; None if they are a weight to pack.

    Raises:
        UnsupportedError: the codes are trits, but it is not known whether the scale multiplies
            or divides.
    """
    others = Others()
    asked = options.quantize != "auto" or bool(options.include)
    for group in packed_groups(source.tensors):
        chosen = [unwanted(n, options.include, options.exclude) for n in group.parts]
        reason: str | None
        if "excluded" in chosen or all(chosen):
            reason = "excluded" if "excluded" in chosen else "not included"
        else:
            reason = by_name(group)
        if reason is None:
            found = read_group(group, source.tensors, options.scale_means, asked=asked)
            if isinstance(found, ReadGroup):
                others.read[group.codes] = found
                others.taken |= set(found.taken[1:])
                continue
            group = found  # noqa: PLW2901  # with a better reason
            others.refused.append(group)
        others.groups.append(group)
        others.kept |= dict.fromkeys(group.parts, reason or f"packed by {group.system}")
    return others


def weight_of(others: Others, tensor: SourceTensor | PackedTensor) -> SourceTensor | PackedTensor:
    """Return the weight that was read from a tensor of codes; any other tensor as it is."""
    found = others.read.get(tensor.name)
    return tensor if found is None else found.weight
