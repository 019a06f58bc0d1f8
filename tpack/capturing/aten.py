"""The closed table of ATen ops: which op of LayerDef each overload is, and how arguments map.

One row adds the overloads of an op of ``layerdef.ops``; an op that LayerDef does not have takes
a row there too. Arguments are named as in the schemas of the overloads:

- ``name`` is taken under its name, ``name>other`` under another one
- ``name=value`` must have this value, and is left out
- ``name:=value`` is no argument of ATen: the op gets this word or bool, which the overload means
- ``name~`` is left out: it does not change the result
- ``name&`` before any of these: the result may be this tensor or a view of it, though the
  schema does not show that

An argument that a row does not name must have its default. The op is a row of
``layerdef.ops``, an operator, or a word of ``PSEUDO``. The last column names results that no
line of the source names: a noun, or ``KEEPS``; of several rows of an op, the first counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tpack.capturing.aten_rows import ROWS

#: Words for ops of ATen that LayerDef does not have: the module of ``capturing`` that spells one
#: out, and what becomes of it.
PSEUDO = {
    "same": ("simplification", "unchanged"),
    "addmm": ("spellings", "`x @ y + bias`"),
    "addcmul": ("spellings", "`x + value * y * z`"),
    "addcdiv": ("spellings", "`x + value * y / z`"),
    "movedim": ("spellings", "`permute`"),
    "hstack": ("spellings", "`cat`"),
    "vstack": ("spellings", "`cat`"),
    "var_mean": ("spellings", "`var`, `mean`"),
    "std_mean": ("spellings", "`std`, `mean`"),
    "aminmax": ("spellings", "`amin`, `amax`"),
    "copy": ("simplification", "unchanged, in the dtype and shape of what it is copied into"),
    "as": ("simplification", "`reshape` or `expand`"),
    "t": ("simplification", "`transpose`"),
    "reciprocal": ("simplification", "`1 / x`"),
    "max": ("simplification", "`amax`, `argmax`"),
    "min": ("simplification", "`amin`, `argmin`"),
    "lstm_cell": ("simplification", "its gates, written out"),
    "gru_cell": ("simplification", "its gates, written out"),
    "rnn_tanh_cell": ("simplification", "`tanh(x @ w_ih + hx @ w_hh)`"),
    "rnn_relu_cell": ("simplification", "`relu(x @ w_ih + hx @ w_hh)`"),
    "neg": ("expressions", "`-x`"),
    "diff": ("formulas", "a mask or positions"),
}


@dataclass(frozen=True)
class Row:
    """One row, taken apart.

    Attributes:
        op: of LayerDef, an operator, or a word of ``PSEUDO``.
        taken: aten argument → argument of the op.
        fixed: aten argument → the only value it may have, as text.
        ignored: aten arguments that do not change the result.
        shared: aten arguments that the result may share memory with, though the schema does not
            show it.
        given: argument of the op → what the overload means.
        naming: a noun for the result, ``KEEPS`` or nothing.
    """

    op: str
    taken: dict[str, str]
    fixed: dict[str, str]
    ignored: frozenset[str]
    shared: frozenset[str] = frozenset()
    naming: str = ""
    given: Mapping[str, str | bool] = field(default_factory=dict)


def parse_row(op: str, arguments: str, naming: str = "") -> Row:
    """Parse one row of the table."""
    taken: dict[str, str] = {}
    fixed: dict[str, str] = {}
    given: dict[str, str | bool] = {}
    ignored = set()
    shared = {word.partition("&")[0] for word in arguments.split() if "&" in word}
    for word in arguments.replace("&", "").split():
        if word.endswith("~"):
            ignored.add(word[:-1])
        elif ":=" in word:
            name, _, value = word.partition(":=")
            given[name] = value == "True" or value
        elif "=" in word:
            name, _, value = word.partition("=")
            fixed[name] = value
        else:
            name, _, other = word.partition(">")
            taken[name] = other or name
    return Row(op, taken, fixed, frozenset(ignored), frozenset(shared), naming, given)


#: ATen overloads → rows.
ATEN = {name: parse_row(*row) for names, *row in ROWS for name in names.split()}


def naming(op: str) -> str:
    """Return how results of an op are named: a noun, ``KEEPS`` or nothing."""
    return next((row.naming for row in ATEN.values() if row.op == op), "")


def functional(name: str) -> str:
    """Return the overload without change in place: ``add.Tensor`` for ``add_.Tensor``."""
    base, _, overload = name.partition(".")
    plain = f"{base.removesuffix('_')}.{overload}"
    return plain if name not in ATEN and plain in ATEN else name


#: Calls that check or mark something and compute nothing.
CHECKS = frozenset(
    """
    _assert_tensor_metadata.default _assert_async.msg _assert_scalar.default
    sym_constrain_range.default sym_constrain_range_for_size.default
    """.split()  # noqa: SIM905  # words read better than quoted strings
)
