"""Dotted names of children draw lists and dicts of layers."""

import pytest

from tpack import LayerDefError
from tpack.layerdef import LayerDef, Param, validate
from tpack.layerdef.members import Members, collapsed, members_of, repeated, repeats
from tpack.layerdef.nodes import Program


def children(*names, **facts):
    return [Param(name, "Layer", **({"layer": "Block"} | facts)) for name in names]


def test_a_list_has_a_place_for_every_position():
    tree = members_of(children("m.3", "m.1", "2", "0"))
    assert [one and one.name for one in tree.places] == ["0", None, "2"]
    inner = tree.named["m"]
    assert isinstance(inner, Members)
    assert [one and one.name for one in inner.places] == [None, "m.1", None, "m.3"]
    assert inner.gaps == 2
    assert tree.gaps == 3


def test_only_children_are_members():
    tree = members_of([Param("w", "Tensor", (2,)), Param("x", "Tensor"), *children("w.a")])
    assert [path for path, _ in tree.containers()] == ["w"]


def test_equal_members_are_one_repeated_child():
    equal = children("m.0", "m.1", "n.a.0")
    found = repeats([*equal, *children("head")])
    assert {name: one.repeat for name, one in found.items()} == {"m": 2, "n.a": 1}
    assert collapsed(equal, found["m"]) == [found["m"], equal[2]]


@pytest.mark.parametrize(
    "params",
    [
        children("m.0", "m.2"),
        children("m.0.a", "m.1.a"),
        children("m.a", "m.b"),
        children("m.0", "m.1", repeat=2),
        [*children("m.0"), *children("m.1", layer="Other")],
    ],
)
def test_what_is_no_repeated_child(params):
    assert repeats(params) == {}


def test_no_places_are_no_child():
    assert repeated("m", []) is None


@pytest.mark.parametrize("name", ["w", "w_packed", "w_scale"])
def test_a_tensor_is_no_container(name):
    linear = {"in_features": 4, "out_features": 4}
    weight = Param("w", "TernaryTensor", (4, 4))
    child = Param(f"{name}.0", "Layer", layer="Linear", args=linear)
    with pytest.raises(LayerDefError, match=rf"L.{name}: is a parameter, and has parameters"):
        validate(Program([LayerDef("L", [weight, child])], "L"))
