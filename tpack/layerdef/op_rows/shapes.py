"""Ops that cut, join, move, look up or make elements."""

from __future__ import annotations

from tpack.layerdef.op_rows.shared import Rows

_AT = "x:tensor dim:int index:tensor"
_MAKE = "*dtype:dtype=None *device:device=None"

ROWS: Rows = (
    # name, parameters, spelling, what it computes, traits, version of the format
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
)
