"""HTML that nothing from a file can break out of, and that can reach no network."""

from __future__ import annotations

import html
import json
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from tpack.text import printable

#: Modules of D3, each after those that it uses.
D3 = ("array", "color", "format", "interpolate", "time", "time-format", "scale", "selection",
      "axis", "hierarchy")  # fmt: skip
#: The parts of the script, in the order in which they run.
SCRIPT = ("model", "heat", "scales", "bytes", "worst", "changes", "table", "main")

#: What could end a script, begin a comment in it, or be a line break in old engines.
_IN_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def text(value: object) -> str:
    """Text of an element or an attribute; characters without a shape become escapes.

    Example:
        >>> text('</b a="1">\\u202e')
        '&lt;/b a=&quot;1&quot;&gt;\\\\u202e'
    """
    return html.escape(printable(str(value)))


def json_block(name: str, data: Any) -> str:
    """Data for the script, in an element that no text in it can end."""
    body = json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_IN_SCRIPT)
    return f'<script type="application/json" id="{name}">{body}</script>'


@cache
def asset(name: str) -> str:
    """A file of this package."""
    return files("tpack.html_report").joinpath(name).read_text(encoding="utf-8")


def script() -> str:
    """D3 and what draws with it."""
    ours = "\n".join(asset(f"script/{name}.js") for name in SCRIPT)
    library = "".join(asset(f"d3/d3-{name}.min.js") for name in D3)
    return f'{library}\n(() => {{\n"use strict";\n{ours}}})();\n'


def document(title: str, body: str, data: Mapping[str, Any] | None) -> str:
    """Return the whole page, with a script if it has data to draw.

    Its policy forbids every request, and every script and style but the two whose digests it
    names: what a hostile file smuggled in would not run.
    """
    style, code = asset("report.css"), script()
    policy = (
        f"default-src 'none'; script-src {_digest(code)}; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    drawing = "" if data is None else f"{json_block('data', data)}\n<script>{code}</script>\n"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta name="generator" content="tpack">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
{drawing}</body>
</html>
"""


def _digest(source: str) -> str:
    return f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'"
