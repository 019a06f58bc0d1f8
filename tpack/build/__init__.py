"""LayerDef → live ``nn.Module``, without running text.

What a module holds is made here, and what its forward computes in ``steps``, from closures made
once. Both read the same tables as ``codegen``, so what is built and what is printed agree.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import tpack.nn
from tpack.build.steps import RESULT, Steps, Values, compile_steps
from tpack.codec import Scale
from tpack.dtypes import BY_NAME
from tpack.layerdef import LayerDef, Lowered, Param, Program, as_program, lower
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.constants import CONSTANTS
from tpack.layerdef.gains import gains
from tpack.layerdef.members import Member, Members, members_of
from tpack.layerdef.nodes import NO_FORWARD
from tpack.nn.input_check import check_sizes
from tpack.nn.modules import PackedModule, packed_zeros, scale_ones

#: By name of a layer: how it was lowered, and the closures of its forward.
Compiled = dict[str, tuple[Lowered, Steps]]


def build_module(tree: LayerDef | Program, device: str | torch.device = "cpu") -> nn.Module:
    """Make the module of a LayerDef or Program, with all trits 0 and all scales 1.

    Args:
        device: where its tensors are made; on ``meta`` only constants take memory.

    Raises:
        LayerDefError: the tree is malformed or does not fit its shapes.
    """
    program = as_program(tree)
    with torch.device(device):
        module = BuiltModule(program, program.root, {})
    return module.eval()


def program_of(module: nn.Module) -> Program | None:
    """Return the program that a module was built from; None for a part, or another module."""
    if not isinstance(module, BuiltModule):
        return None
    program = module._tpack_program  # noqa: SLF001
    return program if module._tpack_layer == program.root else None  # noqa: SLF001


class BuiltModule(PackedModule):
    """A layer of a program as a module.

    Its own attributes start with ``_tpack``, which no name of a LayerDef does.

    Args:
        compiled: what was compiled so far. The copies of a layer run the same closures, which
            then are in the caches of the processor.
    """

    def __init__(self, program: Program, layer_name: str, compiled: Compiled) -> None:
        super().__init__()
        self._tpack_program = program
        self._tpack_layer = layer_name
        if layer_name not in compiled:
            lowered = lower(program.by_name[layer_name], program)
            compiled[layer_name] = lowered, compile_steps(lowered)
        lowered, self._tpack_steps = compiled[layer_name]
        self.ternary_shapes = {}  # type: ignore[misc]
        self.ternary_layouts = {}  # type: ignore[misc]
        self.ternary_groups = {}  # type: ignore[misc]
        ones = gains(program.by_name[layer_name])
        for param in lowered.stored:
            _store(self, param, fill=float(param.name in ones))
        tree = members_of(lowered.children)
        for position, member in enumerate(tree.places):
            self.add_module(str(position), _member(program, member, compiled))
        for name, member in tree.named.items():
            self.add_module(name, _member(program, member, compiled))
        inputs = [p for p in program.by_name[layer_name].params if p.is_input and p.sizes]
        whole = layer_name == program.root
        self._tpack_sizes = {p.name: p.sizes for p in inputs if p.sizes} if whole else {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the body; arguments as the LayerDef declares them.

        Raises:
            NotImplementedError: the file knows the tensors, but not the order of calls.
            TypeError: wrong arguments.
            UsageError: an input of a size that the capture fixed at another one.
        """
        inputs, _, owned, body = self._tpack_steps
        if body is None:
            raise NotImplementedError(
                f"{self._tpack_layer}: {NO_FORWARD[0]}; {NO_FORWARD[1]}, or give convert a "
                "layerdef."
            )
        if kwargs or len(args) != len(inputs):
            args = self._arguments(args, kwargs)
        values: Values = dict(zip(inputs, args, strict=True))
        if self._tpack_sizes:
            check_sizes(self._tpack_layer, self._tpack_sizes, values)
        for key, name in owned:
            values[key] = getattr(self, name)
        for target, step in body:
            values[target] = step(values)
        return values[RESULT]

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return all arguments in order; caches may be left out."""
        inputs, caches, _, _ = self._tpack_steps
        given = dict(zip(inputs, args, strict=False)) | kwargs
        missing = [name for name in caches if name not in given]
        given.update(dict.fromkeys(missing, tpack.nn.NO_CACHE))
        count = len(args) + len(kwargs) + len(missing)
        if count != len(inputs) or given.keys() != set(inputs):
            raise TypeError(f"{self._tpack_layer}.forward takes {', '.join(inputs)}.")
        return tuple(given[name] for name in inputs)

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes but the closures, which are made again from the program."""
        return {name: value for name, value in self.__dict__.items() if name != "_tpack_steps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._tpack_steps = compile_steps(self._lowered())

    def _lowered(self) -> Lowered:
        return lower(self._tpack_program.by_name[self._tpack_layer], self._tpack_program)

    def extra_repr(self) -> str:
        """Return the LayerDef and its packed weights, for ``print(module)``."""
        weights = [f"{name}={tuple(shape)}" for name, shape in self.ternary_shapes.items()]
        return ", ".join([self._tpack_layer, *weights])


def _store(module: BuiltModule, param: Param, fill: float) -> None:
    """Register the tensors of one parameter; floats have one value."""
    shape, dtype = param.shape or (), getattr(torch, BY_NAME[param.dtype].held)
    if param.param_type == "Constant":
        module.register_buffer(param.name, constant(param), persistent=False)
    elif param.param_type == "Buffer":
        held = BY_NAME[param.dtype].held_shape(shape)
        empty = torch.empty(held, dtype=dtype)
        whole = BY_NAME[param.dtype].torch  # torch can fill none of these
        module.register_buffer(param.name, empty if whole else empty.fill_(fill))
    elif param.param_type == "Tensor":
        module.register_parameter(param.name, nn.Parameter(torch.full(shape, fill, dtype=dtype)))
    else:
        split = param.rows_split
        packed = packed_zeros(*shape, split=split, layout=param.layout)
        module.register_buffer(f"{param.name}_packed", packed)
        scale = scale_ones(param.scale, *shape, split=split, dtype=dtype)
        module.register_parameter(f"{param.name}_scale", scale)
        module.ternary_shapes[param.name] = shape
        module.ternary_layouts[param.name] = param.layout
        module.ternary_groups[param.name] = Scale.parse(param.scale).group_size


def constant(param: Param) -> Tensor:
    """Compute a validated Constant; on the CPU if the default device is ``meta``."""
    args = dict(param.args)
    device = torch.get_default_device()
    with torch.device("cpu" if device.type == "meta" else device):
        if param.formula == "values":
            values = torch.tensor(args["values"], dtype=getattr(torch, param.dtype))
            return values.reshape(param.shape or ())
        row = CONSTANTS[param.formula or ""]
        made: Tensor = getattr(tpack.nn, row.spelling)(**args)
        return made.to(getattr(torch, param.dtype))


def _member(program: Program, member: Member | None, compiled: Compiled) -> nn.Module:
    """Make the module of a member of a layer: a child, a list or dict of them, or a gap."""
    if member is None:
        return nn.Identity()
    if isinstance(member, Members):
        if named := member.named:
            return nn.ModuleDict(
                {name: _member(program, one, compiled) for name, one in named.items()}
            )
        return nn.ModuleList([_member(program, one, compiled) for one in member.places])
    if member.repeat is None:
        return _child(program, member, compiled)
    return nn.ModuleList([_child(program, member, compiled) for _ in range(member.repeat)])


def _child(program: Program, param: Param, compiled: Compiled) -> nn.Module:
    row = BUILTIN.get(param.layer or "")
    if row is None:
        return BuiltModule(program, param.layer or "", compiled)
    given = {
        name: getattr(torch, str(value)) if name.endswith("dtype") else value
        for name, value in param.args
    }
    home: Any = nn if row.spelling.startswith("nn.") else tpack.nn
    module: nn.Module = getattr(home, row.spelling.removeprefix("nn."))(**given)
    return module
