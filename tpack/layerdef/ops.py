"""The closed table of ops: what a FunctionCall may name, and how torch spells it.

What is known of an op stands in its row. ``build``, ``codegen``, ``readback`` and ``capturing``
read it from there, so what runs and what is printed cannot differ. One row adds an op, and one
in ``capturing.aten`` lets ``capture`` find it::

    name(parameter, …)  →  spelling

A parameter reads ``name:kind`` or ``name:kind=default``; ``*`` before a name makes it
keyword-only in the generated source, and ``@`` after it gives torch's name, where that is
another. Kinds:

- ``tensor``: an expression; ``tensor?``: also None; ``tensors``: a Tuple; ``ternary``: the name
  of a TernaryTensor
- ``value``: an expression, a number, or the word inf or -inf
- ``int``, ``float``, ``bool``: a number; an int may be an expression (a size)
- ``ints``: an int, or a Tuple of them; ``sizes``: a Tuple of them; ``window``: an int for all
  dims, or a Tuple with one for each
- ``device``: an expression: the device of that tensor
- ``equation``: dims as letters, such as ``bij,bjk->bik``
- ``dtype``: a word of ``dtypes.BY_NAME``; ``scale``: tensor, row, column or group:N
- ``a|b``: one of these words

A spelling is a function of ``torch``, ``torch.nn.functional`` (``F``) or, without prefix, of
``tpack.nn``; with a leading dot, a method of the first argument; ``[]`` indexes it, and
``[:]`` slices it. In its place may stand an expression of other ops: what a composite lowers to.
An op with none is always lowered to the one on packed bytes.

Traits are words that other rooms ask for:

- ``several``: its results must be unpacked
- ``broadcasts``: dims of size 1 of an operand are repeated
- ``moves``: it only cuts, joins or repeats what it takes
- ``measures``: it learns the scale of x, compares it or rounds it
- ``product``: sums of products; ``conv``: of a convolution
- ``norm``: a normalization, whose other tensors belong to it
- ``lookup``: it takes rows of a table
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tpack.choices import FormatRow
from tpack.layerdef.nodes import Expression, FunctionCall, Identifier

#: Stands for "no default": the argument must be given.
REQUIRED: Any = object()


@dataclass(frozen=True)
class OpParam:
    """One parameter of an op; ``kind`` as in the module's docstring."""

    name: str
    kind: str
    default: Any = REQUIRED
    keyword: bool = False
    torch_name: str = ""

    @property
    def is_tensor(self) -> bool:
        """Whether it takes one tensor."""
        return self.kind in ("tensor", "tensor?", "ternary")


@dataclass(frozen=True)
class Op(FormatRow):
    """One row of the table.

    Attributes:
        name: as in a FunctionCall.
        params: in the order of the spelling.
        spelling: as in the module's docstring; empty if lowering replaces the op.
        doc: what it computes.
        traits: words of the module's docstring.
        expansion: of a composite, in the names of its parameters.
    """

    name: str
    params: tuple[OpParam, ...]
    spelling: str
    doc: str
    traits: frozenset[str] = frozenset()
    expansion: Expression | None = None


_WINDOWS = "*stride:window=1 *padding:window=0 *dilation:window=1 *groups:int=1"
_LINEAR = "x:tensor weight:tensor bias:tensor?=None"
_CONV = f"{_LINEAR} {_WINDOWS}"
_POOL = "x:tensor kernel_size:window *stride:window=None *padding:window=0"
_MAX_POOL = f"{_POOL} *dilation:window=1 *ceil_mode:bool=False"
_AVG_POOL = f"{_POOL} *ceil_mode:bool=False *count_include_pad:bool=True"
_RELU_SQUARED = FunctionCall("square", [FunctionCall("relu", [Identifier("x")])])
_AT = "x:tensor dim:int index:tensor"
_OVER, _OVER_ALL = (f"x:tensor dim:{ints} *keepdim:bool=False" for ints in ("ints", "ints=None"))
_MAKE = "*dtype:dtype=None *device:device=None"

