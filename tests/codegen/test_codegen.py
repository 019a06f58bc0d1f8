"""Generated source is valid, formatted, isolated, and says only what the tree says.

Run as a script, this file writes ``golden/`` anew.
"""

import ast
import keyword
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from running import inputs_of, readings
from strategies import UNSHRUNK, Runnable, runnables
from trees import IDS, W, X, Y, block, call, network

from tpack import LayerDefError, PyTorchCodeGenerator, kernels
from tpack.build import build_module
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Tuple,
    UnaryOp,
    Unspecified,
    mirror,
    slots,
)
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.ops import OPS, PACKED_OPS


@pytest.fixture(autouse=True, scope="module")
def plain_torch():
    """Readings are compared bit for bit; kernels, tested elsewhere, may round differently."""
    with kernels.forced("numpy"):
        yield


GOLDEN = Path(__file__).parents[1] / "golden"


def layer(*body, params=(), inputs=("x",), name="L"):
    return LayerDef(name, [*params, *(Param(one, "Tensor") for one in inputs)], body)


def ternary(name="w", shape=(4, 4), **options):
    return Param(name, "TernaryTensor", shape, **options)


def encoder():
    net = LayerDef("Net", [Param("blocks", "Layer", layer="Block", repeat=2)])
    return mirror(list(slots(Program([block(), net], "Net"))), "Encoder")


def convolution():
    return layer(
        Assignment(
            "x",
            call(
                "conv2d",
                X,
                W,
                bias=Identifier("bias"),
                stride=Tuple([Literal(2), Literal(1)]),
                padding=Literal(1),
                groups=Literal(2),
            ),
        ),
        Assignment("x", call("max_pool2d", call("relu", X), Literal(2))),
        Return(Tuple([call("flatten", X, Literal(1)), call("mean", X, Literal(-1))])),
        params=[
            ternary("w", (6, 2, 3, 3), scale="row", layout="t5", dtype="bfloat16"),
            Param("bias", "Tensor", [6]),
            Param("seen", "Buffer", [], dtype="int64"),
        ],
        name="Convolution",
    )


def awkward_lines():
    """Everything that has to break over lines."""
    a, b = "a" * 50, "b" * 50
    A, B = Identifier(a), Identifier(b)
    return layer(
        Assignment("sum", BinaryOp("+", A, B)),
        Assignment("power", BinaryOp("**", UnaryOp("-", A), Literal(2))),
        Assignment("product", BinaryOp("*", BinaryOp("+", A, Identifier("sum")), call("relu", B))),
        Assignment("joined", call("cat", Tuple([A, B, Identifier("product")]), dim=Literal(-1))),
        Assignment(
            "moved", call("transpose", call("flatten", call("relu", A)), Literal(0), Literal(1))
        ),
        Assignment("called", LayerCall("c" * 50, [BinaryOp("-", A, B)])),
        Return(
            Tuple([Identifier(n) for n in ("sum", "power", "product", "joined", "moved", "called")])
        ),
        params=[
            ternary("t" * 50, (2, 2), scale="row"),
            Param("c" * 50, "Layer", layer="Linear", args={"in_features": 2, "out_features": 2}),
        ],
        inputs=(a, b),
        name="AwkwardLines",
    )


GOLDENS = {
    "network": network,
    "convolution": convolution,
    "awkward_lines": awkward_lines,
    "encoder": encoder,
    "affine": lambda: LayerDef(
        "MyTernaryLayer",
        [
            ternary("weights", (256, 512)),
            ternary("bias", (512,)),
            Param("x", "Tensor"),
        ],
    ),
}


def golden(name, standalone):
    return GOLDEN / f"{name}{'_standalone' if standalone else ''}.py.txt"


@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("standalone", [False, True])
def test_golden(name, standalone):
    source = generate_pytorch_code(GOLDENS[name](), standalone)
    assert source == golden(name, standalone).read_text(encoding="utf-8")


# ---- ruff


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


# ---- what the source may mention

_ALLOWED = (
    {"ClassVar", "dict", "str", "int"}
    | {"self", "super", "range", "torch", "F", "nn", "Tensor", "NotImplementedError", "tuple"}
    | {"PackedModule", "packed_zeros", "annotations"}
    | {row.spelling.removeprefix("nn.") for row in BUILTIN.values()}
    | {op.spelling.rpartition(".")[2] for op in OPS.values()}
    | set(PACKED_OPS)
)
_ATTRIBUTES = {"__init__", "register_buffer", "Parameter", "Module", "ModuleList", "Identity"} | {
    *("ones", "zeros", "float16", "bfloat16", "float32", "forward", "functional")
}


