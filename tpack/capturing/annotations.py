"""The shapes that a LayerDef notes for its reader, with names for the sizes that are free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from tpack.capturing.graph import Size, Value
from tpack.capturing.names import free_name
from tpack.layerdef import Assignment, LayerDef, Param, Sizes, Statement, Unspecified
from tpack.layerdef.names import is_identifier

#: Usual names of the dims of a tensor, by the number of dims.
USUAL = {
    2: ("batch", "length"),
    3: ("batch", "length"),
    4: ("batch", "channels", "height", "width"),
}
#: The shapes of the results of a statement; None where one is not known.
Several = tuple[Sizes | None, ...]


class SizeNames:
    """Names for the free sizes of one forward, given in the order in which they occur.

    They depend on the forward alone, so that modules of one structure get the same names
    wherever they stand.

    Args:
        given: names of the free sizes of the whole model.
    """

    def __init__(self, given: Mapping[sympy.Symbol, str]) -> None:
        self.given = given
        self.names: dict[Size, str] = {}

    def __call__(self, shape: Sequence[Size]) -> Sizes:
        """Return a shape in numbers and names."""
        return tuple(
            size if isinstance(size, int) else self.name(size, dim, len(shape))
            for dim, size in enumerate(shape)
        )

    def name(self, size: Size, dim: int, rank: int) -> str:
        """Return the name of one size; give it one if it has none."""
        if size not in self.names:
            wish = self.wish(size, dim, rank)
            self.names[size] = free_name(wish, self.names.values())
        return self.names[size]

    def wish(self, size: Size, dim: int, rank: int) -> str:
        if size in self.given:
            return self.given[size]
        if isinstance(size, sympy.Mul):
            factors = [self.names.get(one) or self.given.get(one, "") for one in size.args]
            if is_identifier(product := "_".join(sorted(factors))) and all(factors):
                return product
        if (
            size.free_symbols
            >= {s for s, name in self.given.items() if name == "past_length"}
            != set()
        ):
            return "tokens"
        symbols = {self.given.get(symbol, "") for symbol in size.free_symbols}
        if len(symbols) == 1 and (only := next(iter(symbols))):
            return only
        usual = USUAL.get(rank, ()) if rank < 4 else ()
        return usual[dim] if dim < len(usual) else "size"


@dataclass(frozen=True)
class Annotations:
    """The shapes of a forward: of its inputs, and of the results of each statement."""

    inputs: Several = ()
    statements: tuple[Several, ...] = ()

    @classmethod
    def of(
        cls,
        inputs: Iterable[Value],
        statements: Iterable[Iterable[Value | None]],
        sizes: Mapping[sympy.Symbol, str],
    ) -> Annotations:
        """Return the shapes of values, with names for their free sizes.

        Args:
            sizes: names of the free sizes of the whole model.
        """
        named = SizeNames(sizes)
        return cls(
            tuple(None if value.is_cache else named(value.shape) for value in inputs),
            tuple(
                tuple(
                    None if value is None or value.is_cache else named(value.shape)
                    for value in several
                )
                for several in statements
            ),
        )

    def agreed(self, other: Annotations) -> Annotations:
        """Keep the shapes that another forward of the same statements has too."""
        both = zip(self.statements, other.statements, strict=True)
        statements = tuple(_agreed(first, second) for first, second in both)
        return Annotations(_agreed(self.inputs, other.inputs), statements)


def _agreed(first: Several, second: Several) -> Several:
    both = zip(first, second, strict=True)
    return tuple(one if one == other else None for one, other in both)


def annotated(layer: LayerDef, notes: Annotations) -> LayerDef:
    """Add shapes to a layer."""
    shapes = iter(notes.inputs)
    params = [_with_sizes(p, next(shapes, None)) if p.is_input else p for p in layer.params]
    body = list(map(_told, layer.body, notes.statements)) or layer.body
    return LayerDef(layer.name, params, body)


def _with_sizes(param: Param, sizes: Sizes | None) -> Param:
    return replace(param, sizes=sizes)


def _told(statement: Statement, shapes: Several) -> Statement:
    if isinstance(statement, Unspecified) or not any(one is not None for one in shapes):
        return statement
    if isinstance(statement, Assignment):
        return replace(statement, sizes=shapes[0])
    return replace(statement, sizes=shapes)


def size_names(inputs: Sequence[Value]) -> dict[sympy.Symbol, str]:
    """Name each free size after the first dim of an input that has it."""
    names: dict[sympy.Symbol, str] = {}
    for value in inputs:
        usual = USUAL.get(len(value.shape), ("batch",))
        for i, size in enumerate(value.shape):
            if isinstance(size, sympy.Symbol) and size not in names:
                wish = usual[i] if i < len(usual) else f"size{i}"
                number, name = 1, wish
                while name in names.values():
                    number += 1
                    name = f"{wish}{number}"
                names[size] = name
    return names
