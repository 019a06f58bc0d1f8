"""What a source computes, where it is more than a state dict: a module, or its export."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpack.container.opening import input_errors
from tpack.conversion.options import Options
from tpack.conversion.plan import make_plan
from tpack.errors import UsageError, locate
from tpack.layerdef import Program
from tpack.sources import Source

if TYPE_CHECKING:
    from tpack.tracing import Captured


#: Why a weight that forward rounds or measures by a rule that tpack has not is kept.
OWN_RULE = "forward rounds it by a rule of its own"


def captured(
    source: Any,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> Captured | None:
    """The trace of a source; None for one that only holds tensors.

    Raises:
        UsageError: example arguments for a source that is no module.
    """
    if isinstance(source, str | os.PathLike):
        if args is not None or kwargs is not None:
            raise UsageError("example_args are for an nn.Module, but the source is a path.")
        path = Path(source)
        if path.suffix != ".pt2" or not path.is_file():
            return None
        from tpack.sources.exported import load_exported
        from tpack.tracing import trace

        with locate(file=path), input_errors():
            return trace(load_exported(path))
    if args is None and kwargs is None:
        return None
    if isinstance(source, Mapping):
        raise UsageError("example_args are for an nn.Module, but the source is a state dict.")
    from tpack.tracing import trace_module

    return trace_module(source, args or (), kwargs, dynamic_shapes)


def captured_program(trace: Captured, source: Source, options: Options) -> Program:
    """The LayerDefs of a trace, in which the weights that the options pack are ternary."""
    weights = make_plan(source, options, None).weights
    return trace.program({*weights, *trace.rounded} - trace.measured)
