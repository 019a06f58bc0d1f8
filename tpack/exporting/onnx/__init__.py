"""Write a checkpoint as an ONNX model for ONNX Runtime, with its weights in two bits.

``widening`` makes a program that computes in float32, ``signature`` finds its inputs, and
``tracing`` has torch.onnx translate it, with the packed layers as ``forms`` computes them.
``weights`` and ``files`` write the graph with the tensors as stored, ``running`` runs it in ONNX
Runtime beside the packed model, and ``writing`` puts it together.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tpack.container import Checkpoint
from tpack.container.atomic import check_not_input, check_target
from tpack.errors import LayerDefError, UnsupportedError, UsageError, locate
from tpack.exporting.report import ExportReport

#: What has to be installed.
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(
    checkpoint: Checkpoint,
    destination: str | os.PathLike[str],
    *,
    force: bool = False,
    form: str = "exact",
) -> ExportReport:
    """Write an ONNX model, and beside it a file ``<name>.data`` if its weights are large.

    Args:
        checkpoint: whose LayerDefs have a forward.
        destination: of the model, called ``*.onnx``.
        force: replace an existing model.
        form: ``exact`` computes in float32; ``fast`` lets activations be rounded to eight bits.

    Raises:
        UsageError: a destination with another suffix.
        LayerDefError: no complete program.
        UnsupportedError: an op that torch.onnx has no form for; a package that is missing or too
            old; results that ONNX Runtime computes differently.
        ExistsError, StorageError: as ``new_file``.
    """
    target = Path(destination)
    check_not_input(target, checkpoint.path)
    if target.suffix.lower() != ".onnx":
        raise UsageError(
            f"output {os.fspath(destination)!r} has suffix {target.suffix!r}, expected .onnx."
        )
    for path in (target, target.with_name(f"{target.name}.data")):
        check_target(path, force=force)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UnsupportedError(
            f"export to onnx needs {missing[0]}, which is not installed. Install it: "
            'pip install "tpack-ternary[onnx]".'
        )
    if checkpoint.document.program is None:
        raise LayerDefError("has no LayerDefs, so that nothing tells what it computes.")
    writing = import_module("tpack.exporting.onnx.writing")
    with locate(file=checkpoint.path):
        report: ExportReport = writing.write(checkpoint, target, force=force, form=form)
    return report
