"""Parameters and constants: what is accepted, what is refused, and where that is said."""

from unittest.mock import ANY

import pytest
from trees import NORM

from tpack import LayerDefError
from tpack.layerdef import Param
from tpack.layerdef.ops import OpParam
from tpack.layerdef.params import check_constant, check_number, check_param

MAX = 2**63 - 1
NAN, INF = float("nan"), float("inf")
EVERYTHING = ANY  # equals any value, and is none of them


def refusal(function, *arguments):
    """The node that an error names."""
    with pytest.raises(LayerDefError) as caught:
        function(*arguments, "here")
    return caught.value.node


@pytest.mark.parametrize("value", [0, 1, -1, 0.5, -0.0, MAX, -MAX, 1.7e308])
def test_numbers(value):
    check_number(value, "here")


@pytest.mark.parametrize("value", [True, None, "1", [], NAN, INF, -INF, MAX + 1, -MAX - 1])
def test_what_is_no_number(value):
    assert refusal(check_number, value) == "here"


#: Kind, values that it has, values that it has not.
KINDS = [
    ("none|tanh", ["none", "tanh"], ["", "none|tanh", "Tanh", 1, ["none"], EVERYTHING]),
    ("dtype", ["float32", "bool"], ["float", "", 1, ["float32"]]),
    ("scale", ["tensor", "row", "group:32"], ["rows", "group:0", 3, ["row"]]),
    ("bool", [True, False], [0, 1, "True"]),
    ("numbers", [(), (1, -2.5), (0,)], [1.0, [1.0], "", (1, NAN), (True,), ((1,),)]),
    ("value", ["inf", "-inf", 1, -2.5, 0], ["nan", "1", "", True, NAN, INF, (1,)]),
    ("int", [0, MAX, -MAX], [1.0, True, "1", (1,), MAX + 1, -MAX - 1]),
    ("ints", [0, MAX, -MAX, (), (1, 2), (MAX, -MAX)],
     [1.0, True, "1", [1], (1.0,), (1, True), (True, 1), (1, MAX + 1), MAX + 1, -MAX - 1]),
    ("float", [1, -1.5, 0, 1.7e308], [True, NAN, INF, "1", "inf", (1.0,)]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "good", "bad"), KINDS, ids=lambda v: v if type(v) is str else "")
def test_kinds_of_constants(kind, good, bad):
    for value in good:
        check_constant(OpParam("p", kind), value, "here")
        check_constant(OpParam("p", kind, default=None), value, "here")
    for value in bad:
        assert refusal(check_constant, OpParam("p", kind), value) == "here"
        assert refusal(check_constant, OpParam("p", kind, default=None), value) == "here"


@pytest.mark.parametrize("kind", [kind for kind, _, _ in KINDS])
def test_none_is_given_only_where_it_is_the_default(kind):
    check_constant(OpParam("p", kind, default=None), None, "here")
    assert refusal(check_constant, OpParam("p", kind), None) == "here"
    assert refusal(check_constant, OpParam("p", kind, default=0), None) == "here"


EQUATIONS = ["ij,jk->ik", "bI->", "->", ",->a", "a" * 16 + "->", "->" + "a" * 16]
EQUATIONS += ["a," + "a" * 16 + "->", ",".join("a" * 8) + "->a"]
NO_EQUATIONS = ["", "ij", "i1->i", "é->", "i->j->k", "i-> j", "i->j\n", "...i->i", None, ("->",), 5]
NO_EQUATIONS += [
    "a" * 17 + "->",
    "->" + "a" * 17,
    "a," + "a" * 17 + "->",
    ",".join("a" * 9) + "->a",
]


@pytest.mark.parametrize("text", EQUATIONS)
def test_equations(text):
    check_constant(OpParam("p", "equation"), text, "here")


@pytest.mark.parametrize("text", NO_EQUATIONS)
def test_what_is_no_equation(text):
    assert refusal(check_constant, OpParam("p", "equation"), text) == "here"


# ---- params

VALUES = {"formula": "values", "args": {"values": [1.0, 2]}}
ROTARY = {"formula": "rotary_frequencies", "args": {"dim": 4, "base": 2.0}}


@pytest.mark.parametrize(
    "param",
    [
        Param("w", "TernaryTensor", [1]),
        Param("w", "TernaryTensor", [1, 1], dtype="bfloat16", scale="row", layout="t5"),
        Param("w", "TernaryTensor", [2, 3, 4], split=0),
        Param("w", "TernaryTensor", [2, 3, 4], split=2, scale="group:32"),
        Param("w", "TernaryTensor", [1] * 16),
        Param("w", "TernaryTensor", [MAX]),
        Param("w", "Tensor", []),
        Param("w", "Tensor", [0]),
        Param("w", "Tensor", [2, 0], dtype="float64"),
        Param("x", "Tensor", dtype="int64"),
        Param("x", "Tensor"),
        Param("x", "Tensor", sizes=[]),
        Param("x", "Tensor", sizes=[0, MAX, "batch", "a_1"]),
        Param("x", "Tensor", sizes=[1] * 16),
        Param("b", "Buffer", [], dtype="bool"),
        Param("b", "Buffer", [0, 3], dtype="int64"),
        Param("c", "Constant", [2], **VALUES),
        Param("c", "Constant", [1, 2], **VALUES),
        Param("c", "Constant", [1], formula="values", args={"values": [0]}),
        Param("c", "Constant", [4096], formula="values", args={"values": [1] * 4096}),
        Param("c", "Constant", [2], **ROTARY),
        Param("n", "Layer", **NORM),
        Param("n", "Layer", repeat=1, **NORM),
        Param("n", "Layer", repeat=100_000, **NORM),
        Param("n", "Layer", layer="Block"),
        Param("0", "Layer", **NORM),
        Param("99999", "Layer", **NORM),
        Param("a.0", "Layer", **NORM),
        Param("a.b.c", "Layer", **NORM),
        Param("LayerNorm", "Layer", **NORM),
        Param("torch.F.self", "Layer", **NORM),
    ],
    ids=lambda p: repr(p)[6:-1][:60],
)
def test_params(param):
    check_param(param, "here", {"Block"})


