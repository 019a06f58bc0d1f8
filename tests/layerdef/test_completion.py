"""What only the tensors tell is filled in; copies of one layer share the finest scale."""

import pytest

from tpack import LayerDefError
from tpack.codec import Scale
from tpack.layerdef import (
    Identifier,
    LayerDef,
    Param,
    Program,
    Return,
    slots,
    validate,
)
from tpack.layerdef.completion import Found, complete, match_slots

BODY = [Return(Identifier("x"))]


def program(repeat=2):
    block = LayerDef(
        "Block",
        [
            Param("w", "TernaryTensor", [4, 64]),
            Param("b", "Tensor", [4]),
            Param(
                "fc", "Layer", layer="TernaryLinear", args={"in_features": 64, "out_features": 4}
            ),
        ],
        BODY,
    )
    net = LayerDef("Net", [Param("blocks", "Layer", layer="Block", repeat=repeat)], BODY)
    return Program([block, net], "Net")


def found(tree, **changes):
    made = {}
    for slot in slots(tree):
        ternary = slot.param.param_type == "TernaryTensor"
        made[slot.name] = Found(
            slot.param.shape, "float32", Scale.parse("tensor") if ternary else None
        )
    return made | {name.replace("__", "."): value for name, value in changes.items()}


def shapes(tree):
    return {slot.name: slot.param.shape for slot in slots(tree)}


def test_match():
    matched = match_slots(program(), shapes(program()))
    assert list(matched) == [slot.name for slot in slots(program())]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"blocks.0.w": None}, "lacks blocks.0.w"),
        ({"other": (4,)}, "also has other"),
        ({"blocks.1.b": (5,)}, "'blocks.1.b' has shape (5,), expected (4,)"),
        ({"blocks.1.w": (64, 4)}, "'blocks.1.w' has shape (64, 4), expected (4, 64)"),
    ],
)
def test_what_does_not_match_is_named(change, text):
    given = {k: v for k, v in (shapes(program()) | change).items() if v is not None}
    with pytest.raises(LayerDefError) as caught:
        match_slots(program(), given)
    assert text in str(caught.value)


def test_refined_programs_say_what_was_found():
    tree = program()
    finds = found(
        tree,
        blocks__0__w=Found((4, 64), "bfloat16", Scale.parse("row")),
        blocks__1__w=Found((4, 64), "bfloat16", Scale.parse("row")),
        blocks__0__b=Found((4,), "float16"),
        blocks__1__b=Found((4,), "float16"),
    )
    refined, scales = complete(tree, finds, "t5")
    validate(refined)
    for slot in slots(refined):
        assert slot.param.dtype == finds[slot.name].dtype
        if slot.param.param_type == "TernaryTensor":
            assert slot.param.layout == "t5"
            assert slot.param.scale == str(scales[slot.name])
    assert str(scales["blocks.0.w"]) == "row"
    assert str(scales["blocks.0.fc.weight"]) == "tensor"


@pytest.mark.parametrize(
    ("first", "second", "finest"),
    [
        ("tensor", "row", "row"),
        ("row", "group:32", "group:32"),
        ("group:32", "group:64", "group:32"),
        ("group:256", "tensor", "group:256"),
        ("tensor", "column", "column"),
        ("column", "column", "column"),
        ("group:48", "group:64", "group:16"),
    ],
)
@pytest.mark.parametrize("name", ["w", "fc.weight"])
def test_copies_take_the_coarsest_scale_that_all_can_be_repeated_to(first, second, finest, name):
    tree = program()
    finds = found(tree)
    for i, scale in enumerate((first, second)):
        finds[f"blocks.{i}.{name}"] = Found((4, 64), "float32", Scale.parse(scale))
    refined, scales = complete(tree, finds, "t2")
    validate(refined)
    assert {str(scales[f"blocks.{i}.{name}"]) for i in range(2)} == {finest}
    stored = {slot.name: slot.param.scale for slot in slots(refined)}
    assert stored[f"blocks.0.{name}"] == finest


@pytest.mark.parametrize("other", ["row", "group:32"])
@pytest.mark.parametrize("turned", [False, True])
def test_columns_and_rows_share_no_description(other, turned):
    tree = program(repeat=3)
    scales = [other, "tensor", "column"][:: -1 if turned else 1]
    finds = found(tree)
    for i, scale in enumerate(scales):
        finds[f"blocks.{i}.w"] = Found((4, 64), "float32", Scale.parse(scale))
    with pytest.raises(LayerDefError) as caught:
        complete(tree, finds, "t2")
    assert f"tensor 'blocks.2.w' has scales per {scales[2]}, other" in str(caught.value)
    assert f"other copies of Block per {scales[0]}" in str(caught.value)


def test_copies_of_different_dtypes_are_refused():
    tree = program()
    finds = found(tree, blocks__1__b=Found((4,), "float16"))
    with pytest.raises(LayerDefError, match=r"'blocks\.1\.b' is float16, expected float32"):
        complete(tree, finds, "t2")


@pytest.mark.parametrize(
    ("weight", "bias"),
    [("float16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")],
)
def test_dtypes_of_a_builtin_layer(weight, bias):
    tree = program(repeat=1)
    finds = found(tree)
    finds["blocks.0.fc.weight"] = Found((4, 64), weight, Scale.parse("row"))
    finds["blocks.0.fc.bias"] = Found((4,), bias)
    refined, _ = complete(tree, finds, "t2")
    validate(refined)
    stored = {slot.name: slot.param for slot in slots(refined)}
    assert stored["blocks.0.fc.weight"].dtype == weight
    assert stored["blocks.0.fc.bias"].dtype == bias
    assert stored["blocks.0.fc.weight"].scale == "row"


def test_torch_layers_have_one_dtype():
    net = LayerDef(
        "Net",
        [Param("fc", "Layer", layer="Linear", args={"in_features": 4, "out_features": 4})],
        BODY,
    )
    tree = Program([net], "Net")
    finds = found(tree, fc__bias=Found((4,), "float16"))
    with pytest.raises(LayerDefError, match="has one dtype, found float16 and float32"):
        complete(tree, finds, "t2")


def test_refining_twice_changes_nothing():
    tree = program()
    finds = found(tree)
    finds["blocks.0.fc.weight"] = Found((4, 64), "float16", Scale.parse("group:32"))
    finds["blocks.1.fc.weight"] = Found((4, 64), "float16", Scale.parse("row"))
    once, scales = complete(tree, finds, "t5")
    again, same = complete(once, finds, "t5")
    assert (again, same) == (once, scales)
