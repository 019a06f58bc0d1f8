"""Names as the model has them, without what wrappers added."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tpack.container.header import check_name
from tpack.errors import InputError


@dataclass(frozen=True)
class Wrapper:
    """What a wrapper puts into the names of the module in it.

    Attributes:
        prefix: the name of the attribute that holds the module, with a dot.
        by: what the wrapper is called.
        anywhere: whether modules inside of a model are wrapped too; else all names begin with it.
        beside: a tensor of the wrapper, which is left out; the row is only for names with it.
    """

    prefix: str
    by: str
    anywhere: bool = False
    beside: str = ""


#: A row each, in the order in which they are stripped.
WRAPPERS = (
    Wrapper("_orig_mod.", "torch.compile", anywhere=True),
    Wrapper("_fsdp_wrapped_module.", "FSDP", anywhere=True),
    Wrapper("_checkpoint_wrapped_module.", "activation checkpointing", anywhere=True),
    Wrapper("module.", "AveragedModel", beside="n_averaged"),
    Wrapper("_forward_module.", "Lightning Fabric"),
    Wrapper("module.", "DataParallel"),
)


#: Gives each name what to call it, and notes for the report; a name that it lacks is left out.
Naming = Callable[[Iterable[str]], tuple[dict[str, str], list[str]]]


def as_stored(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Leave names as they are: one shard does not show which prefix all names share."""
    return {name: name for name in names}, []


def strip(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Strip the prefixes of wrappers, and leave out the tensors of their own.

    Returns:
        What is left of each name, and what was stripped, for the report.
    """
    left = {name: name for name in names}
    notes = []
    for row in WRAPPERS:
        inner = {name: new for name, new in left.items() if name != row.beside}
        if row.anywhere:
            found = re.compile(rf"(?<![^.]){re.escape(row.prefix)}")
            new = {name: found.sub("", each) for name, each in inner.items()}
        elif all(each.startswith(row.prefix) for each in inner.values()):
            new = {name: each.removeprefix(row.prefix) for name, each in inner.items()}
        else:
            continue
        if new != inner and (not row.beside or row.beside in left):
            beside = f", and left out {row.beside!r}" if row.beside else ""
            notes.append(f"stripped {row.prefix!r} from names ({row.by}){beside}")
            left = new
    return left, notes


def clean_names(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Strip the prefixes of wrappers, and check what is left.

    Returns:
        The cleaned name of each name, and what was stripped, for the report. A name that it lacks
        is of a wrapper's own tensor.

    Raises:
        InputError: two names become one, or one that safetensors cannot hold.

    Example:
        >>> clean_names(["module._orig_mod.fc.weight"])[0]
        {'module._orig_mod.fc.weight': 'fc.weight'}
    """
    cleaned, notes = strip(names)
    seen: dict[str, str] = {}
    for name, new in cleaned.items():
        check_name(new)
        if new in seen:
            raise InputError(
                f"has the names {seen[new]!r} and {name!r}, which are both {new!r} without the "
                "prefixes of wrappers. Rename one."
            )
        seen[new] = name
    return cleaned, notes
