"""The closed table of built-in layers: children that need no LayerDef of their own.

Both readings of a tree spell them by their class: ``nn.LayerNorm(768)`` reads better than a
class of the same content, and deployment code already knows it. A row lists the tensors that the
class stores; its arguments are written as in ``ops``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tpack.choices import FormatRow
from tpack.errors import LayerDefError
from tpack.layerdef.nodes import Param
from tpack.layerdef.ops import OpParam, parse_params

Args = Mapping[str, Any]


@dataclass(frozen=True)
class Builtin(FormatRow):
    """One row.

    Attributes:
        name: as in the ``layer`` of a Param of type Layer.
        spelling: the class: of ``torch.nn``, or, without prefix, of ``tpack.nn``.
        params: of the constructor; positional ones first.
        stored: the tensors it holds, given all its arguments.
    """

    name: str
    spelling: str
    params: tuple[OpParam, ...]
    stored: Callable[[Args], tuple[Param, ...]]


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """Return one size twice, or two sizes as they are.

    Raises:
        LayerDefError: there are neither one nor two.
    """
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise LayerDefError(f"kernel_size {value!r:.40} has {len(value)} sizes, expected 1 or 2.")
    return value[0], value[1]


def _weight(args: Args, *shape: int, bias: int = 0) -> tuple[Param, ...]:
    """Return a weight, ternary if the layer has a ``scale``, and a bias if it has a size."""
    dtype = args["dtype"]
    if "scale" in args:
        weight = Param(
            "weight",
            "TernaryTensor",
            shape,
            dtype=args["scale_dtype"] or dtype,
            scale=args["scale"],
            layout=args["layout"],
        )
    else:
        weight = Param("weight", "Tensor", shape, dtype=dtype)
    return (weight, Param("bias", "Tensor", (bias,), dtype=dtype)) if bias else (weight,)


def _linear(args: Args) -> tuple[Param, ...]:
    inputs, outputs = args["in_features"], args["out_features"]
    return _weight(args, outputs, inputs, bias=outputs * args["bias"])


def _embedding(args: Args) -> tuple[Param, ...]:
    return _weight(args, args["num_embeddings"], args["embedding_dim"])


def _conv2d(args: Args) -> tuple[Param, ...]:
    outputs, inputs = args["out_channels"], args["in_channels"] // args["groups"]
    kernel = pair(args["kernel_size"])
    return _weight(args, outputs, inputs, *kernel, bias=outputs * args["bias"])


def _norm(size_name: str, args: Args) -> tuple[Param, ...]:
    size = args[size_name]
    affine = args.get("affine", True) and args.get("elementwise_affine", True)
    shape = (size,) if isinstance(size, int) else size
    weight, bias = (Param(n, "Tensor", shape, dtype=args["dtype"]) for n in ("weight", "bias"))
    if not affine:
        return ()
    return (weight, bias) if args.get("bias", True) else (weight,)


def _rms_norm(args: Args) -> tuple[Param, ...]:
    return _norm("normalized_shape", {**args, "bias": False})


def _batch_norm(args: Args) -> tuple[Param, ...]:
    size = (args["num_features"],)
    return (
        *_norm("num_features", args),
        Param("running_mean", "Buffer", size, dtype=args["dtype"]),
        Param("running_var", "Buffer", size, dtype=args["dtype"]),
        Param("num_batches_tracked", "Buffer", (), dtype="int64"),
    )


_DTYPE = " *dtype:dtype=float32"
_PACKED = f" *scale:scale=tensor *scale_dtype:dtype=None *layout:t2|t5=t2{_DTYPE}"
_LINEAR = "in_features:int out_features:int *bias:bool=True"
_EMBEDDING = "num_embeddings:int embedding_dim:int"
_CONV = (
    "in_channels:int out_channels:int kernel_size:ints *stride:ints=1 *padding:ints=0 "
    "*dilation:ints=1 *groups:int=1 *bias:bool=True"
)
_LAYER_NORM = "normalized_shape:ints *eps:float=1e-05 *elementwise_affine:bool=True *bias:bool=True"
_BATCH_NORM = "num_features:int *eps:float=1e-05 *affine:bool=True"

_ROWS = (
    ("TernaryLinear", "TernaryLinear", _LINEAR + _PACKED, _linear),
    ("BitLinear", "BitLinear", _LINEAR + _PACKED, _linear),
    ("TernaryEmbedding", "TernaryEmbedding", _EMBEDDING + _PACKED, _embedding),
    ("TernaryConv2d", "TernaryConv2d", _CONV + _PACKED, _conv2d),
    ("Linear", "nn.Linear", _LINEAR + _DTYPE, _linear),
    ("Embedding", "nn.Embedding", _EMBEDDING + _DTYPE, _embedding),
    ("Conv2d", "nn.Conv2d", _CONV + _DTYPE, _conv2d),
    ("LayerNorm", "nn.LayerNorm", _LAYER_NORM + _DTYPE, partial(_norm, "normalized_shape")),
    (
        "RMSNorm",
        "nn.RMSNorm",
        f"normalized_shape:ints *eps:float=None *elementwise_affine:bool=True{_DTYPE}",
        _rms_norm,
    ),
    (
        "GroupNorm",
        "nn.GroupNorm",
        f"num_groups:int num_channels:int *eps:float=1e-05 *affine:bool=True{_DTYPE}",
        partial(_norm, "num_channels"),
    ),
    ("BatchNorm1d", "nn.BatchNorm1d", _BATCH_NORM + _DTYPE, _batch_norm),
    ("BatchNorm2d", "nn.BatchNorm2d", _BATCH_NORM + _DTYPE, _batch_norm),
    ("BatchNorm3d", "nn.BatchNorm3d", _BATCH_NORM + _DTYPE, _batch_norm),
)

BUILTIN = {name: Builtin(name, spell, parse_params(p), st) for name, spell, p, st in _ROWS}


def stored_by(param: Param) -> tuple[Param, ...]:
    """Return the tensors that a validated Layer param of a built-in kind stores."""
    row = BUILTIN[param.layer or ""]
    given = dict(param.args)
    return row.stored({p.name: given.get(p.name, p.default) for p in row.params})
