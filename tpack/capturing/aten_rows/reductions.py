"""Reductions and pooling of ATen."""

from __future__ import annotations

from tpack.capturing.aten_rows.shared import Rows

ROWS: Rows = (
    # overloads, op, arguments, naming
    # -- reductions and pooling
    ("mean.dim mean.default", "mean", "self>x dim keepdim", "mean"),
    ("sum.dim_IntList sum.default", "sum", "self>x dim keepdim", "total"),
    ("var.correction var.dim", "var", "self>x dim correction unbiased>correction keepdim"),
    ("amax.default max.default", "amax", "self>x dim keepdim"),
    ("max.dim", "max", "self>x dim keepdim"),
    ("min.dim", "min", "self>x dim keepdim"),
    ("amin.default min.default", "amin", "self>x dim keepdim"),
    ("argmax.default", "argmax", "self>x dim keepdim=False"),
    ("cumsum.default", "cumsum", "self>x dim"),
    ("logsumexp.default", "logsumexp", "self>x dim keepdim"),
    ("topk.default", "topk", "self>x k dim largest=True sorted~", "best"),
    ("max_pool1d.default", "max_pool1d", "self>x kernel_size stride padding dilation ceil_mode"),
    ("max_pool2d.default", "max_pool2d", "self>x kernel_size stride padding dilation ceil_mode"),
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
    ("adaptive_avg_pool1d.default", "adaptive_avg_pool1d", "self>x output_size>size"),
    ("adaptive_avg_pool2d.default", "adaptive_avg_pool2d", "self>x output_size>size"),
    ("adaptive_max_pool2d.default", "adaptive_max_pool2d", "self>x output_size>size"),
)
