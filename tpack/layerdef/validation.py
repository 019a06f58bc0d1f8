"""Check a whole program, so that ``build`` and ``codegen`` can rely on it.

Each check raises LayerDefError with the path of the node, such as
``Mlp.body[0].value.args[1]``.
"""

from __future__ import annotations

from typing import NamedTuple

from tpack.errors import LayerDefError
from tpack.layerdef.caches import check_caches_last, check_kind, gives_cache
from tpack.layerdef.members import lists_of, members_of
from tpack.layerdef.names import (
    CONTAINER_NAMES,
    check_class_name,
    check_identifier,
    check_word,
)
from tpack.layerdef.nodes import (
    Assignment,
    BinaryOp,
    Dict,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Program,
    Return,
    Sizes,
    Tuple,
    UnaryOp,
    Unpack,
    Unspecified,
)
from tpack.layerdef.ops import BINARY, OPS, REQUIRED, UNARY, Op, OpParam, has_trait
from tpack.layerdef.params import (
    MAX_INSTANCES,
    MAX_RANK,
    check_constant,
    check_number,
    check_param,
    check_sizes,
)
from tpack.layerdef.serialization import MAX_DEPTH
from tpack.layerdef.tensors import tensor_of
from tpack.layerdef.walking import results
from tpack.wording import nearest

#: LayerDefs a program may have.
MAX_LAYERS = 20_000
#: Statements a layer may have.
MAX_STATEMENTS = 20_000
#: Parameters that a program may unfold to.
MAX_TENSORS = 1_000_000


def as_program(tree: LayerDef | Program) -> Program:
    """Make a program of one layer, or take a program as it is; validate it.

    Raises:
        LayerDefError: with the path of the offending node.
    """
    program = Program([tree], tree.name) if isinstance(tree, LayerDef) else tree
    validate(program)
    return program


def validate(program: Program) -> None:
    """Check a program and all its layers.

    Raises:
        LayerDefError: with the path of the offending node.
    """
    if len(program.layers) > MAX_LAYERS:
        raise LayerDefError(f"has over {MAX_LAYERS} layers.", node="program")
    names: set[str] = set()
    for i, layer in enumerate(program.layers):
        check_class_name(layer.name, f"program.layers[{i}].name")
        if layer.name in names:
            raise LayerDefError("is defined twice. Rename one.", node=layer.name)
        names.add(layer.name)
    if program.root not in names:
        raise LayerDefError(f"root {program.root!r:.60} is not defined.", node="program")
    for layer in program.layers:
        for i, param in enumerate(layer.params):
            check_param(param, f"{layer.name}.params[{i}]", names)
    _check_instances(program)
    for layer in program.layers:
        _Checker(layer, program.by_name).check()


def _check_instances(program: Program) -> None:
    """Refuse recursion, unused layers and programs that unfold to too much."""
    sizes: dict[str, _Size] = {}
    layers = program.by_name

    def measure(name: str, above: tuple[str, ...]) -> _Size:
        if name in above:
            raise LayerDefError(f"contains itself through {' → '.join(above)}.", node=name)
        if name not in sizes:
            size = _Size(1 + members_of(layers[name].params).gaps, 0, 0)
            for param in layers[name].params:
                if param.param_type != "Layer":
                    size = size.plus(_Size(0, 1, 0), 1)
                elif len(above) >= MAX_DEPTH:
                    raise LayerDefError(f"is nested deeper than {MAX_DEPTH}.", node=name)
                else:
                    child = str(param.layer)
                    one = measure(child, (*above, name)) if child in layers else _Size(1, 0, 0)
                    size = size.plus(one, param.repeat or 1)
            if size.modules > MAX_INSTANCES or size.tensors > MAX_TENSORS:
                raise LayerDefError(
                    f"unfolds to over {MAX_INSTANCES} modules, or {MAX_TENSORS} parameters.",
                    node=name,
                )
            if size.height > MAX_DEPTH:
                raise LayerDefError(f"is nested deeper than {MAX_DEPTH}.", node=name)
            sizes[name] = size
        return sizes[name]

    measure(program.root, ())
    if unused := sorted(set(layers) - set(sizes)):
        raise LayerDefError(f"is not used by root {program.root!r}. Remove it.", node=unused[0])


