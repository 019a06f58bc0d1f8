"""From a checkpoint's program to an ONNX graph: torch.onnx translates it.

Keys and values of earlier tokens are inputs and outputs of the graph, since nothing that a graph
changes in place outlives a run.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnxscript
import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.export import Dim

from tpack.capturing.torch_export import quiet
from tpack.errors import UnsupportedError
from tpack.exporting.onnx.forms import Form, translations
from tpack.exporting.onnx.signature import Signature, tensors_of
from tpack.layerdef.nodes import Sizes
from tpack.nn import KeyValueCache

#: The opset of ONNX that is written: the oldest whose operators serve, for the oldest runtimes.
OPSET = 20
#: Tokens in the cache in the trace: a size of its own.
_PAST = 11
_OP = onnxscript.opset20


class _Past(KeyValueCache):
    """The cache of some layers, or of one, as tensors that no op changes."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.tokens = keys, values, keys.size(-2)

    def length(self) -> int:
        return self.tokens

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys = torch.cat((self.keys, keys), -2)
        self.values = torch.cat((self.values, values), -2)
        return self.keys, self.values


class _Stateless(nn.Module):
    """A model whose arguments and results are tensors only, the cache among them."""

    def __init__(self, model: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.model, self.signature = model, signature

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(self.signature.inputs)
        given: dict[str, Any] = dict(zip(self.signature.inputs, tensors[:count], strict=True))
        pairs = zip(tensors[count::2], tensors[count + 1 :: 2], strict=True)
        layers = [_Past(keys, values) for keys, values in pairs]
        if self.signature.cache is not None and layers:
            past = given[self.signature.cache] = _Past(layers[0].keys, layers[0].values)
            past.layers.update(zip(self.signature.layers, layers, strict=True))
        results = tensors_of(self.model(**given))
        return (*results, *(each for layer in layers for each in (layer.keys, layer.values)))


def trace(module: nn.Module, signature: Signature, form: Form) -> ir.Model:
    """Translate a loaded model.

    Returns:
        the graph, whose initializers are the model's own tensors, by their names.

    Raises:
        UnsupportedError: torch.onnx has no form for an op, or fixes a size that is free.
    """
    shapes = signature.examples[0]
    tensors = [torch.zeros(shapes[name], dtype=each) for name, each in signature.inputs.items()]
    sizes = list(signature.sizes.values())
    for shape, dtype in signature.held:
        tensors.append(torch.zeros((*shape[:-2], _PAST, shape[-1]), dtype=dtype))
        sizes.append((signature.sizes[next(iter(signature.inputs))][0], shape[1], "past", shape[3]))
    with torch.no_grad(), quiet(), _silent():
        exported = torch.export.export(
            _Stateless(module, signature).eval(),
            tuple(tensors),
            dynamic_shapes={"tensors": tuple(map(_free, sizes))},
            strict=False,
        )
        model = _translated(exported, signature)
        form.expand(model)
    _name_sizes(model.graph, sizes)
    return model


def _free(sizes: Sizes) -> dict[int, Any]:
    return {i: Dim.AUTO for i, size in enumerate(sizes) if isinstance(size, str)}


def _translated(exported: Any, signature: Signature) -> ir.Model:
    try:
        made = torch.onnx.export(
            exported,
            dynamo=True,
            verbose=False,
            optimize=False,
            opset_version=OPSET,
            input_names=[*signature.inputs, *signature.past()],
            output_names=[*signature.outputs, *signature.present()],
            custom_translation_table={
                torch.ops.aten.__rshift__.Tensor: _shift,
                **translations(),
            },
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UnsupportedError(_why(error)) from error
    assert made is not None
    _optimize(made)
    model: ir.Model = made.model
    for name, value in list(model.graph.initializers.items()):
        value.name = name.removeprefix("model.")
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # the lines of code that it came from
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    return model


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what torch.onnx and its libraries say of their own work to them."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _optimize(made: Any) -> None:
    """Simplify a graph without its weights: what is folded here would not stay packed."""
    initializers = made.model.graph.initializers
    kept = {}
    for name, value in initializers.items():
        kept[name], value.const_value = value.const_value, None
    made.optimize()
    for name, value in made.model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = kept[name]


def _shift(x: Any, places: Any) -> Any:
    return _OP.BitShift(x, places, direction="RIGHT")


def _why(error: BaseException) -> str:
    """Return the first cause of an error of torch.onnx in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"cannot be written as ONNX: {str(error).splitlines()[0]}"


def _name_sizes(graph: ir.Graph, sizes: Sequence[Sizes]) -> None:
    """Give free sizes the names that the program has for them.

    Raises:
        UnsupportedError: torch.export fixed one.
    """
    names: dict[str, str] = {}
    for value, wanted in zip(graph.inputs, sizes, strict=True):
        for found, name in zip(value.shape or (), wanted, strict=True):
            if not isinstance(name, str):
                continue
            if isinstance(found, int):
                raise UnsupportedError(
                    f"{value.name}: torch.export fixes {name} at {found}, but the program leaves "
                    "it free."
                )
            if name not in names.values():
                names.setdefault(str(found.value), name)
    values = [*graph.inputs, *graph.outputs]
    values += [value for node in graph.all_nodes() for value in node.outputs]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _renamed(dim: Any, names: dict[str, str]) -> Any:
    if isinstance(dim, int) or dim.value is None:
        return dim
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(dim.value))
