"""Options that several commands share, and options made from the fields of a record."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import click

from tpack.cli.usage import Choice, Command, name_of
from tpack.errors import UsageError
from tpack.wording import option_name


class CheckpointPath(click.Path):
    """A local path of a file or folder, also as ``file://``; other addresses are refused."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        scheme = re.match(r"([a-z][a-z0-9+.-]+)://", str(value))
        if scheme is not None and not Path(value).exists():
            if scheme[1] != "file":
                raise UsageError(
                    f"{value!r} is an address, expected a path: only convert reads from "
                    f"{scheme[0]}. Copy it here first."
                )
            value = str(value).removeprefix(scheme[0])
        return super().convert(value, param, ctx)


class OutputPath(click.Path):
    """A path to write to; an empty one, of a variable that is not set, would be this folder."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not os.fspath(value):
            raise UsageError(f"{name_of(param)} is empty, expected a path.")
        return super().convert(value, param, ctx)


class Described(Command):
    """A command with an option for each field that ``tpack.options.option`` made.

    ``described`` is called each time the options are needed: so ``tpack --help`` loads no tables,
    and a row that was added to a table shows up.
    """

    def __init__(
        self, *args: Any, described: Callable[[], Iterable[Field[Any]]], **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.described = described

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """List the command's own options, with the others before ``--json``."""
        own = super().get_params(ctx)
        at = [each.name for each in own].index("as_json")
        return [*own[:at], *(_option(e) for e in self.described() if e.metadata), *own[at:]]


def _option(each: Field[Any]) -> click.Option:
    """Make the option of a field: a flag, a list, one of some names, or a text."""
    from tpack.options import names

    about, known = each.metadata, names(each)
    choice = Choice(known) if known and about["read"] is None else None
    short = [f"-{about['letter']}"] if about["letter"] else []
    required = each.default is MISSING
    default: dict[str, Any] = (
        {} if required else {"default": each.default}
    )  # to click, a default of None is one
    if each.default is True:  # a flag that turns it off
        return click.Option(
            [option_name(f"no_{each.name}"), each.name],
            flag_value=False,
            default=True,
            help=about["text"],
        )
    return click.Option(
        [*short, option_name(each.name)],
        required=required,
        is_flag=isinstance(each.default, bool),
        multiple=each.default == (),
        type=choice,
        metavar=about["form"] or (None if choice else "|".join(known) or None),
        help=about["text"],
        **default,
    )


def reading() -> Iterable[Field[Any]]:
    """List the options of every command that opens a source."""
    from tpack.options import Reading

    return fields(Reading)


checkpoint = CheckpointPath()
output = OutputPath(path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Print results only.")
verbose = click.option("-v", "--verbose", is_flag=True, help="Print every tensor.")
force = click.option("-f", "--force", is_flag=True, help="Replace an existing output.")
