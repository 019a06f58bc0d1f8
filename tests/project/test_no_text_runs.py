"""No text of a tree becomes more than a name in what runs."""

# ruff: noqa: PT017 -- an input may be read or refused; a refusal is checked too

from __future__ import annotations

import ast
import builtins
import json
import keyword
import sys

import pytest
from corpus import make
from source_names import names_of_torch, strangers

import tpack
from tpack.codegen import generate_pytorch_code
from tpack.errors import LayerDefError, TpackError
from tpack.layerdef import Identifier, LayerDef, Param, Program, Return, Tuple, validate

CANARY = "canary_of_tpack"


HOSTILE = (
    f"x\nimport {CANARY}",
    f"x\rimport {CANARY}",
    f"x\r\nraise {CANARY}",
    f"x\x0cimport {CANARY}",
    f"x\u2028import {CANARY}",
    f"x\x85import {CANARY}",
    f"x; {CANARY}()",
    f'"""; {CANARY}(); """',
    f"'''; {CANARY}(); '''",
    f'"); {CANARY}("',
    f"x  # {CANARY}",
    "x\\",
    "\\N{DIGIT ONE}",
    "# -*- coding: utf-7 -*-",
    "# vim: set fileencoding=rot13 :",
    "{CANARY}",
    "{0.__class__}",
    "%(x)s",
    "$x",
    "../x",
    "/etc/passwd",
    "C:\\x",
    "ｏｓ",
    "ſelf",
    "ﬁ",
    "x\u0301",
    "١",
    "x\u200b",
    "\u202ex",
    "x\x00",
    "",
    " ",
    "x y",
    "x.y",
    "x[0]",
    "x()",
    "-1",
    "1.5",
    "00",
    "lambda",
    "None",
    "True",
    "await",
    "async",
    "__class__",
    "__init__",
    "__import__",
    "__builtins__",
    "_tpack_steps",
    "_tpack_sizes",
    "self",
    "super",
    "torch",
    "nn",
    "F",
    "Tensor",
    "math",
    "state_dict",
    "forward",
    "_modules",
    "register_buffer",
    "training",
    "load_state_dict",
    "to",
    "exec",
    "eval",
    "a" * 65,
    "é",
)


def tree():
    """A valid program with every kind of node and every field that holds text."""
    name = {"node": "Identifier", "name": "h"}
    linear = {"in_features": 4, "out_features": 4, "layout": "t5", "scale": "row"}
    root = {
        "name": "Root",
        "params": [
            {"name": "x", "param_type": "Tensor", "shape": None, "sizes": ["batch", 4]},
            {"name": "w", "param_type": "TernaryTensor", "shape": [4, 4], "scale": "group:4"},
            {"name": "v", "param_type": "Tensor", "shape": [4], "dtype": "float16"},
            {"name": "b", "param_type": "Buffer", "shape": [4], "dtype": "bool"},
            {
                "name": "k",
                "param_type": "Constant",
                "shape": [2],
                "formula": "values",
                "args": {"values": [1.5, 2]},
            },
            {
                "name": "turns",
                "param_type": "Constant",
                "shape": [2],
                "formula": "rotary_frequencies",
                "args": {"dim": 4, "base": 10000.0},
            },
            {"name": "blocks.0", "param_type": "Layer", "layer": "Block"},
            {
                "name": "named.norm",
                "param_type": "Layer",
                "layer": "RMSNorm",
                "args": {"normalized_shape": [4], "eps": 1e-5},
            },
            {"name": "fc", "param_type": "Layer", "layer": "TernaryLinear", "args": linear},
        ],
        "body": [
            {
                "node": "Assignment",
                "target": "h",
                "value": {
                    "node": "FunctionCall",
                    "function": "gelu",
                    "args": [
                        {
                            "node": "LayerCall",
                            "layer": "blocks.0",
                            "args": [{"node": "Identifier", "name": "x"}],
                        }
                    ],
                    "kwargs": {"approximate": {"node": "Literal", "value": "tanh"}},
                },
                "sizes": ["batch", 4],
            },
            {
                "node": "Unpack",
                "targets": ["left", "right"],
                "value": {
                    "node": "FunctionCall",
                    "function": "chunk",
                    "args": [name, {"node": "Literal", "value": 2}],
                },
            },
            {
                "node": "Assignment",
                "target": "h",
                "value": {
                    "node": "FunctionCall",
                    "function": "einsum",
                    "args": [
                        {"node": "Literal", "value": "bi,ij->bj"},
                        {"node": "Tuple", "items": [name, {"node": "Identifier", "name": "w"}]},
                    ],
                },
            },
            {
                "node": "Return",
                "value": {
                    "node": "Dict",
                    "items": {
                        "logits": {
                            "node": "BinaryOp",
                            "operator": "+",
                            "left": {"node": "UnaryOp", "operator": "-", "operand": name},
                            "right": {"node": "Identifier", "name": "named.norm.weight"},
                        },
                        "left": {"node": "Identifier", "name": "left"},
                    },
                },
            },
        ],
    }
    block = {
        "name": "Block",
        "params": [{"name": "w", "param_type": "TernaryTensor", "shape": [4, 4]}],
    }
    return {"root": "Root", "layers": [root, block]}


