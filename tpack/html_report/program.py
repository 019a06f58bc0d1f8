"""LayerDefs as a tree, and the source that is generated from them beside it."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from itertools import pairwise

from tpack.codegen import generate_pytorch_code
from tpack.errors import LayerDefError
from tpack.html_report.markup import text
from tpack.layerdef import LayerDef, Param, Program
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.ops import REQUIRED
from tpack.text import shape

_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)


def program_section(program: Program | None) -> str:
    """Show the tree and the source, or why there are none."""
    if program is None:
        return (
            '<p class="empty">This checkpoint has no LayerDefs: the names of its tensors fit no '
            "tree of modules. To add them, convert the model again with a LayerDef of your own.</p>"
        )
    tree = f'<ul class="tree">{_layer(program.by_name[program.root], "", program, set())}</ul>'
    try:
        source = _source(generate_pytorch_code(program))
    except LayerDefError as error:
        source = f'<p class="empty">No source can be generated: {text(error)}</p>'
    return (
        f'<div class="program"><nav aria-label="LayerDefs">{tree}</nav>'
        f'<div class="source" tabindex="0" role="region" aria-label="Generated source">'
        f"{source}</div></div>"
    )


def _layer(layer: LayerDef, role: str, program: Program, seen: set[str]) -> str:
    """Show a layer with its parameters and children; one shown before is only named."""
    head = f'{role}<a href="#source-{text(layer.name)}">{text(layer.name)}</a>'
    if layer.name in seen:
        return f"<li>{head}</li>"
    seen.add(layer.name)
    layers = program.by_name
    rows = []
    for param in layer.params:
        if param.is_input:
            continue
        if param.layer is not None and param.layer in layers:
            rows.append(_layer(layers[param.layer], _role(param), program, seen))
        else:
            rows.append(f"<li>{_role(param)}{_kind(param)}</li>")
    inner = f"<ul>{''.join(rows)}</ul>" if rows else ""
    return f"<li><details open><summary>{head}</summary>{inner}</details></li>"


def _role(param: Param) -> str:
    times = f' <b class="times">×{param.repeat}</b>' if param.repeat is not None else ""
    return f'<span class="role">{text(param.name)}{times}</span> '


def _kind(param: Param) -> str:
    if param.layer is not None:
        given = dict(param.args)
        required = [p.name for p in BUILTIN[param.layer].params if p.default is REQUIRED]
        args = ", ".join(str(given[name]) for name in required)
        scale = f" · per {given['scale']}" if "scale" in given else ""
        ternary = " ternary" if param.layer.startswith("Ternary") else ""
        return (
            f'<span class="kind{ternary}">{text(param.layer)}({text(args)})'
            f'</span><span class="kind">{text(scale)}</span>'
        )
    sizes = shape(param.shape or ())
    if param.param_type == "TernaryTensor":
        return (
            f'<span class="kind ternary">ternary {sizes}</span> '
            f'<span class="kind">{text(param.layout)} · per {text(param.scale)}</span>'
        )
    return f'<span class="kind">{text(param.param_type.lower())} {sizes} {text(param.dtype)}</span>'


def _source(source: str) -> str:
    """Highlighted source, each class in a part of its own that a link can lead to."""
    starts = [match.start() for match in _CLASS.finditer(source)]
    bounds = [0, *starts, len(source)]
    parts = [source[a:b] for a, b in pairwise(bounds)]
    blocks = []
    for part in parts:
        found = _CLASS.match(part)
        anchor = f' id="source-{text(found[1])}"' if found else ""
        blocks.append(f"<pre{anchor}><code>{_highlight(part.strip())}</code></pre>")
    return "".join(blocks)


def _highlight(source: str) -> str:
    """Mark keywords, strings and comments of Python source."""
    lines = source.splitlines(keepends=True)
    out: list[str] = []
    row, column = 1, 0

    def copy(until: tuple[int, int]) -> str:
        """The text from where we are up to a position."""
        nonlocal row, column
        pieces = []
        while row < until[0]:
            pieces.append(lines[row - 1][column:])
            row, column = row + 1, 0
        if row <= len(lines):
            pieces.append(lines[row - 1][column : until[1]])
        column = until[1]
        return _escape("".join(pieces))

    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = _KINDS.get(token.type, "")
        if token.type == tokenize.NAME and keyword.iskeyword(token.string):
            kind = "kw"
        if kind:
            out.append(copy(token.start))
            out.append(f'<span class="{kind}">{copy(token.end)}</span>')
    out.append(copy((len(lines), len(lines[-1]) if lines else 0)))
    return "".join(out)


_KINDS = {tokenize.STRING: "str", tokenize.COMMENT: "com", tokenize.NUMBER: "num"}


def _escape(source: str) -> str:
    return "\n".join(text(line) for line in source.split("\n"))
