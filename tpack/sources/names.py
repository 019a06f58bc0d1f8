"""Names as the model has them, without what wrappers added."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from tpack.container.header import check_name
from tpack.errors import InputError

#: Put before every name by DistributedDataParallel and DataParallel.
PARALLEL = "module."
#: Put into names by torch.compile, before every compiled module.
COMPILED = "_orig_mod."

_COMPILED = re.compile(r"(?<![^.])_orig_mod\.")


#: Gives each name what to call it, and notes for the report.
Naming = Callable[[Iterable[str]], tuple[dict[str, str], list[str]]]


def as_stored(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Leave names as they are: one shard does not show which prefix all names share."""
    return {name: name for name in names}, []


def clean_names(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Strip the prefixes of wrappers.

    Returns:
        The cleaned name of each name, and what was stripped, for the report.

    Raises:
        InputError: two names become one, or one that safetensors cannot hold.

    Example:
        >>> clean_names(["module._orig_mod.fc.weight"])[0]
        {'module._orig_mod.fc.weight': 'fc.weight'}
    """
    cleaned = {name: name for name in names}
    notes = []
    if any(_COMPILED.search(name) for name in cleaned):
        cleaned = {name: _COMPILED.sub("", name) for name in cleaned}
        notes.append(f"stripped {COMPILED!r} from names (torch.compile)")
    if cleaned and all(name.startswith(PARALLEL) for name in cleaned.values()):
        cleaned = {name: new.removeprefix(PARALLEL) for name, new in cleaned.items()}
        notes.append(f"stripped {PARALLEL!r} from names (DataParallel)")
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
