"""The names that tensors of a checkpoint have in a model, by transformers' own rules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    apply_renamings,
    rename_source_key,
)

#: The stacks of a module of experts. Their packed bytes and scales are beside them, by name.
STACKS = ("gate_up_proj", "up_proj", "down_proj")


def applied(rules: Iterable[WeightTransform], dropped: Collection[str]) -> list[WeightTransform]:
    """Return rules without the conversions of some patterns, and with those for packed stacks.

    A rule that renames a whole tensor to a stack does not rename what starts with that name.
    """
    found: list[WeightTransform] = []
    for rule in rules:
        if isinstance(rule, WeightConverter):
            found += () if set(rule.source_patterns) & set(dropped) else (rule,)
            continue
        found.append(rule)
        sources, targets = rule._original_source_patterns, rule._original_target_patterns  # noqa: SLF001
        if type(rule) is WeightRenaming and len(sources) == 1 and targets[0].endswith(STACKS):
            found += (
                rule.copy(f"{sources[0]}_{part}", f"{targets[0]}_{part}")
                for part in ("packed", "scale")
            )
    return found


class Names:
    """Translates names of a checkpoint to those of the model, by transformers' own rules.

    Args:
        dropped: patterns of conversions that are not applied.
    """

    def __init__(self, model: PreTrainedModel, dropped: Collection[str] = ()) -> None:
        rules = applied(get_model_conversion_mapping(model), dropped)
        self.renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self.converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self.prefix = model.base_model_prefix
        self.expected = model.state_dict()

    def target(self, name: str) -> tuple[str, str | None]:
        """Return the name in the model, and the pattern of the conversion that takes it."""
        found: tuple[str, str | None] = rename_source_key(
            name, self.renamings, self.converters, self.prefix, self.expected
        )
        return found

    def renamed(self, name: str) -> str:
        """Return the name before a conversion takes it."""
        found: str = apply_renamings(name, self.renamings)
        return found

    def targets(self, name: str) -> Iterator[str]:
        """Yield the tensors of the model that are made from a tensor of the checkpoint."""
        target, pattern = self.target(name)
        yield target
        for converter in self.converters:
            if pattern in converter.source_patterns:
                first, *others = converter.target_patterns
                yield from (target.replace(first, other) for other in others)

    def is_other_head(self, target: str) -> bool:
        """Return whether a tensor lies outside the base model, where classes differ."""
        return not target.startswith(f"{self.prefix}.")
