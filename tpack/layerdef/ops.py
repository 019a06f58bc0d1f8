"""The closed table of ops: what a FunctionCall may name, and how torch spells it.

``build`` and ``codegen`` both read this table and nothing else, so what runs and what is
printed cannot differ. One row adds an op::

    name(parameter, …)  →  spelling

A parameter reads ``name:kind`` or ``name:kind=default``; ``*`` before a name makes it
keyword-only in the generated source. Kinds:

- ``tensor``: an expression; ``tensor?``: also None; ``tensors``: a Tuple
- ``value``: an expression, a number, or the word inf or -inf
- ``int``, ``float``, ``bool``: a number; an int may be an expression (a size)
- ``ints``: an int, or a Tuple of them; ``sizes``: a Tuple of them
- ``device``: an expression: the device of that tensor
- ``equation``: dims as letters, such as ``bij,bjk->bik``
- ``dtype``: a word of ``dtypes.BY_NAME``; ``scale``: tensor, row, column or group:N
- ``a|b``: one of these words

A spelling is a function of ``torch``, ``torch.nn.functional`` (``F``) or, without prefix, of
``tpack.nn``; with a leading dot, a method of the first argument; ``[]`` indexes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tpack.choices import FormatRow

#: Stands for "no default": the argument must be given.
REQUIRED: Any = object()


@dataclass(frozen=True)
class OpParam:
    """One parameter of an op; ``kind`` as in the module's docstring."""

    name: str
    kind: str
    default: Any = REQUIRED
    keyword: bool = False


@dataclass(frozen=True)
class Op(FormatRow):
    """One row of the table.

    Attributes:
        name: what a FunctionCall says.
        params: in the order of the spelling.
        spelling: how torch says it; empty for a composite, which ``composites`` expands.
        doc: what it computes.
    """

    name: str
    params: tuple[OpParam, ...]
    spelling: str
    doc: str


_CONV = "x:tensor weight:tensor bias:tensor?=None *stride:ints=1 *padding:ints=0 *dilation:ints=1"
_POOL = "x:tensor kernel_size:ints *stride:ints=None *padding:ints=0"
_MAX_POOL = f"{_POOL} *dilation:ints=1 *ceil_mode:bool=False"
_AVG_POOL = f"{_POOL} *ceil_mode:bool=False *count_include_pad:bool=True"
_MAKE = "*dtype:dtype=None *device:device=None"

