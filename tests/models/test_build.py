"""Built modules and generated source compute the same, and both are proper modules."""

import copy
import importlib.util
import io
import pickle
import sys

import pytest
import torch
from hypothesis import assume, given, settings
from running import from_source, inputs_of, randomize, readings
from safetensors.torch import load_file, save_file
from strategies import UNSHRUNK, Runnable, runnables
from trees import IDS, W, X, Y, call, network

from tpack import LayerDefError, kernels
from tpack.build import BuiltModule, build_module
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
    Unspecified,
    slots,
)


@pytest.fixture(autouse=True, scope="module")
def plain_torch():
    """Readings are compared bit for bit; kernels, tested elsewhere, may round differently."""
    with kernels.forced("numpy"):
        yield


BOTH = pytest.mark.parametrize("reading", ["build", "source", "standalone"])


def same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


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
    params += [Param("x", "Tensor"), Param(long, "Tensor")]
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
        [Param("w", "TernaryTensor", [3]), Param("x", "Tensor")],
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
            Param("x", "Tensor"),
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
        Param("x", "Tensor"),
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
        Param("x", "Tensor"),
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
    layer = LayerDef("Net", [*params, Param("x", "Tensor")], body)
    agree(layer, torch.randn(2, 3))
    keys = list(build_module(layer).state_dict())
    assert keys == list(from_source(layer).state_dict())
    assert "2.1.weight_packed" in keys
    assert not any(key.startswith("3.") for key in keys)


def test_several_results():
    layer = LayerDef("L", [Param("x", "Tensor")], [Return(Tuple([call("relu", X), X]))])
    x = torch.randn(4)
    same(agree(layer, x), (x.relu(), x))
    one = LayerDef("L", [Param("x", "Tensor")], [Return(Tuple([X]))])
    assert isinstance(agree(one, x), tuple)


# ---- proper modules


@pytest.fixture(params=["build", "source", "standalone"])
def module(request, tmp_path, monkeypatch):
    tree = network()
    built = build_module(tree)
    randomize(built)
    if request.param == "build":
        return built
    path = tmp_path / "generated_net.py"
    path.write_text(generate_pytorch_code(tree, standalone=request.param == "standalone"))
    spec = importlib.util.spec_from_file_location("generated_net", path)
    source = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "generated_net", source)
    spec.loader.exec_module(source)
    made = source.Net().eval()
    made.load_state_dict(built.state_dict())
    return made


def test_deepcopy(module):
    clone = copy.deepcopy(module)
    same(clone(IDS), module(IDS))
    with torch.no_grad():
        clone.head.weight_scale += 1
    assert not torch.equal(clone.head.weight_scale, module.head.weight_scale)
    assert not torch.equal(clone(IDS), module(IDS))


def test_pickle(module):
    again = pickle.loads(pickle.dumps(module))
    same(again(IDS), module(IDS))


def test_torch_save(module):
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    same(torch.load(stream, weights_only=False)(IDS), module(IDS))


def test_compile(module):
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    same(compiled(IDS), module(IDS))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compile_inductor():
    torch._dynamo.reset()
    module = build_module(network())
    randomize(module)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(IDS), module(IDS), rtol=1e-2, atol=1e-2)


def test_export(module):
    program = torch.export.export(module, (IDS,))
    same(program.module()(IDS), module(IDS))
    assert set(program.state_dict) == set(module.state_dict())


def test_export_with_a_dynamic_batch(module):
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    shapes = ((batch,),) if isinstance(module, BuiltModule) else (batch,)
    program = torch.export.export(module, (IDS,), dynamic_shapes=shapes)
    longer = torch.cat([IDS, IDS, IDS])
    torch.testing.assert_close(program.module()(longer), module(longer))


def test_safetensors_round_trip(module, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(module.state_dict(), path)
    other = build_module(network())
    other.load_state_dict(load_file(path), strict=True)
    for key, value in module.state_dict().items():
        assert value.numpy().tobytes() == other.state_dict()[key].numpy().tobytes()
    same(other(IDS), module(IDS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_dtype(module, dtype):
    expected = module(IDS)
    moved = copy.deepcopy(module).to(dtype)
    assert moved.head.weight_packed.dtype == torch.uint8
    assert moved.head.weight_scale.dtype == dtype
    result = moved(IDS)
    assert result.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(result.float(), expected, rtol=5e-2, atol=5e-2)


def test_half_input_on_float_scales():
    for module in readings(LayerDef("L", [Param("w", "TernaryTensor", [6, 5])])).values():
        x = torch.randn(3, 6)
        half = module(x.half())
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.float(), module(x), rtol=1e-2, atol=2e-2)


def test_meta_device_allocates_nothing():
    module = build_module(network(), device="meta")
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    built = build_module(network())
    randomize(built)
    module.load_state_dict(built.state_dict(), strict=True, assign=True)
    same(module(IDS), built(IDS))


def test_built_module_is_in_eval_mode():
    assert not any(module.training for module in build_module(network()).modules())


def test_keyword_arguments(module):
    same(module(ids=IDS), module(IDS))


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((IDS, IDS), {}), ((IDS,), {"ids": IDS}), ((), {"x": IDS})]
)
def test_wrong_arguments(module, args, kwargs):
    with pytest.raises(TypeError):
        module(*args, **kwargs)


