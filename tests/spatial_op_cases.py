"""Example calls of ops on pictures, signals and indices, with the results that torch computes."""

import torch
import torch.nn.functional as F
from op_cases import (
    BIAS,
    IDS,
    IMAGE,
    LINE,
    MATRIX,
    POSITIVE,
    VECTOR,
    Case,
    T,
    X,
    elementwise,
    pool,
    reduction,
)

VIDEO = T(2, 2, 5, 6, 7)
PLACES = T(2, 3, 3, 2) / 2
THETA = T(2, 2, 3)
SPREAD = {"stride": 2, "padding": 1, "output_padding": 1}


def transposed(op, x, weight, groups, **options):
    given = SPREAD | {"groups": groups, "dilation": 2} | options
    bias = T(weight.shape[1] * groups)
    return [
        Case(op, getattr(F, op)(x, weight), {"x": x, "weight": weight})
        if groups == 1
        else Case(
            op,
            getattr(F, op)(x, weight, bias, **given),
            {"x": x, "weight": weight, "bias": bias},
            given,
        )
    ]


def resized(x, **options):
    given = {name: options[name] for name in options if options[name] is not None}
    return Case("interpolate", F.interpolate(x, **given), {"x": x}, given)


def along(op, name="src", **options):
    """An op that puts elements of another tensor at an index."""
    index = IDS[:, :2, :1]
    given = {"x": X, "index": index, name: X[:, :2, :1] * 2}
    values = [X, 1, index, X[:, :2, :1] * 2]
    named = dict(options)
    first = [named.pop("reduce")] if "reduce" in named else []
    return Case(
        op, getattr(torch.Tensor, op)(*values, *first, **named), given, {"dim": 1, **options}
    )


def at_indices(op, name, value, **options):
    index = torch.tensor([2, 0])
    values = {name: value} if isinstance(value, torch.Tensor) else {}
    constants = {} if values else {name: value}
    expected = getattr(X, op)(1, index, value, **options)
    return Case(
        op, expected, {"x": X, "index": index, **values}, {"dim": 1, **constants, **options}
    )