_ROWS = (
    # name, parameters, spelling, what it computes
    # -- with weights
    ("linear", "x:tensor weight:tensor bias:tensor?=None", "F.linear", "x @ weight.T + bias"),
    (
        "bit_linear",
        "x:tensor weight:tensor bias:tensor?=None",
        "",
        "linear of a ternary weight, activations rounded to int8 per token (BitNet b1.58)",
    ),
    ("matmul", "x:tensor y:tensor", "torch.matmul", "x @ y"),
    ("conv1d", f"{_CONV} *groups:int=1", "F.conv1d", "convolution over (batch, channels, length)"),
    ("conv2d", f"{_CONV} *groups:int=1", "F.conv2d", "convolution over (…, height, width)"),
    ("embedding", "ids:tensor weight:tensor", "F.embedding", "rows of weight"),
    (
        "einsum",
        "equation:equation tensors:tensors",
        "torch.einsum",
        "sums of products, as the equation names the dims",
    ),
    # -- normalization
    (
        "layer_norm",
        "x:tensor shape:sizes weight:tensor?=None bias:tensor?=None *eps:float=1e-05",
        "F.layer_norm",
        "mean 0 and variance 1 over the last dims, then weight and bias",
    ),
    (
        "rms_norm",
        "x:tensor shape:sizes weight:tensor?=None *eps:float=None",
        "F.rms_norm",
        "root mean square 1 over the last dims, then weight",
    ),
    (
        "batch_norm",
        "x:tensor mean:tensor var:tensor weight:tensor?=None bias:tensor?=None *eps:float=1e-05",
        "F.batch_norm",
        "eval form: the stored mean and variance",
    ),
    (
        "group_norm",
        "x:tensor groups:int weight:tensor?=None bias:tensor?=None *eps:float=1e-05",
        "F.group_norm",
        "mean 0 and variance 1 over groups of channels",
    ),
    # -- activations
    ("relu", "x:tensor", "F.relu", "max(x, 0)"),
    ("relu_squared", "x:tensor", "", "max(x, 0)²"),
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
    (
        "softmax",
        "x:tensor *dim:int *dtype:dtype=None",
        "F.softmax",
        "exp(x) / Σ exp(x) along dim",
    ),
    ("log_softmax", "x:tensor *dim:int *dtype:dtype=None", "F.log_softmax", "log of softmax"),
    (
        "rotate_half",
        "x:tensor",
        "rotate_half",
        "the halves of the last dim swapped, the first negated: half of a rotary embedding",
    ),
    ("dropout", "x:tensor p:float=0.5", "", "x: the identity at inference"),
    (
        "scaled_dot_product_attention",
        "query:tensor key:tensor value:tensor *attn_mask:tensor?=None *is_causal:bool=False "
        "*scale:float=None *enable_gqa:bool=False",
        "F.scaled_dot_product_attention",
        "softmax(query @ key.T · scale + mask) @ value",
    ),
    # -- elementwise
    ("add", "x:tensor y:value", "torch.add", "x + y"),
    ("sub", "x:tensor y:value", "torch.sub", "x - y"),
    ("mul", "x:tensor y:value", "torch.mul", "x · y"),
    ("div", "x:tensor y:value", "torch.div", "x / y"),
    ("pow", "x:tensor y:value", "torch.pow", "x ** y"),
    ("maximum", "x:tensor y:tensor", "torch.maximum", "the larger of x and y"),
    ("minimum", "x:tensor y:tensor", "torch.minimum", "the smaller of x and y"),
    ("square", "x:tensor", "torch.square", "x²"),
    ("sqrt", "x:tensor", "torch.sqrt", "square root"),
    ("rsqrt", "x:tensor", "torch.rsqrt", "1 / sqrt(x)"),
    ("exp", "x:tensor", "torch.exp", "e to the x"),
    ("log", "x:tensor", "torch.log", "natural logarithm"),
    ("sin", "x:tensor", "torch.sin", "sine"),
    ("cos", "x:tensor", "torch.cos", "cosine"),
    ("abs", "x:tensor", "torch.abs", "|x|"),
    ("erf", "x:tensor", "torch.erf", "error function"),
    ("round", "x:tensor", "torch.round", "nearest integer, halves to even"),
    ("floor", "x:tensor", "torch.floor", "largest integer not above x"),
    ("ceil", "x:tensor", "torch.ceil", "smallest integer not below x"),
    ("sign", "x:tensor", "torch.sign", "-1, 0 or 1"),
    ("where", "condition:tensor x:value y:value", "torch.where", "x where condition, else y"),
    ("masked_fill", "x:tensor mask:tensor value:value", ".masked_fill", "value where mask, else x"),
    ("clamp", "x:tensor *min:float=None *max:float=None", "torch.clamp", "x within bounds"),
    ("to", "x:tensor dtype:dtype", ".to", "x in another dtype"),
    # -- shapes
    ("size", "x:tensor dim:int", ".size", "the size of one dim"),
    ("reshape", "x:tensor shape:ints", ".reshape", "another shape; -1 is inferred"),
    ("flatten", "x:tensor start_dim:int=0 end_dim:int=-1", ".flatten", "dims merged into one"),
    ("transpose", "x:tensor dim0:int dim1:int", ".transpose", "two dims swapped"),
    ("permute", "x:tensor dims:ints", ".permute", "dims in another order"),
    ("unsqueeze", "x:tensor dim:int", ".unsqueeze", "a new dim of size 1"),
    ("squeeze", "x:tensor dim:int", ".squeeze", "without a dim of size 1"),
    ("unflatten", "x:tensor dim:int sizes:ints", ".unflatten", "one dim split into several"),
    ("expand", "x:tensor shape:ints", ".expand", "dims of size 1 repeated; -1 stays"),
    ("repeat", "x:tensor sizes:ints", ".repeat", "copies along each dim"),
    (
        "repeat_interleave",
        "x:tensor repeats:int *dim:int",
        ".repeat_interleave",
        "each index along dim several times",
    ),
    (
        "slice",
        "x:tensor dim:int start:int=0 end:int=None step:int=1",
        "[]",
        "indices start to end along dim",
    ),
    ("narrow", "x:tensor dim:int start:int length:int", ".narrow", "a slice along dim"),
    ("select", "x:tensor dim:int index:int", ".select", "one index along dim"),
    ("chunk", "x:tensor chunks:int dim:int=0", ".chunk", "several results: equal parts of dim"),
    ("split", "x:tensor sizes:ints dim:int=0", ".split", "several results: parts of dim by size"),
    ("unbind", "x:tensor dim:int=0", ".unbind", "several results: each index along dim"),
    ("flip", "x:tensor dims:ints", "torch.flip", "dims in reverse"),
    ("roll", "x:tensor shifts:ints dims:ints", "torch.roll", "dims shifted around"),
    ("pad", "x:tensor pad:ints *value:float=None", "F.pad", "the last dims grown by a value"),
    ("cat", "tensors:tensors dim:int=0", "torch.cat", "joined along dim"),
    ("stack", "tensors:tensors dim:int=0", "torch.stack", "joined along a new dim"),
    ("gather", "x:tensor dim:int index:tensor", "torch.gather", "x at an index along dim"),
    ("index_select", "x:tensor dim:int index:tensor", ".index_select", "x at indices along dim"),
    ("index", "x:tensor indices:tensors", "[]", "x at indices of its first dims"),
    ("one_hot", "x:tensor classes:int", "F.one_hot", "1 at each index, else 0"),
    ("tril", "x:tensor diagonal:int=0", "torch.tril", "0 above a diagonal"),
    ("triu", "x:tensor diagonal:int=0", "torch.triu", "0 below a diagonal"),
    # -- new tensors
    ("arange", f"end:int {_MAKE}", "torch.arange", "0 to end - 1"),
    ("zeros", f"shape:sizes {_MAKE}", "torch.zeros", "zeros"),
    ("ones", f"shape:sizes {_MAKE}", "torch.ones", "ones"),
    ("full", f"shape:sizes value:value {_MAKE}", "torch.full", "one value"),
    # -- reductions and pooling
    ("mean", "x:tensor dim:ints=None *keepdim:bool=False", "torch.mean", "mean over dims"),
    ("sum", "x:tensor dim:ints=None *keepdim:bool=False", "torch.sum", "sum over dims"),
    ("amax", "x:tensor dim:ints *keepdim:bool=False", "torch.amax", "largest over dims"),
    ("amin", "x:tensor dim:ints *keepdim:bool=False", "torch.amin", "smallest over dims"),
    ("argmax", "x:tensor dim:int=None", "torch.argmax", "index of the largest along dim"),
    ("cumsum", "x:tensor dim:int", "torch.cumsum", "sums of all before and at an index"),
    ("logsumexp", "x:tensor dim:ints *keepdim:bool=False", "torch.logsumexp", "log Σ exp(x)"),
    ("var", "x:tensor dim:ints *correction:int=1 *keepdim:bool=False", "torch.var", "variance"),
    ("topk", "x:tensor k:int dim:int=-1", "torch.topk", "two results: largest values, indices"),
    ("max_pool1d", _MAX_POOL, "F.max_pool1d", "largest in each window"),
    ("max_pool2d", _MAX_POOL, "F.max_pool2d", "largest in each window"),
    ("avg_pool1d", _AVG_POOL, "F.avg_pool1d", "mean of each window"),
    ("avg_pool2d", _AVG_POOL, "F.avg_pool2d", "mean of each window"),
    ("adaptive_avg_pool1d", "x:tensor size:ints", "F.adaptive_avg_pool1d", "mean, to a size"),
    ("adaptive_avg_pool2d", "x:tensor size:ints", "F.adaptive_avg_pool2d", "mean, to a size"),
    ("adaptive_max_pool2d", "x:tensor size:ints", "F.adaptive_max_pool2d", "largest, to a size"),
)

