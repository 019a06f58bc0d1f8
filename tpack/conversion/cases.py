"""Decide what becomes of each weight, which may depend on the other weights of the source.

In this order: a weight that its model rounds as it runs is rounded by the model's rule; a weight
that is ternary is packed losslessly; any other is rounded by the method that was named. If no
method was named, the other weights decide: beside a ternary weight it is kept bit for bit; if no
weight is ternary, all are taken for masters of BitNet b1.58 and rounded by absmean. A weight that
is recognised as something else is never rounded unless a method was named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from tpack.conversion.plan import Plan
from tpack.errors import InputError, NotTernaryError
from tpack.quantize import Detected, Fit, Weight, detect, quantize, recognise, refuse
from tpack.sources import PackedTensor, SourceTensor
from tpack.sources.packed_layouts import refuse_packed

#: Weights to look at first: a float weight shows in a few rows that it is not ternary.
PROBE = 1 << 16


@dataclass(frozen=True)
class Left:
    """A weight that is not packed, and why.

    Attributes:
        kind: a few words, for counting: ``not ternary``, ``nearly ternary``, ``two scales``, …
        text: completes "tensor X …", with the numbers; empty if the kind is enough.
        advice: what to do.
        refused: whether it forbids an output.
        silent: whether it is kept without a warning, as routers and output heads are.
    """

    kind: str
    text: str = ""
    advice: str = ""
    refused: bool = False
    silent: bool = False


class Cases:
    """Decides about one weight after the other, in the order of a plan or of a part of it.

    Raises:
        NotTernaryError: another system packed weights, and no other weight is ternary.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.options = plan.options
        self._seen: dict[str, bool] = {}  # name → whether it is ternary, not by chance
        self._early: dict[str, Detected] = {}  # weights that were read before their turn
        if plan.others.refused and not self.of_ternary_source:
            refuse_packed(plan.others.refused)

    def of(self, name: str) -> tuple[Fit | Left, Detected]:
        """Fit a weight that does not come packed, or say why it is left.

        Raises:
            InputError: the weight has NaN or infinity.
        """
        tensor, split = self.plan.weights[name]
        assert isinstance(tensor, SourceTensor)
        options = self.options
        weight = as_weight(tensor, split)
        rule = self.plan.rounded.get(name)
        scale = options.scale if rule is None else rule.scale
        early = self._early.pop(name, None)
        detected = early if early is not None and scale == "auto" else detect(weight, scale)
        self._seen[name] = rule is not None or _is_ternary(tensor, detected)
        if rule is not None:
            if options.exact:
                text = f"is rounded by its model as it runs, by {rule.method} per {rule.scale}"
                return Left("rounded by the model", text, refused=True), detected
            return quantize(weight, rule.method, rule.scale, detected), detected
        if detected.fit is not None and not (options.exact and detected.fit.method != "exact"):
            return detected.fit, detected
        return self._not_ternary(name, tensor, weight, detected), detected

    def _not_ternary(
        self, name: str, tensor: SourceTensor, weight: Weight, detected: Detected
    ) -> Fit | Left:
        options = self.options
        if reason := self.plan.exact_only.get(name):
            return Left(reason, silent=True)
        if not options.exact and options.quantize != "auto":
            return quantize(weight, options.quantize, options.scale, detected)
        found = None if tensor.coded else recognise(weight, detected)
        asked = bool(options.include)
        if tensor.coded:
            left = Left(tensor.coded, f"is {tensor.coded}, and not ternary")
        elif found is not None:
            left = Left(found.kind, found.text, found.advice)
        elif tensor.dtype == "int8":
            left = Left("int8, not ternary")
        else:
            left = Left("not ternary")
        if options.exact:
            return replace(left, refused=True)
        if self.plan.declared and self.of_ternary_source:
            text = left.text or "is not ternary"
            advice = f"Its LayerDef declares a TernaryTensor: declare it as a Tensor. {left.advice}"
            return replace(left, text=text, advice=advice.rstrip(), refused=True)
        if self.of_ternary_source or (tensor.dtype == "int8" and not asked):
            return left
        if found is not None or (tensor.coded and not asked):
            return replace(left, refused=True)
        return quantize(weight, "absmean", options.scale, detected)

    @cached_property
    def of_ternary_source(self) -> bool:
        """Whether the source has a weight that is ternary, or that its model rounds by any rule."""
        rounds = self.plan.rounded or self.plan.own_rules
        return bool(rounds) or any(self._ternary_weights())

    def _ternary_weights(self) -> Iterator[bool]:
        """Yield whether each weight is ternary: those seen first, the others read on demand."""
        yield from self._seen.values()
        for name, (tensor, split) in [*self.plan.weights.items(), *self.plan.aside.items()]:
            if isinstance(tensor, PackedTensor):
                yield True
            elif name not in self._seen and name not in self.plan.exact_only:
                try:
                    self._seen[name] = self._ternary_if_read(name, tensor, split)
                except InputError:  # NaN: an error when its turn comes, unless it is excluded
                    self._seen[name] = False
                yield self._seen[name]

    def _ternary_if_read(self, name: str, tensor: SourceTensor, split: int) -> bool:
        """Return whether a weight is ternary; its first rows usually show that it is not."""
        weight = as_weight(tensor, split)
        rows = max(1, PROBE // max(weight.columns, 1))
        if rows < weight.rows:
            first = Weight((rows, weight.columns), 1, weight.dtype, weight.load)
            if detect(first).fit is None:
                return False
        self._early[name] = detect(weight)
        return _is_ternary(tensor, self._early[name])


def as_weight(tensor: SourceTensor, split: int) -> Weight:
    """Return a tensor as the weight that an exact packing gives back."""
    return tensor.weight(split, tensor.dtype_unpacked("exact"))


def _is_ternary(tensor: SourceTensor, detected: Detected) -> bool:
    """Return whether a weight is ternary, and not by chance; int8 trits never are by chance."""
    meant = tensor.dtype == "int8" and not detected.zero
    return detected.fit is not None and (meant or not detected.by_chance)


def first_offence(plan: Plan, name: str) -> NotTernaryError:
    """Return the error that names the first value of a weight that no scale explains."""
    tensor, split = plan.weights[name]
    assert isinstance(tensor, SourceTensor)
    weight = as_weight(tensor, split)
    return refuse(weight, detect(weight, plan.options.scale))
