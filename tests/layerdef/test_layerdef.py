"""Nodes, names, and the natural affine map."""

import keyword
import subprocess
import sys

import pytest
import torch
from hypothesis import given, strategies as st
from running import readings
from source_names import names_of_torch
from strategies import AWKWARD, identifiers
from trees import INPUT

from tpack import LayerDefError
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import (
    Assignment,
    FunctionCall,
    Identifier,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Tuple,
    slots,
    validate,
)
from tpack.layerdef.names import (
    CONTAINER_NAMES,
    MODULE_NAMES,
    SOURCE_NAMES,
    check_attribute,
    check_class_name,
    check_identifier,
    check_word,
    is_identifier,
    is_position,
)

# ---- names


def test_module_names_are_those_of_torch():
    assert not {name for name in names_of_torch() if not name.startswith("__")} - MODULE_NAMES


def test_module_names_hold_nothing_else():
    assert not MODULE_NAMES - names_of_torch()


BAD = {
    "keyword": [*keyword.kwlist],
    "dunder": ["__init__", "__", "__class__", "__x", "__dict__"],
    "module": ["forward", "training", "state_dict", "_buffers", "to", "half", "type", "append"],
    "source": ["self", "torch", "nn", "F", "Tensor", "super", "PackedModule", "TernaryLinear"],
    "look-alike": ["ａ", "ﬁ", "ⅷ", "ſelf", "ｔo", "é", "e\u0301", "π", "x²", "a\u200b", "ª"],
    "syntax": [
        "",
        " ",
        "a b",
        "a.b",
        "a-b",
        "1a",
        "0",
        "a\n",
        "\na",
        "a\0",
        "a;b",
        "(",
        "a'",
        'a"',
    ],
    "code": ["x); import os", "a\n    import os", '"""', "a#b", "a\\", "${x}", "{x}", "a\u2028b"],
    "long": ["a" * 101, "_" + "a" * 5000],
}


@pytest.mark.parametrize("name", [name for names in BAD.values() for name in names])
def test_refused_names(name):
    assert not is_identifier(name)
    with pytest.raises(LayerDefError) as caught:
        check_identifier(name, "Net.params[3]")
    text = str(caught.value)
    assert text.startswith("Net.params[3]: ")
    assert "\n" not in text
    assert len(text) < 250


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a b", "is not an ASCII identifier of at most 64 characters"),
        ("a" * 65, "is not an ASCII identifier of at most 64 characters"),
        ("lambda", "is a Python keyword"),
        ("__x", "starts with two underscores"),
        ("forward", "is an attribute of nn.Module"),
        ("torch", "is used by the generated source itself"),
        ("_tpack", "is used by the generated source itself"),
        ("_tpack_x", "is used by the generated source itself"),
    ],
)
def test_the_rule_that_a_name_breaks_is_named(name, reason):
    with pytest.raises(LayerDefError) as caught:
        check_identifier(name, "here")
    assert str(caught.value) == f"here: name {name!r:.60} {reason}. Rename it."


SOURCE_WORDS = """
    self super range torch nn F Tensor math annotations Any ClassVar ternary_shapes
    ternary_layouts ternary_groups PackedModule PackedWeight packed_zeros scale_ones repack_trits
    pack_trits unpack_trits spread_scale activation_gain infer_group_size Linear LayerNorm
    TernaryLinear BitLinear ternary_linear rotary_frequencies rotate_half expert_linear
"""


@pytest.mark.parametrize("name", SOURCE_WORDS.split())
def test_words_of_the_source_are_no_identifiers(name):
    assert not is_identifier(name)


@pytest.mark.parametrize("name", ["self", "F", "torch", "LayerNorm", "TernaryLinear", "free"])
def test_what_hides_nothing_may_stand_after_a_dot(name):
    check_attribute(name, "here")


@pytest.mark.parametrize("name", ["forward", "super", "math", "class", "__x", "a.b", ""])
def test_the_rest_may_not(name):
    with pytest.raises(LayerDefError) as caught:
        check_attribute(name, "here")
    assert caught.value.node == "here"


