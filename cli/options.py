"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click


class CheckpointPath(click.Path):
    """The path of a file or folder here, also as ``file://``; other addresses are refused."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        scheme = re.match(r"([a-z][a-z0-9+.-]+)://", str(value))
        if scheme is not None and not Path(value).exists():
            if scheme[1] != "file":
                self.fail(
                    f"{value!r} is an address, expected a path: only convert reads from "
                    f"{scheme[0]}. Copy it here first.",
                    param,
                    ctx,
                )
            value = str(value).removeprefix(scheme[0])
        return super().convert(value, param, ctx)


checkpoint = CheckpointPath()
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Print results only.")
verbose = click.option("-v", "--verbose", is_flag=True, help="Print every tensor.")
force = click.option("-f", "--force", is_flag=True, help="Replace an existing output.")
