"""Generated source is as ruff format and ruff check want it."""

import ast
import subprocess
import sys

import pytest
from codegen_trees import GOLDENS, ternary
from hypothesis import given, settings
from strategies import UNSHRUNK, Runnable, runnables
from trees import W, X, Y, call, layer

from tpack import LayerDefError
from tpack.build import build_module
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Identifier,
    LayerCall,
    Literal,
    Param,
    Program,
    Return,
    Tuple,
    UnaryOp,
)
from tpack.layerdef.builtin import BUILTIN

pytestmark = pytest.mark.usefixtures("plain_torch")


def ruff(folder, sources):
    """What ``ruff format --check`` and ``ruff check`` say of some sources, by rule."""
    for i, source in enumerate(sources):
        (folder / f"generated{i}.py").write_text(source, encoding="utf-8")
    problems = []
    for command in (["format", "--diff"], ["check", "--output-format=concise"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "."],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if run.returncode:
            problems.append(run.stdout + run.stderr)
    return "\n".join(problems)


def check_ruff(folder, *trees):
    sources = [generate_pytorch_code(tree, alone) for tree in trees for alone in (False, True)]
    assert not ruff(folder, sources)


def test_ruff_of_random_programs(tmp_path):
    sources = set()

    @settings(max_examples=120, phases=UNSHRUNK)
    @given(runnables())
    def collect(example: Runnable):
        sources.add(generate_pytorch_code(example.program))
        sources.add(generate_pytorch_code(example.program, standalone=True))

    collect()
    assert len(sources) > 100
    problems = ruff(tmp_path, sorted(sources))
    assert not problems, problems[:3000]


@pytest.mark.parametrize("name", GOLDENS)
def test_ruff_of_goldens(name, tmp_path):
    check_ruff(tmp_path, GOLDENS[name]())


@pytest.mark.parametrize("length", [1, 20, 30, 40, 50])
def test_ruff_of_long_names(length, tmp_path):
    a, b, c, t = (letter * length for letter in "abct")
    A, B, T = Identifier(a), Identifier(b), Identifier(t)
    params = [
        ternary(t, (3, 3), scale="group:2", layout="t5"),
        Param(c, "Layer", layer="Child", repeat=2),
        Param("n" * length, "Buffer", [3], dtype="int64"),
    ]
    values = [
        A,
        T,
        BinaryOp("+", A, B),
        BinaryOp("*", BinaryOp("+", A, B), B),
        BinaryOp("**", A, Literal(2)),
        UnaryOp("-", BinaryOp("-", A, B)),
        call("relu", A),
        call("reshape", A, Tuple([Literal(1), Literal(-1)])),
        call("reshape", BinaryOp("+", A, B), Literal(-1)),
        call("cat", Tuple([A, B])),
        call("linear", A, T, bias=B),
        call("linear", call("relu", call("sigmoid", A)), T),
        call("softmax", BinaryOp("@", A, B), dim=Literal(-1)),
        LayerCall(c, [A, B]),
        Tuple([A]),
        Tuple([A, B, call("relu", A)]),
    ]
    child = layer(Return(BinaryOp("+", X, Y)), inputs=("x", "y"), name="Child")
    trees = []
    for i, value in enumerate(values):
        bodies = [[Return(value)]]
        if not isinstance(value, Tuple):
            bodies.append([Assignment("z" * length, value), Return(Identifier("z" * length))])
        for j, body in enumerate(bodies):
            name = ("N" * length)[:62] + f"{i % 10}{j}"
            trees.append(
                Program([child, layer(*body, params=params, inputs=(a, b), name=name)], name)
            )
    check_ruff(tmp_path, *trees)


def test_ruff_of_deep_nesting(tmp_path):
    deep = X
    for i in range(30):
        deep = (
            call("relu", BinaryOp("+", deep, call("linear", X, W))) if i % 2 else call("tanh", deep)
        )
    wide = X
    for _ in range(40):
        wide = BinaryOp("+", wide, X)
    right = X
    for _ in range(40):
        right = BinaryOp("-", X, right)
    minus = X
    for _ in range(40):
        minus = UnaryOp("-", minus)
    chain = X
    for _ in range(30):
        chain = call("transpose", chain, Literal(0), Literal(1))
    power = X
    for _ in range(30):
        power = BinaryOp("**", power, X)
    trees = [
        layer(Return(value), params=[ternary()])
        for value in (deep, wide, right, minus, chain, power)
    ]
    check_ruff(tmp_path, *trees)


def test_ruff_of_long_argument_lists(tmp_path):
    names = [f"argument{i}" for i in range(30)]
    given_ = [Identifier(name) for name in names]
    child = layer(Return(call("cat", Tuple(given_))), inputs=names, name="Child")
    net = layer(
        Assignment("x", LayerCall("child", given_)),
        Return(Tuple([X, *given_])),
        params=[Param("child", "Layer", layer="Child")],
        inputs=names,
        name="Net",
    )
    check_ruff(tmp_path, child, Program([child, net], "Net"))


def test_ruff_of_powers_and_numbers(tmp_path):
    numbers = [2, -2, 0.5, -0.5, 1e16, 1e-7, 1e300, 123456789012345678, 0.0, -0.0, 5e-324]
    trees = [layer(Return(BinaryOp("**", X, Literal(n)))) for n in numbers]
    trees += [layer(Return(BinaryOp("**", Literal(n), X))) for n in numbers]
    trees += [
        layer(Return(BinaryOp("**", left, right)))
        for left in (X, UnaryOp("-", X), call("relu", X), call("abs", X), BinaryOp("+", X, X))
        for right in (X, UnaryOp("-", X), UnaryOp("-", Literal(2)), call("relu", X), W)
        if right is not W
    ]
    trees += [layer(Return(BinaryOp("**", W, Literal(2))), params=[ternary()])]
    trees += [layer(Return(BinaryOp("**", W, Literal(2))), params=[Param("w", "Tensor", [3])])]
    check_ruff(tmp_path, *trees)


def test_ruff_of_names_that_look_like_modules(tmp_path):
    trees = []
    for name in ("xF", "my_math", "mytorch", "ann", "MyTensor", "Any_", "anyAny"):
        trees.append(layer(Return(call("size", Identifier(name), Literal(0))), inputs=(name,)))
        trees.append(layer(Return(call("flatten", Identifier(name))), inputs=(name,), name="M"))
        child = layer(Return(call("relu", X)), name=name)
        params = [Param("child", "Layer", layer=name)]
        trees.append(Program([child, layer(Return(LayerCall("child", [X])), params=params)], "L"))
    check_ruff(tmp_path, *trees)


@pytest.mark.parametrize("name", ["l", "O", "I"])
@pytest.mark.parametrize("place", ["input", "target", "class", "stored"])
def test_ruff_of_ambiguous_names(name, place, tmp_path):
    """Either such a name is refused, or ruff accepts the source that has it."""
    tree = {
        "input": layer(Return(call("relu", Identifier(name))), inputs=(name,)),
        "target": layer(Assignment(name, call("relu", X)), Return(Identifier(name))),
        "class": layer(Return(call("relu", X)), name=name),
        "stored": layer(
            Return(BinaryOp("*", X, Identifier(name))), params=[Param(name, "Tensor", [3])]
        ),
    }[place]
    try:
        generate_pytorch_code(tree)
    except LayerDefError:
        return
    check_ruff(tmp_path, tree)


def test_ruff_of_values_nobody_uses(tmp_path):
    check_ruff(
        tmp_path,
        layer(Assignment("y", call("relu", X)), Return(X)),
        layer(Assignment("x", call("relu", X)), Return(Literal(1))),
    )


def test_ruff_of_every_builtin_layer(tmp_path):
    required = {
        "in_features": 4,
        "out_features": 3,
        "num_embeddings": 5,
        "embedding_dim": 6,
        "in_channels": 4,
        "out_channels": 6,
        "kernel_size": 3,
        "normalized_shape": 4,
        "num_groups": 2,
        "num_channels": 4,
        "num_features": 4,
    }
    special = {"bool": False, "float": 0.001, "ints": (2, 1), "dtype": "bfloat16", "int": 2}
    trees = []
    for name, row in BUILTIN.items():
        args = {p.name: required[p.name] for p in row.params if p.name in required}
        options = {
            p.name: "t5" if "|" in p.kind else special.get(p.kind, "group:2")
            for p in row.params
            if p.name not in required
        }
        for chosen in ({}, options, *({key: value} for key, value in options.items())):
            params = [
                Param("child", "Layer", layer=name, args=args | chosen),
                Param("children_", "Layer", layer=name, args=args | chosen, repeat=3),
                Param("0", "Layer", layer=name, args=args | chosen),
            ]
            body = [Return(LayerCall("children_", [LayerCall("child", [X])]))]
            trees.append(layer(*body, params=params, name="Net"))
            assert ast.parse(generate_pytorch_code(trees[-1]))
            build_module(trees[-1])
    check_ruff(tmp_path, *trees)
