"""Read the LayerDefs of a generated module back from its forward methods.

Generated source uses nothing but the ops of the table, so a symbolic trace of each class
gives its tree again. So ``save`` can describe a module that was made by exec or import, in
standalone form too, and one that a person has edited: ``spellings`` knows other ways to write an
op, and what cannot be read is refused with its line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tpack.capturing import capture
from tpack.capturing.comparison import built, difference, tensors_in
from tpack.errors import LayerDefError
from tpack.layerdef import LayerDef, Param, Program, as_program
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.members import collapsed, repeats
from tpack.readback.forward import Forward
from tpack.readback.spellings import passes_on
from tpack.readback.stored import constructed_with, stored_params

__all__ = ["read_or_capture", "read_program"]

_BUILTIN = {row.spelling.removeprefix("nn."): row for row in BUILTIN.values()}


def read_program(module: nn.Module) -> Program:
    """Return the program of an instance of a generated class.

    Raises:
        LayerDefError: the module does something that LayerDef cannot express.
    """
    reader = _Reader()
    root = reader.layer(module)
    program = Program(list(reader.layers.values()), root)
    return as_program(program)


def read_or_capture(
    module: nn.Module, args: Any = None, kwargs: Mapping[str, Any] | None = None
) -> Program:
    """Return the program of an instance of a generated class that may have been edited.

    What cannot be read from its source is captured, if example arguments are given. They also
    prove what was read: the program must give what the module gives.

    Args:
        args: example arguments of forward; a tensor is taken as the only one.
        kwargs: example keyword arguments.

    Raises:
        LayerDefError: the module does something that LayerDef cannot express, or the program
            gives other results.
    """
    if args is None and kwargs is None:
        return read_program(module)
    given = (args,) if isinstance(args, Tensor) else tuple(args or ())
    try:
        program = read_program(module)
    except LayerDefError:
        return capture(module, given, kwargs)
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        expected = tensors_in(module(*given, **(kwargs or {})))
        found = tensors_in(built(program, state)(*given, **(kwargs or {})))
    if (much := difference(found, expected).relative) > SAME:
        raise LayerDefError(
            f"was read as something else than it computes: on the example arguments the results "
            f"differ by {much:.2g} of their size. Give save a layerdef.",
            node=type(module).__name__,
        )
    return program


#: The largest relative difference between a module and what was read of it, whose ops are the same.
SAME = 1e-5


class _Reader:
    """Reads modules into LayerDefs; equal ones of one class become one."""

    def __init__(self) -> None:
        self.layers: dict[str, LayerDef] = {}

    def layer(self, module: nn.Module, given: Collection[str] = ()) -> str:
        """Return the name of the LayerDef of a module.

        Args:
            given: arguments that its callers give.
        """
        wish = type(module).__name__
        layer = self.definition(module, wish, given)
        number = 1
        while self.layers.setdefault(layer.name, layer) != layer:
            number += 1
            layer = LayerDef(f"{wish}{number}", layer.params, layer.body)
        return layer.name

    def definition(self, module: nn.Module, name: str, given: Collection[str]) -> LayerDef:
        forward = Forward(module, given)
        children = list(self.children(module, forward))
        for whole in repeats(children).values():
            if forward.loops(whole) is not None:
                children = collapsed(children, whole)
        params = [*stored_params(module), *children]
        inputs, body = forward.read({param.name: param for param in params})
        return LayerDef(name, [*params, *inputs], body)

    def children(self, module: nn.Module, forward: Forward, above: str = "") -> Iterator[Param]:
        """Yield the children of a module, those in lists and dicts under dotted names."""
        for name, child in module.named_children():
            if type(child) in (nn.ModuleList, nn.ModuleDict):
                yield from self.children(child, forward, f"{above}{name}.")
            elif not passes_on(child):  # such as an Identity, which fills a gap
                yield self.child(f"{above}{name}", child, forward)

    def child(self, name: str, module: nn.Module, forward: Forward) -> Param:
        row = _BUILTIN.get(type(module).__name__)
        if row is None:
            return Param(name, "Layer", layer=self.layer(module, forward.given_to(name)))
        args = {param.name: constructed_with(module, param) for param in row.params}
        defaults = {param.name: param.default for param in row.params}
        if args.get("scale_dtype") == args.get("dtype"):
            args.pop("scale_dtype", None)
        kept = {key: value for key, value in args.items() if value != defaults[key]}
        return Param(name, "Layer", layer=row.name, args=kept)
