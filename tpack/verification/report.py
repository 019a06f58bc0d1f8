"""What verification found: checks of each tensor, and a sentence for each that does not hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tpack.grouping import groups, label

#: What a tensor equals that unpacks to the values of its source, or was kept bit for bit.
SOURCE = "the source"
#: An element as it is shown: text where Python has no such number.
Value = float | int | complex | str


@dataclass(frozen=True)
class Difference:
    """Where a tensor first differs from what it was compared with, and how much of it does.

    Attributes:
        what: differs: ``values``, ``trits`` or ``scales``.
        index: of the first, in the logical shape; of a scale, in the shape of the scale.
        stored: what the checkpoint has there.
        expected: what the source has there, or what the method or the cast makes of it.
        source: what the source has, where ``expected`` was made of it.
        count: how many differ.
        of: how many there are.
    """

    what: str
    index: tuple[int, ...]
    stored: Value
    expected: Value
    source: Value | None
    count: int
    of: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; a number that JSON has not is text."""
        shown = {key: _plain(getattr(self, key)) for key in ("stored", "expected", "source")}
        return {**self.__dict__, **shown, "index": list(self.index)}


def _plain(value: Value | None) -> Any:
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


@dataclass(frozen=True)
class TensorVerification:
    """The checks of one tensor.

    Attributes:
        name: of the tensor.
        checks: name of the check → whether it held.
        equals: what of the source it was found to equal: ``the source``, ``absmean of the
            source`` (or another method), ``the source cast to float16`` (or another dtype);
            empty if nothing of it, or if there is no source to compare with.
        difference: where it first differs from that.
    """

    name: str
    checks: Mapping[str, bool]
    equals: str = ""
    difference: Difference | None = None

    @property
    def ok(self) -> bool:
        """Whether all checks held."""
        return all(self.checks.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; what a source tells only where there was one."""
        told: dict[str, Any] = {"name": self.name, "ok": self.ok, "checks": dict(self.checks)}
        if self.equals:
            told["equals"] = self.equals
        if self.difference is not None:
            told["difference"] = self.difference.to_dict()
        return told


@dataclass
class VerificationReport:
    """The result of ``verify``.

    Attributes:
        file: the checkpoint.
        tensors: one row each.
        problems: one sentence for each check that did not hold; tensors of repeated layers, of
            which the same is to be said, share one.
        warnings: what the source holds that was not compared, or may not be what it seems.
        notes: what else was done to read the source.
    """

    file: str
    tensors: list[TensorVerification] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, place: str, part: VerificationReport) -> None:
        """Add what was found in a sub-folder, with its name before everything."""
        self.tensors += [replace(row, name=f"{place}/{row.name}") for row in part.tensors]
        self.problems += [f"{place}: {problem}" for problem in part.problems]
        self.warnings += [f"{place}: {warning}" for warning in part.warnings]
        self.notes += [f"{place}: {note}" for note in part.notes]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    @property
    def lossless(self) -> bool:
        """Whether every tensor was found to equal the source, and none a method or cast of it."""
        return self.ok and self.equals.get(SOURCE) == len(self.tensors)

    @property
    def equals(self) -> Mapping[str, int]:
        """What of the source is equalled by how many tensors, ``the source`` itself last."""
        found = Counter(row.equals for row in self.tensors if row.equals)
        return dict(sorted(found.items(), key=lambda pair: (pair[0] == SOURCE, pair[0])))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; what a source tells only where there was one."""
        told = {"equals": dict(self.equals), "warnings": self.warnings, "notes": self.notes}
        return {
            "ok": self.ok,
            "file": self.file,
            "tensors": [row.to_dict() for row in self.tensors],
            "problems": self.problems,
        } | {key: value for key, value in told.items() if value}


@dataclass(frozen=True)
class _Failure:
    """A check that did not hold, and its sentence; equal ones of several tensors are joined.

    Attributes:
        part: what the name of the tensor is followed by: ``_packed`` or ``_scale``, if anything.
        text: goes on after the name.
        located: whether the difference of the tensor says where.
    """

    part: str
    text: str
    located: bool


@dataclass
class Checks:
    """The checks of one tensor while they are made.

    Attributes:
        held: name of the check → whether it held.
        failed: what is to be said of those that did not.
        maker: what the expected values come from: ``the source has``, ``absmean gives``.
    """

    name: str
    held: dict[str, bool] = field(default_factory=dict)
    failed: list[_Failure] = field(default_factory=list)
    equals: str = ""
    difference: Difference | None = None
    maker: str = "the source has"

    def check(self, name: str, holds: bool, text: str, part: str = "") -> bool:
        """Note whether a check holds, and the sentence for the tensor if it does not."""
        self.held[name] = holds
        if not holds:
            self.failed.append(_Failure(part, text, located=False))
        return holds

    def compare(self, name: str, equals: str, found: Difference | None, text: str) -> None:
        """Note what the tensor equals, or where it first differs from that."""
        self.held[name] = found is None
        if found is None:
            self.equals = equals
        else:
            self.difference = found
            self.failed.append(_Failure("", text, located=True))

    def row(self) -> TensorVerification:
        """Return the row of the report."""
        return TensorVerification(self.name, self.held, self.equals, self.difference)


def problems(checks: Sequence[Checks]) -> list[str]:
    """Return a sentence for each check that did not hold, one for all repeated layers."""
    rows = {row.name: row for row in checks}
    failed: dict[_Failure, list[str]] = {}
    for row in checks:
        for failure in row.failed:
            failed.setdefault(failure, []).append(row.name)
    found = []
    for failure, names in failed.items():
        for group in groups((name, None) for name in names):
            told = f"{subject(group, failure.part)} {failure.text}"
            if failure.located:
                told += _where([rows[name] for name in group])
            found.append(f"{told}.")
    return found


def subject(names: Sequence[str], part: str = "") -> str:
    """Return the subject of a sentence: a tensor, or those of repeated layers."""
    told = label([f"{name}{part}" for name in names])
    return f"tensor {told!r}" if len(names) == 1 else f"each of the tensors {told!r}"


def _where(rows: Sequence[Checks]) -> str:
    """Say where tensors first differ, and in how many values."""
    found = [(row, row.difference) for row in rows if row.difference is not None]
    row, first = found[0]
    place = f"at index {first.index}"
    if first.what == "scales":
        place += " of its scale"
    if len(rows) > 1:
        place = f"first {place} of {row.name!r}"
    kind = "the trit " if first.what == "trits" else ""
    given = "" if first.source in (None, first.expected) else f" for {first.source}"
    count, total = sum(d.count for _, d in found), sum(d.of for _, d in found)
    return (
        f": {place} it has {kind}{first.stored}, {row.maker} {first.expected}{given}; {count} of "
        f"{total} {first.what} differ"
    )
