"""The nodes of a LayerDef: plain frozen data, no behaviour.

::

    Program    = LayerDef+ , root
    LayerDef   = name, Param*, Statement*
    Statement  = Assignment | Unpack | Return | Unspecified
    Expression = Identifier | Literal | Tuple | Dict | UnaryOp | BinaryOp | FunctionCall | LayerCall

Nodes may be built from lists; they store tuples, so they are hashable and compare by value.
A constructor that makes them writes to ``vars(self)``, since the fields of a node are frozen.
Building one checks nothing: ``validate`` does, with the path of the offending node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tpack.codec import LAYOUTS
from tpack.codec.shapes import Scale, default_split

#: Arguments of a built-in layer or a constant: name → number, bool, tuple of numbers or word.
Arg = bool | int | float | str | tuple[int | float, ...]
#: The shape of a tensor as readers see it, with numbers, and names for sizes that are free.
Sizes = tuple[int | str, ...]


def _pairs(items: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    pairs = items.items() if isinstance(items, Mapping) else items
    return tuple((name, value) for name, value in pairs)


@dataclass(frozen=True)
class Identifier:
    """A name: an input, a stored tensor of the layer, or a value assigned before.

    A dotted name is a tensor that a child stores, such as ``embed.weight``.
    """

    name: str


@dataclass(frozen=True)
class Literal:
    """A finite number, a bool, None, or a word that the row of its op lists."""

    value: bool | int | float | str | None


@dataclass(frozen=True)
class Tuple:
    """Several expressions: the tensors of ``cat``, the sizes of ``reshape``, several results."""

    items: tuple[Expression, ...]

    def __init__(self, items: Sequence[Expression]) -> None:
        vars(self).update(items=tuple(items))


@dataclass(frozen=True)
class Dict:
    """Results under names, ``{"key": value}``: a Return may give them instead of a Tuple."""

    items: tuple[tuple[str, Expression], ...]

    def __init__(self, items: Mapping[str, Expression] | Sequence[tuple[str, Expression]]) -> None:
        vars(self).update(items=_pairs(items))


@dataclass(frozen=True)
class UnaryOp:
    """``-operand`` or ``~operand``."""

    operator: str
    operand: Expression


@dataclass(frozen=True)
class BinaryOp:
    """``left operator right`` for the operators of ``ops.BINARY``."""

    operator: str
    left: Expression
    right: Expression


@dataclass(frozen=True)
class FunctionCall:
    """An op of the closed table ``ops.OPS``, with the arguments its row names."""

    function: str
    args: tuple[Expression, ...]
    kwargs: tuple[tuple[str, Expression], ...] = ()

    def __init__(
        self,
        function: str,
        args: Sequence[Expression] = (),
        kwargs: Mapping[str, Expression] | Sequence[tuple[str, Expression]] = (),
    ) -> None:
        vars(self).update(function=function, args=tuple(args), kwargs=_pairs(kwargs))


@dataclass(frozen=True)
class LayerCall:
    """A call of a child layer. A repeated child is applied n times: its first argument is the
    result of the one before, the others are the same each time, except that of a cache the i-th
    copy takes the part of layer i. A cache may be left out: then there are no earlier tokens.

    The result of one that returns several values must be unpacked.
    """

    layer: str
    args: tuple[Expression, ...]

    def __init__(self, layer: str, args: Sequence[Expression] = ()) -> None:
        vars(self).update(layer=layer, args=tuple(args))


#: A computation of a value.
Expression = Identifier | Literal | Tuple | Dict | UnaryOp | BinaryOp | FunctionCall | LayerCall


@dataclass(frozen=True)
class Assignment:
    """``target = value``. A target may be assigned again; it must not be a parameter.

    ``sizes`` is the shape of the value where it is known; nothing is computed from it.
    """

    target: str
    value: Expression
    sizes: Sizes | None = None

    def __init__(self, target: str, value: Expression, sizes: Sequence[Any] | None = None) -> None:
        vars(self).update(target=target, value=value, sizes=None if sizes is None else tuple(sizes))


@dataclass(frozen=True)
class Unpack:
    """``first, second = value`` for a call with several results; ``_`` drops one.

    ``sizes`` are the shapes of the results where they are known.
    """

    targets: tuple[str, ...]
    value: Expression
    sizes: tuple[Sizes | None, ...] | None = None

    def __init__(
        self,
        targets: Sequence[str],
        value: Expression,
        sizes: Sequence[Sequence[Any] | None] | None = None,
    ) -> None:
        vars(self).update(targets=tuple(targets), value=value, sizes=_each(sizes))


@dataclass(frozen=True)
class Return:
    """``return value``, the last statement; a Tuple or Dict returns several values.

    ``sizes`` are the shapes of the tensors in it where they are known, in order.
    """

    value: Expression
    sizes: tuple[Sizes | None, ...] | None = None

    def __init__(
        self, value: Expression, sizes: Sequence[Sequence[Any] | None] | None = None
    ) -> None:
        vars(self).update(value=value, sizes=_each(sizes))


def _each(sizes: Sequence[Sequence[Any] | None] | None) -> tuple[Sizes | None, ...] | None:
    return None if sizes is None else tuple(None if one is None else tuple(one) for one in sizes)


@dataclass(frozen=True)
class Unspecified:
    """The only statement of a layer whose computation is not known: a state dict names its
    tensors, not the order of calls. Its ``forward`` raises NotImplementedError.
    """


#: Why a layer has no forward, and what to do. Generated source says it too, whoever generates it.
NO_FORWARD = (
    "a state dict does not record the order of calls",
    "convert the module with example_args",
)

#: One step of a body.
Statement = Assignment | Unpack | Return | Unspecified


@dataclass(frozen=True)
class Param:
    """A parameter of a layer.

    Args:
        name: identifier; for a Layer also a decimal number, a position in a list of layers, or
            a dotted path through lists and dicts of layers, such as ``blocks.0``.
        param_type: ``TernaryTensor`` (packed weight), ``Tensor`` without shape (an argument
            of forward) or with shape (a stored float parameter), ``Buffer`` (stored, not
            trained), ``Constant`` (computed when the layer is made, in no file), ``Cache`` (an
            argument of forward that may be left out: keys and values of earlier tokens) or
            ``Layer`` (a child).
        shape: logical shape of what is stored.
        dtype: of the stored tensor; for a TernaryTensor, of its scale.
        scale: TernaryTensor: ``tensor``, ``row``, ``column`` or ``group:N``.
        layout: TernaryTensor: ``t2`` or ``t5``.
        split: TernaryTensor: leading dims that index rows; None for 1 (0 for one dimension).
        layer: Layer: the LayerDef of the program, or the built-in layer, that it is.
        repeat: Layer: how many copies, as a list; None for a single layer.
        args: Layer: arguments of a built-in layer; Constant: of its formula.
        formula: Constant: a row of ``constants.CONSTANTS``.
        sizes: an argument of forward: its shape, where it is known.
    """

    name: str
    param_type: str
    shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    scale: str = "tensor"
    layout: str = "t2"
    split: int | None = None
    layer: str | None = None
    repeat: int | None = None
    args: tuple[tuple[str, Arg], ...] = ()
    formula: str | None = None
    sizes: Sizes | None = None

    def __init__(
        self,
        name: str,
        param_type: str,
        shape: Sequence[int] | None = None,
        *,
        dtype: str = "float32",
        scale: str = "tensor",
        layout: str = "t2",
        split: int | None = None,
        layer: str | None = None,
        repeat: int | None = None,
        args: Mapping[str, Any] | Sequence[tuple[str, Any]] = (),
        formula: str | None = None,
        sizes: Sequence[Any] | None = None,
    ) -> None:
        frozen = (
            (key, tuple(value) if isinstance(value, list) else value) for key, value in _pairs(args)
        )
        vars(self).update(
            name=name,
            param_type=param_type,
            shape=None if shape is None else tuple(shape),
            dtype=dtype,
            scale=scale,
            layout=layout,
            split=split,
            layer=layer,
            repeat=repeat,
            args=tuple(sorted(frozen)),
            formula=formula,
            sizes=None if sizes is None else tuple(sizes),
        )

    @property
    def is_input(self) -> bool:
        """Whether it is an argument of forward."""
        return self.is_cache or (self.param_type == "Tensor" and self.shape is None)

    @property
    def is_cache(self) -> bool:
        """Whether it is the cache of keys and values that forward takes."""
        return self.param_type == "Cache"

    @property
    def is_stored(self) -> bool:
        """Whether the layer itself stores tensors for it."""
        return self.param_type in ("TernaryTensor", "Tensor", "Buffer") and self.shape is not None

    @property
    def rows_split(self) -> int:
        """``split`` with its default filled in."""
        return default_split(len(self.shape or ())) if self.split is None else self.split

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape of the scale of a TernaryTensor."""
        return Scale.parse(self.scale).shape(self.shape or (), self.rows_split)

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape of the packed rows of a TernaryTensor."""
        shape, split = self.shape or (), self.rows_split
        return (*shape[:split], LAYOUTS[self.layout].bytes_for(math.prod(shape[split:])))


@dataclass(frozen=True)
class LayerDef:
    """A layer: its parameters and how ``forward`` computes.

    An empty body means the natural affine map: a weight ``(in, out)`` gives ``x @ W``, a
    vector after it is added, several matrices are applied in order.

    Example:
        >>> layer = LayerDef("Affine", [Param("weight", "TernaryTensor", [4, 2])])
        >>> layer.to_dict()
        {'name': 'Affine', 'params': [{'name': 'weight', 'param_type': 'TernaryTensor', \
'shape': [4, 2]}], 'body': []}
        >>> LayerDef.from_dict(layer.to_dict()) == layer
        True
    """

    name: str
    params: tuple[Param, ...]
    body: tuple[Statement, ...] = field(default=())

    def __init__(self, name: str, params: Sequence[Param], body: Sequence[Statement] = ()) -> None:
        vars(self).update(name=name, params=tuple(params), body=tuple(body))

    @cached_property
    def by_name(self) -> dict[str, Param]:
        """The parameters by name."""
        return {param.name: param for param in self.params}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; fields at their default are left out."""
        from tpack.layerdef.serialization import layer_to_dict

        return layer_to_dict(self)

    @classmethod
    def from_dict(cls, data: object) -> LayerDef:
        """Make a node from the data of ``to_dict``; it equals the original.

        Raises:
            LayerDefError: malformed data, with the path of the offending node.
        """
        from tpack.layerdef.serialization import layer_from_dict

        return layer_from_dict(data)


@dataclass(frozen=True)
class Program:
    """Several LayerDefs, one of them the root: a whole model."""

    layers: tuple[LayerDef, ...]
    root: str

    def __init__(self, layers: Sequence[LayerDef], root: str) -> None:
        vars(self).update(layers=tuple(layers), root=root)

    @cached_property
    def by_name(self) -> dict[str, LayerDef]:
        """The LayerDefs by name."""
        return {layer.name: layer for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        from tpack.layerdef.serialization import program_to_dict

        return program_to_dict(self)

    @classmethod
    def from_dict(cls, data: object) -> Program:
        """Make a program from the data of ``to_dict``; it equals the original.

        Raises:
            LayerDefError: malformed data, with the path of the offending node.
        """
        from tpack.layerdef.serialization import program_from_dict

        return program_from_dict(data)
