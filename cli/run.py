"""``tpack run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpack.cli import options
from tpack.cli.output import plural, print_json, printable, readable
from tpack.cli.usage import Command, Number, Real
from tpack.errors import UsageError

if TYPE_CHECKING:
    from tpack.running import RunComparison, RunReport


@click.command(cls=Command)
@click.argument("file", type=options.checkpoint)
@click.option("--prompt", metavar="TEXT", help="The text to continue; - reads it from stdin.")
@click.option("--tokens", metavar="NUMBERS", help="Tokens to continue, such as 1,2,3.")
@click.option(
    "--max-new-tokens", type=Number(1, 1_000_000), default=100, show_default=True,
    help="Write that many tokens at most.",
)  # fmt: skip
@click.option(
    "--temperature",
    type=Real(0, 100),
    default=0.0,
    help="Draw tokens; 0, the default, takes the likeliest.",
)
@click.option("--top-k", type=Number(1, 1_000_000), help="Draw from that many of the likeliest.")
@click.option(
    "--top-p", type=Real(0, 1), help="Draw from the fewest that are that probable together."
)
@click.option("--seed", type=Number(0, 2**63 - 1), help="Draw the same tokens each time.")
@click.option("--compare", metavar="SOURCE", help="Compare with the model that FILE was made from.")
@options.as_json
@options.quiet
def run(
    file: Path,
    prompt: str | None,
    tokens: str | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    compare: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Let a language model continue a text, and print it as it comes.

    FILE is a packed folder, a packed file with a tokenizer.json beside it, or a folder of
    transformers. It runs by its own LayerDefs; where they have no forward, transformers runs it.
    With --tokens it needs no tokenizer, and prints numbers. The text ends at a token that the
    configs beside it call eos_token_id. One line break at the end of stdin is left out.

    With --compare: both models write, always the likeliest token, and both get the tokens of
    SOURCE. Shows where they first differ, and how far their logits are apart. Differences
    are no failure.

    \b
    Example:
      tpack run my-model.tpack --prompt "The statement"
      tpack run my-model.tpack --prompt "The statement" --compare my-model
    """
    from tpack.running import compare as compare_models, run as run_model

    given = _prompt(prompt, tokens)
    sampling: dict[str, Any] = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed
    }  # fmt: skip
    if compare is not None:
        if temperature or not (top_k is top_p is seed is None):
            raise UsageError(
                "--compare takes the likeliest token of both models, expected no option that draws "
                "tokens. Leave out --temperature, --top-k, --top-p and --seed."
            )
        found = compare_models(file, compare, given, max_new_tokens=max_new_tokens)
        if as_json:
            print_json(found.to_dict())
        else:
            _show(found)
        return
    writer = _Writer(numbers=tokens is not None, silent=as_json)
    try:
        report = run_model(file, given, max_new_tokens=max_new_tokens, say=writer.write, **sampling)
    finally:
        writer.end()
    if as_json:
        print_json(report.to_dict())
        return
    for note in report.notes:
        click.echo(printable(f"note: {note}"), err=True)
    if not quiet:
        click.echo(_speed(report), err=True)


def _prompt(text: str | None, tokens: str | None) -> str | list[int]:
    """Return what is to be continued, text or numbers of tokens."""
    if (text is None) == (tokens is None):
        raise UsageError(
            f"{'both' if text is not None else 'neither'} of --prompt and --tokens "
            f"{'are' if text is not None else 'is'} given, expected one of them."
        )
    if tokens is not None:
        try:
            return [int(number) for number in tokens.replace(",", " ").split()]
        except ValueError:
            raise UsageError(
                f"--tokens is {tokens!r:.60}, expected whole numbers such as 1,2,3."
            ) from None
    if text != "-":
        return str(text)
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin is not UTF-8 at byte {error.start}, expected the text of a prompt."
        ) from None


class _Writer:
    """Prints pieces of text as they come; on a terminal, what would drive it is escaped."""

    def __init__(self, *, numbers: bool, silent: bool) -> None:
        self.between = "," if numbers else ""
        self.silent = silent
        self.begun = False

    def write(self, piece: str) -> None:
        """Print a piece."""
        if self.silent or not piece:
            return
        text = readable(piece) if sys.stdout.isatty() else piece
        text, self.begun = self.between * self.begun + text, True
        click.echo(text, nl=False)
        sys.stdout.flush()

    def end(self) -> None:
        """End the line, if there is one."""
        if self.begun:
            click.echo()


def _speed(report: RunReport) -> str:
    """Return how fast the tokens were read and written, and how to draw the same again."""
    told = f"{plural(len(report.prompt_tokens), 'token')} read"
    if report.prompt_speed is not None:
        told += f" at {report.prompt_speed:.1f} a second"
    told += f", {len(report.tokens)} written"
    if report.speed is not None:
        told += f" at {report.speed:.1f} a second"
    return told + ("" if report.seed is None else f", --seed {report.seed}")


def _show(found: RunComparison) -> None:
    """Print where two models part, and how far their logits are apart."""
    click.echo(f"{len(found.tokens)} new tokens, ", nl=False)
    if found.choices is None:
        click.echo(f"all equal to those of {printable(found.source)}")
    else:
        ours, theirs = found.choices
        click.echo(f"the first {found.first} equal to those of {printable(found.source)}; then")
        for name, choice in ((found.file, ours), (found.source, theirs)):
            shown = f" {choice.text!r}" if choice.text else ""
            told = f"  {name}: token {choice.token}{shown}, ahead of the other by {choice.lead:.3g}"
            click.echo(printable(told))
        click.echo(f"largest difference of a logit until there: {found.largest_before:.3g}")
    click.echo(
        f"on the {plural(found.positions, 'token')} of prompt and source:\n"
        f"  logits: differ by {found.mean:.3g} in the mean, by {found.largest:.3g} at most; their "
        f"standard deviation is {found.spread:.3g}\n"
        f"  Kullback-Leibler divergence: {found.divergence:.3g} nats in the mean, "
        f"{found.largest_divergence:.3g} at most\n"
        f"  likeliest token: the same after {found.agreeing} of {found.positions}"
    )
