"""Programs that ``torch.export.save`` wrote: ``.pt2`` files."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch.export import ExportedProgram

from tpack.container.opening import open_input
from tpack.errors import InputError
from tpack.sources.source import Source
from tpack.sources.torch_source import state_dict_source


def load_exported(path: Path) -> ExportedProgram:
    """Load an exported program.

    torch evaluates the expressions for sizes that such a file holds: open only files whose
    origin you trust.

    Raises:
        InputError: it is none, or is damaged.
    """
    with open_input(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has opinions on its own formats
        try:
            program: ExportedProgram = torch.export.load(file)
        except Exception as error:  # damaged, it fails wherever torch first stumbles
            raise InputError("is not a program saved by torch.export.save.") from error
    return program


def exported_source(path: Path) -> Source:
    """The state dict of an exported program as a source.

    Raises:
        InputError: it is no exported program, or holds no tensors.
    """
    source = state_dict_source(load_exported(path).state_dict, str(path))
    source.files = (path,)
    source.nbytes = path.stat().st_size
    return source