@pytest.mark.parametrize("name", ["print", "list", "int", "len", "object"])
def test_a_class_hides_no_builtin(name):
    check_identifier(name, "here")
    check_class_name(f"{name}_", "here")
    with pytest.raises(LayerDefError, match="is a builtin of Python") as caught:
        check_class_name(name, "here")
    assert caught.value.node == "here"


def test_keys_of_results_are_words():
    check_word("class", "here")  # it stands in quotes
    check_word("a" * 64, "here")
    for name in ("", "a b", "a" * 65, "é", "1", 'a"'):
        with pytest.raises(LayerDefError, match="is not an ASCII identifier") as caught:
            check_word(name, "here")
        assert caught.value.node == "here"


def test_container_names_are_those_of_a_dict_of_modules():
    own = {name for name in dir(torch.nn.ModuleDict()) if not name.startswith("_")}
    assert own - set(dir(torch.nn.Module())) - {"pop"} == CONTAINER_NAMES


@pytest.mark.parametrize("name", [None, 1, True, b"a", ["a"], object()])
def test_refused_kinds_of_name(name):
    with pytest.raises(LayerDefError):
        check_identifier(name, "here")


@given(st.text(max_size=20))
def test_accepted_names_are_safe(name):
    if not is_identifier(name):
        return
    assert name.isascii()
    assert name.isidentifier()
    assert not keyword.iskeyword(name)
    assert not hasattr(torch.nn.Module(), name)
    assert len(name) <= 100


@given(identifiers())
def test_plain_names_are_accepted(name):
    assert name.isidentifier()
    assert not name.startswith("__")
    assert name not in SOURCE_NAMES | MODULE_NAMES


def test_some_awkward_names_are_legal():
    assert {"match", "case", "value", "layer", "weight", "bias", "args"} <= {
        name for name in AWKWARD if is_identifier(name)
    }
    assert is_identifier("a" * 64)
    assert not is_identifier("a" * 65)


@pytest.mark.parametrize("name", ["0", "1", "10", "99999"])
def test_positions(name):
    assert is_position(name)


@pytest.mark.parametrize(
    "name", ["", "00", "01", "-1", "+1", "1.0", "100000", "１", "²", "1\n", " 1", 1]
)
def test_no_positions(name):
    assert not is_position(name)


# ---- nodes


def test_nodes_take_lists_and_compare_by_value():
    one = LayerDef("L", [Param("w", "TernaryTensor", [2, 3])], [Return(Tuple([Identifier("w")]))])
    two = LayerDef(
        "L", (Param("w", "TernaryTensor", (2, 3)),), (Return(Tuple((Identifier("w"),))),)
    )
    assert one == two
    assert hash(one) == hash(two)
    assert FunctionCall("f", [], {"a": Literal(1)}) == FunctionCall("f", (), [("a", Literal(1))])
    assert Param("c", "Layer", args={"b": [1, 2], "a": 1}).args == (("a", 1), ("b", (1, 2)))


def test_nodes_are_frozen():
    for node in (Identifier("a"), LayerDef("L", []), Param("a", "Tensor"), Program([], "L")):
        with pytest.raises(AttributeError):
            node.name = "b"


def test_kinds_of_params():
    assert Param("x", "Tensor").is_input
    assert not Param("x", "Tensor", []).is_input
    assert Param("x", "Tensor", []).is_stored
    assert Param("x", "Buffer", [1]).is_stored
    assert not Param("x", "Layer", layer="L").is_stored


@pytest.mark.parametrize(
    ("options", "scale_shape"),
    [
        ({}, (1,)),
        ({"scale": "row"}, (4, 1)),
        ({"scale": "group:8"}, (4, 3)),
        ({"scale": "row", "split": 2}, (4, 3, 1)),
        ({"scale": "group:4", "split": 0}, (18,)),
    ],
)
def test_scale_shape(options, scale_shape):
    assert Param("w", "TernaryTensor", [4, 3, 6], **options).scale_shape == scale_shape


def test_importing_layerdef_needs_no_torch():
    code = "import sys, tpack.layerdef, tpack.codegen; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# ---- the natural affine map

W, B = "TernaryTensor", "Tensor"


