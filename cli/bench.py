"""``tpack bench``."""

from __future__ import annotations

import click

from tpack.cli import options
from tpack.cli.output import print_json
from tpack.cli.usage import Command, Number


@click.command(cls=Command)
@click.option("--threads", type=Number(1, 4096), help="Default: torch's.")
@click.option("--repeats", type=Number(3, 1001), default=31, help="Calls per median.")
@options.as_json
def bench(threads: int | None, repeats: int, as_json: bool) -> None:
    """Time the kernels on this machine, each against memory or torch.

    Equality with the numpy definition is checked first. Both sides of a row run in turn in
    this process, on the same data; medians are compared. Takes about a minute and 2 GB.
    TPACK_KERNEL=avx2 (or another variant) forces a variant.

    \b
    Example:
      tpack bench --json
    """
    from tpack import kernels
    from tpack.errors import UnsupportedError
    from tpack.kernels.bench import run, table

    if kernels.variant() == "numpy":
        raise UnsupportedError(
            kernels.selection.missing
            or "TPACK_KERNEL=numpy turns the compiled kernels off. Unset it to time them."
        )
    rows = run(threads, repeats)
    if as_json:
        print_json({"variant": kernels.variant(), "rows": [row.to_dict() for row in rows]})
        return
    click.echo(f"kernels: {kernels.variant()} (available: {', '.join(kernels.available())})")
    click.echo(table(rows))
