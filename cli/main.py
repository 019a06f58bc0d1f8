"""The command ``tpack``: its group, and how failures end."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Any, NoReturn

import click

import tpack
from tpack.cli.output import print_json
from tpack.errors import StorageError, TpackError

#: Commands in the order of the help; each is the function of that name in its own module.
COMMANDS = ("convert", "verify", "inspect", "codegen", "unpack", "demo")


class _Commands(click.Group):
    """Imports a command's module when it is used, so that ``--help`` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"tpack.cli.{name}"), name)
        return command


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
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = cli.main(args=arguments, prog_name="tpack", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail(130, "interrupted", "interrupted.", arguments)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" See '{context.command_path} --help'." if context else ""
        _fail(2, "usage", error.format_message() + hint, arguments)
    except TpackError as error:
        _debug()
        _fail(error.code, error.kind, str(error), arguments, tensor=error.tensor)
    except BrokenPipeError:
        # whoever read the output has gone; leave nothing for the interpreter to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(StorageError.code)
    except Exception as error:  # noqa: BLE001
        _debug()
        message = f"a bug in tpack: {type(error).__name__}: {error}. TPACK_DEBUG=1 shows where."
        _fail(1, "bug", message, arguments)
    sys.exit(result if isinstance(result, int) else 0)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _debug() -> None:
    if os.environ.get("TPACK_DEBUG") == "1":
        traceback.print_exc()


def _fail(
    code: int, kind: str, message: str, arguments: list[str], tensor: str | None = None
) -> NoReturn:
    """End with one sentence: JSON on stdout where it was asked for, else text on stderr."""
    if "--json" in arguments:
        error = {"code": code, "kind": kind, "message": message, "tensor": tensor}
        print_json({"error": error})
    else:
        click.echo(f"tpack: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
