"""Every op of the table through ``build`` and generated source, against torch itself."""

import ast

import pytest
import torch
import torch.nn.functional as F
from op_cases import CASES as CORE, T, X
from running import dequantized, readings
from spatial_op_cases import CASES as SPATIAL

from tpack import LayerDefError
from tpack.build.steps import op_function
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    FunctionCall,
    Identifier,
    LayerDef,
    Literal,
    Param,
    Return,
    Tuple,
    UnaryOp,
    Unpack,
)
from tpack.layerdef.ops import BINARY, COMPARISON, OPS, REQUIRED, UNARY, has_trait

CASES = [*CORE, *SPATIAL]

#: Ops whose examples need more than inputs and constants; tested below.
ELSEWHERE = {"bit_linear", "size", "chunk", "split", "unbind", "topk"}
ELSEWHERE |= {"arange", "zeros", "ones", "full", "eye", "linspace", "meshgrid"}
ELSEWHERE |= {"sort", "median", "cummax", "cummin"}
#: In test_recurrent.py.
ELSEWHERE |= {"lstm", "gru", "rnn_tanh", "rnn_relu"}
#: In test_caches.py.
ELSEWHERE |= {"cache_length", "cache_layer", "cache_extend"}
#: In capturing/test_capture_experts.py.
ELSEWHERE |= {"by_expert"}


def test_every_op_has_an_example():
    assert {case.op for case in CASES} | ELSEWHERE == set(OPS)
    assert not {case.op for case in CASES} & ELSEWHERE


def constant(value):
    if isinstance(value, tuple):
        return Tuple([Literal(item) for item in value])
    return Literal(value)


def program(case, positional):
    """The layer of a case, and its inputs."""
    inputs, arguments = {}, {}
    for name, value in case.tensors.items():
        if isinstance(value, tuple):
            inputs |= {f"t{i}": tensor for i, tensor in enumerate(value)}
            arguments[name] = Tuple([Identifier(f"t{i}") for i in range(len(value))])
        else:
            inputs[f"in_{name}"] = value
            arguments[name] = Identifier(f"in_{name}")
    arguments |= {name: constant(value) for name, value in case.options.items()}
    args = []
    if positional:
        for param in OPS[case.op].params:
            if param.name not in arguments:
                break
            args.append(arguments.pop(param.name))
    call = FunctionCall(case.op, args, arguments)
    return LayerDef("L", [Param(name, "Tensor") for name in inputs], [Return(call)]), inputs


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("positional", [False, True])
def test_op(case, positional):
    layer, inputs = program(case, positional)
    for module in readings(layer).values():
        torch.testing.assert_close(module(*inputs.values()), case.expected, rtol=0, atol=1e-6)


