"""Warnings and errors about the weights that a conversion did not pack losslessly."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from tpack.choices import QUANTIZERS
from tpack.conversion.cases import Left, first_offence
from tpack.conversion.packing import Batch
from tpack.conversion.plan import Plan
from tpack.errors import NotTernaryError
from tpack.grouping import Place, groups, label
from tpack.sources import SourceTensor
from tpack.text import plural
from tpack.wording import spell

#: Groups of names in one warning; ``-v`` and JSON have them all.
MOST = 8


def warnings(batches: Sequence[Batch], plan: Plan) -> list[str]:
    """Return the warnings of a conversion, one for each kind of problem."""
    packed = {name: item for batch in batches for name, item in batch.packed.items()}
    left = {name: why for batch in batches for name, why in batch.left.items() if not why.silent}
    found = [_left(left, len(packed) + len(left), plan)] if left else []
    unasked = plan.options.quantize == "auto"
    lossy = {
        name: item.entry
        for name, item in packed.items()
        if unasked
        and item.entry.method != "exact"
        and name not in plan.rounded
        and isinstance(plan.weights[name][0], SourceTensor)  # another came packed
    }
    if rounded := {name: e for name, e in lossy.items() if e.method == "absmean"}:
        errors = [entry.relative_error or 0.0 for entry in rounded.values()]
        low, high = f"{min(errors):.2f}", f"{max(errors):.2f}"
        were = "would be" if plan.options.dry_run else "was" if len(rounded) == 1 else "were"
        found.append(
            f"no weight of the source is ternary: {plural(len(rounded), 'weight')} "
            f"{were} rounded by absmean, with relative error "
            f"{low if low == high else f'{low}–{high}'}. That is right only for masters of BitNet "
            "b1.58, which round the same way as they run. For other models choose "
            f"{spell(quantize=tuple(name for name in QUANTIZERS if name != 'absmean'))}, or "
            f"{spell(scale=('row', 'group:128'))}; {spell(exact=True)} refuses to round."
        )
    if rescaled := sorted(set(lossy) - set(rounded)):
        found.append(
            f"{_of(rescaled)} ternary in float64, with a scale that float32 cannot hold: the "
            "scale was rounded, the trits were not."
        )
    if zero := [name for batch in batches for name in batch.zero]:
        found.append(f"{_of(zero)} all zero. Is the source complete?")
    return found


def _left(left: Mapping[str, Left], of: int, plan: Plan) -> str:
    """Return the warning about weights that were kept."""
    wish = plan.options.keep_dtype
    them = "it" if len(left) == 1 else "them"
    how = "kept bit for bit" if wish is None else f"not packed, but cast ({spell(keep_dtype=wish)})"
    lines = [
        f"{len(left)} of {plural(of, 'weight')} "
        f"{'is' if len(left) == 1 else 'are'} not ternary and {how}: {_names(left)}."
    ]
    lines += _recognised(left)
    lines.append(
        f"{_rounding()} rounds {them}, {_excludes(left, plan, MOST)} keeps {them} without this "
        "warning."
    )
    return " ".join(lines)


def _recognised(left: Mapping[str, Left]) -> list[str]:
    """Return a sentence for each recognised kind of weight, about the first of the kind."""
    kinds: dict[str, list[str]] = {}
    for name, why in left.items():
        if why.text:
            kinds.setdefault(why.kind, []).append(name)
    told = []
    for kind, names in kinds.items():
        more = f" ({len(names)} like it: {kind})" if len(names) > 1 else ""
        why = left[names[0]]
        told.append(f"{names[0]} {why.text.rstrip('.')}{more}.{' ' * bool(why.advice)}{why.advice}")
    return told


def check_refused(batches: Sequence[Batch], plan: Plan) -> None:
    """Check that no weight forbids an output, and that at least one weight was packed.

    Raises:
        NotTernaryError: with the names of all weights concerned.
    """
    if refused := {name: why for batch in batches for name, why in batch.refused.items()}:
        raise _refusal(refused, plan)
    if plan.weights and not any(batch.packed for batch in batches):
        left = {name: why for batch in batches for name, why in batch.left.items()}
        raise _nothing_packed(left, plan)


def _refusal(refused: Mapping[str, Left], plan: Plan) -> NotTernaryError:
    """Return the error about all weights that forbid an output."""
    first = next(iter(refused))
    advice = f"Keep {'it' if len(refused) == 1 else 'them'} with {_excludes(refused, plan)}"
    if plan.options.exact:
        error = first_offence(plan, first)
        value, index = error.value, error.index
        if len(refused) == 1 and not refused[first].text:
            return NotTernaryError(
                f"{error.message} {advice}, or convert without {spell(exact=True)}."
                f"{plan.say_own_rules()}",
                tensor=first, index=index, value=value,
            )  # fmt: skip
        detail = " ".join(_recognised(refused)) or f"The first, {first}, {error.message}"
        advice += f", or convert without {spell(exact=True)}"
    else:
        value = index = None
        detail = " ".join(_recognised(refused))
        advice += f", or round with {_rounding()}"
    if len(refused) == 1 and refused[first].text:
        why = refused[first]
        return NotTernaryError(
            f"{why.text.rstrip('.')}. {why.advice} {advice}.".replace("  ", " "),
            tensor=first,
            index=index,
            value=value,
        )
    count = len(refused)
    message = (
        f"{count} of {plural(len(plan.weights), 'weight')} {'is' if count == 1 else 'are'} not "
        f"ternary: {_names(refused, most=None)}. {detail} {advice}.{plan.say_own_rules()}"
    )
    return NotTernaryError(message, index=index, value=value, tensors=tuple(refused))


def _nothing_packed(left: Mapping[str, Left], plan: Plan) -> NotTernaryError:
    """Return the error that no weight is ternary, and none may be rounded unasked."""
    kinds = ", ".join(dict.fromkeys(why.kind for why in left.values()))
    sentences = [
        f"holds no ternary weight among those to pack: {_names(left)} ({kinds}).",
        *_recognised(left),
        f"Round with {_rounding()}, or name others with {spell(include=[...])}."
        f"{plan.say_own_rules()}",
    ]
    return NotTernaryError(" ".join(sentences), tensors=tuple(left))


def _excludes(names: Collection[str], plan: Plan, most: int | None = None) -> str:
    """Spell the option that keeps exactly these weights; repeated layers share a pattern.

    Args:
        most: patterns; of more, only the option is spelled.
    """
    found = []
    for group in groups((name, None) for name in names):
        pattern = re.sub(r"([\[?])", r"[\1]", Place.of(group[0]).role)
        matched = {name for name in plan.weights if fnmatchcase(name, pattern)}
        if matched <= set(names):
            found.append(pattern)
        else:
            found += [re.sub(r"([*\[?])", r"[\1]", name) for name in group]
    return spell(exclude=found if most is None or len(found) <= most else [...])


def _rounding() -> str:
    """Spell the option that rounds weights, with every quantizer."""
    return spell(quantize=tuple(QUANTIZERS))


def _names(names: Iterable[str], most: int | None = MOST) -> str:
    """List names, those of repeated layers as one."""
    found = [label(group) for group in groups((name, None) for name in names)]
    more = f" and {len(found) - MOST} more" if most is not None and len(found) > most else ""
    return ", ".join(found[:most]) + more


def _of(names: Sequence[str]) -> str:
    """Return ``2 weights (a, b) are``, the beginning of a sentence."""
    verb = "is" if len(names) == 1 else "are"
    return f"{plural(len(names), 'weight')} ({_names(names)}) {verb}"
