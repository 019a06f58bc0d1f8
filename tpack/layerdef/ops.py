"""The closed table of ops: what a FunctionCall may name, and how torch spells it.

What is known of an op stands in its row, in ``op_rows``. ``build``, ``codegen``, ``readback`` and
``capturing`` read it from there, so what runs and what is printed cannot differ. One row adds an
op, and one in ``capturing.aten_rows`` lets ``capture`` find it::

    name(parameter, …)  →  spelling

A parameter reads ``name:kind`` or ``name:kind=default``; ``*`` before a name makes it
keyword-only in the generated source, and ``@`` after it gives torch's name, where that is
another. Kinds:

- ``tensor``: an expression; ``tensor?``: also None; ``tensors``: a Tuple; ``ternary``: the name
  of a TernaryTensor
- ``value``: an expression, a number, or the word inf or -inf
- ``int``, ``float``, ``bool``: a number; an int may be an expression (a size)
- ``ints``: an int, or a Tuple of them; ``sizes``: a Tuple of them; ``window``: an int for all
  dims, or a Tuple with one for each
- ``floats``: a number, or a Tuple of them
- ``layers``: the name of a list of child layers
- ``cache``: a Cache parameter, or the part of one
- ``device``: an expression: the device of that tensor
- ``equation``: dims as letters, such as ``bij,bjk->bik``
- ``dtype``: a word of ``dtypes.BY_NAME``; ``scale``: tensor, row, column or group:N
- ``a|b``: one of these words

A spelling is a function of ``torch``, ``torch.nn.functional`` (``F``) or, without prefix, of
``tpack.nn``; with a leading dot, a method of the first argument; ``[]`` indexes it, and
``[:]`` slices it. In its place may stand an expression of other ops: what a composite lowers to.
An op with none is always lowered to the one on packed bytes.

Traits are words that other rooms ask for:

- ``several``: its results must be unpacked; ``part``: its result is the cache of a layer
- ``broadcasts``: dims of size 1 of an operand are repeated
- ``moves``: it only cuts, joins or repeats what it takes
- ``measures``: it learns the scale of x, compares it or rounds it
- ``product``: sums of products; ``conv``: of a convolution; ``spreads``: of a transposed one
- ``recurrent``: a recurrent network, with a list of weights
- ``norm``: a normalization, whose other tensors belong to it
- ``lookup``: it takes rows of a table
- ``experts``: each x meets one matrix of a stack
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tpack.choices import FormatRow
from tpack.layerdef.nodes import Expression
from tpack.layerdef.op_rows import ROWS, packed

#: Stands for "no default": the argument must be given.
REQUIRED: Any = object()


@dataclass(frozen=True)
class OpParam:
    """One parameter of an op; ``kind`` as in the module's docstring."""

    name: str
    kind: str
    default: Any = REQUIRED
    keyword: bool = False
    torch_name: str = ""

    @property
    def is_tensor(self) -> bool:
        """Whether it takes one tensor."""
        return self.kind in ("tensor", "tensor?", "ternary")


@dataclass(frozen=True)
class Op(FormatRow):
    """One row of the table.

    Attributes:
        name: as in a FunctionCall.
        params: in the order of the spelling.
        spelling: as in the module's docstring; empty if lowering replaces the op.
        doc: what it computes.
        traits: words of the module's docstring.
        expansion: of a composite, in the names of its parameters.
    """

    name: str
    params: tuple[OpParam, ...]
    spelling: str
    doc: str
    traits: frozenset[str] = frozenset()
    expansion: Expression | None = None


_CONSTANTS = {"None": None, "True": True, "False": False}


def _default(text: str, kind: str) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if kind in ("int", "ints", "window"):
        return int(text)
    if kind == "value":
        return float(text) if "." in text else int(text)
    return float(text) if kind == "float" else text


def parse_params(text: str) -> tuple[OpParam, ...]:
    """Parse the parameter column of a row."""
    params = []
    for word in text.split():
        declared, _, default = word.partition("=")
        names, _, kind = declared.partition(":")
        name, _, torch_name = names.removeprefix("*").partition("@")
        value = _default(default, kind) if default else REQUIRED
        params.append(OpParam(name, kind, value, names.startswith("*"), torch_name or name))
    return tuple(params)


def parse_op(
    name: str,
    params: str,
    spelling: str | Expression,
    doc: str,
    traits: str = "",
    since: int = 0,
) -> Op:
    """Parse one row of the table."""
    spelled, expansion = (spelling, None) if isinstance(spelling, str) else ("", spelling)
    words = frozenset(traits.split())
    return Op(name, parse_params(params), spelled, doc, words, expansion, since=since)


#: Every op a FunctionCall may name.
OPS = {row[0]: parse_op(*row) for row in ROWS}


def has_trait(name: str, trait: str) -> bool:
    """Return whether an op has a trait; an operator has none."""
    return name in OPS and trait in OPS[name].traits


def takes_device(name: str) -> bool:
    """Return whether an op makes a tensor on a device that it must be given."""
    return name in OPS and any(param.kind == "device" for param in OPS[name].params)


@dataclass(frozen=True)
class PackedOp(Op):
    """One row of the ops on packed bytes.

    Attributes:
        plain: the op that computes the same from a float weight; empty for ``dequantize``.
        weight: the parameter of ``plain`` that the packed bytes replace.
        rank: number of dims of the weight.
    """

    plain: str = ""
    weight: str = ""
    rank: int = 0

    @property
    def of_stack(self) -> bool:
        """Whether the weight is a stack of matrices, each with rows of its own."""
        return "experts" in OPS[self.plain].traits if self.plain else False


def _parse_packed(name: str, params: str, plain: str, weight: str, rank: int) -> PackedOp:
    parsed = parse_params(f"{params} *layout:t2|t5=t2 *group_size:int=0")
    doc = f"{plain or 'a whole weight'}, of packed bytes"
    return PackedOp(name, parsed, name, doc, plain=plain, weight=weight, rank=rank)


#: Ops on packed weights that ``lower`` puts in place of the ones above; a tree cannot name them.
PACKED_OPS = {row[0]: _parse_packed(*row) for row in packed.ROWS}

#: Operators of BinaryOp with their precedence in Python, and of UnaryOp.
ORDER = dict.fromkeys(("<", "<=", ">", ">="), 1)
COMPARISON = ORDER | {"==": 1, "!=": 1}
BINARY = COMPARISON | {"|": 2, "&": 3}
BINARY |= {"+": 4, "-": 4, "*": 5, "/": 5, "//": 5, "%": 5, "@": 5, "**": 7}
UNARY = {"-": 6, "~": 6}