def torch_function(op, spelling):
    home, _, name = spelling.rpartition(".")
    if spelling in ("[]", "[:]") or "." not in spelling:
        return op_function(OPS[op])
    return getattr({"": torch.Tensor, "F": F, "torch": torch}[home], name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_defaults_of_the_table_are_those_of_torch(case):
    """What the table says is left out, said to torch, gives the same."""
    op = OPS[case.op]
    if not op.spelling:
        assert op.expansion is not None
        return
    positional, named = [], {}
    for param in op.params:
        if param.name in case.tensors or param.name in case.options:
            value = (case.tensors | case.options)[param.name]
            value = getattr(torch, value) if param.kind == "dtype" else value
            infinite = param.kind == "value" and isinstance(value, str)
            value = float(value) if infinite else value
            if case.op in ("layer_norm", "rms_norm") and param.name == "shape":
                value = (value,) if isinstance(value, int) else value
        else:
            assert param.default is not REQUIRED
            value = param.default
        if not named and not param.keyword:
            positional.append(value)
        else:
            named[param.torch_name] = value
    result = torch_function(op.name, op.spelling)(*positional, **named)
    torch.testing.assert_close(result, case.expected, rtol=0, atol=1e-6)


def test_new_tensors_of_several_arguments():
    x, size = Identifier("x"), FunctionCall("size", [Identifier("x"), Literal(1)])
    device = {"device": x}
    calls = {
        FunctionCall("eye", [size, Literal(4)], device): torch.eye(3, 4),
        FunctionCall("linspace", [Literal(0), Literal(1.5), size], device): torch.linspace(
            0, 1.5, 3
        ),
        FunctionCall(
            "linspace", [Literal(1), Literal(3), Literal(4)], device | {"dtype": Literal("float64")}
        ): torch.linspace(1, 3, 4, dtype=torch.float64),
    }
    for call, expected in calls.items():
        for module in readings(LayerDef("L", [Param("x", "Tensor")], [Return(call)])).values():
            assert torch.equal(module(X), expected)


def test_grids_of_several_vectors():
    vectors = [FunctionCall("select", [Identifier("x"), Literal(0), Literal(0)])] * 2
    vectors = [FunctionCall("select", [vector, Literal(0), Literal(0)]) for vector in vectors]
    for indexing in ("ij", "xy"):
        call = FunctionCall("meshgrid", [Tuple(vectors)], {"indexing": Literal(indexing)})
        body = [Unpack(["a", "b"], call), Return(Tuple([Identifier("a"), Identifier("b")]))]
        expected = torch.meshgrid(X[0, 0], X[0, 0], indexing=indexing)
        for module in readings(LayerDef("L", [Param("x", "Tensor")], body)).values():
            torch.testing.assert_close(module(X), expected, rtol=0, atol=0)


SEVERAL_CASES = [
    ("chunk", {"chunks": 2, "dim": -1}, lambda x: x.chunk(2, -1)),
    ("split", {"sizes": 2, "dim": 1}, lambda x: x.split(2, 1)),
    ("split", {"sizes": (1, 2), "dim": 1}, lambda x: x.split((1, 2), 1)),
    ("unbind", {}, lambda x: x.unbind()),
    ("unbind", {"dim": 1}, lambda x: x.unbind(1)),
    ("topk", {"k": 2}, lambda x: x.topk(2)),
    ("topk", {"k": 1, "dim": 0}, lambda x: x.topk(1, 0)),
    ("topk", {"k": 2, "largest": False}, lambda x: x.topk(2, largest=False)),
    ("sort", {}, torch.sort),
    ("sort", {"dim": 1, "descending": True, "stable": True}, lambda x: x.sort(1, True)),
    ("median", {"dim": 1}, lambda x: x.median(1)),
    ("cummax", {"dim": 1}, lambda x: x.cummax(1)),
    ("cummin", {"dim": 1}, lambda x: x.cummin(1)),
]


@pytest.mark.parametrize(("op", "options", "plain"), SEVERAL_CASES)
def test_ops_with_several_results_are_unpacked(op, options, plain):
    assert has_trait(op, "several")
    expected = plain(X)
    names = [f"r{i}" for i in range(len(expected))]
    call = FunctionCall(op, [Identifier("x")], {k: constant(v) for k, v in options.items()})
    body = [Unpack(names, call), Return(Tuple([Identifier(name) for name in names]))]
    for module in readings(LayerDef("L", [Param("x", "Tensor")], body)).values():
        torch.testing.assert_close(module(X), tuple(expected), rtol=0, atol=0)
    with pytest.raises(LayerDefError, match="Unpack it"):
        readings(LayerDef("L", [Param("x", "Tensor")], [Return(call)]))


def test_results_that_nothing_uses_are_dropped():
    call = FunctionCall("topk", [Identifier("x"), Literal(2)])
    body = [Unpack(["best", "where_best"], call), Return(Identifier("best"))]
    layer = LayerDef("L", [Param("x", "Tensor")], body)
    for module in readings(layer).values():
        assert torch.equal(module(X), X.topk(2)[0])
    assert "best, _ = torch.topk(x, 2)" in generate_pytorch_code(layer)


@pytest.mark.parametrize("op", ["arange", "zeros", "ones", "full"])
@pytest.mark.parametrize("dtype", [None, "float64", "int64"])
def test_new_tensors(op, dtype):
    size = FunctionCall("size", [Identifier("x"), Literal(1)])
    args = {"arange": [size], "full": [Tuple([size, Literal(2)]), Literal(3)]}
    options = {"device": Identifier("x")} | ({"dtype": Literal(dtype)} if dtype else {})
    call = FunctionCall(op, args.get(op, [Tuple([size, Literal(2)])]), options)
    given = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    make = getattr(torch, op)
    expected = {
        "arange": lambda: make(3, **given),
        "full": lambda: make((3, 2), 3, **given),
    }.get(op, lambda: make((3, 2), **given))()
    for module in readings(LayerDef("L", [Param("x", "Tensor")], [Return(call)])).values():
        found = module(X)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


COMPARISONS = {"==": torch.eq, "!=": torch.ne, "<": torch.lt, "<=": torch.le, ">": torch.gt}
COMPARISONS |= {">=": torch.ge}


@pytest.mark.parametrize("sign", COMPARISONS)
def test_comparisons(sign):
    x, y = Identifier("x"), Identifier("y")
    layer = LayerDef(
        "L",
        [Param("x", "Tensor"), Param("y", "Tensor")],
        [
            Assignment("first", BinaryOp(sign, x, y)),
            Assignment("second", BinaryOp(sign, BinaryOp("+", x, y), Literal(0))),
            Assignment("third", UnaryOp("~", BinaryOp(sign, y, x))),
            Return(
                BinaryOp(
                    "|",
                    BinaryOp("&", Identifier("first"), Identifier("second")),
                    BinaryOp("==", Identifier("third"), BinaryOp(sign, x, y)),
                )
            ),
        ],
    )
    compare = COMPARISONS[sign]
    y = -X.round()
    expected = (compare(X, y) & compare(X + y, 0)) | ((~compare(y, X)) == compare(X, y))
    for module in readings(layer).values():
        assert torch.equal(module(X, y), expected)


def test_size_is_a_number():
    size = FunctionCall("size", [Identifier("x"), Literal(-1)])
    body = [Return(FunctionCall("reshape", [Identifier("x"), Tuple([size, Literal(-1)])]))]
    for module in readings(LayerDef("L", [Param("x", "Tensor")], body)).values():
        assert torch.equal(module(X), X.reshape(4, 6))
    alone = LayerDef("L", [Param("x", "Tensor")], [Return(size)])
    for module in readings(alone).values():
        assert module(X) == 4


# ---- ternary weights

WEIGHTED = {
    "linear": ((5, 7), (2, 7), lambda x, w: x @ w.T),
    "matmul": ((7, 5), (2, 7), lambda x, w: x @ w),
    "conv1d": ((4, 3, 2), (2, 3, 6), F.conv1d),
    "conv2d": ((4, 3, 2, 2), (2, 3, 6, 6), F.conv2d),
    "embedding": ((6, 7), None, lambda ids, w: w[ids]),
    "bit_linear": ((5, 7), (2, 7), None),
}


@pytest.mark.parametrize("op", WEIGHTED)
@pytest.mark.parametrize("scale", ["tensor", "row", "column", "group:3"])
@pytest.mark.parametrize("split", [None, 0])
def test_op_of_a_ternary_weight(op, scale, split):
    shape, inputs, plain = WEIGHTED[op]
    layer = LayerDef(
        "L",
        [Param("w", "TernaryTensor", shape, scale=scale, split=split), Param("x", "Tensor")],
        [Return(FunctionCall(op, [Identifier("x"), Identifier("w")]))],
    )
    if op == "bit_linear" and split == 0:
        with pytest.raises(LayerDefError):
            readings(layer)
        return
    x = torch.tensor([[0, 5], [2, 2]]) if inputs is None else T(*inputs)
    for module in readings(layer).values():
        rows = 1 if split is None else 0
        packed, scales = module.w_packed, module.w_scale
        if scale == "group:3":
            columns = torch.Size(shape[rows:]).numel()
            scales = (
                scales.detach().reshape(-1, scales.shape[-1]).repeat_interleave(3, 1)[:, :columns]
            )
            trits = dequantized(packed, torch.ones(1), shape, rows)
            weight = trits * scales.reshape(shape)
        else:
            weight = dequantized(packed, scales.detach(), shape, rows)
        if op == "bit_linear":
            gain = 127 / x.abs().amax(-1, keepdim=True)
            expected = ((x * gain).round().clamp(-128, 127) / gain).double() @ weight.T
        else:
            expected = plain(x if inputs is None else x.double(), weight)
        torch.testing.assert_close(module(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_operators_have_pythons_precedence():
    for operator, level in BINARY.items():
        for other, below in BINARY.items():
            if operator == "**" or other == "**" or operator in COMPARISON or other in COMPARISON:
                continue  # ** groups to the right, comparisons chain: both in parentheses
            tree = ast.parse(f"a {operator} b {other} c", mode="eval").body
            left_first = isinstance(tree.left, ast.BinOp)
            assert left_first == (level >= below)
    assert BINARY["**"] > UNARY["-"] > BINARY["*"]
    assert max(COMPARISON.values()) < min(BINARY[word] for word in BINARY if word not in COMPARISON)
