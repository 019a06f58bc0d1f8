"""Generated source tells the shapes that its LayerDefs tell, where they change."""

import ast

from trees import X, Y, call

from tpack.codegen import generate_pytorch_code
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Dict,
    Identifier,
    LayerDef,
    Literal,
    Param,
    Return,
    Tuple,
    Unpack,
)

GIVEN = ("batch", 4)


def sized(*body, sizes=GIVEN):
    return LayerDef("L", [Param("x", "Tensor", sizes=sizes)], body)


def forward(tree):
    """The lines of its forward."""
    lines = generate_pytorch_code(tree).splitlines()
    start = next(
        i for i, line in enumerate(lines) if line.endswith(("-> Tensor:", ", ...]:", "]:"))
    )
    return [line.strip() for line in lines[start + 1 :]]


def test_programs_without_shapes_have_no_comments():
    body = [Assignment("y", call("relu", X)), Return(Y)]
    assert forward(sized(*body, sizes=None)) == ["y = F.relu(x)", "return y"]


def test_a_forward_says_what_goes_in_and_what_comes_out():
    assert forward(sized(Return(call("relu", X), [GIVEN])))[0] == '"""x (batch, 4) → (batch, 4)."""'
    assert forward(sized(Return(X)))[0] == '"""x (batch, 4) → a tensor."""'
    assert forward(sized(Return(X, [(3,)]), sizes=None))[0] == '"""x → (3,)."""'
    both = Return(Dict({"one": X, "two": Tuple([X, X])}), [(2,), (), ()])
    assert forward(sized(both))[0] == '"""x (batch, 4) → one (2,), two ()."""'


def test_arguments_of_one_shape_share_it():
    params = [Param(name, "Tensor", sizes=("batch", 4)) for name in ("x", "y")]
    params.append(Param("mask", "Tensor"))
    lines = forward(LayerDef("L", params, [Return(X, [GIVEN])]))
    assert lines[0] == '"""x, y (batch, 4); mask → (batch, 4)."""'


def test_long_docstrings_break_between_arguments():
    names = ["first_of_the_arguments", "second_of_the_arguments", "third_of_the_arguments"]
    params = [Param(name, "Tensor", sizes=("batch", i)) for i, name in enumerate(names)]
    lines = forward(LayerDef("L", params, [Return(Identifier(names[0]), [GIVEN])]))
    assert lines[:4] == [
        '"""first_of_the_arguments (batch, 0); second_of_the_arguments (batch, 1);',
        "third_of_the_arguments (batch, 2)",
        "→ (batch, 4).",
        '"""',
    ]


def test_a_shape_is_told_where_it_changes():
    wide = ("batch", 8)
    body = [
        Assignment("y", call("relu", X), GIVEN),  # as before
        Assignment("z", call("cat", Tuple([Y, Y]), dim=Literal(1)), wide),  # changes
        Assignment("z", call("relu", Identifier("z")), wide),  # as its operand
        Assignment("y", call("silu", Y), GIVEN),  # as what had its name
        Assignment("w", call("relu", Identifier("z")), wide),
        Return(Tuple([Y, Identifier("w")]), [GIVEN, wide]),
    ]
    assert forward(sized(*body)) == [
        '"""x (batch, 4) → (batch, 4), (batch, 8)."""',
        "y = F.relu(x)",
        "z = torch.cat((y, y), 1)  # (batch, 8)",
        "z = F.relu(z)",
        "y = F.silu(y)",
        "w = F.relu(z)",
        "return y, w",
    ]


def test_several_results_tell_theirs():
    parts = call("chunk", X, Literal(2), dim=Literal(1))
    half = ("batch", 2)
    body = [Unpack(["y", "z"], parts, [half, half]), Return(Tuple([Y, Identifier("z")]))]
    assert forward(sized(*body))[1] == "y, z = x.chunk(2, 1)  # (batch, 2) each"
    body = [Unpack(["y", "_"], parts, [half, None]), Return(Y)]
    assert forward(sized(*body))[1] == "y, _ = x.chunk(2, 1)  # (batch, 2)"
    sizes = call("split", X, Tuple([Literal(1), Literal(3)]), dim=Literal(1))
    body = [Unpack(["y", "z"], sizes, [("batch", 1), ("batch", 3)])]
    lines = forward(sized(*body, Return(Tuple([Y, Identifier("z")]))))
    assert lines[1] == "y, z = x.split((1, 3), 1)  # (batch, 1), (batch, 3)"


def test_a_value_that_is_computed_in_steps_has_its_shape_at_the_last():
    name = Identifier("an_argument_of_more_than_forty_letters_in_all")
    params = [Param(name.name, "Tensor", sizes=GIVEN)]
    value = BinaryOp("+", BinaryOp("*", call("relu", name), call("silu", name)), Literal(1))
    body = [Assignment("y", value, ("batch", 12)), Return(Y)]
    lines = forward(LayerDef("L", params, body))
    assert "(batch, 12)" not in lines[1]
    assert lines[-2].endswith("+ 1  # (batch, 12)")
    assert sum("(batch, 12)" in line for line in lines) == 1


def test_what_does_not_fit_beside_stands_above():
    name = "a_name_of_forty_characters_which_is_long"
    body = [Assignment(name, call("cat", Tuple([X, X])), ("batch", 7)), Return(Identifier(name))]
    assert forward(sized(*body))[1:3] == [
        f"{name} = torch.cat((x, x))  # (batch, 7)",
        f"return {name}",
    ]
    name += "_" * 20
    body = [Assignment(name, call("cat", Tuple([X, X])), ("batch", 7)), Return(Identifier(name))]
    assert forward(sized(*body))[1:3] == ["# (batch, 7)", f"{name} = torch.cat((x, x))"]
    body = [Assignment("y", call("cat", Tuple([X, X])), ["n" * 60] * 2), Return(Y)]
    lines = forward(sized(*body))
    assert lines[1:] == ["y = torch.cat((x, x))", "return y"]  # too long for a comment
    ast.parse(generate_pytorch_code(sized(*body)))
