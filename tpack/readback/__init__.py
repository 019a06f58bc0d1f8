"""Read the LayerDefs of a generated module, edited or not, from what its forwards do.

Each forward runs on stand-ins that have no numbers. What it calls of torch is an op of the
table, or refused by file and line; so what is read is what the loaded code computes, with
hooks, replaced layers and all. ``save`` describes modules so that were made by exec or import, in
standalone form too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tpack.capturing import capture
from tpack.capturing.arguments import as_arguments, as_keywords
from tpack.capturing.comparison import built, difference, tensors_in
from tpack.capturing.known import constant_param
from tpack.errors import LayerDefError
from tpack.layerdef import LayerDef, Param, Program, as_program
from tpack.layerdef.members import collapsed, repeats
from tpack.layerdef.names import SOURCE_NAMES, is_identifier
from tpack.nn.caching import is_no_cache
from tpack.readback import code
from tpack.readback.forward import Forward
from tpack.readback.frames import Frame, unchanged
from tpack.readback.layers import builtin_param, children_of
from tpack.readback.stored import stored_params
from tpack.readback.tracing import Tracer
from tpack.readback.values import Cache, Memory, Node
from tpack.wording import spell

__all__ = ["read_or_capture", "read_program"]


def read_program(module: nn.Module) -> Program:
    """Return the program of an instance of a generated class.

    Raises:
        LayerDefError: the module does something that LayerDef cannot express; the error has the
            file and line.
    """
    with unchanged(module):
        first, second = _Reader(module).program(), _Reader(module).program()
    if first != second:
        raise LayerDefError(
            f"{type(module).__name__} computes something else each time it is called. Remove what "
            "it keeps between calls, or what is random."
        )
    return as_program(first)


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
        UsageError: the arguments are no sequence, or the keyword arguments no dict.
    """
    if args is None and kwargs is None:
        return read_program(module)
    given, named = as_arguments(args), as_keywords(kwargs)
    try:
        program = read_program(module)
    except LayerDefError:
        return capture(module, given, named)
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        expected = tensors_in(module(*given, **named))
        found = tensors_in(built(program, state)(*given, **named))
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

    def __init__(self, root: nn.Module) -> None:
        self.layers: dict[str, LayerDef] = {}
        self.root = root
        self.frames = _frames(root)

    def program(self) -> Program:
        name = self.layer(self.root)
        return Program(list(self.layers.values()), name)

    def layer(self, module: nn.Module) -> str:
        """Return the name of the LayerDef of a module."""
        wish = getattr(module, "_tpack_layer", type(module).__name__)
        wish = wish if is_identifier(wish) and wish not in SOURCE_NAMES else f"{wish}Layer"
        layer = self.definition(module, wish)
        number = 1
        while self.layers.setdefault(layer.name, layer) != layer:
            number += 1
            layer = LayerDef(f"{wish}{number}", layer.params, layer.body)
        return layer.name

    def definition(self, module: nn.Module, name: str) -> LayerDef:
        frame = self.frames.get(id(module)) or _frames(module, missing=True)[id(module)]
        forward = Forward(frame)
        children = [self.child(path, child) for path, child in children_of(module)]
        for whole in repeats(children).values():
            if forward.loops(whole) is not None:
                children = collapsed(children, whole)
        constants = [
            constant_param(tensor.detach().cpu(), key) for key, tensor in frame.constants.items()
        ]
        params = [*stored_params(module), *constants, *children]
        inputs, body = forward.read({param.name: param for param in params})
        return LayerDef(name, [*params, *inputs], body)

    def child(self, name: str, module: nn.Module) -> Param:
        found = builtin_param(name, module, module.forward)
        return found or Param(name, "Layer", layer=self.layer(module))


def _frames(root: nn.Module, *, missing: bool = False) -> dict[int, Frame]:
    """Call a module on stand-ins; return the forwards that were reached, by module.

    Args:
        missing: whether the module is one that nothing calls: one that cannot be read alone
            then has no known forward.
    """
    tracer = Tracer(root)
    frame = Frame(root, root.forward, inner=False)
    tracer.open.append(frame)
    try:
        with tracer.watching():
            args = _root_arguments(tracer, frame, tracer.originals[id(root)])
            try:
                frame.result = tracer.result_of(root(**args))
            except NotImplementedError:
                frame.known = False
        if tracer.refused is not None:
            raise tracer.refused
    except LayerDefError:
        if not missing:
            raise
        frame.known = False
    except Exception as error:  # the code of the class may raise anything
        if tracer.refused is not None and not missing:
            raise tracer.refused from error
        if not missing:
            told = (str(error).splitlines() or [""])[0].rstrip(".")
            raised = f"{type(error).__name__}: {told[:200]}"
            raise LayerDefError(
                f"{type(root).__name__} cannot be read: {raised}. Give save "
                f"{spell(example_args=...)}.",
                node=code.place_of(error) or None,
            ) from error
        frame.known = False
    tracer.frames[id(root)] = frame
    return tracer.frames


def _root_arguments(tracer: Tracer, frame: Frame, forward: Any) -> dict[str, Any]:
    """Make stand-ins for the arguments of the root; those with a default keep it."""
    args: dict[str, Any] = {}
    for name, one in inspect.signature(forward).parameters.items():
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        is_cache = is_no_cache(one.default)
        if one.default is not one.empty and not is_cache:
            continue
        node = Node("input", name)
        frame.nodes.append(node)
        frame.inputs[name] = "Cache" if is_cache else "Tensor"
        memory = Memory(f"argument {name}")
        args[name] = Cache(tracer, node) if is_cache else tracer.tensor(node, memory)
    return args
