"""Programs that ``torch.export.save`` wrote: ``.pt2`` files."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from torch.export import ExportedProgram

from tpack.container.opening import open_input
from tpack.errors import InputError
from tpack.options import Reading
from tpack.sources.archive import Archive, archive_of
from tpack.sources.source import Source
from tpack.sources.torch_source import state_dict_source

_LOGGER = logging.getLogger("torch.export")


def load_exported(path: Path) -> ExportedProgram:
    """Load an exported program.

    torch evaluates the expressions for sizes that such a file holds: open only files whose
    origin you trust.

    Raises:
        InputError: it is none, or is damaged.
    """
    with open_input(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has opinions on its own formats
        archive = archive_of(file.fileno())
        if archive is not None:
            archive.check_all(_tensors(archive))
        _LOGGER.addFilter(_drop)  # it logs the traceback of what is raised here
        try:
            program: ExportedProgram = torch.export.load(file)
        except Exception as error:  # damaged, it fails wherever torch first stumbles
            raise InputError(
                "is not a program saved by torch.export.save, or is damaged. Save it again."
            ) from error
        finally:
            _LOGGER.removeFilter(_drop)
    return program


def _drop(_: logging.LogRecord) -> bool:
    return False


def _tensors(archive: Archive) -> dict[str, str]:
    """Map each record to the name of the tensor in it, for messages."""
    found = {}
    for record in archive.names:
        place, _, name = record.rpartition("/")
        if name in ("model_weights_config.json", "model_constants_config.json"):
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                for tensor, entry in json.loads(archive.read(record))["config"].items():
                    found[f"{place}/{entry['path_name']}"] = tensor
    return found


def exported_source(path: Path, _: Reading = Reading()) -> Source:  # noqa: B008  # frozen
    """Return the state dict of an exported program as a source.

    Raises:
        InputError: it is not an exported program, or holds no tensors.
    """
    source = state_dict_source(load_exported(path).state_dict, str(path))
    source.files = (path,)
    source.nbytes = path.stat().st_size
    return source
