"""Which stored tensors of a layer start at one: gains, since zeros would let nothing through."""

from __future__ import annotations

from collections.abc import Iterator

from tpack.layerdef.nodes import (
    Assignment,
    BinaryOp,
    Expression,
    FunctionCall,
    Identifier,
    LayerDef,
    Return,
    Unpack,
)
from tpack.layerdef.ops import OPS, has_trait
from tpack.layerdef.walking import parts


def gains(layer: LayerDef) -> frozenset[str]:
    """Return the names of tensors that normalized or other values are multiplied with.

    These are the weight and the variance of a norm, and trained vectors that are factors of an
    elementwise product. The weight in ``x * (1 + weight)`` is none, and starts at zero.

    Example:
        >>> from tpack.layerdef import Param
        >>> body = [Return(BinaryOp("*", Identifier("gain"), Identifier("x")))]
        >>> params = [Param("gain", "Tensor", [4]), Param("x", "Tensor")]
        >>> sorted(gains(LayerDef("Scaled", params, body)))
        ['gain']
    """
    kinds = {p.name: p.param_type for p in layer.params if p.is_stored and len(p.shape or ()) < 2}
    found = set()
    for statement in layer.body:
        if isinstance(statement, Assignment | Unpack | Return):
            for name, of_norm in _factors(statement.value):
                if kinds.get(name) == "Tensor" or (of_norm and kinds.get(name) == "Buffer"):
                    found.add(name)
    return frozenset(found)


def _factors(node: Expression) -> Iterator[tuple[str, bool]]:
    """Yield the names that are factors, and whether a norm has them."""
    match node:
        case BinaryOp("*", left, right) | FunctionCall("mul", (left, right)):
            yield from ((one.name, False) for one in (left, right) if isinstance(one, Identifier))
        case FunctionCall(function, args, kwargs) if has_trait(function, "norm"):
            named = zip((param.name for param in OPS[function].params), args, strict=False)
            for key, value in (*named, *kwargs):
                if key in ("weight", "running_var") and isinstance(value, Identifier):
                    yield value.name, True
    for part in parts(node):
        yield from _factors(part)
