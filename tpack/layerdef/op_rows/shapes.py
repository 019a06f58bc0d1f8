"""Ops that cut, join, move, look up or make elements."""

from __future__ import annotations

from tpack.layerdef.op_rows.shared import Rows

_AT = "x:tensor dim:int index:tensor"
_MODES = "nearest|nearest-exact|linear|bilinear|bicubic|trilinear"
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
    (
        "pad",
        "x:tensor pad:ints *mode:constant|reflect|replicate|circular=constant *value:float=None",
        "F.pad",
        "the last dims grown: by a value, or by x itself",
    ),
    (
        "pixel_shuffle",
        "x:tensor factor@upscale_factor:int",
        "F.pixel_shuffle",
        "channels to pixels",
    ),
    (
        "pixel_unshuffle",
        "x:tensor factor@downscale_factor:int",
        "F.pixel_unshuffle",
        "pixels to channels",
    ),
    ("channel_shuffle", "x:tensor groups:int", "F.channel_shuffle", "channels of groups in turn"),
    (
        "unfold",
        "x:tensor kernel_size:window *dilation:window=1 *padding:window=0 *stride:window=1",
        "F.unfold",
        "the windows of a picture as columns",
    ),
    (
        "fold",
        "x:tensor size@output_size:window kernel_size:window *dilation:window=1 "
        "*padding:window=0 *stride:window=1",
        "F.fold",
        "a picture from windows, overlaps added",
    ),
    (
        "windows",
        "x:tensor dim:int size:int step:int",
        ".unfold",
        "windows of dim, in a new last dim",
    ),
    (
        "interpolate",
        f"x:tensor *size:window=None *scale_factor:floats=None *mode:{_MODES}=nearest "
        "*align_corners:bool=None *antialias:bool=False",
        "F.interpolate",
        "another size of the last dims",
    ),
    (
        "grid_sample",
        "x:tensor grid:tensor *mode:bilinear|nearest|bicubic=bilinear "
        "*padding_mode:zeros|border|reflection=zeros *align_corners:bool",
        "F.grid_sample",
        "x at places between -1 and 1",
    ),
    (
        "affine_grid",
        "theta:tensor size:sizes *align_corners:bool",
        "F.affine_grid",
        "places of a picture that is turned, moved or stretched",
    ),
    ("cat", "tensors:tensors dim:int=0", "torch.cat", "joined along dim", "moves"),
    ("stack", "tensors:tensors dim:int=0", "torch.stack", "joined along a new dim", "moves"),
    ("gather", _AT, "torch.gather", "x at an index along dim", "lookup"),
    ("index_select", _AT, ".index_select", "x at indices along dim", "lookup"),
    ("index", "x:tensor indices:tensors", "[]", "x at indices of its first dims", "lookup"),
    (
        "take_along_dim",
        "x:tensor index@indices:tensor dim:int",
        "torch.take_along_dim",
        "x at an index along dim, other dims broadcast",
        "lookup",
    ),
    ("scatter", f"{_AT} src:value", ".scatter", "src at an index along dim, else x"),
    ("scatter_add", f"{_AT} src:tensor", ".scatter_add", "src added to x at an index along dim"),
    (
        "scatter_reduce",
        f"{_AT} src:tensor reduce:sum|prod|mean|amax|amin *include_self:bool=True",
        ".scatter_reduce",
        "src joined with x at an index along dim",
    ),
    (
        "index_add",
        f"{_AT} source:tensor *alpha:value=1",
        ".index_add",
        "source added to x at indices along dim",
    ),
    ("index_copy", f"{_AT} source:tensor", ".index_copy", "source at indices along dim, else x"),
    ("index_fill", f"{_AT} value:value", ".index_fill", "a value at indices along dim, else x"),
    (
        "index_put",
        "x:tensor indices:tensors values:tensor *accumulate:bool=False",
        ".index_put",
        "values at indices of the first dims, else x",
    ),
    (
        "bucketize",
        "x:tensor boundaries:tensor *right:bool=False",
        "torch.bucketize",
        "how many boundaries lie below x",
        "measures",
    ),
    (
        "searchsorted",
        "sorted:tensor x:tensor *right:bool=False",
        "torch.searchsorted",
        "where x belongs in sorted numbers",
        "measures",
    ),
    ("one_hot", "x:tensor classes@num_classes:int", "F.one_hot", "1 at each index, else 0"),
    ("tril", "x:tensor diagonal:int=0", "torch.tril", "0 above a diagonal"),
    ("triu", "x:tensor diagonal:int=0", "torch.triu", "0 below a diagonal"),
    (
        "slice_scatter",
        "x:tensor src:tensor dim:int start:int=0 end:int=None step:int=1",
        "torch.slice_scatter",
        "src at indices start to end along dim, else x",
        "moves",
    ),
    (
        "select_scatter",
        "x:tensor src:tensor dim:int index:int",
        "torch.select_scatter",
        "src at one index along dim, else x",
        "moves",
    ),
    # -- new tensors
    ("arange", f"end:int {_MAKE}", "torch.arange", "0 to end - 1"),
    ("zeros", f"shape:sizes {_MAKE}", "torch.zeros", "zeros"),
    ("ones", f"shape:sizes {_MAKE}", "torch.ones", "ones"),
    ("eye", f"n:int m:int {_MAKE}", "torch.eye", "1 on the diagonal, else 0"),
    (
        "linspace",
        f"start:value end:value steps:int {_MAKE}",
        "torch.linspace",
        "numbers at equal distances",
    ),
    (
        "meshgrid",
        "tensors:tensors *indexing:ij|xy",
        "torch.meshgrid",
        "each vector as a grid of all of them",
        "several",
    ),
    ("full", f"shape:sizes value:value {_MAKE}", "torch.full", "one value"),
)