def names_of_tree(program):
    names = set()
    for one in program.layers:
        names.add(one.name)
        for param in one.params:
            names |= {param.name, f"{param.name}_packed", f"{param.name}_scale"}
        names |= {s.target for s in one.body if isinstance(s, Assignment)}
    return names | {"x"}


def is_fresh(name):
    return name.rstrip("0123456789") in ("value", "layer", "_")


@settings(max_examples=60, phases=UNSHRUNK)
@given(runnables())
def test_source_has_only_names_of_the_tree_and_of_tables(example: Runnable):
    ours = names_of_tree(example.program)
    tree = ast.parse(generate_pytorch_code(example.program))
    torch_words = {"running_mean", "running_var", "normalized_shape", "ternary_shapes"}
    torch_words |= {
        "ternary_layouts",
        "ternary_groups",
        "dtype",
        "split",
        "layout",
        "scale",
        "group_size",
    }
    words = {p.name for op in (*OPS.values(), *PACKED_OPS.values()) for p in op.params}
    words |= {p.name for row in BUILTIN.values() for p in row.params} | torch_words
    for node in ast.walk(tree):
        match node:
            case ast.Name(name):
                assert name in ours | _ALLOWED | torch_words or is_fresh(name), name
            case ast.Attribute(attr=name):
                assert name in ours | _ALLOWED | _ATTRIBUTES, name
            case ast.arg(name):
                assert name in ours | {"self"}, name
            case ast.keyword(name):
                assert name in words, name
            case ast.ClassDef(name):
                assert name in ours
            case ast.FunctionDef(name):
                assert name in ("__init__", "forward")
            case ast.Import(names) | ast.ImportFrom(names=names):
                assert {alias.name for alias in names} <= _ALLOWED | {
                    "torch.nn.functional",
                    "annotations",
                }
            case ast.Constant(str() as text):
                assert (
                    text in ours | {"t2", "t5", "tanh", "none"} | set(SCALE_WORDS)
                    or text.startswith((example.program.root, *(f"{n} (" for n in ours)))
                    or ("→" in text and set(re.findall(r"[A-Za-z_]\w*", text)) <= ours | SIZE_WORDS)
                ), text


SCALE_WORDS = ("tensor", "row", "column", "group:2", "group:32")
SIZE_WORDS = {"batch", "b" * 60, "w" * 60, "a", "tensor"}


@settings(max_examples=60, phases=UNSHRUNK)
@given(runnables())
def test_one_class_for_each_layer_def(example: Runnable):
    tree = ast.parse(generate_pytorch_code(example.program))
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert sorted(classes) == sorted(one.name for one in example.program.layers)
    assert classes[-1] == example.program.root
    loops = sum(isinstance(node, ast.For) for node in ast.walk(tree))
    calls = sum(
        repr(one.body).count(f"LayerCall(layer={param.name!r},")
        for one in example.program.layers
        for param in one.params
        if param.repeat is not None
    )
    assert loops == calls


def test_standalone_imports_only_torch_and_the_standard_library():
    @settings(max_examples=60, phases=UNSHRUNK)
    @given(runnables())
    def check(example: Runnable):
        tree = ast.parse(generate_pytorch_code(example.program, standalone=True))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                modules = [node.module]
            else:
                continue
            assert {m.partition(".")[0] for m in modules} <= {
                "__future__",
                "math",
                "typing",
                "torch",
            }

    check()


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tpack", "safetensors"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import torch

failures = []
for path in sys.argv[1:]:
    namespace = {"__name__": "generated"}
    exec(open(path + ".py", encoding="utf-8").read(), namespace)
    saved = torch.load(path + ".pt")
    module = namespace[saved["root"]]().eval()
    module.load_state_dict(saved["state"], strict=True)
    result = module(*saved["inputs"])
    torch.testing.assert_close(result, saved["result"], rtol=0, atol=0, equal_nan=True)
