"""Find the layers of a model whose ``weight`` its code reads, instead of only calling them.

T5 asks a weight for its dtype, Mamba multiplies with a weight itself. Their layers need a packed
form that has a ``weight``. They are found in the compiled methods of the model's classes, as two
attributes that are read in a row, the second of which is ``weight``. A layer that is found by
mistake also runs with that form.
"""

from __future__ import annotations

import dis
import inspect

from torch import nn


def read_directly(model: nn.Module) -> set[str]:
    """Return the paths of layers whose weight is read outside of them."""
    read = {kind: _names_read(kind) for kind in {type(module) for module in model.modules()}}
    found = set()
    for path, module in model.named_modules():
        if names := read[type(module)]:
            for inner, _ in module.named_modules():
                if inner.rpartition(".")[2] in names:
                    found.add(f"{path}.{inner}" if path else inner)
    return found


def _names_read(kind: type[nn.Module]) -> set[str]:
    """Return the attributes whose ``weight`` the methods of a class of a model read."""
    found = set()
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        code = inspect.unwrap(method)
        if name == "_init_weights" or not inspect.isfunction(code) or _is_torch(code.__module__):
            continue
        last = ""
        for step in dis.get_instructions(code):
            read = str(step.argval) if step.opname in ("LOAD_ATTR", "LOAD_METHOD") else ""
            if read == "weight" and last:
                found.add(last)
            last = read
    return found


def _is_torch(module: str) -> bool:
    return module.partition(".")[0] == "torch"
