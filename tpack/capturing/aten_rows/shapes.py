"""Ops of ATen that cut, join, move, look up or make elements."""

from __future__ import annotations

from tpack.capturing.aten_rows.shared import KEEPS, Rows

_RESIZED = "input>x output_size>size scale_factors>scale_factor"
_ALIGN = "align_corners"

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
    (
        "transpose.int swapaxes.default swapdims.default",
        "transpose",
        "self>x dim0 dim1 axis0>dim0 axis1>dim1",
        KEEPS,
    ),
    (
        "movedim.int movedim.intlist moveaxis.int moveaxis.intlist",
        "movedim",
        "self>x source destination",
    ),
    ("t.default numpy_T.default mT.default", "t", "self>x"),
    ("permute.default", "permute", "self>x dims", KEEPS),
    ("unsqueeze.default", "unsqueeze", "self>x dim", KEEPS),
    ("squeeze.dim squeeze.dims squeeze.default", "squeeze", "self>x dim", KEEPS),
    ("expand.default", "expand", "self>x size>shape implicit~", KEEPS),
    ("repeat.default tile.default", "repeat", "self>x repeats>sizes dims>sizes", KEEPS),
    ("repeat_interleave.self_int", "repeat_interleave", "self>x repeats dim output_size~", KEEPS),
    ("slice.Tensor", "slice", "self>x dim start end step"),
    ("narrow.default", "narrow", "self>x dim start length"),
    ("select.int", "select", "self>x dim index"),
    ("cat.default concat.default", "cat", "tensors dim", "joined"),
    ("stack.default", "stack", "tensors dim"),
    ("hstack.default column_stack.default", "hstack", "tensors"),
    ("vstack.default", "vstack", "tensors"),
    ("chunk.default", "chunk", "self>x chunks dim"),
    (
        "split.Tensor split.sizes split_with_sizes.default",
        "split",
        "self>x split_size>sizes split_sizes>sizes dim",
    ),
    ("unbind.int", "unbind", "self>x dim"),
    ("flip.default", "flip", "self>x dims"),
    ("roll.default", "roll", "self>x shifts dims"),
    ("pad.default constant_pad_nd.default", "pad", "self>x pad mode value"),
    ("pixel_shuffle.default", "pixel_shuffle", "self>x upscale_factor>factor"),
    ("pixel_unshuffle.default", "pixel_unshuffle", "self>x downscale_factor>factor"),
    ("channel_shuffle.default", "channel_shuffle", "self>x groups"),
    ("im2col.default", "unfold", "self>x kernel_size dilation padding stride"),
    (
        "col2im.default",
        "fold",
        "self>x output_size>size kernel_size dilation padding stride",
    ),
    ("unfold.default", "windows", "self>x dimension>dim size step"),
    (
        "upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec",
        "interpolate",
        _RESIZED,
    ),
    (
        "_upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec",
        "interpolate",
        f"{_RESIZED} mode:=nearest-exact",
    ),
    ("upsample_linear1d.vec", "interpolate", f"{_RESIZED} {_ALIGN} mode:=linear"),
    ("upsample_bilinear2d.vec", "interpolate", f"{_RESIZED} {_ALIGN} mode:=bilinear"),
    ("upsample_bicubic2d.vec", "interpolate", f"{_RESIZED} {_ALIGN} mode:=bicubic"),
    ("upsample_trilinear3d.vec", "interpolate", f"{_RESIZED} {_ALIGN} mode:=trilinear"),
    (
        "_upsample_bilinear2d_aa.vec",
        "interpolate",
        f"{_RESIZED} {_ALIGN} mode:=bilinear antialias:=True",
    ),
    (
        "_upsample_bicubic2d_aa.vec",
        "interpolate",
        f"{_RESIZED} {_ALIGN} mode:=bicubic antialias:=True",
    ),
    (
        "grid_sampler.default",
        "grid_sample",
        "input>x grid interpolation_mode>mode padding_mode align_corners",
    ),
    ("affine_grid_generator.default", "affine_grid", "theta size align_corners"),
    ("gather.default", "gather", "self>x dim index sparse_grad~"),
    ("index_select.default", "index_select", "self>x dim index"),
    ("index.Tensor", "index", "self>x indices"),
    ("take_along_dim.default", "take_along_dim", "self>x indices>index dim"),
    ("scatter.src scatter.value", "scatter", "self>x dim index src value>src"),
    ("scatter_add.default", "scatter_add", "self>x dim index src"),
    ("scatter_reduce.two", "scatter_reduce", "self>x dim index src reduce include_self"),
    ("index_add.default", "index_add", "self>x dim index source alpha"),
    ("index_copy.default", "index_copy", "self>x dim index source"),
    ("index_fill.int_Scalar index_fill.int_Tensor", "index_fill", "self>x dim index value"),
    ("index_put.default", "index_put", "self>x indices values accumulate"),
    ("bucketize.Tensor", "bucketize", "self>x boundaries right", "places"),
    ("searchsorted.Tensor", "searchsorted", "sorted_sequence>sorted self>x right", "places"),
    ("one_hot.default", "one_hot", "self>x num_classes>classes"),
    ("tril.default", "tril", "self>x diagonal"),
    ("triu.default", "triu", "self>x diagonal"),
    ("diff.default", "diff", "self>x n=1 dim prepend"),
    ("slice_scatter.default", "slice_scatter", "self>x src dim start end step"),
    ("select_scatter.default", "select_scatter", "self>x src dim index"),
    ("copy.default fill.Tensor", "copy", "self~ src>x value>x non_blocking~"),
    # -- new tensors
    (
        "arange.default arange.start arange.start_step",
        "arange",
        "start end step dtype layout~ device~ pin_memory~",
        "positions",
    ),
    (
        "zeros.default zeros_like.default new_zeros.default zero.default "
        "empty.memory_format empty_like.default new_empty.default",
        "zeros",
        "self~ size>shape dtype layout~ device~ pin_memory~ memory_format~",
    ),
    (
        "ones.default ones_like.default new_ones.default",
        "ones",
        "self~ size>shape dtype layout~ device~ pin_memory~ memory_format~",
    ),
    (
        "full.default full_like.default new_full.default scalar_tensor.default fill.Scalar",
        "full",
        "self~ size>shape fill_value>value s>value value dtype layout~ device~ pin_memory~ "
        "memory_format~",
    ),
    ("eye.default eye.m", "eye", "n m dtype layout~ device~ pin_memory~"),
    (
        "linspace.default",
        "linspace",
        "start end steps dtype layout~ device~ pin_memory~",
    ),
    ("meshgrid.indexing", "meshgrid", "tensors& indexing"),
    ("meshgrid.default", "meshgrid", "tensors& indexing:=ij"),
)
