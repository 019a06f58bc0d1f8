"""``tpack demo``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from tpack.cli import options
from tpack.cli.output import print_json
from tpack.cli.usage import Command


@click.command(cls=Command)
@click.option("-o", "--output", type=options.output, help="Folder for the files that it makes.")
@options.force
@options.as_json
@options.quiet
def demo(output: Path | None, force: bool, as_json: bool, quiet: bool) -> int:
    """Train a ternary MLP and CNN on handwritten digits and take them all the way.

    Trains, converts, verifies, regenerates the source, runs it, and compares every
    prediction. Needs no network, takes about half a minute. Exits with 5 if one differs.

    \b
    Example:
      tpack demo -o demo
    """
    from tpack.container.atomic import storage_errors
    from tpack.container.folders import check_place
    from tpack.demo import run
    from tpack.errors import ExistsError

    def say(line: str) -> None:
        if not (as_json or quiet):
            click.echo(line)

    with tempfile.TemporaryDirectory() as temporary:
        folder = output or Path(temporary)
        check_place(folder)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if output and not force and any(folder.iterdir()):
                raise ExistsError(
                    "is not empty. Use --force to replace what is in it.", file=folder
                )
        try:
            outcomes = run(folder, say)
        except KeyboardInterrupt as error:
            if output:
                error.add_note(f"What was made so far is in {output}.")
            raise
        made = sorted(str(path) for path in folder.iterdir()) if output else []
    if as_json:
        print_json({"models": [outcome.__dict__ for outcome in outcomes], "files": made})
    elif output and not quiet:
        click.echo(f"kept in {output}: {', '.join(Path(path).name for path in made)}")
    return 0 if all(o.lossless and not o.changed for o in outcomes) else 5