def strings(data, at=()):
    """The place of every string of JSON data, keys too."""
    if isinstance(data, str):
        yield at
    if not isinstance(data, dict | list):
        return
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield from strings(value, (*at, key))
        if isinstance(key, str):
            yield (*at, key, None)


def put(path, word):
    """The tree with another string at a place; None at its end means the key."""
    data = tree()
    *above, last = path
    key = None
    if last is None:
        *above, key = above
    place = data
    for step in above:
        place = place[step]
    if key is None:
        place[last] = word
    else:
        renamed = [(word if name == key else name, value) for name, value in place.items()]
        place.clear()
        place.update(renamed)
    return data


PLACES = sorted(strings(tree()), key=repr)


def test_the_tree_is_valid_and_of_every_kind():
    program = Program.from_dict(tree())
    validate(program)
    assert not strangers(generate_pytorch_code(program), program)
    kinds = {node["node"] for node in nodes(tree()) if "node" in node}
    assert kinds >= {"Assignment", "Unpack", "Return", "Identifier", "Literal", "Tuple", "Dict"}
    assert kinds >= {"UnaryOp", "BinaryOp", "FunctionCall", "LayerCall"}
    types = {node["param_type"] for node in nodes(tree()) if "param_type" in node}
    assert types == {"TernaryTensor", "Tensor", "Buffer", "Constant", "Layer"}


def nodes(data):
    if isinstance(data, dict):
        yield data
    if isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from nodes(value)


def generated(data):
    """Source of a tree, if it is accepted; nothing of it is a stranger."""
    try:
        program = Program.from_dict(data)
        validate(program)
        source = generate_pytorch_code(program)
    except LayerDefError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 1000
        return None
    assert not (found := strangers(source, program)), found
    compile(source, "generated", "exec", dont_inherit=True)
    return source


@pytest.mark.parametrize("path", PLACES, ids=lambda p: ".".join(map(str, p[-4:])))
def test_no_string_of_a_tree_becomes_more_than_a_name(path):
    for word in HOSTILE:
        source = generated(put(path, word))
        if source is not None and not word.isidentifier():
            assert not word.strip() or word not in source


def test_what_is_accepted_runs_no_text_of_the_tree(monkeypatch):
    """Source of every accepted tree is run: a canary in it would have to be called or imported."""
    sang = []
    monkeypatch.setattr(builtins, CANARY, lambda *_: sang.append(1), raising=False)
    monkeypatch.setitem(sys.modules, CANARY, sys)
    ran = set()
    for path in PLACES:
        for word in (CANARY, f"x\nimport {CANARY}", "exec", "lambda", "self", "__class__"):
            try:
                source = generate_pytorch_code(Program.from_dict(put(path, word)))
            except LayerDefError:
                continue
            if source not in ran:
                ran.add(source)
                space = {"__name__": "generated"}
                exec(compile(source, "generated", "exec", dont_inherit=True), space)
                assert not any(value is sys for value in space.values())
    assert len(ran) > 10
    assert not sang


@pytest.mark.parametrize("word", HOSTILE)
def test_strings_outside_of_the_tree_reach_no_source(word):
    """Names of tensors, digests, methods, aliases, other metadata: none stands in the source."""
    blob = (make.ACCEPT / "tied.safetensors").read_bytes()
    _, description, _ = make.parts(blob)
    before = generate_pytorch_code(Program.from_dict(description["program"]))
    for field in ("aliases", "metadata", "kept"):
        changed = json.loads(json.dumps(description))
        changed[field][word or "x"] = "0" * 64
        assert generate_pytorch_code(Program.from_dict(changed["program"])) == before


@pytest.mark.parametrize("word", HOSTILE)
def test_names_of_tensors_are_refused_or_become_names(word, tmp_path):
    """A source whose tensors have hostile names: what convert writes generates harmless source."""
    import torch

    path = tmp_path / "out.safetensors"
    try:
        tpack.convert({f"{word}.weight": torch.ones(4, 4), word or "a": torch.ones(4, 4)}, path)
        with tpack.container.Checkpoint(path) as file:
            program = file.document.program
    except TpackError as error:
        assert error.code == 3
        return
    if program is not None:
        source = generate_pytorch_code(program)
        assert not (found := strangers(source, program)), found


def test_every_attribute_of_modules_keyword_and_builtin_is_refused_where_it_would_hide_one():
    for name in names_of_torch().union(keyword.kwlist) - {"T_destination"}:
        for params in ([Param(name, "Tensor")], [Param(name, "TernaryTensor", [4, 4])]):
            with pytest.raises(LayerDefError):
                validate(Program([LayerDef("L", params, [Return(Identifier("x"))])], "L"))
    for name in dir(builtins):
        with pytest.raises(LayerDefError):
            validate(Program([LayerDef(name, [], [Return(Identifier("x"))])], name))


def test_soft_keywords_are_only_names():
    for name in keyword.softkwlist:
        if name == "_":
            continue
        layer = LayerDef("L", [Param(name, "Tensor")], [Return(Tuple([Identifier(name)] * 2))])
        source = generate_pytorch_code(layer)
        assert not strangers(source, Program([layer], "L"))
        ast.parse(source)