assert not any(name.partition(".")[0] == "tpack" for name in sys.modules)
print("ran", len(sys.argv) - 1)
"""


def test_standalone_runs_where_tpack_cannot_be_imported(tmp_path):
    paths = []

    def save(tree, inputs, root):
        module = readings(tree)["build"]
        path = tmp_path / f"program{len(paths)}"
        path.with_suffix(".py").write_text(generate_pytorch_code(tree, standalone=True), "utf-8")
        state = {key: value.detach() for key, value in module.state_dict().items()}
        with torch.no_grad():
            result = module(*inputs)
        torch.save(
            {"root": root, "state": state, "inputs": inputs, "result": result},
            path.with_suffix(".pt"),
        )
        paths.append(str(path))

    @settings(max_examples=12, phases=UNSHRUNK)
    @given(runnables())
    def collect(example: Runnable):
        save(example.program, inputs_of(example), example.program.root)

    save(network(), [IDS], "Net")
    save(convolution(), [torch.randn(1, 4, 9, 9)], "Convolution")
    collect()
    (tmp_path / "run.py").write_text(BLOCKER, "utf-8")
    run = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "run.py"), *paths],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == f"ran {len(paths)}"


# ---- contents


def test_a_repeated_block_is_one_class_and_a_loop():
    source = generate_pytorch_code(network())
    assert source.count("class Block(") == 1
    assert "nn.ModuleList(Block() for _ in range(3))" in source
    assert "for layer in self.blocks:\n            x = layer(x)" in source


def test_header_has_no_date_and_no_path():
    source = generate_pytorch_code(network())
    assert source == generate_pytorch_code(network())
    assert (
        source.splitlines()[0] == '"""Net, generated by tpack from LayerDefs (format version 1)."""'
    )


def test_signatures_are_typed():
    for standalone in (False, True):
        tree = ast.parse(generate_pytorch_code(network(), standalone))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.returns is not None
                for arg in (*node.args.args, *node.args.kwonlyargs):
                    assert arg.arg == "self" or arg.annotation is not None, (node.name, arg.arg)


def test_generator_class_and_function_agree():
    assert PyTorchCodeGenerator().generate_module(network()) == generate_pytorch_code(network())
    assert PyTorchCodeGenerator(standalone=True).generate_module(network()) == (
        generate_pytorch_code(network(), standalone=True)
    )


@pytest.mark.parametrize(
    "name", ["class", "__init__", "x\ny", "a.b", "weight'", "forward", "ａ", ""]
)
def test_bad_names_never_reach_the_source(name):
    for tree in (
        LayerDef(name, [ternary()]),
        LayerDef("L", [ternary(name)]),
        LayerDef("L", [ternary(), Param(name, "Tensor")]),
        layer(Assignment(name, X), Return(X)),
        layer(Return(Identifier(name))),
        layer(Return(FunctionCall(name, [X]))),
        layer(Return(FunctionCall("relu", [X], {name: X}))),
        layer(Return(LayerCall(name, [X]))),
        layer(Return(X), params=[Param("c", "Layer", layer=name)]),
        layer(Return(X), params=[Param("c", "Layer", layer="LayerNorm", args={name: 1})]),
        Program([layer(Return(X))], name),
    ):
        with pytest.raises(LayerDefError):
            generate_pytorch_code(tree)


@pytest.mark.parametrize("word", ['"', "tanh'", "\n", "none); import os; (", "Tanh"])
def test_bad_words_never_reach_the_source(word):
    for tree in (
        layer(Return(call("gelu", X, approximate=Literal(word)))),
        layer(Return(call("to", X, Literal(word)))),
        layer(Return(BinaryOp("+", X, Literal(word)))),
        layer(Return(BinaryOp(word, X, X))),
        layer(Return(UnaryOp(word, X))),
        layer(Return(X), params=[ternary(layout=word)]),
        layer(Return(X), params=[ternary(scale=word)]),
        layer(Return(X), params=[ternary(dtype=word)]),
        layer(Return(X), params=[Param("p", "Tensor", [2], dtype=word)]),
        layer(Return(X), params=[Param("p", word, [2])]),
    ):
        with pytest.raises(LayerDefError):
            generate_pytorch_code(tree)


def test_unspecified_forward_says_how_to_supply_it():
    source = generate_pytorch_code(LayerDef("Net", [ternary()], [Unspecified()]))
    assert "raise NotImplementedError(" in source
    assert "--layerdef FILE" in source


def test_no_name_of_the_source_is_a_keyword():
    for node in ast.walk(ast.parse(generate_pytorch_code(network(), standalone=True))):
        if isinstance(node, ast.Name):
            assert not keyword.iskeyword(node.id)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for one, make in GOLDENS.items():
        for alone in (False, True):
            golden(one, alone).write_text(generate_pytorch_code(make(), alone), encoding="utf-8")
