"""Activations, and ops on each element."""

from __future__ import annotations

from tpack.layerdef.nodes import FunctionCall, Identifier
from tpack.layerdef.op_rows.shared import Rows

_RELU_SQUARED = FunctionCall("square", [FunctionCall("relu", [Identifier("x")])])

ROWS: Rows = (
    # name, parameters, spelling, what it computes, traits, version of the format
    # -- activations
    ("relu", "x:tensor", "F.relu", "max(x, 0)"),
    ("relu_squared", "x:tensor", _RELU_SQUARED, "max(x, 0)²"),
    ("leaky_relu", "x:tensor *negative_slope:float=0.01", "F.leaky_relu", "x or slope · x"),
    ("gelu", "x:tensor *approximate:none|tanh=none", "F.gelu", "x · Φ(x)"),
    ("silu", "x:tensor", "F.silu", "x · sigmoid(x)"),
    ("elu", "x:tensor *alpha:float=1.0", "F.elu", "x, or alpha · (exp(x) - 1) below 0"),
    ("relu6", "x:tensor", "F.relu6", "x between 0 and 6"),
    ("hardswish", "x:tensor", "F.hardswish", "x · relu6(x + 3) / 6"),
    ("hardsigmoid", "x:tensor", "F.hardsigmoid", "relu6(x + 3) / 6"),
    ("mish", "x:tensor", "F.mish", "x · tanh(softplus(x))"),
    ("glu", "x:tensor dim:int=-1", "F.glu", "first half · sigmoid(second half)"),
    ("prelu", "x:tensor weight:tensor", "F.prelu", "x, or weight · x below 0"),
    ("sigmoid", "x:tensor", "torch.sigmoid", "1 / (1 + exp(-x))"),
    ("tanh", "x:tensor", "torch.tanh", "hyperbolic tangent"),
    ("softplus", "x:tensor", "F.softplus", "log(1 + exp(x))"),
    ("softmax", "x:tensor *dim:int *dtype:dtype=None", "F.softmax", "exp(x) / Σ exp(x) along dim"),
    ("log_softmax", "x:tensor *dim:int *dtype:dtype=None", "F.log_softmax", "log of softmax"),
    (
        "rotate_half",
        "x:tensor",
        "rotate_half",
        "the halves of the last dim swapped, the first negated: half of a rotary embedding",
    ),
    ("dropout", "x:tensor p:float=0.5", Identifier("x"), "x: the identity at inference"),
    (
        "scaled_dot_product_attention",
        "query:tensor key:tensor value:tensor *attn_mask:tensor?=None *is_causal:bool=False "
        "*scale:float=None *enable_gqa:bool=False",
        "F.scaled_dot_product_attention",
        "softmax(query @ key.T · scale + mask) @ value",
        "product broadcasts",
    ),
    # -- elementwise
    ("add", "x:tensor y:value", "torch.add", "x + y", "broadcasts"),
    ("sub", "x:tensor y:value", "torch.sub", "x - y", "broadcasts"),
    ("mul", "x:tensor y:value", "torch.mul", "x · y", "broadcasts"),
    ("div", "x:tensor y:value", "torch.div", "x / y", "broadcasts"),
    ("pow", "x:tensor y:value", "torch.pow", "x ** y", "broadcasts"),
    ("maximum", "x:tensor y:tensor", "torch.maximum", "the larger of x and y", "broadcasts"),
    ("minimum", "x:tensor y:tensor", "torch.minimum", "the smaller of x and y", "broadcasts"),
    ("square", "x:tensor", "torch.square", "x²"),
    ("sqrt", "x:tensor", "torch.sqrt", "square root"),
    ("rsqrt", "x:tensor", "torch.rsqrt", "1 / sqrt(x)"),
    ("exp", "x:tensor", "torch.exp", "e to the x"),
    ("log", "x:tensor", "torch.log", "natural logarithm"),
    ("sin", "x:tensor", "torch.sin", "sine"),
    ("cos", "x:tensor", "torch.cos", "cosine"),
    ("abs", "x:tensor", "torch.abs", "|x|", "measures"),
    ("erf", "x:tensor", "torch.erf", "error function"),
    ("round", "x:tensor", "torch.round", "nearest integer, halves to even", "measures"),
    ("floor", "x:tensor", "torch.floor", "largest integer not above x", "measures"),
    ("ceil", "x:tensor", "torch.ceil", "smallest integer not below x"),
    ("sign", "x:tensor", "torch.sign", "-1, 0 or 1", "measures"),
    (
        "where",
        "condition:tensor x:value y:value",
        "torch.where",
        "x where condition, else y",
        "broadcasts measures",
    ),
    (
        "masked_fill",
        "x:tensor mask:tensor value:value",
        ".masked_fill",
        "value where mask, else x",
        "broadcasts",
    ),
    (
        "clamp",
        "x:tensor *min:float=None *max:float=None",
        "torch.clamp",
        "x within bounds",
        "measures",
    ),
    ("to", "x:tensor dtype:dtype", ".to", "x in another dtype"),
)
