"""Put a model together: trace, write, run, and only then give it its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
from onnxscript import ir

import tpack
from tpack.checkpoint import check_whole, map_tensors
from tpack.container import Checkpoint, new_file
from tpack.container.atomic import publish, storage_errors, sync_folder
from tpack.container.header import lay_out
from tpack.exporting.onnx.files import Weights
from tpack.exporting.onnx.forms import Form
from tpack.exporting.onnx.running import Comparison, compare
from tpack.exporting.onnx.signature import signature_of
from tpack.exporting.onnx.tracing import trace
from tpack.exporting.onnx.weights import use_stored
from tpack.exporting.onnx.widening import wide_module, widened
from tpack.exporting.report import ExportedTensor, ExportReport
from tpack.sources.carried import DESCRIPTION, METADATA
from tpack.text import listed


def write(checkpoint: Checkpoint, target: Path, *, force: bool, form: str) -> ExportReport:
    """Write a model and its weights; see ``export_onnx``."""
    assert checkpoint.document.program is not None
    check_whole(checkpoint)
    program = widened(checkpoint.document.program)
    tensors = dict(map_tensors(checkpoint))
    module = wide_module(program, tensors, values=False)
    signature = signature_of(module)
    chosen = Form(fast=form == "fast")
    model = trace(module, signature, chosen)
    data = f"{target.name}.data"
    weights = Weights(checkpoint, data)
    with storage_errors(target), TemporaryDirectory(dir=target.parent, prefix=".tpack-") as place:
        folder = Path(place)
        unused = use_stored(model.graph, weights.tensors(folder))
        model.metadata_props.update(_description(checkpoint))
        model.producer_name, model.producer_version = "tpack", tpack.__version__
        size = weights.write(folder)
        with new_file(folder / target.name) as file:
            size += file.write(ir.to_proto(model).SerializeToString(deterministic=True))
        found = compare(
            folder / target.name, wide_module(program, tensors, values=True), signature, chosen
        )
        if weights.beside:
            publish(folder / data, target.with_name(data), force=force)
        publish(folder / target.name, target, force=force)
        sync_folder(target.parent)
    return ExportReport(
        "onnx",
        str(target),
        size,
        tuple(_rows(checkpoint)),
        tuple(_notes(chosen, found, unused, data if weights.beside else "")),
        {
            "form": form,
            "nodes": chosen.counts,
            "difference": found.difference,
            "largest": found.largest,
        },
    )


def _description(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what makes the checkpoint again: its description as that of one file, and metadata."""
    entries = lay_out((one.name, one.dtype, one.shape) for one in checkpoint.entries.values())
    document = checkpoint.document
    more = {key: checkpoint.metadata[key] for key in document.metadata}
    found = {DESCRIPTION: document.to_json(entries)}
    return found | ({METADATA: json.dumps(more, sort_keys=True)} if more else {})


def _rows(checkpoint: Checkpoint) -> Iterator[ExportedTensor]:
    for name, entry in checkpoint.ternary():
        yield ExportedTensor(f"{name}_packed", name, f"uint8 of {entry.layout}", entry.shape)
    for name in checkpoint.document.kept:
        kept = checkpoint.entries[name]
        yield ExportedTensor(name, name, kept.dtype, kept.shape)


def _notes(form: Form, found: Comparison, unused: list[str], data: str) -> Iterator[str]:
    if data:
        yield f"the weights are in {data}, which belongs beside the model"
    yield (
        f"run in onnxruntime {onnxruntime.__version__}: differs from the packed model by "
        f"{found.difference:.2g} at most, where the largest result is {found.largest:.3g}"
    )
    if form.fast and not form.counts.get("MatMulNBits"):
        yield "no layer has a fast form: the model computes as that of form exact"
    if unused:
        yield f"{listed(unused)}: kept for a way back, but used by no node"
