"""Ops with weights, and normalizations."""

from __future__ import annotations

from tpack.layerdef.op_rows.shared import WINDOWS, Rows

_LINEAR = "x:tensor weight:tensor bias:tensor?=None"
_EXPERTS = "x:tensor weight:tensor ids:tensor"
_CONV = f"{_LINEAR} {WINDOWS}"
_CONV_TRANSPOSE = (
    f"{_LINEAR} *stride:window=1 *padding:window=0 *output_padding:window=0 *groups:int=1 "
    "*dilation:window=1"
)

#: The tensors and options of a recurrent network, as torch's functions take them.
_RECURRENT = (
    "x:tensor {state} weights@params:tensors *has_biases:bool *num_layers:int *dropout:float "
    "*train:bool *bidirectional:bool *batch_first:bool"
)

ROWS: Rows = (
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
    (
        "by_expert",
        "layers:layers x:tensor ids:tensor",
        "by_expert",
        "each x through the layer of a list that its id names; only the chosen layers",
    ),
    (
        "expert_linear",
        _EXPERTS,
        "expert_linear",
        "x @ weight[id].T for each x and its id, of a stack (experts, out, in); only the chosen",
        "product experts",
    ),
    (
        "expert_matmul",
        _EXPERTS,
        "expert_matmul",
        "x @ weight[id] for each x and its id, of a stack (experts, in, out); only the chosen",
        "product experts",
    ),
    ("conv1d", _CONV, "F.conv1d", "convolution over (batch, channels, length)", "product conv"),
    ("conv2d", _CONV, "F.conv2d", "convolution over (…, height, width)", "product conv"),
    ("conv3d", _CONV, "F.conv3d", "convolution over (…, depth, height, width)", "product conv"),
    (
        "conv_transpose1d",
        _CONV_TRANSPOSE,
        "F.conv_transpose1d",
        "the gradient of conv1d: each element spread by the kernel",
        "product conv spreads",
    ),
    (
        "conv_transpose2d",
        _CONV_TRANSPOSE,
        "F.conv_transpose2d",
        "the gradient of conv2d: each element spread by the kernel",
        "product conv spreads",
    ),
    (
        "conv_transpose3d",
        _CONV_TRANSPOSE,
        "F.conv_transpose3d",
        "the gradient of conv3d: each element spread by the kernel",
        "product conv spreads",
    ),
    (
        "bilinear",
        "x:tensor y:tensor weight:tensor bias:tensor?=None",
        "F.bilinear",
        "x @ weight[i] @ y for each i, + bias",
        "product",
    ),
    ("outer", "x:tensor y:tensor", "torch.outer", "products of all pairs", "product"),
    ("cdist", "x:tensor y:tensor *p:value=2.0", "torch.cdist", "distances of all pairs"),
    (
        "weight_norm",
        "direction:tensor size:tensor dim:int=0",
        "torch._weight_norm",
        "size · direction / its norm over all dims but one",
        "measures",
    ),
    (
        "lstm",
        _RECURRENT.format(state="state@hx:tensors"),
        "torch.lstm",
        "long short-term memory over the steps of x; last hidden state, last cell state",
        "product recurrent several",
    ),
    (
        "gru",
        _RECURRENT.format(state="state@hx:tensor"),
        "torch.gru",
        "gated recurrent units over the steps of x; last hidden state",
        "product recurrent several",
    ),
    (
        "rnn_tanh",
        _RECURRENT.format(state="state@hx:tensor"),
        "torch.rnn_tanh",
        "h = tanh(W x + U h + b) over the steps of x; last h",
        "product recurrent several",
    ),
    (
        "rnn_relu",
        _RECURRENT.format(state="state@hx:tensor"),
        "torch.rnn_relu",
        "h = relu(W x + U h + b) over the steps of x; last h",
        "product recurrent several",
    ),
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
    (
        "instance_norm",
        "x:tensor mean@running_mean:tensor?=None var@running_var:tensor?=None "
        "weight:tensor?=None bias:tensor?=None *use_input_stats:bool=True *eps:float=1e-05",
        "F.instance_norm",
        "mean 0 and variance 1 in each channel of each sample",
        "norm",
    ),
)
