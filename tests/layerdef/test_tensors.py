"""The tensors that a program stores, by name, and the constants that it does not."""

import pytest
from trees import INPUT, X

from tpack.layerdef import LayerDef, Param, Program, Return, slots
from tpack.layerdef.constants import CONSTANTS, constant_shape
from tpack.layerdef.tensors import Slot, tensor_of

LINEAR = {"layer": "Linear", "args": {"in_features": 4, "out_features": 3}}
LEAF = LayerDef(
    "Leaf",
    [
        Param("w", "TernaryTensor", [3, 4], scale="row"),
        Param("c", "Constant", [1], formula="values", args={"values": [1]}),
        Param("m", "Buffer", [2], dtype="int64"),
        INPUT,
    ],
    [Return(X)],
)
BLOCK = LayerDef(
    "Block",
    [
        Param("leaf", "Layer", layer="Leaf"),
        Param("fc", "Layer", **LINEAR),
        Param("deep.er", "Layer", layer="Leaf"),
        Param("b", "Tensor", [4]),
        INPUT,
    ],
    [Return(X)],
)
MODEL = LayerDef(
    "Model",
    [
        Param("first", "Tensor", [], dtype="float16"),
        Param("blocks", "Layer", layer="Block", repeat=2),
        Param("heads", "Layer", repeat=2, **LINEAR),
        Param("0", "Layer", layer="Leaf"),
        INPUT,
    ],
    [Return(X)],
)
PROGRAM = Program([LEAF, BLOCK, MODEL], "Model")
BLOCK_NAMES = ["leaf.w", "leaf.m", "fc.weight", "fc.bias", "deep.er.w", "deep.er.m", "b"]
NAMES = [
    "first",
    *(f"blocks.0.{name}" for name in BLOCK_NAMES),
    *(f"blocks.1.{name}" for name in BLOCK_NAMES),
    *("heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias"),
    *("0.w", "0.m"),
]


def test_slots_are_named_in_the_order_of_definition():
    assert [slot.name for slot in slots(PROGRAM)] == NAMES


def test_slots_tell_what_is_stored_and_where_the_tree_says_so():
    found = {slot.name: slot for slot in slots(PROGRAM)}
    assert found["first"] == Slot("first", MODEL.params[0], ("Model", "first", ""))
    weight = Param("weight", "Tensor", [3, 4])
    assert found["blocks.1.fc.weight"] == Slot(
        "blocks.1.fc.weight", weight, ("Block", "fc", "weight")
    )
    assert found["blocks.0.deep.er.w"].home == found["0.w"].home == ("Leaf", "w", "")
    assert found["0.w"].param == LEAF.params[0]
    assert found["heads.1.bias"].home == ("Model", "heads", "bias")
    assert Slot("w", LEAF.params[0]).home == ("", "", "")


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_dotted_name_says_what_a_child_stores(name):
    found = tensor_of(MODEL, name, PROGRAM.by_name)
    stored = {slot.name: slot.param for slot in slots(PROGRAM)}[name]
    assert found.name == name
    assert (found.param_type, found.shape, found.dtype, found.scale) == (
        stored.param_type,
        stored.shape,
        stored.dtype,
        stored.scale,
    )


@pytest.mark.parametrize(
    "name",
    [
        *("first", "first.w", "x", "x.w", "", ".", "blocks", "blocks.", "blocks.0", "blocks.0."),
        *("blocks.2.b", "blocks.-1.b", "blocks.00.b", "blocks.b", "blocks.0.x", "blocks.0.leaf"),
        *("blocks.0.leaf.c", "blocks.0.leaf.x", "blocks.0.leaf.w.w", "blocks.0.fc.scale"),
        *("blocks.0.fc.weight.data", "blocks.0.deep.w", "blocks.0.er.w", "heads.2.weight"),
        *("heads.weight", "heads.0", "heads.0.weight_", "0", "0.0.w", "1.w", "block.0.b"),
        *("blocks.x.b", "blocks.0.b.", "blocks..b", "blocks.0..b", "Leaf.w"),
    ],
)
def test_other_names_say_nothing(name):
    assert tensor_of(MODEL, name, PROGRAM.by_name) is None


@pytest.mark.parametrize("repeat", [None, 2])
def test_a_child_is_found_behind_one_whose_name_begins_alike(repeat):
    first = Param("a", "Layer", layer="Leaf", repeat=repeat)
    layer = LayerDef("L", [first, Param("a.b", "Layer", **LINEAR), INPUT], [Return(X)])
    assert tensor_of(layer, "a.b.weight", {"Leaf": LEAF}).shape == (3, 4)
    name = "a.w" if repeat is None else "a.1.w"
    assert tensor_of(layer, name, {"Leaf": LEAF}).shape == (3, 4)
    assert tensor_of(layer, "a.b.w", {"Leaf": LEAF}) is None


# ---- constants


def test_the_table_of_constants():
    assert list(CONSTANTS) == ["values", "rotary_frequencies"]
    values, rotary = CONSTANTS.values()
    assert [(p.name, p.kind) for p in values.params] == [("values", "numbers")]
    assert [(p.name, p.kind) for p in rotary.params] == [("dim", "int"), ("base", "float")]
    assert (values.spelling, rotary.spelling) == ("", "rotary_frequencies")
    assert all(row.name == name and row.doc for name, row in CONSTANTS.items())


def test_shapes_of_constants():
    assert constant_shape("values", {"values": (1, 2)}, (1, 2)) == (1, 2)
    assert constant_shape("rotary_frequencies", {"dim": 64, "base": 1e4}, (7,)) == (32,)
    assert constant_shape("rotary_frequencies", {"dim": 7, "base": 1e4}, ()) == (3,)
