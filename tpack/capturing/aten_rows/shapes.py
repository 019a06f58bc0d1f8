"""Ops of ATen that cut, join, move, look up or make elements."""

from __future__ import annotations

from tpack.capturing.aten_rows.shared import KEEPS, Rows

ROWS: Rows = (
    # overloads, op, arguments, naming
    # -- shapes
    (
        "view.default reshape.default _unsafe_view.default",
        "reshape",
        "self&>x size>shape shape",
        KEEPS,
    ),
    ("view_as.default reshape_as.default expand_as.default", "as", "self>x other~"),
    ("flatten.using_ints", "flatten", "self>x start_dim end_dim", KEEPS),
    ("unflatten.int", "unflatten", "self>x dim sizes", KEEPS),
    ("transpose.int", "transpose", "self>x dim0 dim1", KEEPS),
    ("t.default numpy_T.default mT.default", "t", "self>x"),
    ("permute.default", "permute", "self>x dims", KEEPS),
    ("unsqueeze.default", "unsqueeze", "self>x dim", KEEPS),
    ("squeeze.dim", "squeeze", "self>x dim", KEEPS),
    ("expand.default", "expand", "self>x size>shape implicit~", KEEPS),
    ("repeat.default", "repeat", "self>x repeats>sizes", KEEPS),
    ("repeat_interleave.self_int", "repeat_interleave", "self>x repeats dim output_size~", KEEPS),
    ("slice.Tensor", "slice", "self>x dim start end step"),
    ("narrow.default", "narrow", "self>x dim start length"),
    ("select.int", "select", "self>x dim index"),
    ("cat.default concat.default", "cat", "tensors dim", "joined"),
    ("stack.default", "stack", "tensors dim"),
    ("chunk.default", "chunk", "self>x chunks dim"),
    (
        "split.Tensor split.sizes split_with_sizes.default",
        "split",
        "self>x split_size>sizes split_sizes>sizes dim",
    ),
    ("unbind.int", "unbind", "self>x dim"),
    ("flip.default", "flip", "self>x dims"),
    ("roll.default", "roll", "self>x shifts dims"),
    ("pad.default constant_pad_nd.default", "pad", "self>x pad value mode=constant"),
    ("gather.default", "gather", "self>x dim index sparse_grad~"),
    ("index_select.default", "index_select", "self>x dim index"),
    ("index.Tensor", "index", "self>x indices"),
    ("one_hot.default", "one_hot", "self>x num_classes>classes"),
    ("tril.default", "tril", "self>x diagonal"),
    ("triu.default", "triu", "self>x diagonal"),
    ("diff.default", "diff", "self>x n=1 dim prepend"),
    # -- new tensors
    (
        "arange.default arange.start arange.start_step",
        "arange",
        "start end step dtype layout~ device~ pin_memory~",
        "positions",
    ),
    (
        "zeros.default zeros_like.default new_zeros.default",
        "zeros",
        "self~ size>shape dtype layout~ device~ pin_memory~ memory_format~",
    ),
    (
        "ones.default ones_like.default new_ones.default",
        "ones",
        "self~ size>shape dtype layout~ device~ pin_memory~ memory_format~",
    ),
    (
        "full.default full_like.default new_full.default scalar_tensor.default",
        "full",
        "self~ size>shape fill_value>value s>value dtype layout~ device~ pin_memory~ "
        "memory_format~",
    ),
)
