"""TorchScript archives: their parameters and buffers by name. Their code is searched, never run.

A module is an object whose state is a dict of attributes. Which of them are parameters and buffers
stands in the text of its class: ``__parameters__ = ["weight", "bias", ]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tpack.errors import UnsupportedError
from tpack.sources.archive import Archive
from tpack.sources.pickles.values import Placeholder, Tensor
from tpack.text import listed, plural

_CLASS = re.compile(r"class (\w+)\(Module\):")
_NAMES = re.compile(r"  __(parameters|buffers)__ = \[(.*)\]")
_NAME = re.compile(r'"([^"\\]*)"')
#: How deep modules may lie in each other.
_DEPTH = 100


@dataclass
class Registered:
    """The attributes of a class that are parameters and buffers."""

    parameters: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)


def read_classes(archive: Archive, folder: str) -> Iterator[tuple[str, Registered]]:
    """Yield the classes of modules that the code of a program has, by their qualified names.

    Args:
        folder: where the code is in the archive, with a slash at the end.
    """
    for record in archive.names:
        if not record.startswith(folder) or not record.endswith(".py"):
            continue
        module = record.removeprefix(folder).removesuffix(".py").replace("/", ".")
        found = Registered()
        for line in archive.read(record).decode(errors="replace").splitlines():
            if begins := _CLASS.match(line):
                found = Registered()
                yield f"{module}.{begins[1]}", found
            elif names := _NAMES.match(line):
                kept = found.parameters if names[1] == "parameters" else found.buffers
                kept += _NAME.findall(names[2])


def parameters(
    root: Any, constants: Any, classes: Mapping[str, Registered]
) -> tuple[Any, list[str], list[str]]:
    """Give the modules of a program the form that those of torch have.

    Args:
        root: the module that the pickle of the program holds; changed in place.
        constants: the tensors in the code, in order.
        classes: what the text of each class says.

    Returns:
        The module, or the constants by number if it has no tensors: a frozen program. Notes and
        warnings about tensors that are left out.

    Raises:
        UnsupportedError: all weights are in objects of torch that pack them.
    """
    found = [each for each in constants if isinstance(each, Tensor)]
    walk = _Walk(classes)
    walk.visit(root, "", 0)
    if walk.hidden and not walk.registered:
        raise UnsupportedError(
            f"has its weights only in objects that pack them, such as {walk.hidden[0]}, expected "
            "tensors. Convert the model as it was before it was quantized."
        )
    notes: list[str] = []
    warnings: list[str] = []
    if not walk.registered and found:
        warnings.append(
            "is a frozen program, which has no names for its weights: they are called "
            "constants.0 and so on, in the order of its code"
        )
        return {f"constants.{i}": tensor for i, tensor in enumerate(found)}, notes, warnings
    if walk.attributes:
        notes.append(f"left out tensors that are no parameters: {listed(walk.attributes)}")
    if walk.hidden:
        warnings.append(
            f"left out {listed(walk.hidden)}, of a class of torch that packs its weights: they are "
            "not in the output"
        )
    if found:
        told = warnings if any(len(tensor.shape) > 1 for tensor in found) else notes
        told.append(
            f"left out {plural(len(found), 'tensor')} in the code, without a name. If "
            "torch.jit.freeze put them there, convert the program as it was before"
        )
    return root, notes, warnings


class _Walk:
    """Goes through the modules of a program.

    Attributes:
        registered: how many parameters and buffers there are.
        attributes: names of tensors that are neither.
        hidden: names of other objects with tensors in them.
    """

    def __init__(self, classes: Mapping[str, Registered]) -> None:
        self.classes = classes
        self.registered = 0
        self.attributes: list[str] = []
        self.hidden: list[str] = []
        self._seen: set[int] = set()

    def visit(self, module: Any, prefix: str, depth: int) -> None:
        if not isinstance(module, Placeholder) or id(module) in self._seen or depth > _DEPTH:
            return
        self._seen.add(id(module))
        state = module.state
        if not isinstance(state, dict):
            if _holds_tensors([state, *module.args]):
                is_list = module.name.startswith("torch.jit._pickle.")
                (self.attributes if is_list else self.hidden).append(prefix.removesuffix("."))
            return
        own = self.classes.get(module.name)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        kept = {*own.parameters, *own.buffers} if own else set(tensors)
        buffers = {name: value for name, value in tensors.items() if own and name in own.buffers}
        self.registered += sum(name in kept for name in tensors)
        self.attributes += [f"{prefix}{name}" for name in tensors if name not in kept]
        for name, value in state.items():
            if isinstance(value, list | tuple | dict) and _holds_tensors(value):
                self.attributes.append(f"{prefix}{name}")
            self.visit(value, f"{prefix}{name}.", depth + 1)
        module.state = {
            "_parameters": {n: t for n, t in tensors.items() if n in kept and n not in buffers},
            "_buffers": buffers,
            "_modules": {n: value for n, value in state.items() if isinstance(value, Placeholder)},
        }


def _holds_tensors(value: Any) -> bool:
    """Return whether there is a tensor in a value, at any depth."""
    left, seen = [value], set()
    while left:
        each = left.pop()
        if isinstance(each, Tensor):
            return True
        if isinstance(each, Placeholder):
            each = [each.state, *each.args]
        if isinstance(each, dict):
            each = list(each.values())
        if isinstance(each, list | tuple) and id(each) not in seen:
            seen.add(id(each))
            left += each
    return False
