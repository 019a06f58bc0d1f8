"""The closed table of ATen ops: which op of LayerDef each overload is, and how arguments map.

One row adds an op. Arguments are named as in the schema of the overload:

- ``name`` is taken under its name, ``name>other`` under another one
- ``name=value`` must have this value, and is left out
- ``name~`` is left out: it says nothing about the result

An argument that a row does not name must have its default. The op is a row of
``layerdef.ops``, an operator, or one of these:

- ``same``: the first argument, unchanged
- ``reshape``: sizes that are taken apart into flatten, unflatten and the like
"""

from __future__ import annotations

from dataclasses import dataclass

_ROWS = (
    # overloads, op, arguments
    # -- with weights
    ("linear.default", "linear", "input>x weight bias"),
    ("matmul.default mm.default bmm.default", "matmul", "self>x other>y mat2>y"),
    ("addmm.default baddbmm.default", "addmm", "self>bias mat1>x batch1>x mat2>y batch2>y"),
    ("conv1d.default", "conv1d", "input>x weight bias stride padding dilation groups"),
    ("conv2d.default", "conv2d", "input>x weight bias stride padding dilation groups"),
    (
        "embedding.default",
        "embedding",
        "weight indices>ids padding_idx~ scale_grad_by_freq~ sparse~",
    ),
    ("einsum.default", "einsum", "equation tensors path~"),
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
    # -- activations
    ("relu.default", "relu", "self>x"),
    ("leaky_relu.default", "leaky_relu", "self>x negative_slope"),
    ("gelu.default", "gelu", "self>x approximate"),
    ("silu.default", "silu", "self>x"),
    ("elu.default", "elu", "self>x alpha"),
    ("relu6.default", "relu6", "self>x"),
    ("hardtanh.default", "clamp", "self>x min_val>min max_val>max"),
    ("hardswish.default", "hardswish", "self>x"),
    ("hardsigmoid.default", "hardsigmoid", "self>x"),
    ("mish.default", "mish", "self>x"),
    ("glu.default", "glu", "self>x dim"),
    ("prelu.default", "prelu", "self>x weight"),
    ("sigmoid.default", "sigmoid", "self>x"),
    ("tanh.default", "tanh", "self>x"),
    ("softplus.default", "softplus", "self>x"),
    ("softmax.int", "softmax", "self>x dim dtype"),
    ("log_softmax.int", "log_softmax", "self>x dim dtype"),
    ("dropout.default feature_dropout.default", "same", "input>x p~ train=False"),
    ("dropout_.default feature_dropout_.default", "same", "self>x p~ train=False"),
    (
        "scaled_dot_product_attention.default",
        "scaled_dot_product_attention",
        "query key value attn_mask dropout_p=0.0 is_causal scale enable_gqa",
    ),
    # -- elementwise
    ("add.Tensor add.Scalar", "+", "self>x other>y alpha=1"),
    ("sub.Tensor sub.Scalar", "-", "self>x other>y alpha=1"),
    ("rsub.Tensor rsub.Scalar", "-", "self>y other>x alpha=1"),
    ("mul.Tensor mul.Scalar", "*", "self>x other>y"),
    ("div.Tensor div.Scalar", "/", "self>x other>y"),
    ("floor_divide.default floor_divide.Scalar", "//", "self>x other>y"),
    ("div.Tensor_mode div.Scalar_mode", "//", "self>x other>y rounding_mode=floor"),
    ("remainder.Scalar remainder.Tensor", "%", "self>x other>y"),
    ("pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar", "**", "self>x exponent>y"),
    ("neg.default", "neg", "self>x"),
    ("eq.Tensor eq.Scalar", "==", "self>x other>y"),
    ("ne.Tensor ne.Scalar", "!=", "self>x other>y"),
    ("lt.Tensor lt.Scalar", "<", "self>x other>y"),
    ("le.Tensor le.Scalar", "<=", "self>x other>y"),
    ("gt.Tensor gt.Scalar", ">", "self>x other>y"),
    ("ge.Tensor ge.Scalar", ">=", "self>x other>y"),
    ("__and__.Tensor __and__.Scalar bitwise_and.Tensor logical_and.default", "&", "self>x other>y"),
    ("__or__.Tensor __or__.Scalar bitwise_or.Tensor logical_or.default", "|", "self>x other>y"),
    ("bitwise_not.default logical_not.default", "~", "self>x"),
    ("maximum.default max.other", "maximum", "self>x other>y"),
    ("minimum.default min.other", "minimum", "self>x other>y"),
    ("square.default", "square", "self>x"),
    ("sqrt.default", "sqrt", "self>x"),
    ("rsqrt.default", "rsqrt", "self>x"),
    ("reciprocal.default", "reciprocal", "self>x"),
    ("exp.default", "exp", "self>x"),
    ("log.default", "log", "self>x"),
    ("sin.default", "sin", "self>x"),
    ("cos.default", "cos", "self>x"),
    ("abs.default", "abs", "self>x"),
    ("erf.default", "erf", "self>x"),
    ("round.default", "round", "self>x"),
    ("floor.default", "floor", "self>x"),
    ("ceil.default", "ceil", "self>x"),
    ("sign.default sgn.default", "sign", "self>x"),
    ("clamp.default", "clamp", "self>x min max"),
    ("clamp_min.default", "clamp", "self>x min"),
    ("clamp_max.default", "clamp", "self>x max"),
    (
        "where.self where.ScalarOther where.ScalarSelf where.Scalar",
        "where",
        "condition self>x other>y",
    ),
    ("masked_fill.Scalar masked_fill.Tensor", "masked_fill", "self>x mask value"),
    (
        "to.dtype _to_copy.default to.device",
        "to",
        "self>x device~ dtype non_blocking~ copy~ memory_format~",
    ),
    (
        "to.dtype_layout",
        "to",
        "self>x dtype layout~ device~ pin_memory~ non_blocking~ copy~ memory_format~",
    ),
    ("type_as.default to.other", "to", "self>x other~ non_blocking~ copy~ memory_format~"),
    # -- unchanged
    (
        "clone.default contiguous.default lift_fresh_copy.default lift_fresh.default",
        "same",
        "self>x memory_format~",
    ),
    ("detach.default alias.default detach_.default", "same", "self>x"),
    # -- shapes
    ("view.default reshape.default _unsafe_view.default", "reshape", "self>x size>shape shape"),
    ("view_as.default reshape_as.default expand_as.default", "as", "self>x other~"),
    ("flatten.using_ints", "flatten", "self>x start_dim end_dim"),
    ("unflatten.int", "unflatten", "self>x dim sizes"),
    ("transpose.int", "transpose", "self>x dim0 dim1"),
    ("t.default numpy_T.default mT.default", "t", "self>x"),
    ("permute.default", "permute", "self>x dims"),
    ("unsqueeze.default", "unsqueeze", "self>x dim"),
    ("squeeze.dim", "squeeze", "self>x dim"),
    ("expand.default", "expand", "self>x size>shape implicit~"),
    ("repeat.default", "repeat", "self>x repeats>sizes"),
    ("repeat_interleave.self_int", "repeat_interleave", "self>x repeats dim output_size~"),
    ("slice.Tensor", "slice", "self>x dim start end step"),
    ("narrow.default", "narrow", "self>x dim start length"),
    ("select.int", "select", "self>x dim index"),
    ("cat.default concat.default", "cat", "tensors dim"),
    ("stack.default", "stack", "tensors dim"),
    ("chunk.default", "chunk", "self>x chunks dim"),
    ("split.Tensor", "split", "self>x split_size>sizes dim"),
    (
        "split_with_sizes.default split.sizes",
        "split",
        "self>x split_sizes>sizes split_size>sizes dim",
    ),
    ("unbind.int", "unbind", "self>x dim"),
    ("flip.default", "flip", "self>x dims"),
    ("roll.default", "roll", "self>x shifts dims"),
    ("pad.default", "pad", "self>x pad value mode=constant"),
    ("constant_pad_nd.default", "pad", "self>x pad value"),
    ("gather.default", "gather", "self>x dim index sparse_grad~"),
    ("index_select.default", "index_select", "self>x dim index"),
    ("index.Tensor", "index", "self>x indices"),
    ("one_hot.default", "one_hot", "self>x num_classes>classes"),
    ("tril.default", "tril", "self>x diagonal"),
    ("triu.default", "triu", "self>x diagonal"),
    ("diff.default", "diff", "self>x n=1 dim prepend"),
    # -- new tensors
    ("arange.default", "arange", "end dtype layout~ device~ pin_memory~"),
    ("arange.start", "arange", "start end dtype layout~ device~ pin_memory~"),
    ("arange.start_step", "arange", "start end step dtype layout~ device~ pin_memory~"),
    ("zeros.default", "zeros", "size>shape dtype layout~ device~ pin_memory~"),
    ("ones.default", "ones", "size>shape dtype layout~ device~ pin_memory~"),
    ("full.default", "full", "size>shape fill_value>value dtype layout~ device~ pin_memory~"),
    ("scalar_tensor.default", "full", "s>value dtype layout~ device~ pin_memory~"),
    (
        "zeros_like.default new_zeros.default",
        "zeros",
        "self~ size~ dtype layout~ device~ pin_memory~ memory_format~",
    ),
    (
        "ones_like.default new_ones.default",
        "ones",
        "self~ size~ dtype layout~ device~ pin_memory~ memory_format~",
    ),
    (
        "full_like.default new_full.default",
        "full",
        "self~ size~ fill_value>value dtype layout~ device~ pin_memory~ memory_format~",
    ),
    # -- reductions and pooling
    ("mean.dim", "mean", "self>x dim keepdim"),
    ("mean.default", "mean", "self>x"),
    ("sum.dim_IntList", "sum", "self>x dim keepdim"),
    ("sum.default", "sum", "self>x"),
    ("var.correction", "var", "self>x dim correction keepdim"),
    ("var.dim", "var", "self>x dim unbiased>correction keepdim"),
    ("amax.default max.default", "amax", "self>x dim keepdim"),
    ("max.dim", "max", "self>x dim keepdim"),
    ("min.dim", "min", "self>x dim keepdim"),
    ("amin.default min.default", "amin", "self>x dim keepdim"),
    ("argmax.default", "argmax", "self>x dim keepdim=False"),
    ("cumsum.default", "cumsum", "self>x dim"),
    ("logsumexp.default", "logsumexp", "self>x dim keepdim"),
    ("topk.default", "topk", "self>x k dim largest=True sorted~"),
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


@dataclass(frozen=True)
class Row:
    """One row, taken apart.

    Attributes:
        op: of LayerDef, an operator, or a word that ``reading`` spells out.
        taken: aten argument → argument of the op.
        fixed: aten argument → the only value it may have, as text.
        ignored: aten arguments that say nothing.
    """

    op: str
    taken: dict[str, str]
    fixed: dict[str, str]
    ignored: frozenset[str]


def _parse(op: str, arguments: str) -> Row:
    taken: dict[str, str] = {}
    fixed: dict[str, str] = {}
    ignored = set()
    for word in arguments.split():
        if word.endswith("~"):
            ignored.add(word[:-1])
        elif "=" in word:
            name, _, value = word.partition("=")
            fixed[name] = value
        else:
            name, _, other = word.partition(">")
            taken[name] = other or name
    return Row(op, taken, fixed, frozenset(ignored))


#: ATen overloads → rows.
ATEN = {name: _parse(op, arguments) for names, op, arguments in _ROWS for name in names.split()}

#: Overloads that change their first argument, and the one that only computes. The result
#: takes the place of the argument from there on.
IN_PLACE = {
    f"{base}_.{overload}": f"{base}.{overload}"
    for base, _, overload in (name.partition(".") for name in ATEN)
    if f"{base}_.{overload}" not in ATEN
}

#: Overloads whose result may be their only tensor, or a view of it, and whose schema does not
#: say so: dropout does nothing in eval mode, einsum may only move the dims.
SHARE_UNTOLD = frozenset(
    """
    dropout.default feature_dropout.default dropout_.default feature_dropout_.default
    type_as.default _unsafe_view.default einsum.default
    """.split()  # noqa: SIM905  # words read better than quoted strings
)

#: Calls that check or mark something and compute nothing.
CHECKS = frozenset(
    """
    _assert_tensor_metadata.default _assert_async.msg _assert_scalar.default
    sym_constrain_range.default sym_constrain_range_for_size.default
    """.split()  # noqa: SIM905  # words read better than quoted strings
)
