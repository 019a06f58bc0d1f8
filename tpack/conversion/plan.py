"""Decide what becomes of each tensor of a source, before any weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial

from tpack.conversion.others import Others, sort_others, weight_of
from tpack.dtypes import BY_NAME, KEEP_DTYPES
from tpack.errors import InputError, UnsupportedError
from tpack.layerdef import Program, slots
from tpack.layerdef.completion import match_slots
from tpack.layerdef.tensors import Slot
from tpack.options import Options
from tpack.quantize.rounding import Rounding
from tpack.selection import PATTERNS, keep_reason, split_by_name, unwanted
from tpack.sources import PackedTensor, Source, SourceTensor
from tpack.sources.packed_layouts import PackedGroup, refuse_packed, told
from tpack.sources.scaled_codes import nameless_scales
from tpack.text import plural

#: Roles of weights in a captured computation that are packed where they are ternary, but are
#: never rounded, unless a pattern asks for it.
UNROUNDED = ("output head", "router", "depthwise")


@dataclass
class Plan:
    """What becomes of each tensor.

    Attributes:
        options: of the conversion.
        weights: to be packed, each with its split.
        kept: stored as they are, or cast.
        reasons: why a tensor is kept.
        notes: what else was decided, for the report.
        warnings: likewise, what nobody may miss.
        others: what another system packed.
        rounded: weights that the source's model rounds as it runs, each with its rule.
        exact_only: weights that are packed where they are ternary, and never rounded: why.
        aside: weights that only a pattern keeps; they still tell what model it is.
        companions: what weights were read from, where that is several tensors.
        declared: whether LayerDefs of the user say which tensors are ternary.
    """

    options: Options = field(default_factory=Options)
    weights: dict[str, tuple[SourceTensor | PackedTensor, int]] = field(default_factory=dict)
    kept: dict[str, SourceTensor] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    others: Others = field(default_factory=Others)
    rounded: dict[str, Rounding] = field(default_factory=dict)
    exact_only: dict[str, str] = field(default_factory=dict)
    aside: dict[str, tuple[SourceTensor | PackedTensor, int]] = field(default_factory=dict)
    companions: dict[str, tuple[SourceTensor, ...]] = field(default_factory=dict)
    declared: bool = False

    def restrict(self, program: Program) -> None:
        """Keep the weights that a captured computation does not use as ternary ones.

        Args:
            program: of the computation, with the weights described as ternary where they can be.
        """
        splits = {
            slot.name: slot.param.rows_split
            for slot in slots(program)
            if slot.param.param_type == "TernaryTensor"
        }
        for name, (tensor, _) in list(self.weights.items()):
            if name in splits:
                self.weights[name] = tensor, splits[name]
                continue
            for kept, reason in self.as_kept(name, "not used as a weight alone"):
                self.kept[kept.name], self.reasons[kept.name] = kept, reason
            del self.weights[name]

    def as_kept(self, name: str, reason: str) -> Iterator[tuple[SourceTensor, str]]:
        """A weight as it is stored where it is not packed: all tensors that it was read from."""
        if parts := self.companions.get(name):
            yield from ((part, reason if part.name == name else f"of {name}") for part in parts)
        else:
            yield _kept_form(self.weights[name][0], reason, self.options)

    def __contains__(self, name: str) -> bool:
        return name in self.weights or name in self.kept


def make_plan(source: Source, options: Options, program: Program | None) -> Plan:
    """Sort the tensors of a source into weights to pack and tensors to keep.

    Args:
        program: the LayerDefs that decide, if there are any; else names and shapes do.

    Raises:
        InputError: nothing to pack, or names that clash with those of packed tensors.
        LayerDefError: the program has other tensors than the source.
        NotTernaryError: weights that another system packed, and no others that are ternary.
        UnsupportedError: a weight in a dtype that cannot be packed; trits whose scale may
            multiply or divide.
    """
    plan = Plan(options, declared=program is not None)
    ternary = (
        None
        if program is None
        else {s.name for s in slots(program) if s.param.param_type == "TernaryTensor"}
    )
    tensors: dict[str, tuple[SourceTensor | PackedTensor, str | None]] = {}
    reasons = _Reasons(source, options)
    plan.others = sort_others(source, options, partial(_why_kept, source, reasons, ternary))
    for name, stored in source.tensors.items():
        tensor = weight_of(plan.others, stored)
        if name in plan.others.taken:
            continue
        if name in plan.others.kept:
            assert isinstance(tensor, SourceTensor)
            plan.kept[name], plan.reasons[name] = tensor, plan.others.kept[name]
            continue
        if ternary is not None:
            reason = None if name in ternary else "LayerDef"
        elif isinstance(tensor, PackedTensor):
            reason = unwanted(name, options.include, options.exclude)
        else:
            reason = reasons.of(tensor)
        tensors[name] = (tensor, reason)
    shapes = {name: tensor.shape for name, (tensor, _) in tensors.items()}
    matched = {} if program is None else match_slots(program, shapes)
    for name, (tensor, reason) in tensors.items():
        if reason is None:
            plan.weights[name] = _weight(tensor, matched.get(name))
            if read := plan.others.read.get(name):
                plan.companions[name] = tuple(_plain(source, part) for part in read.taken)
            if name in source.rounded:
                plan.rounded[name] = source.rounded[name]
            role = source.roles.get(name, "")
            if role in UNROUNDED and not options.include:
                plan.exact_only[name] = role
            continue
        plan.kept[name], plan.reasons[name] = _kept_form(tensor, reason, options)
        if reason in PATTERNS and reasons.without_patterns(tensor) is None:
            plan.aside[name] = _weight(tensor, None)
    _check_others(plan)
    if not plan.weights:
        raise InputError(
            f"holds no weight to pack: all {len(plan.kept)} tensors are kept ({_counted(plan)}). "
            "Name what to pack with --include."
        )
    _check_names(plan, source.aliases)
    _say_of_rules(plan, source)
    _spare_scales(plan, source)
    plan.notes += _idle_patterns(source, options)
    return plan


def _why_kept(
    source: Source, reasons: _Reasons, ternary: set[str] | None, group: PackedGroup
) -> str | None:
    """Why the codes of another system are no weight to pack; None if they would be one."""
    codes = _plain(source, group.codes)
    if ternary is not None:
        return None if group.codes in ternary else "LayerDef"
    if len(codes.shape) < 2:
        return None
    reason = reasons.of(replace(codes, dtype="int8"))
    return None if reason == "no matrix by its name" else reason  # codes have names of their own


def _plain(source: Source, name: str) -> SourceTensor:
    tensor = source.tensors[name]
    assert isinstance(tensor, SourceTensor)
    return tensor


def _check_others(plan: Plan) -> None:
    """Say what of other systems is kept; refuse it where there is nothing else.

    Raises:
        NotTernaryError: naming the first one.
    """
    others = plan.others
    for found in others.read.values():
        plan.notes.append(found.note)
        plan.warnings += filter(None, [found.warning])
    refuse_packed(others.never)
    if not plan.weights:
        refuse_packed(others.refused)
    plan.warnings += told(others.groups)


def everything_kept(source: Source) -> Plan:
    """A plan that packs nothing."""
    plan = Plan()
    for name, tensor in source.tensors.items():
        plan.kept[name], plan.reasons[name] = _kept_form(tensor, "as it was", plan.options)
    return plan


def _counted(plan: Plan) -> str:
    """``2 1-D, 1 embedding``: why tensors are kept."""
    counts = Counter(plan.reasons.values())
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common(4))


def _say_of_rules(plan: Plan, source: Source) -> None:
    """Say which weights the model rounds by another rule than was asked for, or than tpack has."""
    if plan.rounded and plan.options.quantize != "auto":
        plan.notes.append(
            f"{plural(len(plan.rounded), 'weight')} packed by the rule by which the model rounds "
            f"them as it runs, not by --quantize {plan.options.quantize}"
        )
    if own := [name for name in source.floats if plan.reasons.get(name) == source.floats[name]]:
        plan.warnings.append(
            f"{plural(len(own), 'weight')} kept as floats, since the {source.floats[own[0]]}: "
            f"{', '.join(own[:4])}{' and others' if len(own) > 4 else ''}."
        )


def _spare_scales(plan: Plan, source: Source) -> None:
    """Never round what may be the scale of trits in bytes; say that it was not used."""
    for name, (tensor, _) in list(plan.weights.items()):
        if tensor.dtype == "int8" and name not in plan.others.read:
            beside = nameless_scales(tensor, source.tensors)
            plan.exact_only |= dict.fromkeys(beside, f"beside the bytes of {name}")
            if beside:
                plan.warnings.append(
                    f"{name} holds int8, and {', '.join(beside)} beside it may be its scale, but "
                    "no name says so: the trits were packed without it. Rename it to "
                    f"{name}_scale if it multiplies them."
                )


def _idle_patterns(source: Source, options: Options) -> list[str]:
    """Notes for patterns that name no tensor: what they were to keep may be packed."""
    names = [*source.tensors, *source.aliases]
    return [
        f"--{option} {pattern!r} matches no name"
        for option in ("include", "exclude")
        for pattern in getattr(options, option)
        if not any(fnmatchcase(name, pattern) for name in names)
    ]


class _Reasons:
    """Why tensors of a source are kept: by what its modules say of them, or by their names."""

    def __init__(self, source: Source, options: Options) -> None:
        self.options = options
        self.source = source
        self.shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
        self.names: dict[str, list[str]] = {name: [name] for name in source.tensors}
        for alias, owner in source.aliases.items():
            self.names.setdefault(owner, [owner]).append(alias)

    def of(self, tensor: SourceTensor) -> str | None:
        """Why a tensor is kept, by any of its names: a tied embedding is one under each."""
        options, source = self.options, self.source
        if tensor.name in source.floats:
            return source.floats[tensor.name]
        if tensor.name in source.rounded:  # whatever it is called
            names = self.names[tensor.name]
            reasons = [unwanted(name, options.include, options.exclude) for name in names]
            return None if None in reasons and "excluded" not in reasons else reasons[0]
        reasons = [
            keep_reason(
                name,
                tensor.dtype,
                tensor.shape,
                options.include,
                options.exclude,
                role=_as_weight(self.source.roles.get(name)),
                others=self.shapes,
            )
            for name in self.names[tensor.name]
        ]
        if options.include and None in reasons and "excluded" not in reasons:
            return None
        return next(filter(None, reasons), None)

    def without_patterns(self, tensor: SourceTensor | PackedTensor) -> str | None:
        """Why a tensor would be kept if no pattern were given."""
        if isinstance(tensor, PackedTensor):
            return None
        try:
            return keep_reason(
                tensor.name,
                tensor.dtype,
                tensor.shape,
                role=_as_weight(self.source.roles.get(tensor.name)),
                others=self.shapes,
            )
        except UnsupportedError as error:
            return error.message


def _as_weight(role: str | None) -> str | None:
    """What a role means to the rules of names."""
    return "weight" if role in ("linear", "conv", *UNROUNDED) else role


def _weight(
    tensor: SourceTensor | PackedTensor, slot: Slot | None
) -> tuple[SourceTensor | PackedTensor, int]:
    """A weight with its split; one that comes packed in another split as floats."""
    if isinstance(tensor, SourceTensor):
        return tensor, slot.param.rows_split if slot else split_by_name(tensor.name, tensor.shape)
    if slot is None or slot.param.rows_split == tensor.split:
        return tensor, tensor.split
    return tensor.dense(), slot.param.rows_split


def _kept_form(
    tensor: SourceTensor | PackedTensor, reason: str, options: Options
) -> tuple[SourceTensor, str]:
    """A tensor as it is, or in the dtype wished for floats, and why it is kept."""
    plain = tensor.dense() if isinstance(tensor, PackedTensor) else tensor
    wish = KEEP_DTYPES[options.keep_dtype].name if options.keep_dtype else plain.dtype
    if wish != plain.dtype and BY_NAME[plain.dtype].is_float and BY_NAME[plain.dtype].size > 1:
        return plain.cast(wish), f"{reason}, {plain.dtype} to {wish}"
    return plain, reason


def _check_names(plan: Plan, aliases: Mapping[str, str]) -> None:
    """Refuse names that clash with those of packed tensors."""
    taken = {*plan.kept, *plan.weights, *aliases}
    for name in plan.weights:
        for stored in (f"{name}_packed", f"{name}_scale"):
            if stored in taken:
                raise InputError(
                    f"has the name that the packed form of {name!r} needs. Rename it.",
                    tensor=stored,
                )
    for alias, name in aliases.items():
        if name not in taken:
            raise InputError(
                f"shares the storage of {name!r}, which is taken in as a scale. Copy it.",
                tensor=alias,
            )
