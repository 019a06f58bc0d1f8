"""The tensors of a checkpoint that hold blocks of a GGUF file byte for byte."""

from __future__ import annotations

from tpack.container import Checkpoint, parse_json
from tpack.dialects.gguf_quants import QUANTS, Quant
from tpack.errors import InputError


def kept_blocks(file: Checkpoint) -> dict[str, Quant]:
    """Return the format of kept tensors that are blocks, by name.

    Such a tensor is uint8 ``(..., bytes per row)``, and the metadata of its GGUF file names its
    type; a tensor that was kept by its values is a float.

    Raises:
        FormatError, InputError: malformed metadata of GGUF.
    """
    carried = file.metadata.get("gguf")
    if carried is None:
        return {}
    data = parse_json(carried.encode(), "R7", "GGUF metadata")
    try:
        kinds = {str(name): str(kind) for _, name, kind in data["tensors"]}
    except (TypeError, ValueError, KeyError) as error:
        raise InputError("has malformed GGUF metadata. Convert the GGUF file again.") from error
    quants = {quant.name: quant for quant in QUANTS.values()}
    found = {}
    for name in file.document.kept:
        entry, quant = file.entries[name], quants.get(kinds.get(name, ""))
        if quant is not None and entry.dtype == "uint8" and entry.shape:
            if entry.shape[-1] % quant.nbytes:
                raise InputError(
                    f"has rows of {entry.shape[-1]} bytes, expected a multiple of {quant.nbytes} "
                    f"in {quant.name}. Convert the GGUF file again.",
                    tensor=name,
                )
            found[name] = quant
    return found
