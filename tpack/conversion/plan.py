"""Decide what becomes of each tensor of a source, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial

from tpack.codec.shapes import default_split
from tpack.conversion.options import KEEP_DTYPES, Options
from tpack.conversion.others import Others, sort_others, weight_of
from tpack.dtypes import BY_NAME
from tpack.errors import InputError
from tpack.layerdef import Program, slots
from tpack.layerdef.refine import match_slots
from tpack.layerdef.tensors import Slot
from tpack.selection import keep_reason, unwanted
from tpack.sources import PackedTensor, Source, SourceTensor
from tpack.sources.packed_layouts import PackedGroup, refuse_packed, told


@dataclass
class Plan:
    """What becomes of each tensor.

    Attributes:
        weights: to be packed, each with its split.
        kept: stored as they are, or cast.
        reasons: why a tensor is kept.
        notes: what else was decided, for the report.
        warnings: likewise, what nobody may miss.
        others: what another system packed.
    """

    weights: dict[str, tuple[SourceTensor | PackedTensor, int]] = field(default_factory=dict)
    kept: dict[str, SourceTensor] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    others: Others = field(default_factory=Others)

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
    plan = Plan()
    ternary = (
        None
        if program is None
        else {s.name for s in slots(program) if s.param.param_type == "TernaryTensor"}
    )
    tensors: dict[str, tuple[SourceTensor | PackedTensor, str | None]] = {}
    plan.others = sort_others(source, options, partial(_why_kept, source, options, ternary))
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
            reason = _keep_reason(source, tensor, options)
        tensors[name] = (tensor, reason)
    shapes = {name: tensor.shape for name, (tensor, _) in tensors.items()}
    matched = {} if program is None else match_slots(program, shapes)
    for name, (tensor, reason) in tensors.items():
        if reason is None:
            plan.weights[name] = _weight(tensor, matched.get(name))
        else:
            _keep(tensor, reason, options, plan)
    _check_others(plan)
    if not plan.weights:
        raise InputError(
            f"holds no weight to pack: all {len(tensors)} tensors are kept. Name what to pack "
            "with --include."
        )
    _check_names(plan, source.aliases)
    plan.notes += _idle_patterns(source, options)
    return plan


def _why_kept(
    source: Source, options: Options, ternary: set[str] | None, group: PackedGroup
) -> str | None:
    """Why the codes of another system are no weight to pack; None if they would be one."""
    codes = source.tensors[group.codes]
    assert isinstance(codes, SourceTensor)
    if ternary is not None:
        return None if group.codes in ternary else "LayerDef"
    if len(codes.shape) < 2:
        return None
    reason = _keep_reason(source, replace(codes, dtype="int8"), options)
    return None if reason == "no matrix by its name" else reason  # codes have names of their own


def _check_others(plan: Plan) -> None:
    """Say what of other systems is kept; refuse it where no weight is ternary.

    Raises:
        NotTernaryError: naming the first one.
    """
    others = plan.others
    for found in others.read.values():
        plan.notes.append(found.note)
        plan.warnings += filter(None, [found.warning])
    refuse_packed(others.never)
    known = any(isinstance(tensor, PackedTensor) for tensor, _ in plan.weights.values())
    if not known and not any(name in plan.weights for name in others.read):
        refuse_packed(others.refused)
    plan.warnings += told(others.groups)


def everything_kept(source: Source) -> Plan:
    """A plan that packs nothing."""
    plan = Plan()
    for tensor in source.tensors.values():
        _keep(tensor, "as it was", Options(), plan)
    return plan


def _idle_patterns(source: Source, options: Options) -> list[str]:
    """Notes for patterns that name no tensor: what they were to keep may be packed."""
    names = [*source.tensors, *source.aliases]
    return [
        f"--{option} {pattern!r} matches no name"
        for option in ("include", "exclude")
        for pattern in getattr(options, option)
        if not any(fnmatchcase(name, pattern) for name in names)
    ]


def _keep_reason(source: Source, tensor: SourceTensor, options: Options) -> str | None:
    """Why a tensor is kept, by any of its names: a tied table of vectors is one by the other."""
    names = [tensor.name, *(a for a, owner in source.aliases.items() if owner == tensor.name)]
    of = tensor.dtype, tensor.shape
    reasons = [keep_reason(name, *of, options.include, options.exclude) for name in names]
    if options.include and None in reasons and "excluded" not in reasons:
        return None
    return next(filter(None, reasons), None)


def _weight(
    tensor: SourceTensor | PackedTensor, slot: Slot | None
) -> tuple[SourceTensor | PackedTensor, int]:
    """A weight with its split; one that comes packed in another split as floats."""
    if isinstance(tensor, SourceTensor):
        return tensor, slot.param.rows_split if slot else default_split(len(tensor.shape))
    if slot is None or slot.param.rows_split == tensor.split:
        return tensor, tensor.split
    return tensor.dense(), slot.param.rows_split


def _keep(tensor: SourceTensor | PackedTensor, reason: str, options: Options, plan: Plan) -> None:
    """Keep a tensor as it is, or in the dtype wished for floats."""
    plain = tensor.dense() if isinstance(tensor, PackedTensor) else tensor
    wish = KEEP_DTYPES.get(options.keep_dtype or "", plain.dtype)
    if wish != plain.dtype and BY_NAME[plain.dtype].is_float and BY_NAME[plain.dtype].size > 1:
        reason += f", {plain.dtype} to {wish}"
        plain = plain.cast(wish)
    plan.kept[plain.name] = plain
    plan.reasons[plain.name] = reason


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
