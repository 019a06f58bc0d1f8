"""Run torch.export on a module, and note the names of the arguments of each call."""

from __future__ import annotations

import gc
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from tpack.capturing.failures import explained
from tpack.capturing.marks import Marked
from tpack.errors import LayerDefError, UsageError

#: Key in ``meta["custom"]`` of a node for the names of its value in calls of modules.
NOTES = "tpack"
#: Loggers of torch that tell of what is raised, or tried in vain, while it traces.
_TALKERS = (
    "torch.fx.experimental.symbolic_shapes",
    "torch._subclasses.fake_tensor",
    "torch._dynamo",
    "torch._export",
    "torch.export",
)
#: Prefix of the notes on results: the position of a value in the result of a module.
RESULT = ">"


def export(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> ExportedProgram:
    """Trace a module in eval mode without decomposing its ops.

    Args:
        dynamic_shapes: as ``torch.export.export`` takes it; None makes the first dim of each
            tensor free, and of matrices of integers the second.

    Raises:
        LayerDefError: torch cannot trace it.
        UsageError: it is in training mode.
    """
    if module.training:
        raise UsageError("capture needs a module in eval mode. Call module.eval() first.")
    given = dict(kwargs or {})
    shapes = _shapes(module, args, given, dynamic_shapes)
    with _noted(module), _without_sorting(module), _without_collecting(), quiet(), Marked():
        try:
            return torch.export.export(
                module, tuple(args), given, dynamic_shapes=shapes, strict=False
            )
        except Exception as error:  # the code of the module may raise anything
            raise LayerDefError(
                f"torch.export cannot trace {type(module).__name__}: {explained(error)}"
            ) from error


def guards(program: ExportedProgram) -> tuple[sympy.Basic, ...]:
    """Return what was true of the free sizes wherever the trace depends on them."""
    for node in program.graph.nodes:
        for size in getattr(node.meta.get("val"), "shape", ()):
            if isinstance(size, torch.SymInt):
                return tuple(guard.expr for guard in size.node.shape_env.guards)
    return ()


def has_ranges(shapes: Any) -> bool:
    """Return whether dynamic shapes name sizes, whose ranges are what the user asks for."""
    if isinstance(shapes, Mapping):
        return any(map(has_ranges, shapes.values()))
    if isinstance(shapes, tuple | list):
        return any(map(has_ranges, shapes))
    return shapes is not None and shapes not in (Dim.AUTO, Dim.DYNAMIC, Dim.STATIC)


def fixed_sizes(
    program: ExportedProgram,
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> list[str]:
    """Make a note for each size that was to be free if possible, and is not.

    Args:
        program: the result of ``export`` for the other arguments.
    """
    given = dict(kwargs or {})
    shapes = _shapes(module, args, given, dynamic_shapes)
    names = bound_arguments(module, args, given)
    if not isinstance(shapes, Mapping):
        shapes = dict(zip(names, shapes, strict=False))
    wanted = [item for name in names for item in _wanted(name, names[name], shapes.get(name))]
    inputs = {
        node.name: node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
    }
    return [
        f"input {name}: dim {dim} is {inputs[name][dim]} in all that was captured, {_reason(size)}"
        for name, dim, size in wanted
        if name in inputs and _is_fixed(inputs[name][dim])
    ]


def _is_fixed(size: int | torch.SymInt) -> bool:
    return isinstance(size, int) or bool(size.node.expr.is_number)


def _reason(size: int) -> str:
    if size == 1:
        return "since torch takes a size of 1 as meant. Give an example with another size."
    return "since the computation holds for no other size."


def _wanted(name: str, value: Any, spec: Any) -> Iterator[tuple[str, int, int]]:
    """Yield the dims of an argument that are to be free if possible, with their sizes."""
    if isinstance(value, Tensor):
        dims = spec.items() if isinstance(spec, Mapping) else enumerate(spec or ())
        for dim, size in dims:
            if size == Dim.AUTO:
                yield name, dim, value.shape[dim]
    elif spec is not None and isinstance(value, Mapping | tuple | list):
        keys = value if isinstance(value, Mapping) else range(len(value))
        for key in keys:
            yield from _wanted(f"{name}_{key}", value[key], spec[key])


def _shapes(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Any) -> Any:
    """Return the free sizes, for torch.export; tpack chooses them if ``shapes`` is None."""
    if shapes is None:
        return {name: _free(value) for name, value in bound_arguments(module, args, kwargs).items()}
    return _complete(module, args, kwargs, shapes)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Look for no garbage meanwhile, which takes a sixth of the time of a long trace."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's messages on its own tracing; errors have the facts that matter.

    torch prints the whole graph so far to stderr if it fails. What is written to stderr in a trace
    that succeeds, by the module itself, is written on.
    """
    held = io.StringIO()
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(held):
            warnings.simplefilter("ignore")
            yield
        sys.stderr.write(held.getvalue())
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _without_sorting(module: nn.Module) -> Iterator[None]:
    """Let the experts of transformers' models compute by products of batches.

    Their other ways, which give the same to rounding, sort the tokens by expert or loop over
    the experts that got any, which LayerDef cannot express.
    """
    configs = [config for child in module.modules() if (config := getattr(child, "config", None))]
    before = {id(c): (c, c._experts_implementation) for c in configs if hasattr(c, _EXPERTS)}  # noqa: SLF001
    for config, _ in before.values():
        setattr(config, _EXPERTS, "batched_mm")
    try:
        yield
    finally:
        for config, implementation in before.values():
            setattr(config, _EXPERTS, implementation)


#: The attribute of a config of transformers for how experts are computed.
_EXPERTS = "_experts_implementation"


def bound_arguments(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments by name; ``*args`` are a tuple and ``**kwargs`` a dict, for torch."""
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(f"{type(module).__name__}.forward: {error}.") from error
    return dict(bound.arguments)


def _free(value: Any) -> Any:
    """Return the free sizes of one argument: the batch, and the length of token sequences."""
    if isinstance(value, Tensor):
        rank = value.dim()
        dims = {0: Dim.AUTO} if rank else {}
        if rank == 2 and not value.dtype.is_floating_point:
            dims[1] = Dim.AUTO
        return dims
    if isinstance(value, tuple | list):
        return _like(value, map(_free, value))
    if isinstance(value, dict):
        return {name: _free(item) for name, item in value.items()}
    return None


def _like(value: Any, items: Iterator[Any]) -> Any:
    """Return a list, tuple or named tuple of the kind of another."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _complete(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Any
) -> Any:
    """Complete a dict of shapes with the arguments that it leaves out, as fixed."""
    if not isinstance(shapes, Mapping):
        return shapes
    names = bound_arguments(module, args, kwargs)
    if unknown := sorted(set(shapes) - set(names)):
        raise UsageError(
            f"dynamic_shapes names {unknown[0]!r}, expected one of {', '.join(names)}."
        )
    return {name: shapes.get(name, _fixed(value)) for name, value in names.items()}


def _fixed(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return _like(value, map(_fixed, value))
    return {name: _fixed(item) for name, item in value.items()} if isinstance(value, dict) else None


@contextmanager
def _noted(module: nn.Module) -> Iterator[None]:
    """While tracing, write on each value its names in the modules that take it."""
    handles = []
    for path, child in module.named_modules():
        handles.append(child.register_forward_pre_hook(_noting(path), with_kwargs=True))
        handles.append(child.register_forward_hook(_noting_results(path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noting(path: str) -> Any:
    def note(child: nn.Module, args: Any, kwargs: Any) -> None:
        try:
            bound = inspect.signature(child.forward).bind(*args, **kwargs)
        except (TypeError, ValueError):
            return
        for name, value in bound.arguments.items():
            for i, item in enumerate(value if isinstance(value, tuple | list) else [value]):
                _write(item, path, name if item is value else f"{name}.{i}")

    return note


def _noting_results(path: str) -> Any:
    def note(child: nn.Module, args: Any, result: Any) -> None:  # noqa: ARG001
        items = tuple(result.values()) if isinstance(result, Mapping) else result
        for i, item in enumerate(items if isinstance(items, tuple | list) else [items]):
            _write(item, f"{RESULT}{path}", str(i))

    return note


def _write(value: Any, key: str, note: str) -> None:
    """Write a note on the node of a tensor that is being traced."""
    mode = get_proxy_mode()
    if mode is None or not isinstance(value, Tensor):
        return
    proxy = mode.tracer.tensor_tracker.get(value)
    if proxy is not None:
        custom = proxy.proxy.node.meta.setdefault("custom", {})
        custom.setdefault(NOTES, {})[key] = note
