"""The calls of torch modules that a node of an exported graph came from."""

from __future__ import annotations

import ast
import re
from itertools import accumulate

from onnx import NodeProto

from tpack.sources.onnx_files.names import module_of

_CLASSES = "pkg.torch.onnx.class_hierarchy"
_SCOPES = "pkg.torch.onnx.name_scopes"
#: What a call is said to be of where the graph does not name the class.
_UNKNOWN = "torch.nn.Module"
_CALL = re.compile(r"(.+?)@(\d+)")


def calls_of(node: NodeProto) -> tuple[tuple[str, int, str], ...]:
    """Return the calls around a node below the root: path, number of the call, class.

    Example:
        >>> from onnx import helper
        >>> calls_of(helper.make_node("Relu", ["x"], ["y"], "/net/net.1/Relu"))
        (('net', 0, 'torch.nn.Module'), ('net.1', 0, 'torch.nn.Module'))
    """
    props = {entry.key: entry.value for entry in node.metadata_props}
    scopes, classes = (_words(props.get(key, "")) for key in (_SCOPES, _CLASSES))
    if scopes is not None:
        found = []
        kinds = classes if classes is not None and len(classes) == len(scopes) else []
        for i, scope in enumerate(scopes[:-1]):
            if scope:
                call = _CALL.fullmatch(scope)
                path, number = (call[1], int(call[2])) if call else (scope, 0)
                found.append((path, number, kinds[i] if kinds else _UNKNOWN))
        return tuple(found)
    module = module_of(node)
    if not module:
        return ()
    paths = accumulate(module.split("."), lambda above, name: f"{above}.{name}")
    return tuple((path, 0, _UNKNOWN) for path in paths)


def root_class(node: NodeProto) -> str:
    """Return the class of the whole model, if the node says it; else ``""``."""
    props = {entry.key: entry.value for entry in node.metadata_props}
    scopes, classes = (_words(props.get(key, "")) for key in (_SCOPES, _CLASSES))
    if scopes and classes and len(scopes) == len(classes) and scopes[0] == "":
        return classes[0].rpartition(".")[2]
    return ""


def _words(text: str) -> list[str] | None:
    """Read a list of texts."""
    try:
        found = ast.literal_eval(text) if 0 < len(text) < 4000 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    whole = isinstance(found, list) and all(isinstance(one, str) for one in found)
    return found if whole else None