class _Size(NamedTuple):
    """The size of an unfolded layer: all modules and parameters, and the levels below it."""

    modules: int
    tensors: int
    height: int

    def plus(self, child: _Size, times: int) -> _Size:
        return _Size(
            self.modules + times * child.modules,
            self.tensors + times * child.tensors,
            max(self.height, child.height + bool(child.modules)),
        )


class _Checker:
    """Checks one layer: parameters first, then the body against them."""

    def __init__(self, layer: LayerDef, layers: dict[str, LayerDef]) -> None:
        self.layer = layer
        self.layers = layers
        self.params = {param.name: param for param in layer.params}
        self.inputs = {name for name, param in self.params.items() if param.is_input}
        self.caches = {name for name, param in self.params.items() if param.is_cache}
        self.taken: set[str] = set()
        self.known = {name for name, param in self.params.items() if param.param_type != "Layer"}

    def check(self) -> None:
        self.check_unique()
        check_caches_last(self.layer.params, self.layer.name)
        self.check_containers()
        if not any(param.is_input for param in self.layer.params):
            self.known.add("x")
        self.check_body()

    def check_unique(self) -> None:
        for i, param in enumerate(self.layer.params):
            node = f"{self.layer.name}.params[{i}]"
            names = [param.name]
            if param.param_type == "TernaryTensor":
                names += [f"{param.name}_packed", f"{param.name}_scale"]
                if param.name == "_":  # Python mangles names that begin with two underscores
                    raise LayerDefError("name '_' would be stored as '__packed'.", node=node)
            for name in names:
                if name in self.taken:
                    raise LayerDefError(f"name {name!r} is taken already. Rename it.", node=node)
                self.taken.add(name)

    def check_containers(self) -> None:
        """Check that dotted names draw lists of positions and dicts of identifiers."""
        for path, container in members_of(self.layer.params).containers():
            node = f"{self.layer.name}.{path}"
            if path in self.taken:
                raise LayerDefError("is a parameter, and has parameters of its own.", node=node)
            names = container.held.keys()
            if (container.listed and container.named) or names & CONTAINER_NAMES:
                raise LayerDefError(
                    f"holds {', '.join(sorted(names)[:5])}, expected positions or identifiers.",
                    node=node,
                )
            self.taken.add(path)

    def check_body(self) -> None:
        """Check the statements; an empty body is the affine map, checked when it is expanded."""
        body = self.layer.body
        path = f"{self.layer.name}.body"
        if len(body) > MAX_STATEMENTS:
            raise LayerDefError(f"has over {MAX_STATEMENTS} statements.", node=path)
        if body == (Unspecified(),):
            return
        for i, statement in enumerate(body):
            node = f"{path}[{i}]"
            last = i == len(body) - 1
            match statement:
                case Assignment(target, value, sizes) if not last:
                    check_sizes(sizes, f"{node}.sizes")
                    check_identifier(target, node)
                    if target in self.taken and target not in self.inputs:
                        raise LayerDefError(f"assigns to parameter {target!r}.", node=node)
                    cache = gives_cache(value, self.caches)
                    self.check_expression(value, f"{node}.value", 1, cache=cache)
                    self.known.add(target)
                    self.caches = self.caches | {target} if cache else self.caches - {target}
                case Unpack(targets, value, sizes) if not last:
                    self.check_unpack(targets, value, node)
                    _check_several_sizes(sizes, len(targets), node)
                case Return(value, sizes) if last:
                    self.check_result(value, f"{node}.value", 1)
                    _check_several_sizes(sizes, len(list(results(value))), node)
                case _:
                    kind = type(statement).__name__
                    wanted = "a Return" if last else "an Assignment"
                    raise LayerDefError(f"is {kind}, expected {wanted}.", node=node)

    def check_unpack(self, targets: tuple[str, ...], value: Expression, node: str) -> None:
        names = [target for target in targets if target != "_"]
        if not names or len(targets) < 2 or len(set(names)) < len(names):
            raise LayerDefError("unpacks to fewer than two names. Assign instead.", node=node)
        for target in names:
            check_identifier(target, node)
            if target in self.taken and target not in self.inputs:
                raise LayerDefError(f"assigns to parameter {target!r}.", node=node)
        several = isinstance(value, FunctionCall) and has_trait(value.function, "several")
        if not several and not isinstance(value, LayerCall):
            raise LayerDefError("unpacks what has one result.", node=f"{node}.value")
        self.check_expression(value, f"{node}.value", 1, several=True)
        self.known |= set(names)
        self.caches -= set(names)

    def check_result(self, value: Expression, path: str, depth: int) -> None:
        """Check what forward returns: a value, or several in a Tuple or Dict."""
        if not isinstance(value, Tuple | Dict):
            self.check_expression(value, path, depth)
            return
        if depth > MAX_DEPTH:
            raise LayerDefError(f"is nested deeper than {MAX_DEPTH}.", node=path[:200])
        if not value.items:
            raise LayerDefError("returns nothing, expected a value.", node=path)
        for i, item in enumerate(value.items):
            if isinstance(item, tuple):
                check_word(item[0], path)
                self.check_result(item[1], f"{path}.{item[0]}", depth + 1)
            else:
                self.check_result(item, f"{path}.items[{i}]", depth + 1)

    def check_expression(
        self,
        node: Expression,
        path: str,
        depth: int,
        *,
        several: bool = False,
        cache: bool = False,
    ) -> None:
        """Check a value that stands for a tensor or a number, or else for a cache."""
        check_kind(node, self.caches, path, cache=cache)
        if depth > MAX_DEPTH:
            raise LayerDefError(f"is nested deeper than {MAX_DEPTH}.", node=path[:200])
        match node:
            case Identifier(name):
                if name not in self.known and tensor_of(self.layer, name, self.layers) is None:
                    raise LayerDefError(f"name {name!r:.60} is not defined here.", node=path)
            case Literal(value):
                check_number(value, path)
            case UnaryOp(operator, operand):
                if operator not in UNARY:
                    raise LayerDefError(f"operator {operator!r:.20} is unknown.", node=path)
                self.check_expression(operand, f"{path}.operand", depth + 1)
            case BinaryOp(operator, left, right):
                if operator not in BINARY:
                    raise LayerDefError(f"operator {operator!r:.20} is unknown.", node=path)
                self.check_expression(left, f"{path}.left", depth + 1)
                self.check_expression(right, f"{path}.right", depth + 1)
            case FunctionCall(function):
                if function not in OPS:
                    raise LayerDefError(
                        f"op {function!r:.60} is unknown. The manual lists the ops."
                        f"{nearest(function, OPS)}",
                        node=path,
                    )
                if has_trait(function, "several") and not several:
                    raise LayerDefError(f"{function} has several results. Unpack it.", node=path)
                for argument, given in bind(OPS[function], node, path):
                    self.check_argument(argument, given, f"{path}.{argument.name}", depth + 1)
            case LayerCall(layer, args):
                child = self.params.get(layer)
                if child is None or child.param_type != "Layer":
                    raise LayerDefError(f"layer {layer!r:.60} is not defined here.", node=path)
                if not args:
                    raise LayerDefError(f"calls layer {layer!r} without argument.", node=path)
                below = self.layers.get(child.layer or "")
                caches = [p.is_cache for p in below.params if p.is_input] if below else []
                for i, arg in enumerate(args):
                    cache = i < len(caches) and caches[i]
                    self.check_expression(arg, f"{path}.args[{i}]", depth + 1, cache=cache)
            case _:
                raise LayerDefError(f"is {type(node).__name__}, expected an expression.", node=path)

    def check_ternary(self, value: Expression, path: str) -> None:
        name = value.name if isinstance(value, Identifier) else ""
        param = self.params.get(name) or tensor_of(self.layer, name, self.layers)
        if param is None or param.param_type != "TernaryTensor" or param.rows_split != 1:
            raise LayerDefError("must be a TernaryTensor parameter, split 1.", node=path)

    def check_argument(self, param: OpParam, value: Expression, path: str, depth: int) -> None:
        """Check the argument of an op against the kind its row declares."""
        literal = value.value if isinstance(value, Literal) else None
        is_literal = isinstance(value, Literal)
        match param.kind:
            case "tensor" | "tensor?" if is_literal:
                if literal is not None or param.kind == "tensor":
                    raise LayerDefError(f"is {literal!r:.40}, expected a tensor.", node=path)
            case "ternary":
                self.check_ternary(value, path)
            case "layers" if literal not in lists_of(self.layer.params):
                raise LayerDefError("must be the name of a list of layers.", node=path)
            case "layers":
                pass
            case "cache":
                self.check_expression(value, path, depth, cache=True)
            case "value" if isinstance(literal, str):
                check_constant(param, literal, path)
            case "device" if literal is not None:
                raise LayerDefError(f"is {literal!r:.40}, expected a tensor.", node=path)
            case "device" if is_literal:
                pass
            case "tensor" | "tensor?" | "value" | "device":
                self.check_expression(value, path, depth)
            case "tensors":
                if not isinstance(value, Tuple) or not value.items:
                    raise LayerDefError("expected a Tuple of tensors.", node=path)
                for i, item in enumerate(value.items):
                    self.check_expression(item, f"{path}.items[{i}]", depth + 1)
            case "ints" | "sizes" | "window" if isinstance(value, Tuple):
                for i, item in enumerate(value.items):
                    self.check_size(item, f"{path}.items[{i}]", depth + 1)
            case "floats" if isinstance(value, Tuple):
                for i, item in enumerate(value.items):
                    one = item.value if isinstance(item, Literal) else item
                    check_constant(OpParam("", "float"), one, f"{path}.items[{i}]")
            case "sizes":
                raise LayerDefError("expected a Tuple of sizes.", node=path)
            case "int" if param.name == "dim" and type(literal) is int and abs(literal) > MAX_RANK:
                raise LayerDefError(f"is {literal}, beyond {MAX_RANK} dims.", node=path)
            case "int" | "ints" | "window" if not is_literal and param.name != "dim":
                self.check_size(value, path, depth)
            case _ if is_literal:
                check_constant(param, literal, path)
            case _:
                raise LayerDefError(f"expected a constant of kind {param.kind}.", node=path)

    def check_size(self, value: Expression, path: str, depth: int) -> None:
        if isinstance(value, Literal):
            check_constant(OpParam("", "int"), value.value, path)
        else:
            self.check_expression(value, path, depth)


