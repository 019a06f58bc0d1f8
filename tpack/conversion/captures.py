"""Capture what a source computes, if it is a module or its export and not a state dict."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpack.container.kinds import kind_of
from tpack.container.opening import input_errors
from tpack.describing import Description
from tpack.errors import InputError, LayerDefError, UsageError, locate
from tpack.sources import PackedTensor

if TYPE_CHECKING:
    from tpack.capturing import Captured
    from tpack.layerdef import Program
    from tpack.sources import Source


#: Why a weight is kept that forward rounds, or measures, by a rule that tpack does not know.
OWN_RULE = "forward rounds it by a rule of its own"


def captured(
    source: Any,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> Captured | None:
    """Capture a source and compare its results; None if the source only holds tensors.

    Raises:
        LayerDefError: the source cannot be captured, or the capture gives other results.
        UsageError: example arguments are given, but the source is not a module.
    """
    if isinstance(source, str | os.PathLike):
        if args is not None or kwargs is not None:
            raise UsageError("example_args are for an nn.Module, but the source is a path.")
        path = Path(source)
        if not path.is_file() or not _is_exported(path):
            return None
        from tpack.capturing import trace
        from tpack.sources.exported import load_exported

        with locate(file=path), input_errors():
            return _compared(trace(load_exported(path)))
    if args is None and kwargs is None:
        return None
    if isinstance(source, Mapping):
        raise UsageError("example_args are for an nn.Module, but the source is a state dict.")
    from tpack.capturing import trace_module

    return _compared(trace_module(source, args, kwargs, dynamic_shapes))


def own_program(source: Any, opened: Source) -> Program | None:
    """Return the LayerDefs that a packed module has: built from them, or an instance of theirs.

    None if it has no packed weight, or computes what cannot be read from its code.
    """
    if opened.path is not None or isinstance(source, str | os.PathLike | Mapping):
        return None
    if not any(isinstance(tensor, PackedTensor) for tensor in opened.tensors.values()):
        return None
    from tpack.capturing.built import unchanged_program
    from tpack.readback import read_program

    try:
        return unchanged_program(source) or read_program(source)
    except LayerDefError:
        return None


def captured_graph(source: Source) -> Captured | None:
    """Capture the graph that the file of a source has, and compare its results.

    None if it has none, or one that LayerDef cannot express: a note says why.
    """
    if source.graph is None:
        return None
    from tpack.capturing.onnx_graphs import trace_onnx

    try:
        return _compared(trace_onnx(source.graph, source.tensors))
    except LayerDefError as error:
        reason = str(error)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  # a graph may be anything, and so what torch raises
        reason = f"{type(error).__name__} in tracing it: {error!s:.200}"
    source.notes.append(f"the graph is not captured: {reason}")
    return None


def _is_exported(path: Path) -> bool:
    kind = kind_of(path)
    return kind is not None and kind.name == "exported program"


def _compared(trace: Captured) -> Captured:
    trace.notes = (*trace.notes, trace.compare())
    return trace


def packed_note(trace: Captured, description: Description) -> list[str]:
    """Run the packed model on the arguments of the capture, and note how its results differ.

    Raises:
        LayerDefError: they differ, though no weight was rounded that the source does not round.
    """
    assert description.program is not None  # the trace has one
    known = {*trace.rounded, *trace.packed}
    lossy = [
        name
        for name, one in description.tensors.items()
        if one.entry is not None and one.entry.method != "exact" and name not in known
    ]
    note = trace.compare_packed(description.program, description.pieces(), lossy=len(lossy))
    return [note] if note else []
