"""LayerDef: the description of a layer as data.

A small tree with a closed table of ops. It is stored in a checkpoint's metadata and read in
two ways: ``build`` makes a live module of it, ``codegen`` prints source. Needs no torch.
"""

from tpack.layerdef.from_names import mirror
from tpack.layerdef.lowering import Lowered, lower
from tpack.layerdef.nodes import (
    Assignment,
    BinaryOp,
    Dict,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Sizes,
    Statement,
    Tuple,
    UnaryOp,
    Unpack,
    Unspecified,
)
from tpack.layerdef.ops import OPS
from tpack.layerdef.tensors import Slot, slots
from tpack.layerdef.validation import as_program, validate

__all__ = [
    "OPS",
    "Assignment",
    "BinaryOp",
    "Dict",
    "Expression",
    "FunctionCall",
    "Identifier",
    "LayerCall",
    "LayerDef",
    "Literal",
    "Lowered",
    "Param",
    "Program",
    "Return",
    "Sizes",
    "Slot",
    "Statement",
    "Tuple",
    "UnaryOp",
    "Unpack",
    "Unspecified",
    "as_program",
    "lower",
    "mirror",
    "slots",
    "validate",
]
