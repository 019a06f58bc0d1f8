"""Reductions and pooling."""

from __future__ import annotations

from tpack.layerdef.op_rows.shared import Rows

_POOL = "x:tensor kernel_size:window *stride:window=None *padding:window=0"
_MAX_POOL = f"{_POOL} *dilation:window=1 *ceil_mode:bool=False"
_AVG_POOL = f"{_POOL} *ceil_mode:bool=False *count_include_pad:bool=True"
_OVER, _OVER_ALL = (f"x:tensor dim:{ints} *keepdim:bool=False" for ints in ("ints", "ints=None"))

ROWS: Rows = (
    # name, parameters, spelling, what it computes, traits, version of the format
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
