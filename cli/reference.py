"""Generate pages of the manual: ``python -m tpack.cli.reference`` writes them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tpack import errors
from tpack.cli.main import COMMANDS, cli
from tpack.cli.options import Described
from tpack.container.kinds import KINDS
from tpack.dialects.gguf_architectures import ARCHITECTURES, LLAMA_CPP
from tpack.errors import TpackError
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.ops import OPS, PACKED_OPS, REQUIRED, OpParam
from tpack.sources.readers import READERS
from tpack.wording import option_name

_OPS, _ERRORS, _END = "<!-- generated: ops -->", "<!-- generated: errors -->", "<!-- end -->"
_ARCHITECTURES = "<!-- generated: architectures -->"
_KINDS = "<!-- generated: kinds -->"


def cli_reference() -> str:
    """Return ``docs/cli.md``: the help of every command, and the exit codes."""
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
        if isinstance(command, Described) and name != "import":
            parts += _choices(command)
    return "\n".join(parts)


def _choices(command: Described) -> Iterator[str]:
    """Yield a table for each option that takes names, with their meanings."""
    for each in command.described():
        if table := each.metadata.get("among"):
            yield f"| `{option_name(each.name)}` | |\n|---|---|"
            yield from (f"| `{name}` | {_escape(row.meaning)} |" for name, row in table.items())
            yield ""


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
[Errors](errors.md) shows what to do about each.

Shell completion: put `eval "$(_TPACK_COMPLETE=bash_source tpack)"` into `~/.bashrc`,
`eval "$(_TPACK_COMPLETE=zsh_source tpack)"` into `~/.zshrc`, or
`_TPACK_COMPLETE=fish_source tpack | source` into fish's configuration.
"""


def layerdef_reference() -> str:
    """Return the tables of ops and built-in layers in ``docs/layerdef.md``."""
    lines = [_OPS, "", "| op | arguments | torch | computes |", "|---|---|---|---|"]
    packed = {op.plain: f"`tpack.nn.{op.spelling}`" for op in PACKED_OPS.values()}
    for op in OPS.values():
        spelling = f"`{op.spelling}`" if op.spelling else packed.get(op.name, "(composite)")
        doc = f"several results: {op.doc}" if "several" in op.traits else op.doc
        lines.append(f"| `{op.name}` | {_params(op.params)} | {spelling} | {_escape(doc)} |")
    lines += ["", "| built-in layer | class | arguments |", "|---|---|---|"]
    for row in BUILTIN.values():
        spelling = row.spelling if row.spelling.startswith("nn.") else f"tpack.nn.{row.spelling}"
        lines.append(f"| `{row.name}` | `{spelling}` | {_params(row.params)} |")
    return "\n".join([*lines, "", _END])


def kinds_reference() -> str:
    """Return the table of kinds of files in ``docs/checkpoints.md``."""
    lines = [_KINDS, "", "| it is | suffixes | read, or what to do |", "|---|---|---|"]
    for kind in KINDS.values():
        suffixes = ", ".join(f"`{suffix}`" for suffix in kind.suffixes)
        suffixes += f"a folder with `{kind.holds}`" if kind.holds and not suffixes else ""
        extra = "" if kind.advice else READERS[kind.name].extra
        read = f'read, with `pip install "tpack-ternary[{extra}]"`' if extra else "read"
        told = (kind.advice or read).replace("*", r"\*")
        lines.append(f"| {kind.what} | {suffixes} | {told} |")
    return "\n".join([*lines, "", _END])


def errors_reference() -> str:
    """Return the table of exit codes and exceptions in ``docs/errors.md``."""
    lines = [
        _ERRORS,
        "",
        "| exit code | exception | `kind` in JSON | meaning |",
        "|---|---|---|---|",
    ]
    kinds: list[type[TpackError]] = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, TpackError) and kind is not TpackError
    ]
    for code, meaning in _EXIT_CODES:
        own = [kind for kind in kinds if kind.code == code]
        if not own:
            kind = {1: "`bug`", 130: "`interrupted`"}.get(code, "")
            lines.append(f"| {code} |  | {kind} | {meaning} |")
        for each in own:
            doc = (inspect.getdoc(each) or "").partition("\n")[0].replace("``", "`")
            lines.append(f"| {code} | `{each.__name__}` | `{each.kind}` | {doc} |")
    return "\n".join([*lines, "", _END])


