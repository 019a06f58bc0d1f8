"""Pages of the manual that are generated: ``python -m tpack.cli.reference`` writes them."""

from __future__ import annotations

import re
from pathlib import Path

import click

from tpack.cli.main import COMMANDS, cli
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.ops import OPS, REQUIRED, OpParam

_BEGIN, _END = "<!-- generated: ops -->", "<!-- end -->"


def cli_reference() -> str:
    """``docs/cli.md``: the help of every command, and the exit codes."""
    parts = [
        "# Command line\n\nGenerated from the commands by `make docs`. Results go to stdout, "
        "everything else to stderr.\n\n| exit code | meaning |\n|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in _EXIT_CODES),
        "",
        _COMPLETION,
    ]
    group = click.Context(cli, info_name="tpack", terminal_width=88, **cli.context_settings)
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None
        context = click.Context(command, parent=group, info_name=name)
        parts.append(f"## tpack {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


_EXIT_CODES = (
    (0, "done"),
    (1, "a bug in tpack; `TPACK_DEBUG=1` prints a traceback"),
    (2, "usage"),
    (3, "input missing, unreadable, malformed or hostile"),
    (4, "not ternary, with `--exact`"),
    (5, "verify or diff found a difference"),
    (6, "would overwrite: use `--force`"),
    (7, "no space, no permission, I/O error"),
    (130, "interrupted"),
)

_COMPLETION = """\
With `--json` a failure is JSON on stdout too:
`{"error": {"code": 4, "kind": "not_ternary", "message": …, "tensor": …}}`.

Shell completion: put `eval "$(_TPACK_COMPLETE=bash_source tpack)"` into `~/.bashrc`,
`eval "$(_TPACK_COMPLETE=zsh_source tpack)"` into `~/.zshrc`, or
`_TPACK_COMPLETE=fish_source tpack | source` into fish's configuration.
"""


def layerdef_reference() -> str:
    """The tables of ops and built-in layers in ``docs/layerdef.md``."""
    lines = [_BEGIN, "", "| op | arguments | torch | computes |", "|---|---|---|---|"]
    for op in OPS.values():
        spelling = f"`{op.spelling}`" if op.spelling else "(composite)"
        lines.append(f"| `{op.name}` | {_params(op.params)} | {spelling} | {_escape(op.doc)} |")
    lines += ["", "| built-in layer | class | arguments |", "|---|---|---|"]
    for row in BUILTIN.values():
        spelling = row.spelling if row.spelling.startswith("nn.") else f"tpack.nn.{row.spelling}"
        lines.append(f"| `{row.name}` | `{spelling}` | {_params(row.params)} |")
    return "\n".join([*lines, "", _END])


def _params(params: tuple[OpParam, ...]) -> str:
    return ", ".join(
        f"`{param.name}`" + ("" if param.default is REQUIRED else f" = {param.default}")
        for param in params
    )


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def write(folder: Path) -> None:
    """Bring the generated pages in a folder up to date."""
    (folder / "cli.md").write_text(cli_reference())
    page = folder / "layerdef.md"
    pattern = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    page.write_text(pattern.sub(lambda _: layerdef_reference(), page.read_text()))


if __name__ == "__main__":
    write(Path("docs"))