@BOTH
def test_unspecified_body(reading):
    layer = LayerDef("Net", [Param("w", "TernaryTensor", [2, 2])], [Unspecified()])
    module = readings(layer)[reading]
    assert sorted(module.state_dict()) == ["w_packed", "w_scale"]
    with pytest.raises(NotImplementedError, match=r"Net: .*--layerdef FILE"):
        module(torch.ones(2))


def test_repr_names_the_layers():
    text = repr(build_module(network()))
    assert "up=(12, 6)" in text
    assert "Block" in text


@BOTH
def test_dtypes_of_stored_tensors(reading):
    params = [
        Param("w", "TernaryTensor", [4, 4], dtype="bfloat16", scale="row"),
        Param("a", "Tensor", [2], dtype="float16"),
        Param("n", "Buffer", [], dtype="int64"),
        Param("flag", "Buffer", [0, 3], dtype="bool"),
    ]
    state = readings(LayerDef("L", params, [Return(call("linear", X, W))]))[reading].state_dict()
    assert {key: (value.dtype, tuple(value.shape)) for key, value in state.items()} == {
        "w_packed": (torch.uint8, (4, 1)),
        "w_scale": (torch.bfloat16, (4, 1)),
        "a": (torch.float16, (2,)),
        "n": (torch.int64, ()),
        "flag": (torch.bool, (0, 3)),
    }


@pytest.mark.parametrize(
    ("layer", "args", "make"),
    [
        ("Linear", {"in_features": 4, "out_features": 3}, lambda: torch.nn.Linear(4, 3)),
        ("Embedding", {"num_embeddings": 5, "embedding_dim": 3}, lambda: torch.nn.Embedding(5, 3)),
        (
            "Conv2d",
            {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "groups": 2, "padding": 1},
            lambda: torch.nn.Conv2d(4, 6, (3, 2), groups=2, padding=1),
        ),
        ("LayerNorm", {"normalized_shape": 4}, lambda: torch.nn.LayerNorm(4)),
        ("LayerNorm", {"normalized_shape": (2, 4)}, lambda: torch.nn.LayerNorm((2, 4))),
        (
            "LayerNorm",
            {"normalized_shape": 4, "bias": False},
            lambda: torch.nn.LayerNorm(4, bias=False),
        ),
        (
            "LayerNorm",
            {"normalized_shape": 4, "elementwise_affine": False},
            lambda: torch.nn.LayerNorm(4, elementwise_affine=False),
        ),
        ("RMSNorm", {"normalized_shape": 4}, lambda: torch.nn.RMSNorm(4)),
        (
            "RMSNorm",
            {"normalized_shape": 4, "eps": 0.1, "elementwise_affine": False},
            lambda: torch.nn.RMSNorm(4, eps=0.1, elementwise_affine=False),
        ),
        (
            "GroupNorm",
            {"num_groups": 2, "num_channels": 4, "eps": 0.1},
            lambda: torch.nn.GroupNorm(2, 4, eps=0.1),
        ),
        ("BatchNorm1d", {"num_features": 4}, lambda: torch.nn.BatchNorm1d(4)),
        (
            "BatchNorm2d",
            {"num_features": 4, "affine": False},
            lambda: torch.nn.BatchNorm2d(4, affine=False),
        ),
    ],
)
def test_builtin_layers_are_torchs_own(layer, args, make):
    tree = LayerDef(
        "Net",
        [Param("child", "Layer", layer=layer, args=args), Param("x", "Tensor")],
        [Return(LayerCall("child", [X]))],
    )
    reference = make().eval()
    with torch.no_grad():
        for value in reference.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
    inputs = {
        "Embedding": torch.tensor([0, 4]),
        "Conv2d": torch.randn(2, 4, 5, 5),
        "GroupNorm": torch.randn(2, 4, 3),
        "BatchNorm2d": torch.randn(2, 4, 3, 3),
    }
    x = inputs.get(layer, torch.randn(3, 2, 4) if layer != "BatchNorm1d" else torch.randn(3, 4))
    names = {slot.name.removeprefix("child.") for slot in slots(Program([tree], "Net"))}
    assert names == set(reference.state_dict())
    for module in readings(tree).values():
        module.child.load_state_dict(reference.state_dict(), strict=True)
        same(module(x), reference(x))
