"""The names of the torch modules that the weights of a graph came from.

Exporters of torch keep the names of parameters, except where they store a weight in another form:
the weight of a linear layer transposed, that of a convolution with a batch norm folded in. Its node
still says which module it belongs to.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from onnx import GraphProto, NodeProto

#: What the operands of a node are called in a torch module, by their position.
OPERANDS: Mapping[str, Mapping[int, str]] = {
    "MatMul": {1: "weight"},
    "Gemm": {1: "weight", 2: "bias"},
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gather": {0: "weight"},
    "LayerNormalization": {1: "weight", 2: "bias"},
    "BatchNormalization": {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"},
    "MatMulNBits": {1: "weight"},
    "GatherBlockQuantized": {0: "weight"},
}
#: Names that the exporters of torch make up.
_MADE_UP = re.compile(r"onnx::\w+_\d+|val_\d+|_val_\d+|t_\d+|\d+")
_SCOPES = "pkg.torch.onnx.name_scopes"
_CALL = "pkg.torch.onnx.fx_node"
_TAKEN = re.compile(r"%(p_\w+)")
_LONGEST = 2000


def torch_names(graph: GraphProto) -> tuple[dict[str, str], list[str]]:
    """Name initializers as the torch modules did that they came from.

    Returns:
        The new name of each initializer whose name an exporter made up, and notes for the report:
        a name that two tensors would have is given to neither.

    Example:
        >>> from onnx import helper, TensorProto
        >>> node = helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["y"], "/net/fc1/MatMul")
        >>> weight = helper.make_tensor("onnx::MatMul_7", TensorProto.FLOAT, [1, 1], [0.5])
        >>> torch_names(helper.make_graph([node], "g", [], [], [weight]))[0]
        {'onnx::MatMul_7': 'net.fc1.weight'}
    """
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {tensor.values.name for tensor in graph.sparse_initializer}
    modules = {module for node in graph.node if (module := module_of(node)) is not None}
    holders = {f"{outer}." for module in modules for outer in _outer(module)}
    wishes: dict[str, str] = {}
    shared: set[str] = set()
    for node in graph.node:
        module = module_of(node)
        for name, role in _operands(node):
            if module is None or name not in stored or not is_made_up(name):
                continue
            last = _parameter(node, module)
            if last is None and f"{module}." not in holders:
                last = role  # a module without others inside has its weight under this name
            if last is None:
                continue
            wish = f"{module}.{last}" if module else last
            if wishes.setdefault(name, wish) != wish:
                shared.add(name)
    counts = Counter(wishes.values())
    found, notes = {}, []
    for name, wish in wishes.items():
        if name in shared:
            continue
        if wish in stored or counts[wish] > 1:
            notes.append(f"{name} keeps its name: another tensor is, or would be, {wish}")
        else:
            found[name] = wish
    return found, notes


def is_made_up(name: str) -> bool:
    """Return whether an exporter of torch made a name up."""
    return _MADE_UP.fullmatch(name) is not None


def module_of(node: NodeProto) -> str | None:
    """Return the path of the torch module that a node came from, ``""`` for the root.

    None if the node does not say.
    """
    for entry in node.metadata_props:
        if entry.key == _SCOPES and len(entry.value) <= _LONGEST:
            return _from_scopes(entry.value)
    if not node.name.startswith("/") or len(node.name) > _LONGEST:
        return None
    *scopes, last = node.name[1:].split("/")
    return _joined(scopes) if last.startswith(node.op_type) else None


def _from_scopes(text: str) -> str | None:
    """Read ``['', 'blocks.0', 'blocks.0.fc', 'linear_1']``: the last is a node, not a module."""
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(scopes, list) or not all(isinstance(one, str) for one in scopes):
        return None
    return scopes[-2] if len(scopes) > 1 else None


def _joined(scopes: list[str]) -> str:
    """Join the parts of a path, of which those in a list repeat the one before.

    Example:
        >>> _joined(["encoder", "layers.0", "layers.0.1"])
        'encoder.layers.0.1'
    """
    path: list[str] = []
    for before, scope in zip(["", *scopes], scopes, strict=False):
        path.append(scope.removeprefix(f"{before}.") if before else scope)
    return ".".join(path)


def _parameter(node: NodeProto, module: str) -> str | None:
    """Return the parameter that a node is said to take from its module, if it is one alone."""
    prefix = "_".join(["p", *filter(None, module.split("."))]) + "_"
    for entry in node.metadata_props:
        if entry.key == _CALL and len(entry.value) <= _LONGEST:
            taken = {name for name in _TAKEN.findall(entry.value) if name.startswith(prefix)}
            taken -= {name for name in taken if name.endswith("_bias")}
            return taken.pop().removeprefix(prefix) if len(taken) == 1 else None
    return None


def _outer(module: str) -> Iterator[str]:
    """Yield the modules that hold a module: all beginnings of its path."""
    if module:
        yield ""
    parts = module.split(".")
    for end in range(1, len(parts)):
        yield ".".join(parts[:end])


def _operands(node: NodeProto) -> Iterator[tuple[str, str]]:
    for place, role in OPERANDS.get(node.op_type, {}).items():
        if place < len(node.input) and node.input[place]:
            yield node.input[place], role