@pytest.mark.parametrize(
    "param",
    [
        Param("w", "Tensor", [-1]),
        Param("w", "TernaryTensor", [0]),
        Param("w", "Buffer", [True]),
        Param("w", "Tensor", [2], sizes=[2]),
        Param("w", "Buffer", [2], sizes=[2]),
        Param("n", "Layer", sizes=[2], **NORM),
        Param("w", "TernaryTensor", [1] * 17),
        Param("w", "TernaryTensor", [2**62, 2]),
        Param("w", "TernaryTensor", [2, 3, 4], split=3),
        Param("w", "Tensor", [2**62, 2]),
        Param("w", "Tensor", [1] * 17),
        Param("c", "Tensor", [2], formula="values"),
        Param("c", "Tensor", [2], args={"values": [1.0, 2]}),
        Param("c", "Buffer", [2], formula="values"),
        Param("w", "TernaryTensor", [2, 2], formula="values"),
        Param("c", "Constant", [2]),
        Param("c", "Constant", [2], formula="", args={"values": [1.0, 2]}),
        Param("c", "Constant", [2], formula="values", args={}),
        Param("c", "Constant", [2], formula="values", args={"values": []}),
        Param("c", "Constant", [3], **VALUES),
        Param("c", "Constant", [0], formula="values", args={"values": []}),
        Param("c", "Constant", [4097], formula="values", args={"values": [1] * 4097}),
        Param("c", "Constant", [4], **ROTARY),
        Param("c", "Constant", [2], dtype="float", **VALUES),
        Param("c", "Constant", [2], scale="row", **VALUES),
        Param("n", "Layer", split=0, **NORM),
        Param("n", "Layer", [], **NORM),
        Param("n", "Layer", formula="values", **NORM),
        Param("n", "Layer", repeat=100_001, **NORM),
        Param("n", "Layer", layer="Block", args={"normalized_shape": 4}),
        Param("n", "Layer", layer=""),
        Param("0.a", "Layer", **NORM),
        Param("a..b", "Layer", **NORM),
        Param("100000", "Layer", **NORM),
        Param("a.torch.__init__", "Layer", **NORM),
        Param("LayerNorm", "Tensor", [2]),
        Param("n.torch", "Tensor", [2]),
    ],
    ids=lambda p: repr(p)[6:-1][:60],
)
def test_what_is_no_param(param):
    with pytest.raises(LayerDefError) as caught:
        check_param(param, "here", {"Block"})
    assert caught.value.node == "here"


@pytest.mark.parametrize("size", [-1, MAX + 1, True, 1.0, None, "", "a b", "class", "a" * 65])
def test_sizes_that_are_none(size):
    with pytest.raises(LayerDefError) as caught:
        check_param(Param("x", "Tensor", sizes=[2, size]), "here", set())
    assert caught.value.node == "here.sizes[1]"


def test_as_many_sizes_as_a_tensor_has_dims():
    with pytest.raises(LayerDefError) as caught:
        check_param(Param("x", "Tensor", sizes=[1] * 17), "here", set())
    assert caught.value.node == "here.sizes"


CONV = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}


@pytest.mark.parametrize(
    ("layer", "args"),
    [
        ("Conv2d", CONV),
        ("Conv2d", {**CONV, "groups": 1}),
        ("Conv2d", {**CONV, "groups": 2, "kernel_size": (3, 1)}),
        ("Conv2d", {**CONV, "in_channels": 5, "out_channels": 7}),
        ("GroupNorm", {"num_groups": 1, "num_channels": 3}),
        ("GroupNorm", {"num_groups": 3, "num_channels": 9, "affine": False}),
        ("Linear", {"in_features": 3, "out_features": 5, "bias": False}),
        ("RMSNorm", {"normalized_shape": (2, 3), "eps": None}),
        ("TernaryLinear", {"in_features": 3, "out_features": 5, "scale_dtype": None}),
    ],
)
def test_arguments_of_builtin_layers(layer, args):
    check_param(Param("n", "Layer", layer=layer, args=args), "here", set())


@pytest.mark.parametrize(
    ("layer", "args", "where"),
    [
        ("Conv2d", {**CONV, "groups": 3}, ""),
        ("Conv2d", {**CONV, "groups": 4}, ""),
        ("Conv2d", {**CONV, "groups": 0}, ""),
        ("Conv2d", {**CONV, "groups": None}, ".args.groups"),
        ("Conv2d", {**CONV, "kernel_size": (3, 3, 3)}, ""),
        ("TernaryConv2d", {**CONV, "kernel_size": 0}, ".weight"),
        ("GroupNorm", {"num_groups": 2, "num_channels": 3}, ""),
        ("GroupNorm", {"num_groups": -1, "num_channels": 3}, ""),
        ("Linear", {"in_features": 3}, ""),
        ("Linear", {"in_features": 3, "out_features": 5, "in_channels": 3}, ""),
        ("Linear", {"in_features": 3, "out_features": -5}, ".weight"),
    ],
)
def test_other_arguments_of_builtin_layers(layer, args, where):
    with pytest.raises(LayerDefError) as caught:
        check_param(Param("n", "Layer", layer=layer, args=args), "here", set())
    assert caught.value.node == f"here{where}"
