"""Generated source is isolated, and says only what the tree says."""

import ast
import keyword
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from codegen_trees import GOLDENS, convolution, ternary
from hypothesis import given, settings
from running import inputs_of, readings
from strategies import UNSHRUNK, Runnable, runnables
from trees import IDS, X, call, layer, network

from tpack import LayerDefError, PyTorchCodeGenerator
from tpack.codegen import generate_pytorch_code
from tpack.container.version import KNOWN
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
    UnaryOp,
    Unspecified,
)
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.ops import OPS, PACKED_OPS

pytestmark = pytest.mark.usefixtures("plain_torch")

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name, standalone):
    return GOLDEN / f"{name}{'_standalone' if standalone else ''}.py.txt"


@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("standalone", [False, True])
def test_golden(name, standalone):
    source = generate_pytorch_code(GOLDENS[name](), standalone)
    assert source == golden(name, standalone).read_text(encoding="utf-8")


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
    header = f'"""Net, generated by tpack from LayerDefs (format version {KNOWN})."""'
    assert source.splitlines()[0] == header


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
    assert "example_args" in source


def test_no_name_of_the_source_is_a_keyword():
    for node in ast.walk(ast.parse(generate_pytorch_code(network(), standalone=True))):
        if isinstance(node, ast.Name):
            assert not keyword.iskeyword(node.id)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for one, make in GOLDENS.items():
        for alone in (False, True):
            golden(one, alone).write_text(generate_pytorch_code(make(), alone), encoding="utf-8")
