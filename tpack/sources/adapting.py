"""What a dialect is: how a source in it is recognised, and how its weights are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tpack.errors import InputError, UnsupportedError, locate
from tpack.sources.source import PackedTensor, SourceTensor

Tensors = Mapping[str, SourceTensor | PackedTensor]
Plain = Mapping[str, SourceTensor]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Dialect:
    """A way in which others store ternary weights.

    Attributes:
        name: in errors and the manual.
        found_by: what in a config.json shows it.
        codes: dtypes of the matrices that hold its codes. A single file without one is not read
            in the dialect that the config.json beside it names.
        recognises: whether the tensors of a folder, as stored, and its config are in it.
        adapt: gives the tensors of the plain model, and notes for the report. It raises
            UnsupportedError for a convention that it does not know, and InputError for weights
            that do not fit the dialect.
    """

    name: str
    found_by: str
    codes: tuple[str, ...]
    recognises: Callable[[Plain, Config], bool]
    adapt: Callable[[Plain, Config], tuple[Tensors, list[str]]]


def read_weights(
    tensors: Plain,
    codes: Iterable[str],
    read: Callable[[str], tuple[PackedTensor, set[str]]],
    check_rest: Callable[[SourceTensor], None],
    packing: str,
) -> tuple[Tensors, list[str]]:
    """Put weights in the place of their codes; those that are not ternary stay, and say why.

    Args:
        tensors: of the whole folder.
        codes: the names of the codes.
        read: gives a weight and the names of the tensors that it takes in. It raises
            UnsupportedError, as "it …", for a weight that is not ternary.
        check_rest: refuses what belongs to a weight that is not there.
        packing: completes "read 2 weights in …".

    Raises:
        InputError: as ``read`` and ``check_rest``; a weight that is there in plain too.
    """
    weights: dict[str, PackedTensor] = {}
    left: dict[str, str] = {}
    taken: set[str] = set()
    for name in codes:
        with locate(tensor=name):
            try:
                weight, companions = read(name)
            except UnsupportedError as error:
                left[name] = error.message
                continue
            try:
                weights[name] = weight.check()
            except InputError as error:  # a code that is no trit
                left[name] = "it " + error.message.partition(". ")[0]
                continue
        taken |= companions
    for name, weight in weights.items():
        if weight.name != name and weight.name in tensors:
            raise InputError(
                f"is stored twice, plain and as {name!r}. Remove one of them.", tensor=weight.name
            )
    result: dict[str, SourceTensor | PackedTensor] = {}
    for name, tensor in tensors.items():
        if name in weights:
            result[weights[name].name] = weights[name]
        elif name in left:
            result[name] = replace(tensor, coded=left[name])
        elif name not in taken:
            check_rest(tensor)
            result[name] = tensor
    return result, [f"read {len(weights)} weights in {packing}"] if weights else []
