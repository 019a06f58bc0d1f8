"""Inputs of a model are checked against the sizes that it was captured for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tpack.errors import UsageError

#: The sizes of an input: numbers, and names of sizes that are free.
Sizes = tuple[int | str, ...]


def check_sizes(
    model: str, wanted: Mapping[str, Sizes], given: Mapping[Any, Any]
) -> None:
    """Refuse an input of a size that the capture fixed at another one.

    A captured forward may compute something else for it, and not fail.

    Args:
        model: its name, for the error.
        wanted: the sizes of each input.
        given: the inputs.

    Raises:
        UsageError: the input has another size, or another number of dims.
    """
    for name, sizes in wanted.items():
        value = given.get(name)
        if not isinstance(value, Tensor):
            continue
        shape = tuple(value.shape)
        what = f"{model}: {name} has shape {shape}, expected {_shown(sizes)}: "
        if len(shape) != len(sizes):
            raise UsageError(
                f"{what}{len(sizes)} dims, as in the example that it was captured with."
            )
        for dim, (found, size) in enumerate(zip(shape, sizes, strict=True)):
            if isinstance(size, int) and found != size:
                raise UsageError(
                    f"{what}dim {dim} is {found}, where the capture fixed {size}. Pad "
                    "or cut it, or capture the module again with that size free."
                )


def _shown(sizes: Sizes) -> str:
    inside = ", ".join(map(str, sizes))
    return f"({inside},)" if len(sizes) == 1 else f"({inside})"
