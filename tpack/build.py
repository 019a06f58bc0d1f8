"""LayerDef → live ``nn.Module``, without running text.

The module walks the lowered tree through closures made once. It reads the same tables as
``codegen``, so both compute the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpack.nn
from tpack.codec import Scale
from tpack.dtypes import BY_NAME
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Dict,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Lowered,
    Param,
    Program,
    Return,
    Statement,
    Tuple,
    UnaryOp,
    Unpack,
    as_program,
    lower,
)
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.constants import CONSTANTS
from tpack.layerdef.gains import gains
from tpack.layerdef.members import Member, Members, members_of
from tpack.layerdef.nodes import NO_FORWARD
from tpack.layerdef.ops import OPS, PACKED_OPS, Op, OpParam
from tpack.nn.caching import KeyValueCache
from tpack.nn.input_check import check_sizes
from tpack.nn.modules import PackedModule, packed_zeros, scale_ones

Values = dict[str, Any]
#: Computes an expression from the module and the local values.
Step = Callable[[nn.Module, Values], Any]

#: Symbols of binary operators → what they compute.
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "@": operator.matmul,
    "&": operator.and_,
    "|": operator.or_,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
#: Symbols of unary operators → what they compute.
UNARY: dict[str, Callable[[Any], Any]] = {"-": operator.neg, "~": operator.invert}


def build_module(tree: LayerDef | Program, device: str | torch.device = "cpu") -> nn.Module:
    """Make the module of a LayerDef or Program, with all trits 0 and all scales 1.

    Args:
        device: where its tensors are made; on ``meta`` only constants take memory.

    Raises:
        LayerDefError: the tree is malformed or does not fit its shapes.
    """
    program = as_program(tree)
    with torch.device(device):
        module = BuiltModule(program, program.root)
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
    """

    def __init__(self, program: Program, layer_name: str) -> None:
        super().__init__()
        self._tpack_program = program
        self._tpack_layer = layer_name
        lowered = lower(program.by_name[layer_name], program)
        self.ternary_shapes = {}  # type: ignore[misc]
        self.ternary_layouts = {}  # type: ignore[misc]
        self.ternary_groups = {}  # type: ignore[misc]
        ones = gains(program.by_name[layer_name])
        for param in lowered.stored:
            _store(self, param, fill=float(param.name in ones))
        tree = members_of(lowered.children)
        for position, member in enumerate(tree.places):
            self.add_module(str(position), _member(program, member))
        for name, member in tree.named.items():
            self.add_module(name, _member(program, member))
        self._tpack_steps = _compile(lowered)
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
        inputs, caches, body = self._tpack_steps
        if body is None:
            raise NotImplementedError(
                f"{self._tpack_layer}: {NO_FORWARD[0]}; {NO_FORWARD[1]}, or give convert a "
                "layerdef."
            )
        values = dict(zip(inputs, args, strict=False))
        if kwargs or len(args) != len(inputs):
            values.update(kwargs)
            missing = [name for name in caches if name not in values]
            values.update(dict.fromkeys(missing, tpack.nn.NO_CACHE))
            given = len(args) + len(kwargs) + len(missing)
            if given != len(inputs) or values.keys() != set(inputs):
                raise TypeError(f"{self._tpack_layer}.forward takes {', '.join(inputs)}.")
        if self._tpack_sizes:
            check_sizes(self._tpack_layer, self._tpack_sizes, values)
        for targets, step in body:
            value = step(self, values)
            if isinstance(targets, str):
                values[targets] = value
            else:
                values.update(zip(targets, value, strict=True))
        return values[_RESULT]

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes but the closures, which are made again from the program."""
        return {name: value for name, value in self.__dict__.items() if name != "_tpack_steps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._tpack_steps = _compile(self._lowered())

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


#: Key of the returned value among the local values; not an identifier.
_RESULT = "return"


def _member(program: Program, member: Member | None) -> nn.Module:
    """Make the module of a member of a layer: a child, a list or dict of them, or a gap."""
    if member is None:
        return nn.Identity()
    if isinstance(member, Members):
        if named := member.named:
            return nn.ModuleDict({name: _member(program, one) for name, one in named.items()})
        return nn.ModuleList([_member(program, one) for one in member.places])
    if member.repeat is None:
        return _child(program, member)
    return nn.ModuleList([_child(program, member) for _ in range(member.repeat)])


def _child(program: Program, param: Param) -> nn.Module:
    row = BUILTIN.get(param.layer or "")
    if row is None:
        return BuiltModule(program, param.layer or "")
    given = {
        name: getattr(torch, str(value)) if name.endswith("dtype") else value
        for name, value in param.args
    }
    home: Any = nn if row.spelling.startswith("nn.") else tpack.nn
    module: nn.Module = getattr(home, row.spelling.removeprefix("nn."))(**given)
    return module


# ---- lowered expressions → closures


class _Steps(NamedTuple):
    """A compiled forward: its arguments, those that are caches, and its statements."""

    inputs: tuple[str, ...]
    caches: frozenset[str]
    body: tuple[tuple[str | tuple[str, ...], Step], ...] | None


def _compile(lowered: Lowered) -> _Steps:
    stored = {
        name
        for param in lowered.stored
        for name in (param.name, f"{param.name}_packed", f"{param.name}_scale")
    }
    lists = {child.name for child in lowered.children if child.repeat is not None}
    compiler = _Compiler(stored, lists)
    body = tuple(compiler.statement(item) for item in lowered.body)
    return _Steps(lowered.inputs, lowered.caches, body or None)


class _Compiler:
    def __init__(self, stored: set[str], lists: set[str]) -> None:
        self.stored = stored
        self.lists = lists

    def statement(self, statement: Statement) -> tuple[str | tuple[str, ...], Step]:
        if isinstance(statement, Unpack):
            return statement.targets, self.expression(statement.value)
        assert isinstance(statement, Assignment | Return)
        target = statement.target if isinstance(statement, Assignment) else _RESULT
        return target, self.expression(statement.value)

    def expression(self, node: Expression) -> Step:
        match node:
            case Identifier(name) if name in self.stored:
                return lambda module, _: getattr(module, name)
            case Identifier(name) if "." in name:
                find = operator.attrgetter(name)
                return lambda module, _: find(module)
            case Identifier(name):
                return lambda _, values: values[name]
            case Literal(value):
                return lambda *_: value
            case Tuple(items) if all(isinstance(item, Literal) for item in items):
                values = tuple(item.value for item in items if isinstance(item, Literal))
                return lambda *_: values
            case Tuple(items):
                steps = [self.expression(item) for item in items]
                return lambda module, values: tuple([step(module, values) for step in steps])
            case Dict(pairs):
                named = [(name, self.expression(item)) for name, item in pairs]
                return lambda module, values: {name: step(module, values) for name, step in named}
            case UnaryOp(symbol, operand):
                change = UNARY[symbol]
                inner = self.expression(operand)
                return lambda module, values: change(inner(module, values))
            case BinaryOp(symbol, left, right):
                function = BINARY[symbol]
                first, second = self.expression(left), self.expression(right)
                return lambda module, values: function(
                    first(module, values), second(module, values)
                )
            case LayerCall(layer, args):
                return self.layer_call(layer, [self.expression(arg) for arg in args])
            case FunctionCall():
                return self.function_call(node)

    def layer_call(self, name: str, args: list[Step]) -> Step:
        def find(module: nn.Module) -> Any:
            return module.get_submodule(name) if "." in name else getattr(module, name)

        if name not in self.lists:
            return lambda module, values: find(module)(*[arg(module, values) for arg in args])

        def in_order(module: nn.Module, values: Values) -> Any:
            first, *others = [arg(module, values) for arg in args]
            for i, copy in enumerate(find(module).children()):
                first = copy(first, *(_part(other, i) for other in others))
            return first

        return in_order

    def function_call(self, node: FunctionCall) -> Step:
        op = OPS.get(node.function) or PACKED_OPS[node.function]
        function = op_function(op)
        given = dict(node.kwargs)
        positional: list[Step] = []
        named: dict[str, Step] = {}
        for param in op.params:
            value = given.get(param.name, Literal(param.default))
            if value == Literal(param.default):
                continue
            step = self.argument(param, value)
            if param.keyword or len(positional) < op.params.index(param):
                named[param.torch_name] = step
            else:
                positional.append(step)

        if not named:  # most calls: a keyword less costs less
            return lambda module, values: function(*[step(module, values) for step in positional])
        return lambda module, values: function(
            *[step(module, values) for step in positional],
            **{name: step(module, values) for name, step in named.items()},
        )

    def argument(self, param: OpParam, value: Expression) -> Step:
        """Compile an argument of an op: words are dtypes or infinity, a tensor gives its device."""
        step = self.expression(value)
        match param.kind, value:
            case "layers", Literal(str(word)):
                return lambda module, _: module.get_submodule(word)
            case "dtype", Literal(str(word)):
                dtype = getattr(torch, word)
                return lambda *_: dtype
            case "value", Literal(str(word)):
                number = float(word)
                return lambda *_: number
            case "device", _:
                return lambda module, values: step(module, values).device
            case _:
                return step


def _part(value: Any, index: int) -> Any:
    """Return what the copy of a repeated layer takes: of a cache, the part of that layer."""
    return value.layer(index) if isinstance(value, KeyValueCache) else value


def _slice(x: Tensor, dim: int, start: int = 0, end: int | None = None, step: int = 1) -> Tensor:
    """Return ``x[…, start:end:step, …]``."""
    part = slice(start, end, step)
    if dim >= 0:
        return x[(*[slice(None)] * dim, part)]
    return x[(..., part, *[slice(None)] * (-1 - dim))]


def _index(x: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
    """Return ``x[first, second]``."""
    return x[indices]


_BRACKETS: dict[str, Callable[..., Any]] = {"[]": _index, "[:]": _slice}


def op_function(op: Op) -> Callable[..., Any]:
    """Return the function that a spelling of the table means."""
    if op.spelling in _BRACKETS:
        return _BRACKETS[op.spelling]
    home, _, name = op.spelling.rpartition(".")
    if op.spelling.startswith("."):
        # called on the tensor: some methods of the class itself are wrappers that call super()
        return lambda x, *args, **options: getattr(x, name)(*args, **options)
    if not home:
        return getattr(tpack.nn, name)  # type: ignore[no-any-return]
    return getattr({"F": F, "torch": torch}[home], name)  # type: ignore[no-any-return]
