"""The command ``tpack``: its group of commands, and the exit codes of failures."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from keyword import iskeyword
from typing import Any, NoReturn

import click

import tpack
from tpack.cli.output import print_json, printable
from tpack.cli.usage import explain
from tpack.errors import StorageError, TpackError, UnsupportedError, UsageError, unknown
from tpack.wording import command_line

#: Commands in the order of the help; each is the function of that name in its own module.
COMMANDS = (
    "convert",
    "verify",
    "inspect",
    "diff",
    "codegen",
    "run",
    "unpack",
    "export",
    "import",
    "demo",
    "bench",
)


class _Commands(click.Group):
    """Imports a command's module when it is used, so that ``--help`` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        module = f"{name}_" if iskeyword(name) else name
        command: click.Command = getattr(import_module(f"tpack.cli.{module}"), module)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise unknown("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _hidden_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _hidden_errors():
            return super().invoke(ctx)


class _HiddenError(Exception):
    """Carries an OSError past click, which ends a broken pipe with 1, the code of a bug."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def _hidden_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _HiddenError(error) from error


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 88},
)
@click.version_option(tpack.__version__, prog_name="tpack")
def cli() -> None:
    """Checkpoints of ternary neural networks.

    Packs weights in {-1, 0, +1} into 2-bit safetensors that describe themselves, proves
    that nothing was lost, and regenerates the source of the model.

    \b
    Example:
      tpack convert model.pt
      tpack verify model.tpack.safetensors --against model.pt
      tpack codegen model.tpack.safetensors -o model.py
    """


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of its outcome."""
    arguments = sys.argv[1:] if args is None else args
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    signal.signal(signal.SIGTERM, _interrupt)
    _prepare_streams()
    try:
        with command_line(arguments):
            code = _run(arguments)
        sys.stdout.flush()
    except OSError as error:
        # output that is still buffered would be flushed at exit, and fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:  # a reader that has left needs no message
            where = error.filename or "stdout"
            click.echo(f"tpack: {where}: cannot be written: {error.strerror}.", err=True)
        code = StorageError.code
    sys.exit(code)


def _prepare_streams() -> None:
    """Give a stream that is closed a place to go, and one without our characters an escape.

    The null device takes the number of what is closed: an output file would get it, and with it
    what libraries print.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: PTH123, SIM115
        elif name == "stdout" and isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> int:
    """Run the command line, report how it failed, and return the exit code."""
    try:
        result = cli.main(args=arguments, prog_name="tpack", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except _HiddenError as error:
        raise error.error from None
    except (KeyboardInterrupt, click.Abort) as error:  # click makes the one of the other
        left = _notes(error.__cause__ or error) or "No unfinished file is left."
        return _fail(130, "interrupted", f"interrupted. {left}", arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _fail(UsageError.code, UsageError.kind, explain(error), arguments)
    except TpackError as error:
        _debug()
        message = f"{error} {_notes(error)}".rstrip()
        return _fail(error.code, error.kind, message, arguments, tensor=error.tensor)
    except Exception as error:  # noqa: BLE001
        _debug()
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            needs = (
                "this command needs torch, which is not installed. Install it: pip install torch."
            )
            return _fail(UnsupportedError.code, UnsupportedError.kind, needs, arguments)
        message = f"a bug in tpack: {type(error).__name__}: {error}. TPACK_DEBUG=1 shows where."
        return _fail(1, "bug", message, arguments)
    return result if isinstance(result, int) else 0


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _notes(error: BaseException) -> str:
    """Return what was noted about an exception on its way out: what is left, how to go on."""
    return " ".join(getattr(error, "__notes__", ()))


def _debug() -> None:
    if os.environ.get("TPACK_DEBUG") == "1":
        traceback.print_exc()


def _fail(
    code: int, kind: str, message: str, arguments: list[str], tensor: str | None = None
) -> int:
    """Report a failure: as JSON on stdout if ``--json`` is given, else as text on stderr."""
    if "--json" in arguments:
        error = {"code": code, "kind": kind, "message": message, "tensor": tensor}
        print_json({"error": error})
    else:
        click.echo(f"tpack: {printable(message)}", err=True)
    return code


if __name__ == "__main__":
    main()
