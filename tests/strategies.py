"""Hypothesis strategies that the tests share: names, trees that run, trits."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import Phase, strategies as st
from hypothesis.extra import numpy as hnp
from trees import live

from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Statement,
    Tuple,
    UnaryOp,
)
from tpack.layerdef.names import is_identifier

#: For tests that run whole programs: shrinking one takes minutes, and examples are the same
#: on every run.
UNSHRUNK = (Phase.explicit, Phase.generate)

#: Rows of every value in a runnable program.
BATCH = 2
WIDTHS = (1, 3, 4, 6)
SCALES = ("tensor", "row", "column", "group:2", "group:32")
LAYOUTS = ("t2", "t5")

#: Legal names that a careless printer trips over.
AWKWARD = (
    *("l", "I", "O", "xF", "my_math", "mytorch", "ann", "value", "layer", "layers"),
    *("args", "kwargs", "match", "case", "data", "weight", "bias", "scale", "shape", "inputs"),
    *(
        "layer_name",
        "ternary_layouts",
        "ternary_groups",
        "Any",
        "PackedWeight",
        "spread_scale",
        "scale_ones",
    ),
    *("Model", "Block", "Net", "item", "value2", "layer2", "dtype", "true", "none", "names"),
    *("program", "split", "layout"),
)


# ---- names and numbers


def identifiers(longest: int = 12) -> st.SearchStrategy[str]:
    """Names that a LayerDef may use."""
    plain = st.from_regex(rf"[a-zA-Z_][a-zA-Z0-9_]{{0,{longest - 1}}}", fullmatch=True)
    return st.one_of(st.sampled_from(AWKWARD), plain).filter(is_identifier)


def is_class_name(name: str) -> bool:
    """Whether a LayerDef may be called so; the strictest of the rules for names."""
    return is_identifier(name) and not hasattr(builtins, name) and name != "_"


def long_identifiers() -> st.SearchStrategy[str]:
    """Names of 30 to 50 characters, for the ends of lines."""
    return st.tuples(st.sampled_from("abXY"), st.integers(29, 49)).map(lambda p: p[0] + "w" * p[1])


finite_floats = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.one_of(st.integers(-(2**63) + 1, 2**63 - 1), finite_floats)
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4)


# ---- trits


def trit_arrays(
    min_dims: int = 1, max_dims: int = 3, min_side: int = 0, max_side: int = 9
) -> st.SearchStrategy[np.ndarray[Any, np.dtype[np.int8]]]:
    """int8 arrays of -1, 0 and 1."""
    return hnp.arrays(
        np.int8,
        hnp.array_shapes(
            min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side
        ),
        elements=st.integers(-1, 1),
    )


# ---- trees of any form, valid or not: what JSON must carry

_words = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5))


def _inner(below: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(below, max_size=3)
    return st.one_of(
        st.builds(Tuple, several),
        st.builds(UnaryOp, st.just("-"), below),
        st.builds(
            BinaryOp, st.sampled_from(["+", "-", "*", "/", "//", "%", "@", "**"]), below, below
        ),
        st.builds(
            FunctionCall,
            identifiers(),
            several,
            st.dictionaries(identifiers(), below, max_size=2),
        ),
        st.builds(LayerCall, identifiers(), several),
    )


expressions: st.SearchStrategy[Expression] = st.recursive(
    st.one_of(st.builds(Identifier, identifiers()), st.builds(Literal, _words)),
    _inner,
    max_leaves=8,
)

sizes = st.none() | st.lists(st.integers(0, 9) | identifiers(), max_size=4)

statements: st.SearchStrategy[Statement] = st.one_of(
    st.builds(Assignment, identifiers(), expressions, sizes),
    st.builds(Return, expressions, st.none() | st.lists(sizes, max_size=3)),
)

args = st.dictionaries(
    identifiers(),
    st.one_of(st.booleans(), numbers, st.text(max_size=5), st.lists(st.integers(0, 9), max_size=3)),
    max_size=3,
)


@st.composite
def params(draw: st.DrawFn) -> Param:
    """A parameter of any kind with any fields."""
    return Param(
        draw(identifiers()),
        draw(st.sampled_from(["TernaryTensor", "Tensor", "Buffer", "Layer"])),
        draw(st.none() | st.lists(st.integers(0, 9), max_size=4)),
        dtype=draw(st.sampled_from(["float32", "float16", "bfloat16", "int64"])),
        scale=draw(st.sampled_from(SCALES)),
        layout=draw(st.sampled_from(LAYOUTS)),
        split=draw(st.none() | st.integers(0, 3)),
        layer=draw(st.none() | identifiers()),
        repeat=draw(st.none() | st.integers(1, 9)),
        args=draw(args),
        sizes=draw(sizes),
    )


layer_defs = st.builds(
    LayerDef,
    identifiers(),
    st.lists(params(), max_size=4),
    st.lists(statements, max_size=3),
)

programs = st.builds(Program, st.lists(layer_defs, max_size=3), identifiers())


# ---- programs that run


@dataclass(frozen=True)
class Runnable:
    """A valid program and the shapes of the inputs of its root."""

    program: Program
    inputs: tuple[tuple[int, int], ...]


@st.composite
def runnables(draw: st.DrawFn, long_names: bool | None = None) -> Runnable:
    """Programs over the op table and child layers whose values are all ``(BATCH, width)``."""
    if long_names is None:
        long_names = draw(st.integers(0, 3)) == 0
    writer = _Writer(draw, long_names)
    widths = draw(st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=3))
    root = writer.layer(tuple(widths), draw(st.sampled_from(WIDTHS)), 0, root=True)
    return Runnable(
        Program(list(writer.layers.values()), root), tuple((BATCH, width) for width in widths)
    )


_UNARY = (
    *("relu", "relu_squared", "leaky_relu", "gelu", "silu", "hardswish", "sigmoid", "tanh"),
    *("softplus", "square", "sin", "cos", "abs", "dropout"),
)


@dataclass
class _Writer:
    draw: st.DrawFn
    long_names: bool
    layers: dict[str, LayerDef] = field(default_factory=dict)
    forms: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)

    def name(self, taken: set[str]) -> str:
        wish = self.draw(
            st.one_of(identifiers(), long_identifiers()) if self.long_names else identifiers()
        )
        number, name = 1, wish
        while {name, f"{name}_packed", f"{name}_scale"} & taken or not is_class_name(name):
            number += 1
            name = f"{wish[:45]}{number}"
        taken |= {name, f"{name}_packed", f"{name}_scale"}
        return name

    def layer(self, inputs: tuple[int, ...], output: int, level: int, root: bool = False) -> str:
        """The name of a LayerDef of this form, a known one or a new one."""
        known = [name for name, form in self.forms.items() if form == (inputs, output)]
        if known and not root and self.draw(st.booleans()):
            return self.draw(st.sampled_from(known))
        inner = _Layer(self, level)
        made = inner.write(inputs, output, root)
        name = self.name(set(self.layers))
        self.layers[name] = LayerDef(name, *made)
        if not root:
            self.forms[name] = (inputs, output)
        return name


class _Layer:
    """Writes one LayerDef."""

    def __init__(self, writer: _Writer, level: int) -> None:
        self.writer = writer
        self.draw = writer.draw
        self.level = level
        self.params: list[Param] = []
        self.values: dict[str, int] = {}
        self.taken: set[str] = set()

    def one(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def write(
        self, inputs: tuple[int, ...], output: int, root: bool
    ) -> tuple[list[Param], list[Statement]]:
        for width in inputs:
            name = self.writer.name(self.taken)
            self.params.append(Param(name, "Tensor", sizes=self.sizes(width)))
            self.values[name] = width
        if len(inputs) == 1 and self.draw(st.integers(0, 5)) == 0:
            self.affine(inputs[0], output)
            return self.params, []
        body: list[Statement] = []
        for _ in range(self.draw(st.integers(0, 3))):
            width = self.one(*WIDTHS)
            value = self.value(width, 3)
            again = list(self.values)
            target = self.one(*again) if self.one(0, 1) else self.writer.name(self.taken)
            self.values[target] = width
            body.append(Assignment(target, value, self.sizes(width)))
        if root and self.draw(st.integers(0, 3)) == 0:
            items = [self.value(self.one(*WIDTHS), 2) for _ in range(self.one(1, 2, 3))]
            body.append(Return(Tuple(items)))
        else:
            body.append(Return(self.value(output, 3), self.one(None, [self.sizes(output)])))
        return self.params, live(body)

    def sizes(self, width: int) -> tuple[int | str, ...] | None:
        return self.one(None, (BATCH, width), ("batch", width), ("b" * 60, "w" * 60))

    def affine(self, width: int, output: int) -> None:
        for size in [*self.draw(st.lists(st.sampled_from(WIDTHS), max_size=2)), output]:
            self.ternary((width, size))
            width = size
            if self.one(True, False):
                self.stored((size,))

    # ---- parameters

    def ternary(self, shape: tuple[int, ...]) -> Identifier:
        name = self.writer.name(self.taken)
        self.params.append(
            Param(
                name,
                "TernaryTensor",
                shape,
                dtype=self.one("float32", "float32", "float16", "bfloat16"),
                scale=self.one(*SCALES),
                layout=self.one(*LAYOUTS),
                split=self.one(None, None, 0) if len(shape) > 1 else None,
            )
        )
        return Identifier(name)

    def stored(self, shape: tuple[int, ...], buffers: bool = False) -> Identifier:
        name = self.writer.name(self.taken)
        kind = self.one("Tensor", "Buffer") if buffers else "Tensor"
        self.params.append(Param(name, kind, shape))
        return Identifier(name)

    def weight(self, shape: tuple[int, ...]) -> Identifier:
        return self.ternary(shape) if self.one(True, True, False) else self.stored(shape, True)

    def child(self, layer: str, repeat: int | None = None, **options: Any) -> str:
        name = self.writer.name(self.taken)
        if repeat is None and self.draw(st.integers(0, 4)) == 0:
            positions = [int(p.name) for p in self.params if p.name.isdigit()]
            name = str(max(positions, default=-1) + self.one(1, 1, 2))
        self.params.append(Param(name, "Layer", layer=layer, repeat=repeat, args=options))
        return name

    # ---- values

    def value(self, width: int, fuel: int) -> Expression:
        """An expression of shape (BATCH, width)."""
        known = [name for name, has in self.values.items() if has == width]
        if fuel <= 0 and known:
            return Identifier(self.one(*known))
        if fuel <= 0:
            return self.projected(width, 0)
        kinds = [self.arithmetic, self.unary, self.projected, self.shaped, self.joined, self.normed]
        if self.level < 2:
            kinds += [self.called, self.repeated]
        if known:
            kinds.append(lambda width, fuel: Identifier(self.one(*known)))
        result: Expression = self.one(*kinds)(width, fuel)
        return result

    def any_value(self, fuel: int) -> tuple[int, Expression]:
        if fuel <= 0:
            name = self.one(*self.values)
            return self.values[name], Identifier(name)
        width = self.one(*WIDTHS)
        return width, self.value(width, fuel - 1)

    def arithmetic(self, width: int, fuel: int) -> Expression:
        left = self.value(width, fuel - 1)
        match self.one("two", "vector", "number", "minus", "call", "power"):
            case "two":
                return BinaryOp(self.one("+", "-", "*"), left, self.value(width, fuel - 1))
            case "vector":
                vector = self.weight((width,))
                pair = (left, vector) if self.one(0, 1) else (vector, left)
                return BinaryOp(self.one("+", "-", "*"), *pair)
            case "number":
                number = Literal(self.one(2, 0.5, -3, 1e-05, 1e16, 7))
                if self.one(0, 1):
                    return BinaryOp(self.one("+", "-", "*"), number, left)
                return BinaryOp(self.one("+", "-", "*", "/", "//", "%"), left, number)
            case "minus":
                return UnaryOp("-", left)
            case "power":
                return BinaryOp("**", left, Literal(self.one(2, 3, 1.0)))
            case _:
                return FunctionCall(
                    self.one("add", "sub", "mul"), [left, self.value(width, fuel - 1)]
                )

    def unary(self, width: int, fuel: int) -> Expression:
        inner = self.value(width, fuel - 1)
        match self.one("table", "table", "softmax", "clamp", "gelu"):
            case "table":
                return FunctionCall(self.one(*_UNARY), [inner])
            case "softmax":
                return FunctionCall("softmax", [inner], {"dim": Literal(self.one(-1, 1))})
            case "clamp":
                return FunctionCall("clamp", [inner], {"min": Literal(-0.5), "max": Literal(2)})
            case _:
                return FunctionCall("gelu", [inner], {"approximate": Literal("tanh")})

    def projected(self, width: int, fuel: int) -> Expression:
        inputs, x = self.any_value(fuel)
        match self.one("linear", "bit_linear", "matmul", "@"):
            case "linear":
                bias = [self.weight((width,))] if self.one(0, 1) else []
                return FunctionCall("linear", [x, self.weight((width, inputs)), *bias])
            case "bit_linear":
                weight = self.ternary((width, inputs))
                self.params[-1] = Param(**{**_fields(self.params[-1]), "split": None})
                bias = {"bias": self.stored((width,))} if self.one(0, 1) else {}
                return FunctionCall("bit_linear", [x, weight], bias)
            case "matmul":
                return FunctionCall("matmul", [x, self.weight((inputs, width))])
            case _:
                return BinaryOp("@", x, self.weight((inputs, width)))

    def shaped(self, width: int, fuel: int) -> Expression:
        inner = self.value(width, fuel - 1)
        match self.one("transpose", "reshape", "unsqueeze", "size", "permute", "narrow"):
            case "transpose":
                once = FunctionCall("transpose", [inner, Literal(0), Literal(1)])
                return FunctionCall("transpose", [once, Literal(-2), Literal(-1)])
            case "reshape":
                flat = FunctionCall("flatten", [inner])
                return FunctionCall("reshape", [flat, Tuple([Literal(BATCH), Literal(width)])])
            case "unsqueeze":
                more = FunctionCall("unsqueeze", [inner, Literal(0)])
                return FunctionCall("squeeze", [more, Literal(0)])
            case "size":
                x = Identifier(self.one(*self.values))
                size = FunctionCall("size", [x, Literal(0)])
                return FunctionCall("reshape", [inner, Tuple([size, Literal(-1)])])
            case "permute":
                return FunctionCall("permute", [inner, Tuple([Literal(0), Literal(1)])])
            case _:
                wide = self.value(width + 2, fuel - 1)
                return FunctionCall("narrow", [wide, Literal(1), Literal(1), Literal(width)])

    def joined(self, width: int, fuel: int) -> Expression:
        if width == 1:
            return FunctionCall(
                "mean", [self.any_value(fuel)[1]], {"dim": Literal(-1), "keepdim": Literal(True)}
            )
        first = self.draw(st.integers(1, width - 1))
        parts = [self.value(first, fuel - 1), self.value(width - first, fuel - 1)]
        return FunctionCall("cat", [Tuple(parts)], {"dim": Literal(self.one(1, -1))})

    def normed(self, width: int, fuel: int) -> Expression:
        inner = self.value(width, fuel - 1)
        shape = Tuple([Literal(width)])
        if self.one(0, 1):
            return FunctionCall("layer_norm", [inner, shape], {"eps": Literal(1e-06)})
        weight = self.stored((width,))
        return FunctionCall("rms_norm", [inner, shape, weight], {"eps": Literal(1e-06)})

    def called(self, width: int, fuel: int) -> Expression:
        kind = self.one("ours", "ours", "TernaryLinear", "BitLinear", "Linear", "LayerNorm")
        if kind == "ours":
            others = [self.any_value(fuel - 1) for _ in range(self.one(1, 1, 2))]
            layer = self.writer.layer(tuple(w for w, _ in others), width, self.level + 1)
            return LayerCall(self.child(layer), [value for _, value in others])
        if kind == "LayerNorm":
            child = self.child(kind, normalized_shape=width, eps=1e-06)
            return LayerCall(child, [self.value(width, fuel - 1)])
        inputs, x = self.any_value(fuel - 1)
        options: dict[str, Any] = {"in_features": inputs, "out_features": width}
        if self.one(0, 1):
            options["bias"] = False
        if kind != "Linear":
            if (scale := self.one(*SCALES)) != "tensor":
                options["scale"] = scale
            if self.one(0, 1):
                options["scale_dtype"] = self.one("float16", "bfloat16")
            if self.one(0, 1):
                options["layout"] = "t5"
        return LayerCall(self.child(kind, **options), [x])

    def repeated(self, width: int, fuel: int) -> Expression:
        first = self.value(width, fuel - 1)
        others = [self.any_value(fuel - 1) for _ in range(self.one(0, 0, 1))]
        repeat = self.one(1, 2, 3)
        if not others and self.one(0, 1):
            child = self.child("TernaryLinear", repeat, in_features=width, out_features=width)
        else:
            form = (width, *(w for w, _ in others))
            child = self.child(self.writer.layer(form, width, self.level + 1), repeat)
        return LayerCall(child, [first, *(value for _, value in others)])


def _fields(param: Param) -> dict[str, Any]:
    return {name: getattr(param, name) for name in param.__dataclass_fields__}
