"""Options as records: one field describes an option for the command line, checks and reports.

A field has the values that an option takes and its help text. ``tpack.cli.options`` makes the
option of a command from it, ``check`` refuses other values, and ``to_dict`` returns the options
that the output depends on. To add an option of ``convert``, add a field here and a keyword there;
an option that says how a source is read, of ``Reading``, is a keyword of ``verify`` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from tpack.choices import I2S_ORDERS, MEANINGS, QUANTIZERS, Means, Table
from tpack.codec import GRANULARITIES, LAYOUTS, Scale
from tpack.dtypes import KEEP_DTYPES
from tpack.errors import UsageError, unknown
from tpack.wording import spell_name

#: Called with the name of a phase, the bytes done and the bytes in all.
Progress = Callable[[str, int, int], None]


def option(
    default: Any,
    text: str,
    *,
    among: Table = MappingProxyType({}),
    read: Callable[[Any], object] | None = None,
    form: str = "",
    letter: str = "",
    decides: bool = True,
) -> Any:
    """Describe an option as the field of a record.

    Args:
        default: the value if it is not given; ``False`` makes it a flag, ``True`` one that turns
            it off (``--no-capture``), ``()`` a list, and ``MISSING`` of dataclasses an option that
            must be given.
        text: its help text.
        among: the names that it takes besides the default.
        read: reads a value or raises UsageError, for values with a part to fill in: ``group:N``.
        form: how ``--help`` shows a value that is not from a table.
        letter: the letter of its short form on the command line.
        decides: whether the output depends on it; False if it only concerns this run.
    """
    about = {"text": text, "among": among, "read": read, "form": form, "letter": letter}
    return field(default=default, compare=decides, metadata=about)


def names(each: Field[Any]) -> tuple[str, ...]:
    """Return the names that an option takes, the default first; empty if it has no table."""
    table: Table = each.metadata.get("among", {})
    default = () if each.default in (None, MISSING) else (each.default,)
    return tuple(dict.fromkeys((*default, *table))) if table else ()


def check(record: Any) -> None:
    """Check that the options of a record have values that they take.

    Raises:
        UsageError: an option has another value; with the names that it takes.
    """
    for each in fields(record):
        value, known, read = getattr(record, each.name), names(each), each.metadata.get("read")
        if value == each.default:
            continue
        if read is not None:
            try:
                read(value)
            except UsageError:
                raise unknown(spell_name(each.name), value, known) from None
        elif known and value not in known:
            raise unknown(spell_name(each.name), value, known)
        if each.default == () and isinstance(value, str):  # its letters would be a list
            raise UsageError(f"{each.name} is {value!r}, expected a list: [{value!r}].")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read: the options of every command that opens one."""

    key: str | None = option(
        None, "Which nested dict of weights to take, such as a.b.", form="NAME"
    )
    i2s_order: str | None = option(
        None, "Order of weights in I2_S, which no file records.", among=I2S_ORDERS
    )

    def __post_init__(self) -> None:
        check(self)

    def chosen(self) -> dict[str, Any]:
        """Return the options of reading that have not their defaults."""
        found = ((each, getattr(self, each.name)) for each in fields(Reading))
        return {each.name: value for each, value in found if value != each.default}


@dataclass(frozen=True, kw_only=True)
class Options(Reading):
    """The options of ``convert``."""

    exact: bool = option(False, "Refuse what is not already ternary.")
    quantize: str = option(
        "auto",
        "How to round what is not ternary; auto keeps it beside ternary weights, else absmean.",
        among=QUANTIZERS,
    )
    scale: str = option("auto", "Values that share a scale.", among=GRANULARITIES, read=Scale.parse)
    include: Sequence[str] = option((), "Pack these tensors only.", form="GLOB")
    exclude: Sequence[str] = option((), "Keep these tensors.", form="GLOB")
    keep_dtype: str | None = option(None, "Dtype of floats that are not packed.", among=KEEP_DTYPES)
    layout: str = option(
        "t2",
        f"{' or '.join(f'{8 / row.per_byte:g}' for row in LAYOUTS.values())} bits per weight.",
        among=LAYOUTS,
    )
    scale_means: Means | None = option(
        None,
        "What scales beside int8 or uint8 weights do, if the source does not record it.",
        among=MEANINGS,
    )
    capture: bool = option(
        True, "Leave out the forward that the model of a folder has in transformers."
    )
    dry_run: bool = option(False, "Report, and write nothing.", decides=False)
    resume: bool = option(False, "Continue an interrupted conversion of a folder.", decides=False)
    force: bool = option(False, "Replace an existing output.", letter="f", decides=False)
    progress: Progress = field(default=lambda *_: None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the options that the output depends on, as plain JSON data."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.compare}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
        }
