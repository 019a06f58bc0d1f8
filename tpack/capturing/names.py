"""Names of variables, from the lines of the source that a module was captured from."""

from __future__ import annotations

import re
from collections.abc import Collection

from tpack.capturing.aten import naming
from tpack.capturing.aten_rows.shared import KEEPS
from tpack.capturing.graph import INPUT, ITEM, STORED, Value
from tpack.layerdef.names import is_identifier

_TARGETS = re.compile(
    r"\s*(?P<names>[A-Za-z_]\w*(?:\s*,\s*[A-Za-z_]\w*)*)\s*(?::[^=]+)?(?:[-+*/@]|//)?=(?!=)"
)


def targets(line: str) -> tuple[str, ...]:
    """Return the names that a line of source assigns to.

    Example:
        >>> targets("query, _ = self.project(x)"), targets("return x"), targets("f(a=1)")
        (('query', '_'), (), ())
    """
    code = line.rpartition("\n")[2]
    found = _TARGETS.match(code)
    return tuple(re.split(r"\s*,\s*", found["names"])) if found else ()


def is_loop(line: str) -> bool:
    """Return whether a line is the loop of ``nn.Sequential``, which runs once for each layer."""
    return "torch/nn/modules/container.py" in line.replace("\\", "/")


def keeps_name(op: str) -> bool:
    """Return whether the result of an op keeps the name of its operand."""
    return naming(op) == KEEPS


def noun(value: Value) -> str:
    """Return a name for a result that no line names."""
    while keeps_name(value.op) or value.op == ITEM:
        inner = value.args["x"]
        if not isinstance(inner, Value):
            break
        value = inner
        if value.op in (INPUT, STORED):
            return value.name.rpartition(".")[2]
    return naming(value.op) or "hidden"


def free_name(wish: str, taken: Collection[str]) -> str:
    """Return the wished name, changed if it is taken or not an identifier."""
    if not is_identifier(wish):
        wish = f"{wish}_value" if is_identifier(f"{wish}_value") else "value"
    name, number = wish, 1
    while name in taken:
        number += 1
        name = f"{wish}{number}"
    return name
