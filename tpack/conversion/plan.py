"""Decide what becomes of each tensor of a source, before any weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial

from tpack.conversion.captures import OWN_RULE
from tpack.conversion.others import Others, sort_others, weight_of
from tpack.dtypes import BY_NAME, KEEP_DTYPES
from tpack.errors import InputError, UnsupportedError
from tpack.layerdef import Program, slots
from tpack.layerdef.completion import match_slots
from tpack.layerdef.tensors import Slot
from tpack.options import Options
from tpack.quantize.rounding import Rounding
from tpack.selection import PATTERNS, Shapes, keep_reason, split_by_name, unwanted
from tpack.sources import PackedTensor, Source, SourceTensor
from tpack.sources.packed_layouts import PackedGroup, refuse_packed, told
from tpack.sources.scaled_codes import nameless_scales
from tpack.text import listed, plural
from tpack.wording import spell

#: Roles of weights in a captured computation that are packed if they are ternary, but never
#: rounded unless ``include`` names them.
UNROUNDED = ("output head", "router", "depthwise")


@dataclass
class Plan:
    """What becomes of each tensor.

    Attributes:
        options: the options of the conversion.
        weights: the weights to pack, each with its split.
        kept: the tensors to keep, as they are or cast.
        reasons: why a tensor is kept.
        notes: other decisions, for the report.
        warnings: decisions that nobody may miss.
        others: the tensors that another system packed.
        rounded: weights that the source's model rounds as it runs, each with its rule.
        exact_only: weights that are packed if they are ternary, and never rounded; with the reason.
        aside: weights that only a pattern keeps; they still count as weights of the model when
            ``Cases`` asks whether it is ternary.
        companions: the tensors that a weight was read from, if there are several.
        declared: whether LayerDefs of the user declare which tensors are ternary.
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
            program: the LayerDefs of the computation, in which weights are ternary if they can be.
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

    @property
    def own_rules(self) -> list[str]:
        """Names of weights that the model rounds as it runs, by a rule that tpack does not know."""
        return [name for name, reason in self.reasons.items() if reason == OWN_RULE]

    def say_own_rules(self) -> str:
        """Return a sentence for the end of an error, about weights rounded by rules unknown."""
        if not self.own_rules:
            return ""
        return (
            f" The model rounds {listed(self.own_rules)} as it runs, by a rule that tpack does not "
            "know: give the layers the rounded weights, let forward not round them again, and "
            f"convert that with {spell(exact=True)}."
        )

    def as_kept(self, name: str, reason: str) -> Iterator[tuple[SourceTensor, str]]:
        """Yield the tensors that are stored if a weight is kept, each with the reason."""
        if parts := self.companions.get(name):
            yield from ((part, reason if part.name == name else f"of {name}") for part in parts)
        else:
            yield _kept_form(self.weights[name][0], reason, self.options)

    def __contains__(self, name: str) -> bool:
        return name in self.weights or name in self.kept


def make_plan(source: Source, options: Options, program: Program | None) -> Plan:
    """Sort the tensors of a source into weights to pack and tensors to keep.

    Args:
        program: the LayerDefs that decide; if None, names and shapes do.

    Raises:
        InputError: there is nothing to pack, or names clash with those of packed tensors.
        LayerDefError: the program has other tensors than the source.
        NotTernaryError: another system packed weights and there are no others to pack, or tpack
            itself packed them.
        UnsupportedError: a weight has a dtype that cannot be packed, or it is not known whether
            the scale of trits multiplies or divides.
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
            plan.weights[name] = _weight(tensor, matched.get(name), source)
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
            plan.aside[name] = _weight(tensor, None, source)
    _check_others(plan)
    if not plan.weights:
        raise InputError(
            f"holds no weight to pack: {plural(len(plan.kept), 'tensor')} to keep "
            f"({_counted(plan)}). Name what to pack with {spell(include=[...])}."
            f"{plan.say_own_rules()}"
        )
    _check_names(plan, source.aliases)
    _say_of_rules(plan)
    _spare_scales(plan, source)
    plan.notes += _idle_patterns(source, options)
    return plan


def _why_kept(
    source: Source, reasons: _Reasons, ternary: set[str] | None, group: PackedGroup
) -> str | None:
    """Return why codes of another system are kept; None if they are a weight to pack."""
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
    """Note which weights of other systems are kept; refuse them if there is nothing to pack.

    Raises:
        NotTernaryError: with the name of the first.
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
    """Return a plan that packs nothing."""
    plan = Plan()
    for name, tensor in source.tensors.items():
        plan.kept[name], plan.reasons[name] = _kept_form(tensor, "as it was", plan.options)
    return plan


