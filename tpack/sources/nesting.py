"""Find the weights of a model in what a trainer saved: dicts and lists with tensors at any depth.

The rules, from the outside in:

1. What training keeps, such as the state of optimizers, is left; so are dicts of single numbers.
2. A dict with tensors under names with dots is a state dict, and is taken as it is.
3. A single dict with tensors in it is entered. Of several, one that is called as whole models are
   (``state_dict``, ``model``) is entered, and the others are left.
4. Otherwise they are parts of one model (``G`` and ``D``, or a tree of JAX), and are joined: their
   keys become the beginning of the names.
5. Where two may be copies of one model, nothing is taken, and the error asks for a key.

Every tensor is taken, or it is named in a note or a warning, with what it lies in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from tpack.errors import InputError, UsageError
from tpack.sources.names import strip
from tpack.sources.tree import Called, Measure, Node, Opened, Tensor, read_tree
from tpack.wording import nearest, spell

#: Keys of the state dict of a whole model, wherever they are.
_STATES = ("state_dict", "model_state_dict", "model_state")
#: More such keys, where they are not the names of modules in a model.
_WHOLE = (*_STATES, "model", "module", "net", "network")
#: Keys under which the names of a model begin: what is in there is no longer around the model.
_ROOTS = (*_WHOLE, "params", "weights")
#: Up to so many dicts are compared with each other; more are the modules of a tree.
_COMPARED = 200


@dataclass
class Chosen:
    """The weights of a model.

    Attributes:
        tensors: by name.
        notes: what was taken, joined and left.
        warnings: what was left that may be weights of the model.
        is_all: whether nothing was left.
    """

    tensors: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    is_all: bool = True


def choose(
    data: object,
    measure: Measure,
    key: str | None = None,
    opened: Opened = lambda value: value,
    called: Called = lambda value: type(value).__name__,
) -> Chosen:
    """Choose the weights of a model.

    Args:
        data: dicts, lists and tuples, with tensors in them.
        measure: says what is a tensor, and how large.
        key: what to take: the keys that lead to it, joined with dots; ``.`` is all of ``data``.
        opened: returns the dict or list that an object stands for.
        called: names the class of what is no tensor, for notes.

    Raises:
        InputError: no tensors, or not under names; several dicts that may be the model.
        UsageError: ``key`` leads to no dict with tensors.
    """
    root = read_tree(data, measure, opened, called)
    if root is None or not (isinstance(data, Mapping | list | tuple) or any(root.tensors())):
        raise InputError(f"holds {called(data)}, expected a state dict. Save model.state_dict().")
    choice = _Choice(root, None if key is None else _find(root, key))
    if key is None and root.is_of_an_optimizer:
        choice.left.append(root)
        return choice.report({})
    return choice.report(choice.take(choice.start))


def _find(root: Node, key: str) -> Node:
    """Return the node that a key leads to.

    Raises:
        InputError: there are two.
        UsageError: there is none.
    """
    found = [node for node in root.nodes() if node.key == key]
    if len(found) > 1:
        raise InputError(f"has two dicts that {key!r} leads to. Rename one.")
    if found:
        return found[0]
    there = [node for node in root.nodes() if node is not root] or [root]
    raise UsageError(
        f"key {key!r:.60} leads to no tensors, expected one of {_several(there)}."
        f"{nearest(key, [node.key for node in there])}"
    )


class _Choice:
    """What is taken, and what is left.

    Args:
        asked: the node that a key leads to, if there is a key.
    """

    def __init__(self, root: Node, asked: Node | None) -> None:
        self.root, self.asked = root, asked
        self.start = asked or root
        self.way = [root]
        for key in self.start.path:
            self.way.append(self.way[-1].parts[key])
        self.wants_training = asked is not None and any(
            node.is_of_training(around=True) for node in self.way
        )
        self.entered = self.start
        self.joined: list[Node] = []
        self.beside: list[str] = []
        self.left: list[Node] = []
        self.packed: list[Node] = []
        self.arrays: list[str] = []
        self.others: dict[str, str] = {}
        self.notes: list[str] = []

    def take(self, node: Node, *, around: bool = True) -> dict[str, Any]:
        """Return the tensors of a node by name, and remember what of it was left.

        Args:
            around: whether the node may lie around the model; False if it is the model, or in it.

        Raises:
            InputError: copies of one model; two tensors of one name, or one without.
        """
        self.others |= node.others
        if not all(tensor.is_number for tensor in node.own):
            self.arrays += [name for name, kind in node.others.items() if kind == "ndarray"]
        own, parts = node.own, self._candidates(node, around=around)
        if node.is_state_dict:
            self.packed += parts
            return self._join(own, [])
        if node.is_list and not self.asked:
            own = self._leave(node)
        free = node is not self.asked  # else all of it was asked for
        names = (_WHOLE if around else _STATES) if free else ()
        whole = [part for part in parts if part.path[-1] in names]
        if len(whole) == 1 and whole[0].nbytes >= sum(tensor.nbytes for tensor in own):
            self._check_copies(parts, whole, around=around)
            self._leave(node)
            self.left += [part for part in parts if part is not whole[0]]
            return self._enter(whole[0], around=False)
        if free and around and parts and all(tensor.is_number for tensor in own):
            own = self._leave(node)
        if len(parts) == 1 and not own and (around or parts[0].is_state_dict):
            return self._enter(parts[0], around=around and parts[0].path[-1] not in _ROOTS)
        self._check_copies(parts, parts, around=around)
        self.joined = self.joined or parts
        if around and len(parts) == 1 and not self.asked:
            self.beside = [repr(tensor.key) for tensor in own if not tensor.is_number]
        return self._join(own, parts, around=around)

    def _candidates(self, node: Node, *, around: bool) -> list[Node]:
        """Return the parts of a node that may be weights; the others are left."""
        parts = list(node.parts.values())
        if not self.wants_training:
            parts = self._keep(parts, lambda part: not part.is_of_training(around=around))
        if not self.asked and not node.is_state_dict:
            parts = self._keep(parts, lambda part: part.has_names)
        if around and not self.asked and not all(part.is_numbers for part in parts):
            parts = self._keep(parts, lambda part: not part.is_numbers)
        return parts

    def _keep(self, parts: list[Node], wanted: Callable[[Node], bool]) -> list[Node]:
        self.left += [part for part in parts if not wanted(part)]
        return [part for part in parts if wanted(part)]

    def _leave(self, node: Node) -> list[Tensor]:
        """Leave the tensors directly in a node."""
        self.left += node.alone()
        return []

    def _enter(self, part: Node, *, around: bool) -> dict[str, Any]:
        if not self.joined:
            self.entered = part
        return self.take(part, around=around)

    def _join(
        self, own: list[Tensor], parts: list[Node], *, around: bool = False
    ) -> dict[str, Any]:
        """Return tensors, and those of parts under names that begin with the part's key.

        Args:
            around: whether each part may have been in a wrapper of its own.
        """
        found: dict[str, Any] = {}

        def put(name: str, value: Any) -> None:
            if name in found:
                raise InputError(f"has two tensors that are both {name!r}. Rename one.")
            found[name] = value

        for tensor in own:
            if not isinstance(tensor.key, str | int) or isinstance(tensor.key, bool):
                raise InputError(f"has a tensor under the key {tensor.key!r:.60}, expected a name.")
            put(str(tensor.key), tensor.value)
        for part in parts:
            inner = self.take(part, around=False)
            names, notes = strip(inner) if around else ({name: name for name in inner}, [])
            self.notes += [f"{part.key}: {note}" for note in notes]
            for name, new in names.items():
                put(f"{part.path[-1]}.{new}", inner[name])
        return found

    def _check_copies(self, parts: list[Node], of: list[Node], *, around: bool) -> None:
        """Refuse to choose between copies of one model, or to join them, unless that was asked for.

        Args:
            of: those whose copies matter.

        Raises:
            InputError: there are copies; with the keys to choose one.
        """
        if self.asked or len(parts) > _COMPARED:
            return
        shapes = {part.key: frozenset(part.shapes().items()) for part in parts}
        for first, second in combinations(parts, 2):
            if (first in of or second in of) and not _are_modules(first, second, around=around):
                few, many = sorted((shapes[first.key], shapes[second.key]), key=len)
                if few <= many and 3 * len(few) >= len(many):  # averages may lack the buffers
                    raise InputError(
                        f"holds {len(parts)} dicts of weights, {_several(parts)}, of which "
                        f"{first.key!r} and {second.key!r} look like copies of one model. Choose "
                        f"one: {' or '.join(spell(key=part.key) for part in parts[:8])}. "
                        f"{spell(key='.')} takes all of them."
                    )

    def report(self, tensors: dict[str, Any]) -> Chosen:
        """Say what was taken and what was left.

        Raises:
            InputError: nothing was taken.
        """
        if not tensors and self.left:
            there = next((node.key for node in self.left if not node.is_alone), ".")
            raise InputError(
                f"holds tensors only in {_several(self.left)}, expected a state dict. "
                f"{spell(key=there)} takes them nevertheless."
            )
        if not tensors:
            advice = " Save its arrays with numpy.savez(path, **arrays)."
            raise InputError(
                "holds no tensors, expected a state dict."
                + advice * ("ndarray" in self.others.values())
            )
        unsure = [n for n in self.left if n.may_be_weights and not n.is_of_training(around=True)]
        noted = [node for node in self.left if node not in unsure]
        for above, inner in zip(self.way, self.way[1:], strict=False):
            noted += [*above.alone(), *(n for n in above.parts.values() if n is not inner)]
        left = [*map(str, noted)]
        if self.others:
            left.append(_several(f"{name} ({kind})" for name, kind in self.others.items()))
        took = f"took the state dict under {self.entered}" if self.entered.path else ""
        notes = [", ".join(filter(None, (took, f"left out {', '.join(left)}" if left else "")))]
        if self.joined:
            notes.append(f"joined {_several(self.joined)} under their keys")
        warnings = [
            f"left out {node}, which may be weights of the model. "
            + ("" if node.is_alone else f"{spell(key=node.key)} takes it, ")
            + f"{spell(key='.')} takes all."
            for node in unsure
        ]
        if self.beside:
            (part,) = self.joined
            warnings.append(
                f"took {_several(self.beside)} beside {part} as weights of the model too. If they "
                f"are not, take that alone: {spell(key=part.key)}"
            )
        if self.arrays:
            warnings.append(
                f"left out {_several(self.arrays)}, arrays of NumPy between the tensors: they are "
                "not in the output. Make tensors of them: torch.from_numpy(array)."
            )
        if self.packed:
            warnings.append(
                f"left out {_several(node.path[-1] for node in self.packed)}, which "
                f"{'holds' if len(self.packed) == 1 else 'hold'} tensors in a tuple or dict, as "
                "torch.ao.quantization, HQQ and SINQ save packed weights: they are not in the "
                "output."
            )
        is_all = not self.others and len(tensors) == sum(1 for _ in self.root.tensors())
        return Chosen(tensors, [*filter(None, notes), *self.notes], warnings, is_all)


def _are_modules(first: Node, second: Node, *, around: bool) -> bool:
    """Return whether two dicts look like modules of one model, which may be alike.

    They have no names with dots, and lie in a model, or their own keys lead through one, or are
    numbered.
    """
    if first.entered().is_state_dict and second.entered().is_state_dict:
        return False
    one, two = first.path[-1], second.path[-1]
    return not around or "." in one + two or re.sub(r"\d+", "", one) == re.sub(r"\d+", "", two)


def _several(found: Iterable[object], most: int = 8) -> str:
    """Join a few; of many, say how many more there are."""
    texts = [str(each) for each in found]
    more = [f"{len(texts) - most} more"] * (len(texts) > most)
    return ", ".join([*texts[:most], *more])