CASES = [
    *transposed("conv_transpose1d", LINE, T(4, 3, 3), 1),
    *transposed("conv_transpose1d", LINE, T(4, 3, 3), 2),
    *transposed("conv_transpose2d", IMAGE, T(4, 3, 3, 2), 1),
    *transposed("conv_transpose2d", IMAGE, T(4, 3, 3, 2), 2, stride=(2, 3), padding=(1, 0)),
    *transposed("conv_transpose3d", VIDEO, T(2, 3, 3, 2, 1), 1),
    *transposed("conv_transpose3d", VIDEO, T(2, 3, 3, 2, 1), 2),
    Case("conv3d", F.conv3d(VIDEO, T(3, 2, 3, 2, 1)), {"x": VIDEO, "weight": T(3, 2, 3, 2, 1)}),
    Case(
        "conv3d",
        F.conv3d(VIDEO, T(4, 1, 3, 2, 1), T(4), (2, 1, 1), 1, (1, 2, 1), 2),
        {"x": VIDEO, "weight": T(4, 1, 3, 2, 1), "bias": T(4)},
        {"stride": (2, 1, 1), "padding": 1, "dilation": (1, 2, 1), "groups": 2},
    ),
    Case("bilinear", F.bilinear(X, -X, T(2, 4, 4)), {"x": X, "y": -X, "weight": T(2, 4, 4)}),
    Case("outer", torch.outer(VECTOR, BIAS), {"x": VECTOR, "y": BIAS}),
    Case("cdist", torch.cdist(X, X * 2), {"x": X, "y": X * 2}),
    Case("cdist", torch.cdist(X, X * 2, 1.0), {"x": X, "y": X * 2}, {"p": 1.0}),
    Case(
        "weight_norm",
        torch._weight_norm(MATRIX, T(5, 1)),
        {"direction": MATRIX, "size": T(5, 1)},
    ),
    Case(
        "weight_norm",
        torch._weight_norm(MATRIX, T(1, 4), 1),
        {"direction": MATRIX, "size": T(1, 4)},
        {"dim": 1},
    ),
    Case("instance_norm", F.instance_norm(IMAGE), {"x": IMAGE}),
    Case(
        "instance_norm",
        F.instance_norm(IMAGE, VECTOR, POSITIVE, POSITIVE, VECTOR, False, eps=0.1),
        {"x": IMAGE, "mean": VECTOR, "var": POSITIVE, "weight": POSITIVE, "bias": VECTOR},
        {"use_input_stats": False, "eps": 0.1},
    ),
    elementwise("selu", F.selu),
    elementwise("celu", F.celu),
    Case("celu", F.celu(X, 0.3), {"x": X}, {"alpha": 0.3}),
    elementwise("softshrink", F.softshrink),
    Case("softshrink", F.softshrink(X, 0.1), {"x": X}, {"lambd": 0.1}),
    elementwise("logsigmoid", F.logsigmoid),
    Case("softplus", F.softplus(X, 2.0, 1.0), {"x": X}, {"beta": 2.0, "threshold": 1.0}),
    Case("threshold", F.threshold(X, 0.1, 2.0), {"x": X}, {"threshold": 0.1, "value": 2.0}),
    *(elementwise(op) for op in ("exp2", "expm1", "tan", "atan", "sinh", "cosh", "sinc", "erfc")),
    *(elementwise(op, positive=True) for op in ("log2", "log10", "log1p")),
    Case("asin", torch.asin(X.tanh()), {"x": X.tanh()}),
    Case("acos", torch.acos(X.tanh()), {"x": X.tanh()}),
    Case("atan2", torch.atan2(X, X * 2 + 1), {"x": X, "y": X * 2 + 1}),
    Case("logaddexp", torch.logaddexp(X, -X), {"x": X, "y": -X}),
    Case("fmod", torch.fmod(X, 0.3), {"x": X}, {"y": 0.3}),
    Case("lerp", torch.lerp(X, -X, 0.3), {"x": X, "y": -X}, {"weight": 0.3}),
    Case("lerp", torch.lerp(X, -X, X), {"x": X, "y": -X, "weight": X}),
    Case("bitwise_xor", IDS ^ 1, {"x": IDS}, {"y": 1}),
    *(elementwise(op, lambda x, op=op: getattr(torch, op)(x)) for op in ("isnan", "isinf")),
    Case("isfinite", torch.isfinite(X / 0), {"x": X / 0}),
    Case("nan_to_num", torch.nan_to_num(X / 0), {"x": X / 0}),
    Case("nan_to_num", (X / 0).nan_to_num(1, 2), {"x": X / 0}, {"nan": 1.0, "posinf": 2.0}),
    Case("round", X.round(decimals=1), {"x": X}, {"decimals": 1}),
    *(
        Case("pad", F.pad(LINE, (1, 2), mode), {"x": LINE}, {"pad": (1, 2), "mode": mode})
        for mode in ("reflect", "replicate", "circular")
    ),
    Case("pixel_shuffle", F.pixel_shuffle(IMAGE, 2), {"x": IMAGE}, {"factor": 2}),
    Case(
        "pixel_unshuffle",
        F.pixel_unshuffle(LINE[None, :, :, :8], 2),
        {"x": LINE[None, :, :, :8]},
        {"factor": 2},
    ),
    Case("channel_shuffle", F.channel_shuffle(IMAGE, 2), {"x": IMAGE}, {"groups": 2}),
    Case("unfold", F.unfold(IMAGE, 2), {"x": IMAGE}, {"kernel_size": 2}),
    Case(
        "unfold",
        F.unfold(IMAGE, (2, 3), 2, 1, (2, 1)),
        {"x": IMAGE},
        {"kernel_size": (2, 3), "dilation": 2, "padding": 1, "stride": (2, 1)},
    ),
    Case(
        "fold",
        F.fold(T(2, 12, 12), (4, 5), 2),
        {"x": T(2, 12, 12)},
        {"size": (4, 5), "kernel_size": 2},
    ),
    Case("windows", LINE.unfold(2, 3, 2), {"x": LINE}, {"dim": 2, "size": 3, "step": 2}),
    resized(IMAGE, scale_factor=2),
    resized(IMAGE, scale_factor=(2.0, 1.5), mode="nearest-exact"),
    resized(IMAGE, size=(5, 9)),
    resized(IMAGE, size=5, mode="bilinear"),
    resized(IMAGE, scale_factor=1.5, mode="bilinear", align_corners=True),
    resized(IMAGE, size=(5, 9), mode="bicubic", antialias=True),
    resized(LINE, scale_factor=2.0, mode="linear"),
    resized(VIDEO, scale_factor=2.0, mode="trilinear"),
    Case(
        "grid_sample",
        F.grid_sample(IMAGE, PLACES, align_corners=False),
        {"x": IMAGE, "grid": PLACES},
        {"align_corners": False},
    ),
    Case(
        "grid_sample",
        F.grid_sample(IMAGE, PLACES * 3, "nearest", "border", True),
        {"x": IMAGE, "grid": PLACES * 3},
        {"mode": "nearest", "padding_mode": "border", "align_corners": True},
    ),
    Case(
        "affine_grid",
        F.affine_grid(THETA, (2, 1, 3, 4), align_corners=False),
        {"theta": THETA},
        {"size": (2, 1, 3, 4), "align_corners": False},
    ),
    Case(
        "take_along_dim",
        torch.take_along_dim(X, IDS[:, :1, :1], 1),
        {"x": X, "index": IDS[:, :1, :1]},
        {"dim": 1},
    ),
    along("scatter"),
    Case(
        "scatter",
        X.scatter(1, IDS[..., :1], 2.0),
        {"x": X, "index": IDS[..., :1]},
        {"dim": 1, "src": 2.0},
    ),
    along("scatter_add"),
    along("scatter_reduce", reduce="amax"),
    along("scatter_reduce", reduce="sum", include_self=False),
    at_indices("index_add", "source", X[:, :2]),
    at_indices("index_add", "source", X[:, :2], alpha=2),
    at_indices("index_copy", "source", X[:, :2] * 2),
    at_indices("index_fill", "value", 2.5),
    Case(
        "index_put",
        X.index_put((IDS[:, 0, 0],), VECTOR),
        {"x": X, "indices": (IDS[:, 0, 0],), "values": VECTOR},
    ),
    Case(
        "index_put",
        X.index_put((torch.tensor([0, 0]),), VECTOR, accumulate=True),
        {"x": X, "indices": (torch.tensor([0, 0]),), "values": VECTOR},
        {"accumulate": True},
    ),
    Case(
        "bucketize",
        torch.bucketize(X, POSITIVE.sort()[0]),
        {"x": X, "boundaries": POSITIVE.sort()[0]},
    ),
    Case(
        "searchsorted",
        torch.searchsorted(IDS[0, :, 0].sort()[0], IDS, right=True),
        {"sorted": IDS[0, :, 0].sort()[0], "x": IDS},
        {"right": True},
    ),
    *reduction("any"),
    *reduction("all"),
    Case("sum", X.sum(1, dtype=torch.float64), {"x": X}, {"dim": 1, "dtype": "float64"}),
    Case("mean", IDS.mean(1, dtype=torch.float32), {"x": IDS}, {"dim": 1, "dtype": "float32"}),
    Case("cumsum", IDS.cumsum(1, dtype=torch.float32), {"x": IDS}, {"dim": 1, "dtype": "float32"}),
    Case("cumprod", X.cumprod(1), {"x": X}, {"dim": 1}),
    Case("prod", X.prod(1), {"x": X}, {"dim": 1}),
    Case("norm", X.norm(2.0, -1), {"x": X}, {"p": 2.0, "dim": -1}),
    Case(
        "norm",
        X.norm(float("inf"), (0, 1), True),
        {"x": X},
        {"p": "inf", "dim": (0, 1), "keepdim": True},
    ),
    Case("cosine_similarity", F.cosine_similarity(X, X + 1), {"x1": X, "x2": X + 1}),
    Case("pairwise_distance", F.pairwise_distance(X, -X), {"x1": X, "x2": -X}),
    Case("argsort", X.argsort(), {"x": X}),
    Case("argsort", X.argsort(1, True), {"x": X}, {"dim": 1, "descending": True}),
    Case("argmin", X.argmin(1), {"x": X}, {"dim": 1}),
    Case("argmax", X.argmax(1, True), {"x": X}, {"dim": 1, "keepdim": True}),
    Case("std", X.std(-1), {"x": X}, {"dim": -1}),
    *pool("max_pool3d", VIDEO),
    *pool("avg_pool3d", VIDEO),
    Case("adaptive_avg_pool3d", F.adaptive_avg_pool3d(VIDEO, 2), {"x": VIDEO}, {"size": 2}),
    Case("adaptive_max_pool1d", F.adaptive_max_pool1d(LINE, 2), {"x": LINE}, {"size": 2}),
    Case("adaptive_max_pool3d", F.adaptive_max_pool3d(VIDEO, 2), {"x": VIDEO}, {"size": 2}),
]
