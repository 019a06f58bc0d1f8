"""Ops of ATen with weights, and normalizations."""

from __future__ import annotations

from tpack.capturing.aten_rows.shared import Rows

_CONV = "input>x weight bias stride padding dilation groups"

_CELL = "input>x hx w_ih w_hh b_ih b_hh"
_RECURRENT = (
    "input>x hx>state params>weights has_biases num_layers dropout train bidirectional batch_first"
)

ROWS: Rows = (
    # overloads, op, arguments, naming
    # -- with weights
    ("linear.default", "linear", "input>x weight bias"),
    (
        "matmul.default mm.default bmm.default mv.default dot.default",
        "matmul",
        "self>x other>y mat2>y vec>y tensor>y",
        "product",
    ),
    ("outer.default", "outer", "self>x vec2>y"),
    ("cdist.default", "cdist", "x1>x x2>y p"),
    ("bilinear.default", "bilinear", "input1>x input2>y weight bias"),
    ("_weight_norm.default", "weight_norm", "v>direction g>size dim"),
    (
        "addmm.default baddbmm.default",
        "addmm",
        "self>bias mat1>x batch1>x mat2>y batch2>y beta alpha",
    ),
    ("conv1d.default conv1d.padding", "conv1d", _CONV),
    ("conv2d.default conv2d.padding", "conv2d", _CONV),
    ("conv3d.default conv3d.padding", "conv3d", _CONV),
    ("conv_transpose1d.default", "conv_transpose1d", f"{_CONV} output_padding"),
    ("conv_transpose2d.input", "conv_transpose2d", f"{_CONV} output_padding"),
    ("conv_transpose3d.input", "conv_transpose3d", f"{_CONV} output_padding"),
    (
        "embedding.default",
        "embedding",
        "weight indices>ids padding_idx~ scale_grad_by_freq~ sparse~",
        "embedded",
    ),
    ("einsum.default", "einsum", "equation tensors& path~"),
    ("lstm.input", "lstm", _RECURRENT),
    ("gru.input", "gru", _RECURRENT),
    ("rnn_tanh.input", "rnn_tanh", _RECURRENT),
    ("rnn_relu.input", "rnn_relu", _RECURRENT),
    ("lstm_cell.default", "lstm_cell", _CELL),
    ("gru_cell.default", "gru_cell", _CELL),
    ("rnn_tanh_cell.default", "rnn_tanh_cell", _CELL),
    ("rnn_relu_cell.default", "rnn_relu_cell", _CELL),
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
    (
        "instance_norm.default",
        "instance_norm",
        "input>x running_mean>mean running_var>var weight bias use_input_stats momentum~ eps "
        "cudnn_enabled~",
    ),
)
