"""Read the LayerDefs of a generated module back from its forward methods.

Generated source uses nothing but the ops of the table, so a symbolic trace of each class
gives its tree again. So ``save`` can describe a module that was made by exec or import, in
standalone form too.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from tpack.layerdef import LayerDef, Param, Program, as_program
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.members import collapsed, repeats
from tpack.readback.forward import Forward
from tpack.readback.stored import constructed_with, stored_params

__all__ = ["read_program"]

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


class _Reader:
    """Reads modules into LayerDefs; equal ones of one class become one."""

    def __init__(self) -> None:
        self.layers: dict[str, LayerDef] = {}

    def layer(self, module: nn.Module) -> str:
        """Return the name of the LayerDef of a module."""
        wish = type(module).__name__
        layer = self.definition(module, wish)
        number = 1
        while self.layers.setdefault(layer.name, layer) != layer:
            number += 1
            layer = LayerDef(f"{wish}{number}", layer.params, layer.body)
        return layer.name

    def definition(self, module: nn.Module, name: str) -> LayerDef:
        forward = Forward(module)
        children = list(self.children(module))
        for whole in repeats(children).values():
            if forward.loops(whole) is not None:
                children = collapsed(children, whole)
        params = [*stored_params(module), *children]
        inputs, body = forward.read({param.name: param for param in params})
        return LayerDef(name, [*params, *inputs], body)

    def children(self, module: nn.Module, above: str = "") -> Iterator[Param]:
        """Yield the children of a module, those in lists and dicts under dotted names."""
        for name, child in module.named_children():
            if type(child) in (nn.ModuleList, nn.ModuleDict):
                yield from self.children(child, f"{above}{name}.")
            elif type(child) is not nn.Identity:  # which fills a gap
                yield self.child(f"{above}{name}", child)

    def child(self, name: str, module: nn.Module) -> Param:
        row = _BUILTIN.get(type(module).__name__)
        if row is None:
            return Param(name, "Layer", layer=self.layer(module))
        args = {param.name: constructed_with(module, param) for param in row.params}
        defaults = {param.name: param.default for param in row.params}
        if args.get("scale_dtype") == args.get("dtype"):
            args.pop("scale_dtype", None)
        kept = {key: value for key, value in args.items() if value != defaults[key]}
        return Param(name, "Layer", layer=row.name, args=kept)
