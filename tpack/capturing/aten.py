"""The closed table of ATen ops: which op of LayerDef each overload is, and how arguments map.

One row adds the overloads of an op of ``layerdef.ops``; an op that LayerDef does not have takes
a row there too. Arguments are named as in the schemas of the overloads:

- ``name`` is taken under its name, ``name>other`` under another one
- ``name=value`` must have this value, and is left out
- ``name~`` is left out: it does not change the result
- ``name&`` before any of these: the result may be this tensor or a view of it, though the
  schema does not show that

An argument that a row does not name must have its default. The op is a row of
``layerdef.ops``, an operator, or a word of ``PSEUDO``. The last column names results that no
line of the source names: a noun, or ``KEEPS``; of several rows of an op, the first counts.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The result is x in another form, and keeps its name.
KEEPS = "="

#: Words for ops of ATen that LayerDef does not have: the module of ``capturing`` that spells one
#: out, and what becomes of it.
PSEUDO = {
    "same": ("simplification", "unchanged"),
    "addmm": ("simplification", "`x @ y + bias`"),
    "as": ("simplification", "`reshape` or `expand`"),
    "t": ("simplification", "`transpose`"),
    "reciprocal": ("simplification", "`1 / x`"),
    "max": ("simplification", "`amax`, `argmax`"),
    "min": ("simplification", "`amin`"),
    "lstm_cell": ("simplification", "its gates, written out"),
    "neg": ("expressions", "`-x`"),
    "diff": ("formulas", "a mask or positions"),
}

_ROWS = (
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
    ("sigmoid.default", "sigmoid", "self>x", "gate"),
    ("tanh.default", "tanh", "self>x"),
    ("softplus.default", "softplus", "self>x"),
    ("softmax.int", "softmax", "self>x dim dtype", "weights"),
    ("log_softmax.int", "log_softmax", "self>x dim dtype"),
    (
        "dropout.default feature_dropout.default dropout_.default feature_dropout_.default",
        "same",
        "input&>x self&>x p~ train=False",
    ),
    (
        "scaled_dot_product_attention.default",
        "scaled_dot_product_attention",
        "query key value attn_mask dropout_p=0.0 is_causal scale enable_gqa",
        "attended",
    ),
    # -- elementwise
    ("add.Tensor add.Scalar", "+", "self>x other>y alpha=1", "total"),
    ("sub.Tensor sub.Scalar", "-", "self>x other>y alpha=1", "difference"),
    ("rsub.Tensor rsub.Scalar", "-", "self>y other>x alpha=1"),
    ("mul.Tensor mul.Scalar", "*", "self>x other>y", "product"),
    ("div.Tensor div.Scalar", "/", "self>x other>y", "ratio"),
    (
        "floor_divide.default floor_divide.Scalar div.Tensor_mode div.Scalar_mode",
        "//",
        "self>x other>y rounding_mode=floor",
    ),
    ("remainder.Scalar remainder.Tensor", "%", "self>x other>y"),
    ("pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar", "**", "self>x exponent>y"),
    ("neg.default", "neg", "self>x"),
    ("eq.Tensor eq.Scalar", "==", "self>x other>y", "mask"),
    ("ne.Tensor ne.Scalar", "!=", "self>x other>y", "mask"),
    ("lt.Tensor lt.Scalar", "<", "self>x other>y", "mask"),
    ("le.Tensor le.Scalar", "<=", "self>x other>y", "mask"),
    ("gt.Tensor gt.Scalar", ">", "self>x other>y", "mask"),
    ("ge.Tensor ge.Scalar", ">=", "self>x other>y", "mask"),
    (
        "__and__.Tensor __and__.Scalar bitwise_and.Tensor logical_and.default",
        "&",
        "self>x other>y",
        "mask",
    ),
    (
        "__or__.Tensor __or__.Scalar bitwise_or.Tensor logical_or.default",
        "|",
        "self>x other>y",
        "mask",
    ),
    ("bitwise_not.default logical_not.default", "~", "self>x", "mask"),
    ("maximum.default max.other", "maximum", "self>x other>y"),
    ("minimum.default min.other", "minimum", "self>x other>y"),
    ("square.default", "square", "self>x"),
    ("sqrt.default", "sqrt", "self>x"),
    ("rsqrt.default", "rsqrt", "self>x", "inverse"),
    ("reciprocal.default", "reciprocal", "self>x"),
    ("exp.default", "exp", "self>x"),
    ("log.default", "log", "self>x"),
    ("sin.default", "sin", "self>x"),
    ("cos.default", "cos", "self>x"),
    ("abs.default", "abs", "self>x", "magnitude"),
    ("erf.default", "erf", "self>x"),
    ("round.default", "round", "self>x"),
    ("floor.default", "floor", "self>x"),
    ("ceil.default", "ceil", "self>x"),
    ("sign.default sgn.default", "sign", "self>x"),
    ("clamp.default clamp_min.default clamp_max.default", "clamp", "self>x min max"),
    (
        "where.self where.ScalarOther where.ScalarSelf where.Scalar",
        "where",
        "condition self>x other>y",
        "chosen",
    ),
    ("masked_fill.Scalar masked_fill.Tensor", "masked_fill", "self>x mask value"),
    (
        "to.dtype to.dtype_layout to.device _to_copy.default",
        "to",
        "self>x dtype layout=torch.strided device~ pin_memory~ non_blocking~ copy~ memory_format~",
        KEEPS,
    ),
    ("type_as.default to.other", "to", "self&>x other~ non_blocking~ copy~ memory_format~"),
    # -- unchanged
    (
        "clone.default contiguous.default lift_fresh_copy.default lift_fresh.default "
        "detach.default alias.default detach_.default",
        "same",
        "self>x memory_format~",
    ),
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


@dataclass(frozen=True)
class Row:
    """One row, taken apart.

    Attributes:
        op: of LayerDef, an operator, or a word of ``PSEUDO``.
        taken: aten argument → argument of the op.
        fixed: aten argument → the only value it may have, as text.
        ignored: aten arguments that do not change the result.
        shared: aten arguments that the result may share memory with, though the schema does not
            show it.
        naming: a noun for the result, ``KEEPS`` or nothing.
    """

    op: str
    taken: dict[str, str]
    fixed: dict[str, str]
    ignored: frozenset[str]
    shared: frozenset[str] = frozenset()
    naming: str = ""


def parse_row(op: str, arguments: str, naming: str = "") -> Row:
    """Parse one row of the table."""
    taken: dict[str, str] = {}
    fixed: dict[str, str] = {}
    ignored = set()
    shared = {word.partition("&")[0] for word in arguments.split() if "&" in word}
    for word in arguments.replace("&", "").split():
        if word.endswith("~"):
            ignored.add(word[:-1])
        elif "=" in word:
            name, _, value = word.partition("=")
            fixed[name] = value
        else:
            name, _, other = word.partition(">")
            taken[name] = other or name
    return Row(op, taken, fixed, frozenset(ignored), frozenset(shared), naming)


#: ATen overloads → rows.
ATEN = {name: parse_row(*row) for names, *row in _ROWS for name in names.split()}


def naming(op: str) -> str:
    """Return how results of an op are named: a noun, ``KEEPS`` or nothing."""
    return next((row.naming for row in ATEN.values() if row.op == op), "")


def functional(name: str) -> str:
    """Return the overload without change in place: ``add.Tensor`` for ``add_.Tensor``."""
    base, _, overload = name.partition(".")
    plain = f"{base.removesuffix('_')}.{overload}"
    return plain if name not in ATEN and plain in ATEN else name


#: Calls that check or mark something and compute nothing.
CHECKS = frozenset(
    """
    _assert_tensor_metadata.default _assert_async.msg _assert_scalar.default
    sym_constrain_range.default sym_constrain_range_for_size.default
    """.split()  # noqa: SIM905  # words read better than quoted strings
)