def _check_several_sizes(several: tuple[Sizes | None, ...] | None, count: int, node: str) -> None:
    """Check the shapes of several tensors: one for each, or none at all."""
    if several is not None and len(several) != count:
        raise LayerDefError(f"has sizes of {len(several)} tensors, expected {count}.", node=node)
    for i, sizes in enumerate(several or ()):
        check_sizes(sizes, f"{node}.sizes[{i}]")


def bind(op: Op, call: FunctionCall, path: str) -> list[tuple[OpParam, Expression]]:
    """Match the arguments of a call with the parameters of its op; defaults stay out.

    Raises:
        LayerDefError: too many, missing, unknown or doubled arguments.
    """
    if len(call.args) > len(op.params):
        raise LayerDefError(
            f"gives {op.name} {len(call.args)} arguments, expected at most {len(op.params)}.",
            node=path,
        )
    given = {param.name: value for param, value in zip(op.params, call.args, strict=False)}
    for name, value in call.kwargs:
        if name in given or name not in {param.name for param in op.params}:
            problem = "twice" if name in given else "which it does not take"
            raise LayerDefError(f"gives {op.name} argument {name!r:.60} {problem}.", node=path)
        given[name] = value
    bound = []
    for param in op.params:
        if param.name in given:
            bound.append((param, given[param.name]))
        elif param.default is REQUIRED:
            raise LayerDefError(f"gives {op.name} no argument {param.name!r}.", node=path)
    return bound