@pytest.mark.parametrize(
    "params",
    [
        [("w", W, (3, 4))],
        [("w", W, (3, 4)), ("b", W, (4,))],
        [("w", B, (3, 4)), ("b", B, (4,))],
        [("w", W, (3, 4)), ("v", W, (4, 2)), ("b", B, (2,))],
        [("w", W, (3, 4)), ("b", B, (4,)), ("v", B, (4, 2)), ("c", W, (2,)), ("d", W, (2,))],
    ],
)
@pytest.mark.parametrize("inputs", [[], [Param("data", "Tensor")]])
def test_affine(params, inputs):
    layer = LayerDef("L", [Param(*param) for param in params] + inputs)
    x = torch.randn(5, 3)
    for module in readings(layer).values():
        expected = x.double()
        for name, kind, shape in params:
            if kind == W:
                packed, scale = getattr(module, f"{name}_packed"), getattr(module, f"{name}_scale")
                rows = packed.reshape(-1, packed.shape[-1]).tolist()
                trits = [
                    [(row[i // 4] >> 2 * (i % 4) & 3) - 1 for i in range(shape[-1])] for row in rows
                ]
                value = torch.tensor(trits).reshape(shape) * scale.double()
            else:
                value = getattr(module, name).double()
            expected = expected @ value if len(shape) == 2 else expected + value
        torch.testing.assert_close(module(x).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("params", "shapes"),
    [
        ([("w", W, (3, 4)), ("v", W, (5, 2))], ["(5, 2)", "(3, 4)"]),
        ([("w", W, (3, 4)), ("b", W, (3,))], ["(3,)", "(3, 4)"]),
        ([("w", W, (3, 4)), ("b", B, (4,)), ("v", B, (3, 4))], ["(3, 4)"]),
        ([("w", W, (2, 3, 4))], ["(2, 3, 4)"]),
        ([("b", W, (4,)), ("w", W, (4, 4))], ["(4,)"]),
        ([("w", W, (3, 4)), ("s", B, ())], ["()"]),
    ],
)
def test_affine_shapes_that_do_not_chain(params, shapes):
    with pytest.raises(LayerDefError) as caught:
        generate_pytorch_code(LayerDef("Net", [*(Param(*param) for param in params), INPUT]))
    for shape in shapes:
        assert shape in str(caught.value)
    assert str(caught.value).startswith("Net.")


@pytest.mark.parametrize(
    "params",
    [
        [],
        [INPUT],
        [Param("w", W, [2, 2]), INPUT, Param("y", "Tensor")],
        [Param("x", W, [2, 2])],
        [Param("w", "Buffer", [2, 2])],
        [
            Param("w", W, [2, 2]),
            Param("c", "Layer", layer="LayerNorm", args={"normalized_shape": 2}),
        ],
    ],
)
def test_affine_refuses_what_is_not_a_chain(params):
    with pytest.raises(LayerDefError, match=r"^Net"):
        generate_pytorch_code(LayerDef("Net", params))


# ---- slots


def test_slots_of_nested_and_repeated_layers():
    leaf = LayerDef("Leaf", [Param("w", W, [2, 2]), Param("n", "Buffer", [1], dtype="int64")], [])
    leaf = LayerDef(leaf.name, [*leaf.params, INPUT], [Return(Identifier("x"))])
    middle = LayerDef(
        "Middle",
        [
            Param("0", "Layer", layer="Leaf"),
            Param("norm", "Layer", layer="LayerNorm", args={"normalized_shape": 2}),
            INPUT,
        ],
        [Return(Identifier("x"))],
    )
    root = LayerDef(
        "Root",
        [Param("steps", "Layer", layer="Middle", repeat=2), INPUT],
        [Assignment("y", Identifier("x")), Return(Identifier("y"))],
    )
    program = Program([leaf, middle, root], "Root")
    validate(program)
    found = [(slot.name, slot.home) for slot in slots(program)]
    one = [
        ("0.w", ("Leaf", "w", "")),
        ("0.n", ("Leaf", "n", "")),
        ("norm.weight", ("Middle", "norm", "weight")),
        ("norm.bias", ("Middle", "norm", "bias")),
    ]
    assert found == [(f"steps.{i}.{name}", home) for i in range(2) for name, home in one]
