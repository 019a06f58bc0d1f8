"""Example calls of the ops, with the results that torch computes."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F


def T(*shape, seed=0, positive=False):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.abs() + 0.1 if positive else made


@dataclass
class Case:
    """A call: tensors by name become inputs, everything else a constant."""

    op: str
    expected: Any
    tensors: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self):
        return " ".join([self.op, *(f"{key}={value}" for key, value in self.options.items())])


def elementwise(op, function=None, positive=False):
    x = T(3, 4, positive=positive)
    return Case(op, (function or getattr(torch, op))(x), {"x": x})


def two(op, expected):
    x, y = T(3, 4, positive=True), T(3, 4, seed=1)
    return [
        Case(op, expected(x, y), {"x": x, "y": y}),
        Case(op, expected(x, 2.5), {"x": x}, {"y": 2.5}),
        Case(op, expected(x, -3), {"x": x}, {"y": -3}),
    ]


def pool(op, x):
    plain = getattr(F, op)
    kernel = (3, 2, 1)[: x.dim() - 2]
    return [
        Case(op, plain(x, 2), {"x": x}, {"kernel_size": 2}),
        Case(op, plain(x, kernel), {"x": x}, {"kernel_size": kernel}),
        Case(op, plain(x, 3, 1, 1), {"x": x}, {"kernel_size": 3, "stride": 1, "padding": 1}),
        Case(op, plain(x, 3, padding=1), {"x": x}, {"kernel_size": 3, "padding": 1}),
    ]


def reduction(op):
    x, plain = T(2, 3, 4), getattr(torch, op)
    dims = [-1, 0, (0, 2), (1,)]
    cases = [Case(op, plain(x, dim), {"x": x}, {"dim": dim}) for dim in dims]
    cases += [
        Case(op, plain(x, dim, keepdim=True), {"x": x}, {"dim": dim, "keepdim": True})
        for dim in dims
    ]
    if op not in ("amax", "amin"):
        cases.append(Case(op, plain(x), {"x": x}))
    return cases


X, IMAGE, LINE = T(2, 3, 4), T(2, 4, 7, 8), T(2, 4, 9)
MATRIX, BIAS, VECTOR = T(5, 4, seed=2), T(5, seed=3), T(4, seed=4)
Q, K, V = T(2, 4, 5, 6), T(2, 4, 7, 6, seed=1), T(2, 4, 7, 6, seed=2)
MASK = T(5, 7, seed=3)
POSITIVE = T(4, seed=5, positive=True)
LAYER = {"x": X, "weight": VECTOR}
STACK, CHOSEN = T(3, 5, 4, seed=6), torch.tensor([[0, 2, 2], [0, 0, 2]])  # none the second
IDS = torch.tensor([[[0, 1], [1, 0], [1, 1]], [[1, 0], [0, 0], [0, 1]]])

CASES = [
    Case("linear", X @ MATRIX.T, {"x": X, "weight": MATRIX}),
    Case("linear", X @ MATRIX.T + BIAS, {"x": X, "weight": MATRIX, "bias": BIAS}),
    Case("linear", X @ MATRIX.T, {"x": X, "weight": MATRIX}, {"bias": None}),
    Case("matmul", torch.bmm(X, X.mT), {"x": X, "y": X.mT.contiguous()}),
    Case(
        "expert_linear",
        (STACK[CHOSEN] @ X.unsqueeze(-1)).squeeze(-1),
        {"x": X, "weight": STACK, "ids": CHOSEN},
    ),
    Case(
        "expert_matmul",
        (X.unsqueeze(-2) @ STACK.mT[CHOSEN]).squeeze(-2),
        {"x": X, "weight": STACK.mT.contiguous(), "ids": CHOSEN},
    ),
    Case("conv1d", F.conv1d(LINE, T(6, 4, 3)), {"x": LINE, "weight": T(6, 4, 3)}),
    Case(
        "conv1d",
        F.conv1d(LINE, T(6, 2, 3), T(6), 2, 1, 2, 2),
        {"x": LINE, "weight": T(6, 2, 3), "bias": T(6)},
        {"stride": 2, "padding": 1, "dilation": 2, "groups": 2},
    ),
    Case("conv2d", F.conv2d(IMAGE, T(6, 4, 3, 2)), {"x": IMAGE, "weight": T(6, 4, 3, 2)}),
    Case(
        "conv2d",
        F.conv2d(IMAGE, T(6, 2, 3, 2), T(6), (2, 1), (1, 0), 2, 2),
        {"x": IMAGE, "weight": T(6, 2, 3, 2), "bias": T(6)},
        {"stride": (2, 1), "padding": (1, 0), "dilation": 2, "groups": 2},
    ),
    Case(
        "embedding",
        MATRIX[torch.tensor([[4, 0], [1, 1]])],
        {"ids": torch.tensor([[4, 0], [1, 1]]), "weight": MATRIX},
    ),
    Case(
        "einsum",
        torch.einsum("bij,kj->bki", X, MATRIX),
        {"tensors": (X, MATRIX)},
        {"equation": "bij,kj->bki"},
    ),
    Case("layer_norm", F.layer_norm(X, (4,)), {"x": X}, {"shape": (4,)}),
    Case("layer_norm", F.layer_norm(X, (3, 4)), {"x": X}, {"shape": (3, 4)}),
    Case(
        "layer_norm",
        F.layer_norm(X, (4,), VECTOR, POSITIVE, 0.1),
        {"x": X, "weight": VECTOR, "bias": POSITIVE},
        {"shape": (4,), "eps": 0.1},
    ),
    Case("rms_norm", F.rms_norm(X, (4,)), {"x": X}, {"shape": (4,)}),
    Case("rms_norm", F.rms_norm(X, (4,), VECTOR, 0.1), LAYER, {"shape": (4,), "eps": 0.1}),
    Case(
        "batch_norm",
        F.batch_norm(IMAGE, VECTOR, POSITIVE),
        {"x": IMAGE, "mean": VECTOR, "var": POSITIVE},
    ),
    Case(
        "batch_norm",
        F.batch_norm(IMAGE, VECTOR, POSITIVE, POSITIVE, VECTOR, eps=0.1),
        {"x": IMAGE, "mean": VECTOR, "var": POSITIVE, "weight": POSITIVE, "bias": VECTOR},
        {"eps": 0.1},
    ),
    Case("group_norm", F.group_norm(IMAGE, 2), {"x": IMAGE}, {"groups": 2}),
    Case(
        "group_norm",
        F.group_norm(IMAGE, 2, VECTOR, POSITIVE, 0.1),
        {"x": IMAGE, "weight": VECTOR, "bias": POSITIVE},
        {"groups": 2, "eps": 0.1},
    ),
    elementwise("relu"),
    elementwise("relu_squared", lambda x: x.relu() ** 2),
    elementwise("leaky_relu", F.leaky_relu),
    Case("leaky_relu", F.leaky_relu(X, 0.3), {"x": X}, {"negative_slope": 0.3}),
    elementwise("gelu", F.gelu),
    Case("gelu", F.gelu(X, approximate="tanh"), {"x": X}, {"approximate": "tanh"}),
    Case("gelu", F.gelu(X), {"x": X}, {"approximate": "none"}),
    elementwise("silu", F.silu),
    elementwise("elu", F.elu),
    Case("elu", F.elu(X, 0.3), {"x": X}, {"alpha": 0.3}),
    elementwise("relu6", F.relu6),
    elementwise("hardswish", F.hardswish),
    elementwise("hardsigmoid", F.hardsigmoid),
    elementwise("mish", F.mish),
    Case("glu", F.glu(X), {"x": X}),
    Case("glu", F.glu(T(4, 3), 0), {"x": T(4, 3)}, {"dim": 0}),
    Case("prelu", F.prelu(IMAGE, VECTOR), {"x": IMAGE, "weight": VECTOR}),
    elementwise("sigmoid"),
    elementwise("tanh"),
    elementwise("softplus", F.softplus),
    Case("softmax", X.softmax(1), {"x": X}, {"dim": 1}),
    Case("softmax", X.softmax(1, torch.float64), {"x": X}, {"dim": 1, "dtype": "float64"}),
    Case("rotate_half", torch.cat((-X[..., 2:], X[..., :2]), -1), {"x": X}),
    Case("log_softmax", X.log_softmax(-1), {"x": X}, {"dim": -1}),
    elementwise("dropout", torch.clone),
    Case("dropout", X, {"x": X}, {"p": 0.9}),
    Case(
        "causal_attention",
        F.scaled_dot_product_attention(
            Q, K, V, attn_mask=torch.ones(Q.size(-2), K.size(-2)).tril(K.size(-2) - Q.size(-2)) > 0
        ),
        {"query": Q, "key": K, "value": V},
    ),
    Case(
        "causal_attention",
        F.scaled_dot_product_attention(
            Q[..., -1:, :], K[:, :2], V[:, :2], scale=0.3, enable_gqa=True
        ),
        {"query": Q[..., -1:, :], "key": K[:, :2], "value": V[:, :2]},
        {"scale": 0.3, "enable_gqa": True},
    ),
    Case(
        "scaled_dot_product_attention",
        F.scaled_dot_product_attention(Q, K, V),
        {"query": Q, "key": K, "value": V},
    ),
    Case(
        "scaled_dot_product_attention",
        F.scaled_dot_product_attention(Q, K, V, attn_mask=MASK, scale=0.3),
        {"query": Q, "key": K, "value": V, "attn_mask": MASK},
        {"scale": 0.3},
    ),
    Case(
        "scaled_dot_product_attention",
        F.scaled_dot_product_attention(Q, K[:, :2], V[:, :2], is_causal=True, enable_gqa=True),
        {"query": Q, "key": K[:, :2], "value": V[:, :2]},
        {"is_causal": True, "enable_gqa": True},
    ),
    *two("add", lambda x, y: x + y),
    *two("sub", lambda x, y: x - y),
    *two("mul", lambda x, y: x * y),
    *two("div", lambda x, y: x / y),
    *two("pow", lambda x, y: x**y),
    Case("maximum", X.maximum(-X), {"x": X, "y": -X}),
    Case("minimum", X.minimum(-X), {"x": X, "y": -X}),
    elementwise("square"),
    elementwise("sqrt", positive=True),
    elementwise("rsqrt", positive=True),
    elementwise("exp"),
    elementwise("log", positive=True),
    elementwise("sin"),
    elementwise("cos"),
    elementwise("abs"),
    elementwise("erf"),
    elementwise("round"),
    elementwise("floor"),
    elementwise("ceil"),
    elementwise("sign"),
    Case("where", torch.where(X > 0, X, -X), {"condition": X > 0, "x": X, "y": -X}),
    Case("where", torch.where(X > 0, 1.0, X), {"condition": X > 0, "y": X}, {"x": 1.0}),
    Case(
        "where",
        torch.where(X > 0, 0.0, float("-inf")),
        {"condition": X > 0},
        {"x": 0.0, "y": "-inf"},
    ),
    Case("masked_fill", X.masked_fill(X > 0, 2), {"x": X, "mask": X > 0}, {"value": 2}),
    Case(
        "masked_fill",
        X.masked_fill(X > 0, float("inf")),
        {"x": X, "mask": X > 0},
        {"value": "inf"},
    ),
    Case("clamp", X.clamp(-0.5, 0.5), {"x": X}, {"min": -0.5, "max": 0.5}),
    Case("clamp", X.clamp(max=0.5), {"x": X}, {"max": 0.5}),
    Case("clamp", X.clamp(min=0), {"x": X}, {"min": 0}),
    Case("to", X.half(), {"x": X}, {"dtype": "float16"}),
    Case("to", X.long(), {"x": X}, {"dtype": "int64"}),
    Case("reshape", X.reshape(6, 4), {"x": X}, {"shape": (6, -1)}),
    Case("reshape", X.reshape(-1), {"x": X}, {"shape": -1}),
    Case("flatten", X.flatten(), {"x": X}),
    Case("flatten", X.flatten(1), {"x": X}, {"start_dim": 1}),
    Case("flatten", X.flatten(0, 1), {"x": X}, {"end_dim": 1}),
    Case("transpose", X.transpose(0, -1), {"x": X}, {"dim0": 0, "dim1": -1}),
    Case("permute", X.permute(2, 0, 1), {"x": X}, {"dims": (2, 0, 1)}),
    Case("unsqueeze", X.unsqueeze(1), {"x": X}, {"dim": 1}),
    Case("squeeze", T(2, 1, 3).squeeze(1), {"x": T(2, 1, 3)}, {"dim": 1}),
    Case("expand", T(1, 3).expand(5, -1), {"x": T(1, 3)}, {"shape": (5, -1)}),
    Case("unflatten", X.reshape(2, 3, 2, 2), {"x": X}, {"dim": -1, "sizes": (2, -1)}),
    Case("repeat", X.repeat(1, 2, 1), {"x": X}, {"sizes": (1, 2, 1)}),
    Case("repeat_interleave", X.repeat_interleave(2, 1), {"x": X}, {"repeats": 2, "dim": 1}),
    Case("slice", X[1:], {"x": X}, {"dim": 0, "start": 1}),
    Case("slice", X[:, :2], {"x": X}, {"dim": 1, "end": 2}),
    Case("slice", X[..., 1:3], {"x": X}, {"dim": -1, "start": 1, "end": 3}),
    Case("slice", X[..., ::2, :], {"x": X}, {"dim": -2, "step": 2}),
    Case("slice", X[:, :, 1:-1], {"x": X}, {"dim": 2, "start": 1, "end": -1}),
    Case("flip", X.flip(-1), {"x": X}, {"dims": (-1,)}),
    Case("roll", X.roll((1, 2), (0, 2)), {"x": X}, {"shifts": (1, 2), "dims": (0, 2)}),
    Case("pad", F.pad(X, (1, 0, 2, 1)), {"x": X}, {"pad": (1, 0, 2, 1)}),
    Case("pad", F.pad(X, (1, 0), value=0.5), {"x": X}, {"pad": (1, 0), "value": 0.5}),
    Case("gather", X.gather(2, IDS), {"x": X, "index": IDS}, {"dim": 2}),
    Case(
        "index_select",
        X.index_select(1, IDS[0, :, 0]),
        {"x": X, "index": IDS[0, :, 0]},
        {"dim": 1},
    ),
    Case("index", X[IDS[:, 0, 0]], {"x": X, "indices": (IDS[:, 0, 0],)}),
    Case(
        "index",
        X[IDS[0, :, 0], IDS[0, :, 1]],
        {"x": X, "indices": (IDS[0, :, 0], IDS[0, :, 1])},
    ),
    Case("one_hot", F.one_hot(IDS, 5), {"x": IDS}, {"classes": 5}),
    Case("tril", X.tril(), {"x": X}),
    Case("tril", X.tril(-1), {"x": X}, {"diagonal": -1}),
    Case("triu", X.triu(), {"x": X}),
    Case("triu", X.triu(1), {"x": X}, {"diagonal": 1}),
    Case("narrow", X[:, :, 1:3], {"x": X}, {"dim": -1, "start": 1, "length": 2}),
    Case("select", X[:, 2], {"x": X}, {"dim": 1, "index": 2}),
    Case(
        "slice_scatter",
        X.slice_scatter(X[:, :2], 1, 1, 3),
        {"x": X, "src": X[:, :2]},
        {"dim": 1, "start": 1, "end": 3},
    ),
    Case(
        "slice_scatter",
        X.slice_scatter(X[:1], 0, 1),
        {"x": X, "src": X[:1]},
        {"dim": 0, "start": 1},
    ),
    Case(
        "select_scatter",
        X.select_scatter(X[:, 0], 1, 2),
        {"x": X, "src": X[:, 0]},
        {"dim": 1, "index": 2},
    ),
    Case("cat", torch.cat([X, -X]), {"tensors": (X, -X)}),
    Case("cat", torch.cat([X, X, X], -1), {"tensors": (X, X, X)}, {"dim": -1}),
    Case("stack", torch.stack([X, -X]), {"tensors": (X, -X)}),
    Case("stack", torch.stack([X], 1), {"tensors": (X,)}, {"dim": 1}),
    *reduction("mean"),
    *reduction("sum"),
    *reduction("amax"),
    Case("argmax", X.argmax(), {"x": X}),
    Case("argmax", X.argmax(1), {"x": X}, {"dim": 1}),
    *reduction("amin"),
    Case("cumsum", X.cumsum(1), {"x": X}, {"dim": 1}),
    Case("logsumexp", X.logsumexp(-1), {"x": X}, {"dim": -1}),
    Case("logsumexp", X.logsumexp((0, 1), True), {"x": X}, {"dim": (0, 1), "keepdim": True}),
    Case("var", X.var(-1), {"x": X}, {"dim": -1}),
    Case(
        "var",
        X.var(1, correction=0, keepdim=True),
        {"x": X},
        {"dim": 1, "correction": 0, "keepdim": True},
    ),
    Case(
        "max_pool2d",
        F.max_pool2d(IMAGE, 2, 2, 1, 2, True),
        {"x": IMAGE},
        {"kernel_size": 2, "stride": 2, "padding": 1, "dilation": 2, "ceil_mode": True},
    ),
    Case(
        "avg_pool2d",
        F.avg_pool2d(IMAGE, 3, 2, 1, True, False),
        {"x": IMAGE},
        {
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "ceil_mode": True,
            "count_include_pad": False,
        },
    ),
    *pool("max_pool1d", LINE),
    *pool("max_pool2d", IMAGE),
    *pool("avg_pool1d", LINE),
    *pool("avg_pool2d", IMAGE),
    Case("adaptive_avg_pool1d", F.adaptive_avg_pool1d(LINE, 3), {"x": LINE}, {"size": 3}),
    Case("adaptive_avg_pool2d", F.adaptive_avg_pool2d(IMAGE, 3), {"x": IMAGE}, {"size": 3}),
    Case(
        "adaptive_avg_pool2d", F.adaptive_avg_pool2d(IMAGE, (3, 1)), {"x": IMAGE}, {"size": (3, 1)}
    ),
    Case(
        "adaptive_max_pool2d", F.adaptive_max_pool2d(IMAGE, (1, 2)), {"x": IMAGE}, {"size": (1, 2)}
    ),
]