def _counted(plan: Plan) -> str:
    """Count the reasons why tensors are kept: ``2 1-D, 1 embedding``."""
    counts = Counter(plan.reasons.values())
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common(4))


def _say_of_rules(plan: Plan) -> None:
    """Note weights that the model rounds by a rule that was not asked for, or is unknown."""
    if plan.rounded and plan.options.quantize != "auto":
        plan.notes.append(
            f"{plural(len(plan.rounded), 'weight')} packed by the rule by which the model rounds "
            f"them as it runs, not by {spell(quantize=plan.options.quantize)}"
        )
    if own := plan.own_rules:
        plan.warnings.append(
            f"{plural(len(own), 'weight')} kept as floats, though the model rounds them as it "
            f"runs, by a rule that tpack does not know: {listed(own)}. To pack them, give the "
            "layers the rounded weights, and let forward not round them again."
        )


def _spare_scales(plan: Plan, source: Source) -> None:
    """Never round what may be the scale of int8 trits; warn that it was not used."""
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
    """Return notes about patterns that match no tensor: a misspelled one keeps nothing."""
    names = [*source.tensors, *source.aliases]
    return [
        f"{spell(**{option: [pattern]})} matches no name"
        for option in ("include", "exclude")
        for pattern in getattr(options, option)
        if not any(fnmatchcase(name, pattern) for name in names)
    ]


class _Reasons:
    """Finds why tensors of a source are kept: by their roles, or by their names."""

    def __init__(self, source: Source, options: Options) -> None:
        self.options = options
        self.source = source
        self.shapes = Shapes({name: tensor.shape for name, tensor in source.tensors.items()})
        self.names: dict[str, list[str]] = {name: [name] for name in source.tensors}
        for alias, owner in source.aliases.items():
            self.names.setdefault(owner, [owner]).append(alias)

    def of(self, tensor: SourceTensor) -> str | None:
        """Return why a tensor is kept, or None; a tied embedding is one under any of its names."""
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
        """Return why a tensor would be kept if no pattern were given."""
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
    """Return the role as ``keep_reason`` knows it: weights of any kind are ``weight``."""
    return "weight" if role in ("linear", "conv", *UNROUNDED) else role


def _weight(
    tensor: SourceTensor | PackedTensor, slot: Slot | None, source: Source
) -> tuple[SourceTensor | PackedTensor, int]:
    """Return a weight with its split; as floats if it comes packed in another split."""
    if isinstance(tensor, SourceTensor):
        if slot is not None:
            return tensor, slot.param.rows_split
        by_name = split_by_name(tensor.name, tensor.shape)
        return tensor, source.splits.get(tensor.name, by_name)
    if slot is None or slot.param.rows_split == tensor.split:
        return tensor, tensor.split
    return tensor.dense(), slot.param.rows_split


def _kept_form(
    tensor: SourceTensor | PackedTensor, reason: str, options: Options
) -> tuple[SourceTensor, str]:
    """Return a tensor to be kept, cast if ``keep_dtype`` asks for it, and why it is kept."""
    plain = tensor.dense() if isinstance(tensor, PackedTensor) else tensor
    if plain.stored is not None and not options.keep_dtype and reason != "LayerDef":
        return plain.stored, reason
    wish = KEEP_DTYPES[options.keep_dtype].name if options.keep_dtype else plain.dtype
    if wish != plain.dtype and BY_NAME[plain.dtype].is_cast:
        return plain.cast(wish), f"{reason}, {plain.dtype} to {wish}"
    return plain, reason


def _check_names(plan: Plan, aliases: Mapping[str, str]) -> None:
    """Refuse names that packed tensors need, and aliases of tensors that are not stored."""
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
                f"shares the storage of {name!r}, which is not stored by itself: it is the scale "
                "of a packed weight. Clone the tensor before it is saved.",
                tensor=alias,
            )