def architectures_reference() -> str:
    """Return the table of architectures of GGUF in ``docs/dialects.md``."""
    lines = [
        _ARCHITECTURES,
        "",
        "| architecture | of | `hidden_act` | biases | norms within attention and MLP |",
        "|---|---|---|---|---|",
    ]
    for row in ARCHITECTURES.values():
        runner = f", which {row.runner} runs" if row.runner != LLAMA_CPP else ""
        tied = ", its head the embedding" if row.tied else ""
        of = f"`{row.classes[0]}`{tied}" if row.classes else "only read"
        acts = " or ".join(f"`{act}`" for act in row.activations) if row.classes else ""
        norms = any(stem.endswith("_sub_norm") for stem in row.tensors)
        answers = ("yes" if yes else "no" for yes in (row.biased, norms))
        lines.append(f"| `{row.name}`{runner} | {of} | {acts} | {' | '.join(answers)} |")
    return "\n".join([*lines, "", _END])


def _params(params: tuple[OpParam, ...]) -> str:
    return ", ".join(
        f"`{param.name}`" + ("" if param.default is REQUIRED else f" = {param.default}")
        for param in params
    )


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def ops_reference() -> str:
    """Return ``docs/ops.md``: the op of LayerDef for each op of ATen."""
    from tpack.capturing.aten import ATEN, CHECKS, PSEUDO

    lines = [
        "# Ops that capture knows\n",
        "For whoever captures a module, and wants to know which of its ops can be captured.",
        "`tpack.capture`, and `tpack convert` of a `.pt2` file, turn these ops of ATen, as",
        "`torch.export` gives them before any decomposition, into the ops of",
        "[LayerDef](layerdef.md). Any other op is refused, with its name and the module that uses",
        "it. [A recipe](architecture.md#an-op) shows how to add one. `make docs` generates this",
        "page from `tpack/capturing/aten_rows/`.\n",
        "| ATen | LayerDef | arguments |",
        "|---|---|---|",
    ]
    for name, row in ATEN.items():
        schema = _overload(name)._schema  # noqa: SLF001
        own = {argument.name for argument in schema.arguments}
        known = {k: f"`{k}`" if k == v else f"`{k}` as `{v}`" for k, v in row.taken.items()}
        known |= {k: f"`{k}` = {v} only" for k, v in row.fixed.items()}
        _, op = PSEUDO.get(row.op, ("", f"`{row.op}`"))
        lines.append(
            f"| `{name}` | {_escape(op)} | {', '.join(known[k] for k in known if k in own)} |"
        )
    changing = (f"{base}_.{kind}" for base, _, kind in (name.partition(".") for name in ATEN))
    in_place = ", ".join(f"`{n}`" for n in sorted(changing) if n not in ATEN and _overload(n))
    lines += [
        "",
        "In place, if no other tensor shares the memory that changes: " + in_place + ".\n",
        "Left out, because they compute nothing: "
        + ", ".join(f"`{name}`" for name in sorted(CHECKS))
        + ".\n",
        "Each x times a matrix of a stack, `(stack[ids] @ x.unsqueeze(-1)).squeeze(-1)`,",
        "becomes `expert_linear` or `expert_matmul`, which compute the chosen matrices only. So do",
        "experts of transformers; before you export them to a `.pt2` file, set",
        '`config._experts_implementation = "batched_mm"`.',
    ]
    return "\n".join(lines) + "\n"


def _overload(name: str) -> Any:
    """Return an overload of ATen; None if torch does not have it."""
    import torch

    packet, _, kind = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet, None), kind, None)


def write(folder: Path) -> None:
    """Write the generated pages, and the generated parts of others, in a folder."""
    (folder / "ops.md").write_text(ops_reference())
    (folder / "cli.md").write_text(cli_reference())
    parts = (
        ("layerdef.md", layerdef_reference()),
        ("errors.md", errors_reference()),
        ("checkpoints.md", kinds_reference()),
        ("dialects.md", architectures_reference()),
    )
    for name, part in parts:
        page = folder / name
        before, _, rest = page.read_text().partition(part.partition("\n")[0])
        page.write_text(before + part + rest.partition(_END)[2])


if __name__ == "__main__":
    write(Path("docs"))
