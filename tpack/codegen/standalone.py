"""The definitions of ``tpack.nn`` that standalone source needs, word for word.

They are cut out of the package's own files as text, by parsing and not by importing them, so
that generating source needs no torch.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.resources import files

_FILES = ("reference.py", "modules.py", "caching.py")


@cache
def _catalogue() -> dict[str, tuple[str, frozenset[str]]]:
    """Return every definition by name, in order: its text, and the names in it."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for file in _FILES:
        text = (files("tpack.nn") / file).read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if name := _defined(node):
                source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                found[name] = (source, frozenset(names))
    return found


def _defined(node: ast.stmt) -> str:
    """Return the name of what a statement defines; empty if it defines nothing."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
        case _:
            return ""


def definitions(names: set[str]) -> str:
    """Return the text of definitions and of all that they use, in the order of their files."""
    catalogue = _catalogue()
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in catalogue and name not in wanted:
            wanted.add(name)
            waiting += catalogue[name][1]
    return "\n\n\n".join(text for name, (text, _) in catalogue.items() if name in wanted)
