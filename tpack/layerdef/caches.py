"""Caches of keys and values in a tree: which values are one, and where they may stand."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise

from tpack.errors import LayerDefError
from tpack.layerdef.nodes import Expression, FunctionCall, Identifier, Param
from tpack.layerdef.ops import has_trait


def gives_cache(node: Expression, caches: Collection[str]) -> bool:
    """Return whether a value is a cache, and no tensor.

    Args:
        caches: names that are caches.

    Example:
        >>> gives_cache(FunctionCall("cache_layer", [Identifier("past")]), {"past"})
        True
    """
    if isinstance(node, FunctionCall):
        return has_trait(node.function, "part")
    return isinstance(node, Identifier) and node.name in caches


def check_kind(node: Expression, caches: Collection[str], path: str, *, cache: bool) -> None:
    """Check that a value is a cache, or that it is none.

    Raises:
        LayerDefError: at ``path``.
    """
    if gives_cache(node, caches) is not cache:
        found, wanted = ("a tensor", "a cache") if cache else ("a cache", "a tensor")
        raise LayerDefError(f"is {found}, expected {wanted}.", node=path)


def check_caches_last(params: Iterable[Param], path: str) -> None:
    """Check that caches, which may be left out, are the last arguments of forward.

    Raises:
        LayerDefError: at ``path``, with the argument that follows a cache.
    """
    for before, after in pairwise(param for param in params if param.is_input):
        if before.is_cache and not after.is_cache:
            raise LayerDefError(
                f"argument {after.name!r} comes after the cache. Put the cache last.", node=path
            )
