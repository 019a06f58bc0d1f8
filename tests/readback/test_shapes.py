"""Shapes in docstrings and comments are read back with the code that they stand in."""

import importlib.util
import re
import sys

import pytest
import torch
from torch import nn
from torch.export import Dim
from trees import X, Y, call

import tpack
from tpack.codegen import generate_pytorch_code
from tpack.errors import UsageError
from tpack.layerdef import (
    Assignment,
    Dict,
    Identifier,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Tuple,
    Unpack,
    as_program,
)
from tpack.readback import read_program
from tpack.readback.shapes import told


def imported(text, folder, name="generated_shapes"):
    """The module of a file with some source."""
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 32)
        self.down = nn.Linear(16, 8)

    def forward(self, x):
        hidden = self.up(x)
        gate, value = hidden.chunk(2, -1)
        return self.down(gate.sigmoid() * value) + x


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x), "pooled": x.mean(1)}


@pytest.fixture(scope="module")
def captured():
    x = torch.randn(2, 3, 8)
    return tpack.capture(Network().eval(), (x,), dynamic_shapes={"x": {1: Dim("length")}})


@pytest.mark.parametrize("standalone", [False, True])
def test_comments_and_docstrings_survive_saving_and_loading(captured, standalone, tmp_path):
    source = generate_pytorch_code(captured, standalone=standalone)
    assert source.count("# (") >= 2
    assert source.count('"""x (') == 2
    module = imported(source, tmp_path).Network()
    tpack.save(module, tmp_path / "one.safetensors")
    loaded = tpack.load(tmp_path / "one.safetensors")
    tpack.save(loaded, tmp_path / "two.safetensors")
    for path in ("one.safetensors", "two.safetensors"):
        program = tpack.inspect(tmp_path / path).program
        assert generate_pytorch_code(program, standalone=standalone) == source
    with pytest.raises(UsageError, match=r"dim 0 is 1, where the capture fixed 2"):
        loaded(torch.randn(1, 3, 8))


def test_without_the_text_of_the_file_docstrings_survive(captured):
    source = generate_pytorch_code(captured)
    space = {"__name__": "generated"}
    exec(source, space)
    found = generate_pytorch_code(read_program(space["Network"]()))
    assert re.findall('""".*?"""', found, re.DOTALL) == re.findall('""".*?"""', source, re.DOTALL)
    assert "# (" not in found


def test_a_file_that_was_changed_after_it_was_imported_gives_no_comments(captured, tmp_path):
    source = generate_pytorch_code(captured)
    module = imported(source, tmp_path)
    (tmp_path / "generated_shapes.py").write_text(source.replace("chunk(2, -1)", "chunk(2, 1)"))
    block = generate_pytorch_code(read_program(module.Block()))
    assert "# (" not in block
    assert "chunk(2, -1)" in block


def test_edits_keep_what_a_person_wrote(captured, tmp_path):
    source = generate_pytorch_code(captured)
    edited = source.replace("hidden = self.up(x)", "hidden = self.up(x) * 2  # a remark\n        #")
    assert edited != source
    module = imported(edited, tmp_path)
    found = generate_pytorch_code(read_program(module.Block()))
    assert "* 2" in found
    assert "remark" not in found


GIVEN, WIDE = ("batch", 4), ("batch", 8)


@pytest.mark.parametrize(
    ("value", "shapes"),
    [
        (X, [GIVEN]),
        (Tuple([X, Y]), [GIVEN, WIDE]),
        (Tuple([X, X]), [GIVEN, GIVEN]),
        (Tuple([Identifier("z"), X, Y]), [GIVEN, GIVEN, WIDE]),
        (Tuple([X, Y, Y]), [GIVEN, WIDE, WIDE]),
        (Dict({"one": X, "two": Tuple([Y, Y]), "three": X}), [GIVEN, WIDE, WIDE, GIVEN]),
        (X, [()]),
        (X, None),
    ],
)
def test_results_of_several_shapes(value, shapes, tmp_path):
    pair = call("chunk", call("relu", X), Literal(2), dim=Literal(1))
    body = [
        Assignment("y", call("cat", Tuple([X, X]), dim=Literal(1)), WIDE),
        Unpack(["z", "_"], pair, [("batch", 2), None]),
        Assignment("z", call("cat", Tuple([Identifier("z"), Identifier("z")])), GIVEN),
        Assignment("x", call("relu", X), GIVEN),
        Return(value, shapes),
    ]
    tree = as_program(LayerDef("L", [Param("x", "Tensor", sizes=GIVEN)], body))
    assert isinstance(tree, Program)
    source = generate_pytorch_code(tree)
    module = imported(source, tmp_path)
    assert generate_pytorch_code(read_program(module.L())) == source


@pytest.mark.parametrize(
    "docstring",
    [
        None,
        "Map x to y.",
        "x (batch, 4) → (batch, 4), and more.",
        "x (batch, 4) → nothing (at all).",
        "x (..., 4) → (..., 2).",
        "x (batch 4) → (batch, 4).",
        "(batch, 4) → (batch, 4).",
        "→ .",
        f"x ({'9' * 21},) → (4,).",
    ],
)
def test_other_docstrings_tell_nothing(docstring):
    assert not told(docstring).inputs


def test_a_docstring_of_other_arguments_tells_nothing(tmp_path):
    text = '''
import torch
from torch import nn


class L(nn.Module):
    def forward(self, y):
        """x (batch, 4) → (batch, 4)."""
        return torch.relu(y)
'''
    (param,) = read_program(imported(text, tmp_path).L()).by_name["L"].params
    assert (param.name, param.sizes) == ("y", None)
