"""Reductions and pooling of ATen."""

from __future__ import annotations

from tpack.capturing.aten_rows.shared import Rows

_SPREAD = "self>x dim correction unbiased>correction keepdim"

ROWS: Rows = (
    # overloads, op, arguments, naming
    # -- reductions and pooling
    ("mean.dim mean.default", "mean", "self>x dim keepdim dtype", "mean"),
    ("sum.dim_IntList sum.default", "sum", "self>x dim keepdim dtype", "total"),
    ("var.correction var.dim", "var", _SPREAD),
    ("std.correction std.dim", "std", _SPREAD),
    ("var_mean.correction var_mean.dim", "var_mean", _SPREAD),
    ("std_mean.correction std_mean.dim", "std_mean", _SPREAD),
    ("amax.default max.default", "amax", "self>x dim keepdim"),
    ("max.dim", "max", "self>x dim keepdim"),
    ("min.dim", "min", "self>x dim keepdim"),
    ("amin.default min.default", "amin", "self>x dim keepdim"),
    ("argmax.default", "argmax", "self>x dim keepdim"),
    ("argmin.default", "argmin", "self>x dim keepdim"),
    ("aminmax.default", "aminmax", "self>x dim keepdim"),
    ("any.default any.dim any.dims", "any", "self>x dim keepdim", "mask"),
    ("all.default all.dim all.dims", "all", "self>x dim keepdim", "mask"),
    ("prod.dim_int", "prod", "self>x dim keepdim dtype"),
    ("linalg_vector_norm.default", "norm", "self>x ord>p dim keepdim", "length"),
    ("cosine_similarity.default", "cosine_similarity", "x1 x2 dim eps"),
    ("pairwise_distance.default", "pairwise_distance", "x1 x2 p eps keepdim"),
    ("cumsum.default", "cumsum", "self>x dim dtype"),
    ("cumprod.default", "cumprod", "self>x dim dtype"),
    ("cummax.default", "cummax", "self>x dim"),
    ("cummin.default", "cummin", "self>x dim"),
    ("sort.default sort.stable", "sort", "self>x dim descending stable", "ordered"),
    ("argsort.default argsort.stable", "argsort", "self>x dim descending stable", "order"),
    ("median.dim", "median", "self>x dim keepdim"),
    ("logsumexp.default", "logsumexp", "self>x dim keepdim"),
    ("topk.default", "topk", "self>x k dim largest sorted~", "best"),
    ("max_pool1d.default", "max_pool1d", "self>x kernel_size stride padding dilation ceil_mode"),
    ("max_pool2d.default", "max_pool2d", "self>x kernel_size stride padding dilation ceil_mode"),
    ("max_pool3d.default", "max_pool3d", "self>x kernel_size stride padding dilation ceil_mode"),
    (
        "avg_pool1d.default",
        "avg_pool1d",
        "self>x kernel_size stride padding ceil_mode count_include_pad",
    ),
    (
        "avg_pool2d.default",
        "avg_pool2d",
        "self>x kernel_size stride padding ceil_mode count_include_pad divisor_override=None",
    ),
    (
        "avg_pool3d.default",
        "avg_pool3d",
        "self>x kernel_size stride padding ceil_mode count_include_pad divisor_override=None",
    ),
    ("adaptive_avg_pool1d.default", "adaptive_avg_pool1d", "self>x output_size>size"),
    ("adaptive_avg_pool2d.default", "adaptive_avg_pool2d", "self>x output_size>size"),
    ("adaptive_avg_pool3d.default", "adaptive_avg_pool3d", "self>x output_size>size"),
    ("adaptive_max_pool1d.default", "adaptive_max_pool1d", "self>x output_size>size"),
    ("adaptive_max_pool3d.default", "adaptive_max_pool3d", "self>x output_size>size"),
    ("adaptive_max_pool2d.default", "adaptive_max_pool2d", "self>x output_size>size"),
)
