"""Write a checkpoint for other systems, one module a target."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tpack.container import Checkpoint
from tpack.errors import UsageError, locate

if TYPE_CHECKING:
    from tpack.exporting.gguf import GgufReport
    from tpack.exporting.hf_bitnet import HfBitnetReport

__all__ = ["TARGETS", "export"]

TARGETS = ("hf-bitnet", "gguf")


def export(
    path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    to: str = "gguf",
    *,
    type: str = "auto",  # noqa: A002  # GGUF calls it so
    allow_inexact: bool = False,
    force: bool = False,
) -> GgufReport | HfBitnetReport:
    """Write a checkpoint in the dialect of another system.

    Args:
        path: of a tpack file or folder.
        destination: a file for ``gguf``, a folder for ``hf-bitnet``.
        to: ``gguf`` or ``hf-bitnet``.
        type: of GGUF's blocks: ``auto``, ``tq1_0``, ``tq2_0`` or ``q2_0``.
        allow_inexact: for ``gguf``: round scales that float16 cannot hold, and write weights that
            fit into no blocks as floats.
        force: replace an existing output.

    Raises:
        UsageError: an unknown target, or an option that it does not have.
        UnsupportedError: something that the dialect cannot say, with its name.
        TpackError: as ``Checkpoint``, ``new_file`` and ``new_folder``.
    """
    if to not in TARGETS:
        raise UsageError(f"target {to!r} is unknown, expected {' or '.join(TARGETS)}.")
    if to == "hf-bitnet" and (type != "auto" or allow_inexact):
        raise UsageError("type and allow_inexact belong to gguf: hf-bitnet is exact or refused.")
    with Checkpoint(path) as checkpoint, locate(file=path):
        if to == "gguf":
            from tpack.exporting.gguf import export_gguf

            return export_gguf(
                checkpoint, destination, type=type, allow_inexact=allow_inexact, force=force
            )
        from tpack.exporting.hf_bitnet import export_hf_bitnet

        return export_hf_bitnet(checkpoint, destination, force=force)