_ROWS = (
    # name, parameters, spelling, what it computes, traits, version of the format
    # -- with weights
    ("linear", _LINEAR, "F.linear", "x @ weight.T + bias", "product"),
    (
        "bit_linear",
        "x:tensor weight:ternary bias:tensor?=None",
        "",
        "linear of a ternary weight, activations rounded to int8 per token (BitNet b1.58)",
        "product",
    ),
    ("matmul", "x:tensor y:tensor", "torch.matmul", "x @ y", "product"),
    ("conv1d", _CONV, "F.conv1d", "convolution over (batch, channels, length)", "product conv"),
    ("conv2d", _CONV, "F.conv2d", "convolution over (…, height, width)", "product conv"),
    ("embedding", "ids:tensor weight:tensor", "F.embedding", "rows of weight", "lookup"),
    (
        "einsum",
        "equation:equation tensors:tensors",
        "torch.einsum",
        "sums of products, as the equation names the dims",
        "product",
    ),
    # -- normalization
    (
        "layer_norm",
        "x:tensor shape@normalized_shape:sizes weight:tensor?=None bias:tensor?=None "
        "*eps:float=1e-05",
        "F.layer_norm",
        "mean 0 and variance 1 over the last dims, then weight and bias",
        "norm",
    ),
    (
        "rms_norm",
        "x:tensor shape@normalized_shape:sizes weight:tensor?=None *eps:float=None",
        "F.rms_norm",
        "root mean square 1 over the last dims, then weight",
        "norm",
    ),
    (
        "batch_norm",
        "x:tensor mean@running_mean:tensor var@running_var:tensor weight:tensor?=None "
        "bias:tensor?=None *eps:float=1e-05",
        "F.batch_norm",
        "eval form: the stored mean and variance",
        "norm",
    ),
    (
        "group_norm",
        "x:tensor groups:int weight:tensor?=None bias:tensor?=None *eps:float=1e-05",
        "F.group_norm",
        "mean 0 and variance 1 over groups of channels",
        "norm",
    ),
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
    # -- shapes
    ("size", "x:tensor dim:int", ".size", "the size of one dim"),
    ("reshape", "x:tensor shape:ints", ".reshape", "another shape; -1 is inferred"),
    ("flatten", "x:tensor start_dim:int=0 end_dim:int=-1", ".flatten", "dims merged into one"),
    ("transpose", "x:tensor dim0:int dim1:int", ".transpose", "two dims swapped"),
    ("permute", "x:tensor dims:ints", ".permute", "dims in another order"),
    ("unsqueeze", "x:tensor dim:int", ".unsqueeze", "a new dim of size 1"),
    ("squeeze", "x:tensor dim:int", ".squeeze", "without a dim of size 1"),
    ("unflatten", "x:tensor dim:int sizes:ints", ".unflatten", "one dim split into several"),
    ("expand", "x:tensor shape:ints", ".expand", "dims of size 1 repeated; -1 stays", "moves"),
    ("repeat", "x:tensor sizes:ints", ".repeat", "copies along each dim", "moves"),
    (
        "repeat_interleave",
        "x:tensor repeats:int *dim:int",
        ".repeat_interleave",
        "each index along dim several times",
        "moves",
    ),
    (
        "slice",
        "x:tensor dim:int start:int=0 end:int=None step:int=1",
        "[:]",
        "indices start to end along dim",
        "moves",
    ),
    ("narrow", "x:tensor dim:int start:int length:int", ".narrow", "a slice along dim", "moves"),
    ("select", "x:tensor dim:int index:int", ".select", "one index along dim", "moves"),
    ("chunk", "x:tensor chunks:int dim:int=0", ".chunk", "equal parts of dim", "moves several"),
    ("split", "x:tensor sizes:ints dim:int=0", ".split", "parts of dim by size", "moves several"),
    ("unbind", "x:tensor dim:int=0", ".unbind", "each index along dim", "moves several"),
    ("flip", "x:tensor dims:ints", "torch.flip", "dims in reverse"),
    ("roll", "x:tensor shifts:ints dims:ints", "torch.roll", "dims shifted around"),
    ("pad", "x:tensor pad:ints *value:float=None", "F.pad", "the last dims grown by a value"),
    ("cat", "tensors:tensors dim:int=0", "torch.cat", "joined along dim", "moves"),
    ("stack", "tensors:tensors dim:int=0", "torch.stack", "joined along a new dim", "moves"),
    ("gather", _AT, "torch.gather", "x at an index along dim", "lookup"),
    ("index_select", _AT, ".index_select", "x at indices along dim", "lookup"),
    ("index", "x:tensor indices:tensors", "[]", "x at indices of its first dims", "lookup"),
    ("one_hot", "x:tensor classes@num_classes:int", "F.one_hot", "1 at each index, else 0"),
    ("tril", "x:tensor diagonal:int=0", "torch.tril", "0 above a diagonal"),
    ("triu", "x:tensor diagonal:int=0", "torch.triu", "0 below a diagonal"),
    # -- new tensors
    ("arange", f"end:int {_MAKE}", "torch.arange", "0 to end - 1"),
    ("zeros", f"shape:sizes {_MAKE}", "torch.zeros", "zeros"),
    ("ones", f"shape:sizes {_MAKE}", "torch.ones", "ones"),
    ("full", f"shape:sizes value:value {_MAKE}", "torch.full", "one value"),
    # -- reductions and pooling
    ("mean", _OVER_ALL, "torch.mean", "mean over dims", "measures"),
    ("sum", _OVER_ALL, "torch.sum", "sum over dims"),
    ("amax", _OVER, "torch.amax", "largest over dims", "measures"),
    ("amin", _OVER, "torch.amin", "smallest over dims", "measures"),
    ("argmax", "x:tensor dim:int=None", "torch.argmax", "where the largest is", "measures"),
    ("cumsum", "x:tensor dim:int", "torch.cumsum", "sums of all before and at an index"),
    ("logsumexp", _OVER, "torch.logsumexp", "log Σ exp(x)"),
    (
        "var",
        "x:tensor dim:ints *correction:int=1 *keepdim:bool=False",
        "torch.var",
        "variance",
        "measures",
    ),
    ("topk", "x:tensor k:int dim:int=-1", "torch.topk", "largest values, indices", "several"),
    ("max_pool1d", _MAX_POOL, "F.max_pool1d", "largest in each window"),
    ("max_pool2d", _MAX_POOL, "F.max_pool2d", "largest in each window"),
    ("avg_pool1d", _AVG_POOL, "F.avg_pool1d", "mean of each window"),
    ("avg_pool2d", _AVG_POOL, "F.avg_pool2d", "mean of each window"),
    ("adaptive_avg_pool1d", "x:tensor size:window", "F.adaptive_avg_pool1d", "mean, to a size"),
    ("adaptive_avg_pool2d", "x:tensor size:window", "F.adaptive_avg_pool2d", "mean, to a size"),
    ("adaptive_max_pool2d", "x:tensor size:window", "F.adaptive_max_pool2d", "largest, to a size"),
)

