"""The tree of modules that the dotted names of a layer's children describe.

``layers.0.mlp`` is a member of a dict that stands first in a list of layers. A dict has names, a
list has positions; a position that no name takes is a gap. A layer itself may hold both: its
list comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from tpack.layerdef.names import is_position
from tpack.layerdef.nodes import Param

#: Classes of ``torch.nn``: a list of layers, a dict of layers, and what fills a gap of a list.
LIST, DICT, GAP = "ModuleList", "ModuleDict", "Identity"


@dataclass
class Members:
    """The children and containers of a layer, or of a list or dict in it, by name."""

    held: dict[str, Member] = field(default_factory=dict)

    @property
    def listed(self) -> dict[int, Member]:
        """The members at positions."""
        return {int(name): one for name, one in self.held.items() if is_position(name)}

    @property
    def named(self) -> dict[str, Member]:
        """The other members, in the order of the children."""
        return {name: one for name, one in self.held.items() if not is_position(name)}

    @property
    def places(self) -> list[Member | None]:
        """The list of the members at positions; None is a gap."""
        listed = self.listed
        return [listed.get(i) for i in range(max(listed, default=-1) + 1)]

    @property
    def gaps(self) -> int:
        """The number of gaps in the list and in the lists below."""
        listed = self.listed
        below = sum(one.gaps for one in self.held.values() if isinstance(one, Members))
        return max(listed, default=-1) + 1 - len(listed) + below

    def containers(self, above: str = "") -> Iterator[tuple[str, Members]]:
        """Yield the lists and dicts below, by path."""
        for name, member in self.held.items():
            if isinstance(member, Members):
                yield f"{above}{name}", member
                yield from member.containers(f"{above}{name}.")


#: A child of a layer, or a list or dict of children.
Member: TypeAlias = Param | Members


def members_of(params: Iterable[Param]) -> Members:
    """Make the tree of the children among parameters, whose names are valid one by one.

    Where a child is also named as the container of others, the container stands in the tree.

    Example:
        >>> names = ("embed", "layers.0.mlp", "layers.2.mlp")
        >>> tree = members_of(Param(name, "Layer") for name in names)
        >>> [path for path, _ in tree.containers()], tree.gaps
        (['layers', 'layers.0', 'layers.2'], 1)
    """
    tree = Members()
    for param in params:
        if param.param_type == "Layer":
            *above, last = param.name.split(".")
            at = tree
            for name in above:
                below = at.held.get(name)
                if not isinstance(below, Members):
                    below = at.held[name] = Members()
                at = below
            at.held.setdefault(last, param)
    return tree


def repeats(params: Iterable[Param]) -> dict[str, Param]:
    """Find the lists of equal children; return each as one repeated child, by name.

    Example:
        >>> repeats(Param(f"layers.{i}", "Layer", layer="Block") for i in range(3))["layers"].repeat
        3
    """
    lists = {path: one.places for path, one in members_of(params).containers()}
    wholes = {path: repeated(path, places) for path, places in lists.items()}
    return {path: whole for path, whole in wholes.items() if whole is not None}


def lists_of(params: Sequence[Param]) -> set[str]:
    """Return the names of the lists of layers among parameters: repeated children too."""
    found = {path for path, one in members_of(params).containers() if not one.named}
    return found | {param.name for param in params if param.repeat is not None}


def repeated(name: str, places: Sequence[Member | None]) -> Param | None:
    """Return the members of a list as one repeated child; None unless they are equal children."""
    copies = [replace(one, name=name) for one in places if isinstance(one, Param)]
    if len(copies) < len(places) or len(set(copies)) != 1 or copies[0].repeat is not None:
        return None
    return replace(copies[0], repeat=len(copies))


def collapsed(params: Iterable[Param], whole: Param) -> list[Param]:
    """Put a repeated child in the place of its copies."""
    copies = {f"{whole.name}.{i}" for i in range(whole.repeat or 0)}
    merged = [whole if param.name in copies else param for param in params]
    return list(dict.fromkeys(merged))