#: Ops whose result must be unpacked.
SEVERAL = frozenset({"chunk", "split", "unbind", "topk"})

_CONSTANTS = {"None": None, "True": True, "False": False}


def _default(text: str, kind: str) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if kind in ("int", "ints"):
        return int(text)
    return float(text) if kind == "float" else text


def parse_params(text: str) -> tuple[OpParam, ...]:
    """Read the parameter column of a row."""
    params = []
    for word in text.split():
        declared, _, default = word.partition("=")
        name, _, kind = declared.partition(":")
        params.append(
            OpParam(
                name.removeprefix("*"),
                kind,
                _default(default, kind) if default else REQUIRED,
                name.startswith("*"),
            )
        )
    return tuple(params)


#: Every op a FunctionCall may name.
OPS = {name: Op(name, parse_params(params), spell, doc) for name, params, spell, doc in _ROWS}

#: Ops on packed weights that ``lower`` puts in place of the ones above; a tree cannot name
#: them. Spelled by the functions of ``tpack.nn``. ``packed`` and ``scale`` are stored
#: tensors; ``shape`` is the logical shape of the weight.
_PACKED_ROWS = (
    ("ternary_linear", "x:tensor packed:tensor scale:tensor bias:tensor?=None", "linear"),
    ("ternary_bit_linear", "x:tensor packed:tensor scale:tensor bias:tensor?=None", "bit_linear"),
    ("ternary_matmul", "x:tensor packed:tensor scale:tensor shape:ints", "matmul"),
    ("ternary_embedding", "ids:tensor packed:tensor scale:tensor shape:ints", "embedding"),
    (
        "ternary_conv1d",
        "x:tensor packed:tensor scale:tensor shape:ints bias:tensor?=None *stride:ints=1 "
        "*padding:ints=0 *dilation:ints=1 *groups:int=1",
        "conv1d",
    ),
    (
        "ternary_conv2d",
        "x:tensor packed:tensor scale:tensor shape:ints bias:tensor?=None *stride:ints=1 "
        "*padding:ints=0 *dilation:ints=1 *groups:int=1",
        "conv2d",
    ),
    ("dequantize", "packed:tensor scale:tensor shape:ints like:tensor?=None", "a whole weight"),
)

PACKED_OPS = {
    name: Op(
        name,
        parse_params(f"{params} *layout:t2|t5=t2 *group_size:int=0"),
        name,
        f"{doc}, of packed bytes",
    )
    for name, params, doc in _PACKED_ROWS
}

#: Parameters whose name in torch differs from the table's.
_TORCH_NAMES = {
    ("batch_norm", "mean"): "running_mean",
    ("batch_norm", "var"): "running_var",
    ("rms_norm", "shape"): "normalized_shape",
    ("layer_norm", "shape"): "normalized_shape",
    ("one_hot", "classes"): "num_classes",
}


def torch_name(op: str, param: str) -> str:
    """What torch calls a parameter of an op."""
    return _TORCH_NAMES.get((op, param), param)


#: Operators of BinaryOp with their precedence in Python, and of UnaryOp.
COMPARISON = dict.fromkeys(("==", "!=", "<", "<=", ">", ">="), 1)
BINARY = COMPARISON | {"|": 2, "&": 3}
BINARY |= {"+": 4, "-": 4, "*": 5, "/": 5, "//": 5, "%": 5, "@": 5, "**": 7}
UNARY = {"-": 6, "~": 6}