_CONSTANTS = {"None": None, "True": True, "False": False}


def _default(text: str, kind: str) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if kind in ("int", "ints", "window"):
        return int(text)
    return float(text) if kind == "float" else text


def parse_params(text: str) -> tuple[OpParam, ...]:
    """Parse the parameter column of a row."""
    params = []
    for word in text.split():
        declared, _, default = word.partition("=")
        names, _, kind = declared.partition(":")
        name, _, torch_name = names.removeprefix("*").partition("@")
        value = _default(default, kind) if default else REQUIRED
        params.append(OpParam(name, kind, value, names.startswith("*"), torch_name or name))
    return tuple(params)


def parse_op(
    name: str,
    params: str,
    spelling: str | Expression,
    doc: str,
    traits: str = "",
    since: int = 0,
) -> Op:
    """Parse one row of the table."""
    spelled, expansion = (spelling, None) if isinstance(spelling, str) else ("", spelling)
    words = frozenset(traits.split())
    return Op(name, parse_params(params), spelled, doc, words, expansion, since=since)


#: Every op a FunctionCall may name.
OPS = {row[0]: parse_op(*row) for row in _ROWS}


def has_trait(name: str, trait: str) -> bool:
    """Return whether an op has a trait; an operator has none."""
    return name in OPS and trait in OPS[name].traits


def takes_device(name: str) -> bool:
    """Return whether an op makes a tensor on a device that it must be given."""
    return name in OPS and any(param.kind == "device" for param in OPS[name].params)


#: Ops on packed weights that ``lower`` puts in place of the ones above; a tree cannot name
#: them. Spelled by the functions of ``tpack.nn``. ``packed`` and ``scale`` are stored tensors;
#: ``shape`` is the logical shape of the weight.
_PACKED = "packed:tensor scale:tensor shape:ints"
_PACKED_LINEAR = "x:tensor packed:tensor scale:tensor bias:tensor?=None"
_PACKED_CONV = f"x:tensor {_PACKED} bias:tensor?=None {_WINDOWS}"
_PACKED_ROWS = (
    # op, parameters, the op above, its weight, the dims of it
    ("ternary_linear", _PACKED_LINEAR, "linear", "weight", 2),
    ("ternary_bit_linear", _PACKED_LINEAR, "bit_linear", "weight", 2),
    ("ternary_matmul", f"x:tensor {_PACKED}", "matmul", "y", 2),
    ("ternary_embedding", f"ids:tensor {_PACKED}", "embedding", "weight", 2),
    ("ternary_conv1d", _PACKED_CONV, "conv1d", "weight", 3),
    ("ternary_conv2d", _PACKED_CONV, "conv2d", "weight", 4),
    ("dequantize", f"{_PACKED} like:tensor?=None", "", "", 0),
)


@dataclass(frozen=True)
class PackedOp(Op):
    """One row of the ops on packed bytes.

    Attributes:
        plain: the op that computes the same from a float weight; empty for ``dequantize``.
        weight: the parameter of ``plain`` that the packed bytes replace.
        rank: number of dims of the weight.
    """

    plain: str = ""
    weight: str = ""
    rank: int = 0


def _parse_packed(name: str, params: str, plain: str, weight: str, rank: int) -> PackedOp:
    parsed = parse_params(f"{params} *layout:t2|t5=t2 *group_size:int=0")
    doc = f"{plain or 'a whole weight'}, of packed bytes"
    return PackedOp(name, parsed, name, doc, plain=plain, weight=weight, rank=rank)


PACKED_OPS = {row[0]: _parse_packed(*row) for row in _PACKED_ROWS}

#: Operators of BinaryOp with their precedence in Python, and of UnaryOp.
ORDER = dict.fromkeys(("<", "<=", ">", ">="), 1)
COMPARISON = ORDER | {"==": 1, "!=": 1}
BINARY = COMPARISON | {"|": 2, "&": 3}
BINARY |= {"+": 4, "-": 4, "*": 5, "/": 5, "//": 5, "%": 5, "@": 5, "**": 7}
UNARY = {"-": 6, "~": 6}
