"""Reductions and pooling."""

from __future__ import annotations

from tpack.layerdef.op_rows.shared import Rows

_POOL = "x:tensor kernel_size:window *stride:window=None *padding:window=0"
_MAX_POOL = f"{_POOL} *dilation:window=1 *ceil_mode:bool=False"
_AVG_POOL = f"{_POOL} *ceil_mode:bool=False *count_include_pad:bool=True"
_OVER, _OVER_ALL = (f"x:tensor dim:{ints} *keepdim:bool=False" for ints in ("ints", "ints=None"))
_ALONG = "x:tensor dim:int *dtype:dtype=None"
_INDEX = "x:tensor dim:int=None *keepdim:bool=False"
_SPREAD = "x:tensor dim:ints *correction:int=1 *keepdim:bool=False"

ROWS: Rows = (
    # name, parameters, spelling, what it computes, traits, version of the format
    # -- reductions and pooling
    ("mean", f"{_OVER_ALL} *dtype:dtype=None", "torch.mean", "mean over dims", "measures"),
    ("sum", f"{_OVER_ALL} *dtype:dtype=None", "torch.sum", "sum over dims"),
    ("amax", _OVER, "torch.amax", "largest over dims", "measures"),
    ("amin", _OVER, "torch.amin", "smallest over dims", "measures"),
    ("argmax", _INDEX, "torch.argmax", "where the largest is", "measures"),
    ("argmin", _INDEX, "torch.argmin", "where the smallest is", "measures"),
    ("any", _OVER_ALL, "torch.any", "whether one is not 0", "measures"),
    ("all", _OVER_ALL, "torch.all", "whether none is 0", "measures"),
    (
        "prod",
        "x:tensor dim:int *keepdim:bool=False *dtype:dtype=None",
        "torch.prod",
        "product over dim",
    ),
    (
        "norm",
        "x:tensor p:value dim:ints=None *keepdim:bool=False",
        ".norm",
        "(Σ |x|^p)^(1/p) over dims",
        "measures",
    ),
    (
        "cosine_similarity",
        "x1:tensor x2:tensor *dim:int=1 *eps:float=1e-08",
        "F.cosine_similarity",
        "cosine of the angle along dim",
        "measures",
    ),
    (
        "pairwise_distance",
        "x1:tensor x2:tensor *p:value=2.0 *eps:float=1e-06 *keepdim:bool=False",
        "F.pairwise_distance",
        "norm of the difference along the last dim",
        "measures",
    ),
    ("cumsum", _ALONG, "torch.cumsum", "sums of all before and at an index"),
    ("cumprod", _ALONG, "torch.cumprod", "products of all before and at an index"),
    ("cummax", "x:tensor dim:int", "torch.cummax", "the largest so far, indices", "several"),
    ("cummin", "x:tensor dim:int", "torch.cummin", "the smallest so far, indices", "several"),
    (
        "sort",
        "x:tensor *dim:int=-1 *descending:bool=False *stable:bool=False",
        "torch.sort",
        "in order along dim, indices",
        "several measures",
    ),
    (
        "argsort",
        "x:tensor *dim:int=-1 *descending:bool=False *stable:bool=False",
        "torch.argsort",
        "the indices that sort",
        "measures",
    ),
    (
        "median",
        "x:tensor dim:int *keepdim:bool=False",
        "torch.median",
        "the lower of the middle values, indices",
        "several measures",
    ),
    ("logsumexp", _OVER, "torch.logsumexp", "log Σ exp(x)"),
    ("var", _SPREAD, "torch.var", "variance", "measures"),
    ("std", _SPREAD, "torch.std", "standard deviation", "measures"),
    (
        "topk",
        "x:tensor k:int dim:int=-1 *largest:bool=True",
        "torch.topk",
        "largest values, indices",
        "several",
    ),
    ("max_pool1d", _MAX_POOL, "F.max_pool1d", "largest in each window"),
    ("max_pool2d", _MAX_POOL, "F.max_pool2d", "largest in each window"),
    ("max_pool3d", _MAX_POOL, "F.max_pool3d", "largest in each window"),
    ("avg_pool1d", _AVG_POOL, "F.avg_pool1d", "mean of each window"),
    ("avg_pool2d", _AVG_POOL, "F.avg_pool2d", "mean of each window"),
    ("avg_pool3d", _AVG_POOL, "F.avg_pool3d", "mean of each window"),
    (
        "adaptive_avg_pool1d",
        "x:tensor size@output_size:window",
        "F.adaptive_avg_pool1d",
        "mean, to a size",
    ),
    (
        "adaptive_avg_pool2d",
        "x:tensor size@output_size:window",
        "F.adaptive_avg_pool2d",
        "mean, to a size",
    ),
    (
        "adaptive_avg_pool3d",
        "x:tensor size@output_size:window",
        "F.adaptive_avg_pool3d",
        "mean, to a size",
    ),
    (
        "adaptive_max_pool1d",
        "x:tensor size@output_size:window",
        "F.adaptive_max_pool1d",
        "largest, to a size",
    ),
    (
        "adaptive_max_pool2d",
        "x:tensor size@output_size:window",
        "F.adaptive_max_pool2d",
        "largest, to a size",
    ),
    (
        "adaptive_max_pool3d",
        "x:tensor size@output_size:window",
        "F.adaptive_max_pool3d",
        "largest, to a size",
    ),
)
