"""Built modules and generated source compute the same."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from running import from_source, inputs_of, randomize, readings, same
from strategies import UNSHRUNK, Runnable, runnables
from trees import IDS, INPUT, W, X, Y, call, network

from tpack import LayerDefError
from tpack.build import build_module
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Tuple,
    UnaryOp,
    slots,
)

pytestmark = pytest.mark.usefixtures("plain_torch")

# ---- the readings agree


@settings(max_examples=60, phases=UNSHRUNK)
@given(runnables(), runnables(long_names=False))
def test_readings_agree(first: Runnable, second: Runnable):
    for example in (first, second):
        modules = readings(example.program)
        built = modules["build"]
        shapes = {key: (value.shape, value.dtype) for key, value in built.state_dict().items()}
        inputs = inputs_of(example)
        expected = built(*inputs)
        for module in modules.values():
            state = module.state_dict()
            assert list(state) == list(shapes)
            assert {key: (value.shape, value.dtype) for key, value in state.items()} == shapes
            assert {k for k, _ in module.named_parameters()} == {
                k for k, _ in built.named_parameters()
            }
            same(module(*inputs), expected)


@settings(max_examples=30, phases=UNSHRUNK)
@given(runnables())
def test_state_dict_keys_are_the_slots(example: Runnable):
    keys = set()
    for slot in slots(example.program):
        ternary = slot.param.param_type == "TernaryTensor"
        keys |= {f"{slot.name}_packed", f"{slot.name}_scale"} if ternary else {slot.name}
    assert set(build_module(example.program).state_dict()) == keys


@settings(max_examples=15, phases=UNSHRUNK)
@given(runnables())
def test_gradients_agree(example: Runnable):
    assume("//" not in str(example.program))  # torch has no derivative of it
    gradients = []
    for module in readings(example.program).values():
        module.double()
        inputs = [x.double().requires_grad_() for x in inputs_of(example)]
        result = module(*inputs)
        total = sum(r.sum() for r in (result if isinstance(result, tuple) else (result,)))
        if not total.requires_grad:
            return
        total.backward()
        gradients.append(
            {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
            | {i: x.grad for i, x in enumerate(inputs) if x.grad is not None}
        )
    for other in gradients[1:]:
        # sums of float64 may run in another order
        torch.testing.assert_close(other, gradients[0], rtol=1e-12, atol=1e-12)


def test_network_against_torch():
    module = build_module(network())
    randomize(module)
    state = {key: value.double() for key, value in module.state_dict().items()}

    def weight(name, columns, layout="t2", group=0):
        packed = module.state_dict()[f"{name}_packed"]
        base, per_byte = (4, 4) if layout == "t2" else (3, 5)
        rows = []
        for row in packed.tolist():
            codes = []
            for byte in row:
                if layout == "t2":
                    codes += [byte >> 2 * i & 3 for i in range(per_byte)]
                else:
                    codes += [(byte * 3**i % 256 * base) >> 8 for i in range(per_byte)]
            rows.append([code - 1 for code in codes[:columns]])
        scale = state[f"{name}_scale"]
        if group:
            scale = scale.repeat_interleave(group, 1)[:, :columns]
        return torch.tensor(rows, dtype=torch.float64) * scale

    x = weight("embed.weight", 6)[IDS]
    for i in range(3):
        at = f"blocks.{i}."
        normed = torch.nn.functional.layer_norm(
            x, (6,), state[at + "norm.weight"], state[at + "norm.bias"]
        )
        h = torch.relu(normed @ weight(at + "up", 6).T) ** 2
        x = x + (h @ weight(at + "down", 12, group=4).T + state[at + "bias"] + state[at + "shift"])
    gain = 127 / x.abs().amax(-1, keepdim=True)
    rounded = (x * gain).round().clamp(-128, 127) / gain
    expected = rounded @ weight("head.weight", 6, "t5").T + state["head.bias"]
    module.double()
    torch.testing.assert_close(module(IDS), expected, rtol=2e-2, atol=2e-2)


# ---- trees that once were printed wrongly, or could be


def agree(tree, *inputs):
    modules = readings(tree)
    expected = modules["build"](*inputs)
    for module in modules.values():
        same(module(*inputs), expected)
    return expected


def repeated(arguments, target="y", inputs=("x", "y")):
    """A child of two arguments, twice, inside Net."""
    child = LayerDef(
        "Child",
        [Param("a", "Tensor"), Param("b", "Tensor")],
        [Return(BinaryOp("-", Identifier("a"), BinaryOp("*", Literal(2), Identifier("b"))))],
    )
    body = [Assignment(target, LayerCall("steps", arguments)), Return(Identifier(target))]
    params = [Param("steps", "Layer", layer="Child", repeat=2)]
    net = LayerDef("Net", [*params, *(Param(name, "Tensor") for name in inputs)], body)
    return Program([child, net], "Net")


@pytest.mark.parametrize("target", ["x", "y", "z"])
@pytest.mark.parametrize("arguments", [(X, X), (X, Y), (Y, X), (Y, Y)])
def test_other_arguments_of_a_repeated_layer_stay(arguments, target):
    x, y = torch.randn(3), torch.randn(3)
    first, other = ({"x": x, "y": y}[argument.name] for argument in arguments)
    same(agree(repeated(arguments, target), x, y), first - 2 * other - 2 * other)


def test_other_arguments_may_be_expressions_of_the_target():
    x, y = torch.randn(3), torch.randn(3)
    tree = repeated((call("relu", Y), call("abs", X)), "x")
    same(agree(tree, x, y), y.relu() - 2 * x.abs() - 2 * x.abs())


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("wrap", ["call", "operator", "unary", "tuple"])
def test_repeated_layer_inside_a_value(depth, wrap):
    value = LayerCall("steps", [X, Y])
    wraps = {
        "call": lambda v: call("tanh", v),
        "operator": lambda v: BinaryOp("+", Literal(1), v),
        "unary": lambda v: UnaryOp("-", v),
        "tuple": lambda v: call("cat", Tuple([X, v])),
    }
    for _ in range(depth):
        value = wraps[wrap](value)
    tree = repeated((X, Y))
    net = LayerDef("Net", tree.layers[1].params, [Return(value)])
    agree(Program([tree.layers[0], net], "Net"), torch.randn(3), torch.randn(3))


def test_repeated_layer_as_argument_of_itself():
    tree = repeated((X, Y))
    value = LayerCall("steps", [LayerCall("steps", [X, Y]), LayerCall("steps", [Y, X])])
    net = LayerDef("Net", tree.layers[1].params, [Return(value)])
    agree(Program([tree.layers[0], net], "Net"), torch.randn(3), torch.randn(3))


def test_loop_of_a_long_call():
    long = "w" * 60
    tree = repeated((X, Y))
    params = [Param("steps", "Layer", layer="Child", repeat=2)]
    params += [INPUT, Param(long, "Tensor")]
    body = [Return(LayerCall("steps", [X, call("sigmoid", Identifier(long))]))]
    agree(
        Program([tree.layers[0], LayerDef("Net", params, body)], "Net"),
        torch.randn(3),
        torch.randn(3),
    )


@pytest.mark.parametrize("target", ["w_packed", "w_scale"])
def test_local_named_like_a_stored_tensor(target):
    """Either the tree is refused, or the local value is what the name means."""
    layer = LayerDef(
        "L",
        [Param("w", "TernaryTensor", [3]), INPUT],
        [
            Assignment(target, call("relu", X)),
            Return(BinaryOp("*", Identifier(target), Literal(3))),
        ],
    )
    x = torch.randn(3)
    try:
        result = agree(layer, x)
    except LayerDefError:
        return
    same(result, x.relu() * 3)


@pytest.mark.parametrize("fresh", ["value", "layer", "value2", "layer2"])
def test_values_named_like_the_printers_own(fresh):
    tree = repeated((X, Y))
    name = Identifier(fresh)
    body = [
        Assignment(fresh, call("tanh", X)),
        Assignment("y", BinaryOp("*", LayerCall("steps", [X, name]), name)),
        Return(BinaryOp("+", LayerCall("steps", [Y, name]), name)),
    ]
    net = LayerDef("Net", tree.layers[1].params, body)
    agree(Program([tree.layers[0], net], "Net"), torch.randn(3), torch.randn(3))


@pytest.mark.parametrize("target", ["layer", "value", "x"])
def test_loops_into_values_named_like_the_printers_own(target):
    tree = repeated((X, Y))
    body = [
        Assignment(target, LayerCall("steps", [X, Y])),
        Return(BinaryOp("*", Identifier(target), Y)),
    ]
    net = LayerDef("Net", tree.layers[1].params, body)
    agree(Program([tree.layers[0], net], "Net"), torch.randn(3), torch.randn(3))


@pytest.mark.parametrize("left", ["+", "-", "*", "/", "//", "%", "**", "@"])
@pytest.mark.parametrize("right", ["+", "-", "*", "/", "//", "%", "**", "@"])
def test_operators_keep_their_grouping(left, right):
    z = Identifier("z")
    params = [Param(name, "Tensor") for name in "xyz"]
    trees = [
        BinaryOp(right, BinaryOp(left, X, Y), z),
        BinaryOp(left, X, BinaryOp(right, Y, z)),
        UnaryOp("-", BinaryOp(left, X, UnaryOp("-", Y))),
        BinaryOp(left, UnaryOp("-", X), UnaryOp("-", UnaryOp("-", Y))),
        BinaryOp(left, BinaryOp(right, X, Literal(-2)), Literal(3))
        if "@" not in (left, right)
        else X,
    ]
    inputs = [torch.rand(2, 2) + 0.5 for _ in params]
    for tree in trees:
        agree(LayerDef("L", params, [Return(tree)]), *inputs)


@pytest.mark.parametrize("name", ["Any", "PackedWeight", "scale_ones", "spread_scale", "bool"])
@pytest.mark.parametrize("scale", ["tensor", "group:2"])
def test_classes_named_like_standalone_definitions(name, scale):
    """Either the name is refused, or it does no harm."""
    layer = LayerDef(
        name,
        [
            Param("w", "TernaryTensor", [4, 4], scale=scale),
            Param("fc", "Layer", layer="TernaryLinear", args={"in_features": 4, "out_features": 4}),
            INPUT,
        ],
        [Return(call("linear", LayerCall("fc", [X]), W))],
    )
    try:
        generate_pytorch_code(layer)
    except LayerDefError:
        return
    agree(layer, torch.randn(2, 4))


@pytest.mark.parametrize(
    "name", ["program", "layer_name", "ternary_layouts", "_steps", "_store", "shape", "options"]
)
@pytest.mark.parametrize("kind", ["Tensor", "TernaryTensor", "Buffer", "Layer"])
def test_parameters_named_like_attributes_of_our_modules(name, kind):
    """Either the name is refused, or the module works."""
    options = (
        {"layer": "TernaryLinear", "args": {"in_features": 4, "out_features": 4}}
        if kind == "Layer"
        else {"shape": [4, 4]}
    )
    use = LayerCall(name, [X]) if kind == "Layer" else BinaryOp("@", X, Identifier(name))
    params = [
        Param(name, kind, **options),
        Param("w", "TernaryTensor", [4, 4]),
        INPUT,
    ]
    layer = LayerDef("L", params, [Return(call("linear", use, W))])
    try:
        generate_pytorch_code(layer)
    except LayerDefError:
        return
    result = agree(layer, torch.randn(2, 4))
    module = build_module(layer)
    randomize(module)
    same(copy.deepcopy(module)(torch.ones(2, 4)), module(torch.ones(2, 4)))
    assert result.shape == (2, 4)


@pytest.mark.parametrize("op", ["linear", "matmul", "@", "+", "conv", "layer_norm"])
@pytest.mark.parametrize("wrap", [False, True])
def test_ternary_weights_take_the_dtype_of_what_they_meet(op, wrap):
    """Also where that is an expression, and where no op on packed bytes fits."""
    x = call("relu", X) if wrap else X
    value, shape = {
        "linear": (call("linear", x, W), [4, 4]),
        "matmul": (call("matmul", x, W), [4, 4]),
        "@": (BinaryOp("@", W, x), [4, 4]),
        "+": (BinaryOp("+", x, W), [4, 4]),
        "conv": (call("conv1d", x, W), [4, 4, 1]),
        "layer_norm": (call("layer_norm", x, Tuple([Literal(4)]), weight=W), [4]),
    }[op]
    split = 0 if op != "layer_norm" else None
    params = [
        Param("w", "TernaryTensor", shape, dtype="float16", split=split),
        INPUT,
    ]
    layer = LayerDef("L", params, [Return(value)])
    for dtype in (torch.float32, torch.float64):
        for module in readings(layer).values():
            assert module(torch.randn(4, 4, dtype=dtype)).dtype == dtype


def test_numbered_children_and_gaps():
    child = {"layer": "TernaryLinear", "args": {"in_features": 3, "out_features": 3}}
    params = [Param(name, "Layer", **child) for name in ("4", "0", "1")]
    params += [Param("w", "TernaryTensor", [3]), Param("2", "Layer", repeat=2, **child)]
    body = [
        Assignment("x", LayerCall("2", [X])),
        Return(BinaryOp("+", LayerCall("0", [LayerCall("4", [X])]), W)),
    ]
    layer = LayerDef("Net", [*params, INPUT], body)
    agree(layer, torch.randn(2, 3))
    keys = list(build_module(layer).state_dict())
    assert keys == list(from_source(layer).state_dict())
    assert "2.1.weight_packed" in keys
    assert not any(key.startswith("3.") for key in keys)


def test_several_results():
    layer = LayerDef("L", [INPUT], [Return(Tuple([call("relu", X), X]))])
    x = torch.randn(4)
    same(agree(layer, x), (x.relu(), x))
    one = LayerDef("L", [INPUT], [Return(Tuple([X]))])
    assert isinstance(agree(one, x), tuple)
