"""Nested dicts and lists as a tree of what holds tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tpack.errors import InputError
from tpack.sources.names import strip
from tpack.text import plural, size

_TRAINING = re.compile(
    r"(^|_)(optim\w*|opt|sched\w*|rng|scaler|amp|callbacks|loops)(_|$)", re.IGNORECASE
)
#: How deep dicts may lie in each other, and how many values may be seen a second time.
_DEPTH, _AGAIN = 100, 50_000
#: Classes of what holds nothing else.
_PLAIN = {bool, bytes, complex, float, int, str, type(None)}

#: Returns the shape of a tensor, and its bytes; None for anything else.
Measure = Callable[[Any], tuple[tuple[int, ...], int] | None]
#: Returns the dict or list that an object stands for; any other value as it is.
Opened = Callable[[Any], Any]
#: Returns what the class of a value is called.
Called = Callable[[Any], str]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor, and the key that it has in a dict or list."""

    key: object
    value: Any
    shape: tuple[int, ...]
    nbytes: int

    @property
    def is_number(self) -> bool:
        """Whether it is a single number, such as a counter."""
        return math.prod(self.shape) <= 1


@dataclass(eq=False)
class Node:
    """A dict or a list.

    Attributes:
        path: the keys that lead to it.
        is_list: whether its tensors have no names.
        is_alone: whether it stands for a tensor beside dicts.
        own: the tensors directly in it.
        parts: the dicts and lists in it that hold tensors, by key.
        others: what else is in it, and of which kind.
    """

    path: tuple[str, ...]
    is_list: bool = False
    is_alone: bool = False
    own: list[Tensor] = field(default_factory=list)
    parts: dict[str, Node] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)

    def nodes(self) -> Iterator[Node]:
        """Yield it and all nodes in it."""
        yield self
        for part in self.parts.values():
            yield from part.nodes()

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors in it."""
        return (tensor for node in self.nodes() for tensor in node.own)

    def alone(self) -> list[Node]:
        """Return the tensors directly in it, each as a node."""
        return [Node((*self.path, str(each.key)), is_alone=True, own=[each]) for each in self.own]

    @property
    def key(self) -> str:
        """What names it as ``Reading.key``."""
        return ".".join(self.path) or "."

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in it."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def is_state_dict(self) -> bool:
        """Whether dots in its names say that they are those of a whole model."""
        return any(isinstance(tensor.key, str) and "." in tensor.key for tensor in self.own)

    @property
    def has_names(self) -> bool:
        """Whether a tensor in it has a name."""
        return any(node.own and not node.is_list for node in self.nodes())

    @property
    def is_numbers(self) -> bool:
        """Whether it holds nothing but single numbers."""
        return all(tensor.is_number for tensor in self.tensors())

    @property
    def may_be_weights(self) -> bool:
        """Whether it holds a matrix, or the state dict of a model."""
        return any(node.is_state_dict for node in self.nodes()) or any(
            len(tensor.shape) > 1 and not tensor.is_number for tensor in self.tensors()
        )

    @property
    def is_of_an_optimizer(self) -> bool:
        """Whether it is built as the state of an optimizer of torch is."""
        return {"state", "param_groups"} <= {*self.parts, *self.others}

    def is_of_training(self, *, around: bool) -> bool:
        """Return whether it is built of states of optimizers, or called as what training keeps.

        Args:
            around: whether it lies around a model, so that its key is not the name of a module.
        """
        if self.is_of_an_optimizer or (around and self.path and _TRAINING.search(self.path[-1])):
            return True
        if self.own or not self.parts:
            return False
        return all(part.is_of_training(around=False) for part in self.parts.values())

    def entered(self) -> Node:
        """Return the first node in it that holds tensors, or more than one node."""
        node = self
        while True:
            inner = [part for part in node.parts.values() if not part.is_of_training(around=True)]
            if node.own or len(inner) != 1:
                return node
            (node,) = inner

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of its tensors by name, without the prefixes of wrappers."""
        root = self.entered()
        found = {
            ".".join((*node.path[len(root.path) :], str(tensor.key))): tensor.shape
            for node in root.nodes()
            for tensor in node.own
        }
        names, _ = strip(found)
        return {new: found[name] for name, new in names.items()}

    def __str__(self) -> str:
        count = sum(1 for _ in self.tensors())
        return f"{self.key!r} ({plural(count, 'tensor')}, {size(self.nbytes)})"


def read_tree(data: object, measure: Measure, opened: Opened, called: Called) -> Node | None:
    """Return the tree of a dict or list; None of anything else.

    Args:
        measure: says what is a tensor, and how large.
        opened: returns the dict or list that an object stands for.
        called: names the class of what is no tensor.

    Raises:
        InputError: dicts lie too deep in each other, or too many lie in several; two keys that
            read alike.
    """
    seen: dict[int, tuple[Any, bool]] = {}
    inside: set[int] = set()
    again = 0

    def read(value: Any, path: tuple[str, ...]) -> Node | None:
        nonlocal again
        _, holds = seen.get(id(value), (value, None))
        if holds is False or id(value) in inside:  # in itself, it holds no more than it does
            return None
        data = opened(value)
        if not isinstance(data, Mapping | list | tuple):
            return None
        if holds:
            again += 1 + len(data)
        if len(path) > _DEPTH or again > _AGAIN:
            raise InputError(
                "holds dicts in dicts without end, expected a state dict. Save model.state_dict()."
            )
        inside.add(id(value))
        node = Node(path, is_list=not isinstance(data, Mapping))
        for key, inner in data.items() if isinstance(data, Mapping) else enumerate(data):
            if node.is_list and type(inner) in _PLAIN:  # there may be millions
                continue
            name = str(key)
            if (measured := measure(inner)) is not None:
                node.own.append(Tensor(key, inner, *measured))
            elif (part := read(inner, (*path, name))) is None or not (part.own or part.parts):
                node.others[name] = called(inner)
            elif name in node.parts:
                raise InputError(f"has two dicts under keys that read {name!r}. Rename one.")
            else:
                node.parts[name] = part
        inside.remove(id(value))
        seen[id(value)] = (value, bool(node.own or node.parts))  # held, so that no id comes twice
        return node

    return read(data, ())
