"""Activations of ATen, and ops on each element."""

from __future__ import annotations

from tpack.capturing.aten_rows.shared import KEEPS, Rows

ROWS: Rows = (
    # overloads, op, arguments, naming
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
)
