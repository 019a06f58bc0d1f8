"""Ops of ATen with weights, and normalizations."""

from __future__ import annotations

from tpack.capturing.aten_rows.shared import Rows

ROWS: Rows = (
    # overloads, op, arguments, naming
    # -- with weights
    ("linear.default", "linear", "input>x weight bias"),
    ("matmul.default mm.default bmm.default", "matmul", "self>x other>y mat2>y", "product"),
    ("addmm.default baddbmm.default", "addmm", "self>bias mat1>x batch1>x mat2>y batch2>y"),
    ("conv1d.default", "conv1d", "input>x weight bias stride padding dilation groups"),
    ("conv2d.default", "conv2d", "input>x weight bias stride padding dilation groups"),
    (
        "embedding.default",
        "embedding",
        "weight indices>ids padding_idx~ scale_grad_by_freq~ sparse~",
        "embedded",
    ),
    ("einsum.default", "einsum", "equation tensors& path~"),
    ("lstm_cell.default", "lstm_cell", "input>x hx w_ih w_hh b_ih b_hh"),
    # -- normalization
    (
        "layer_norm.default",
        "layer_norm",
        "input>x normalized_shape>shape weight bias eps cudnn_enable~",
    ),
    ("rms_norm.default", "rms_norm", "input>x normalized_shape>shape weight eps"),
    (
        "batch_norm.default",
        "batch_norm",
        "input>x running_mean>mean running_var>var weight bias eps training=False momentum~ "
        "cudnn_enabled~",
    ),
    (
        "group_norm.default",
        "group_norm",
        "input>x num_groups>groups weight bias eps cudnn_enabled~",
    ),
)
