"""LayerDefs from a file, for a checkpoint that does not describe its model."""

from __future__ import annotations

import os
from pathlib import Path

from tpack.container import parse_json
from tpack.container.document import MAX_NESTING
from tpack.container.header import MAX_HEADER
from tpack.container.opening import read_whole
from tpack.errors import locate
from tpack.layerdef import LayerDef, Program, as_program


def read_layerdef(layerdef: LayerDef | Program | str | os.PathLike[str]) -> Program:
    """Read and validate a program, from a tree or from the path of its JSON.

    Raises:
        InputError: the file is missing or malformed.
        LayerDefError: the tree is malformed.
    """
    if isinstance(layerdef, LayerDef | Program):
        return as_program(layerdef)
    path = Path(layerdef)
    with locate(file=path):
        text = read_whole(path, MAX_HEADER, "R3")
        data = parse_json(text, "R3", "LayerDef", MAX_NESTING)
        is_program = isinstance(data, dict) and "layers" in data
        tree = Program.from_dict(data) if is_program else LayerDef.from_dict(data)
        return as_program(tree)
