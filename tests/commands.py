"""Commands of tpack, run in the process of a test."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from tpack.cli.main import main


def run(args: Sequence[str]) -> tuple[int, str]:
    """The exit code of a command, and what it prints, stdout and stderr as on a terminal."""
    output, code = io.StringIO(), -1
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main(list(args))
        except SystemExit as end:
            code = int(end.code or 0)
    return code, output.getvalue()
