"""Commands whose wrong use is explained in the words of tpack, not of click."""

from __future__ import annotations

import math
import re
from typing import Any

import click

from tpack.errors import UsageError, unknown
from tpack.wording import either, nearest

_EXAMPLE = re.compile(r"Example:\n\s*(.+)")


class Command(click.Command):
    """A command that names the arguments that it does not take."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; raises UsageError for one too many."""
        ctx.allow_extra_args = True
        try:
            rest = super().parse_args(ctx, args)
        except click.BadOptionUsage as error:
            error.ctx = ctx
            raise
        if rest and not ctx.resilient_parsing:
            wanted = [p.make_metavar(ctx) for p in self.params if isinstance(p, click.Argument)]
            raise UsageError(
                f"{rest[0]!r} is one argument too many: {ctx.command_path} takes "
                f"{' and '.join(wanted) or 'none'}. Put a path with spaces in quotes."
            )
        return rest


class Choice(click.Choice[str]):
    """One of some names; for another, the error suggests the nearest."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the value; raises UsageError if it is none of the names."""
        if value not in self.choices:
            raise unknown(name_of(param), value, self.choices)
        return super().convert(value, param, ctx)


class Number(click.IntRange):
    """An integer within bounds."""

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return the integer; raises UsageError if it is none, or out of bounds."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            raise UsageError(
                f"{name_of(param)} is {value!r}, expected a whole number from {self.min} to "
                f"{self.max}."
            ) from None


class Real(click.FloatRange):
    """A number within bounds."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the number; raises UsageError if it is none, or out of bounds."""
        try:
            found = super().convert(value, param, ctx)
        except click.BadParameter:
            found = math.nan
        if math.isnan(found):
            raise UsageError(
                f"{name_of(param)} is {value!r}, expected a number from {self.min} to {self.max}."
            )
        return found


def explain(error: click.ClickException) -> str:
    """Return what click found wrong and what to do, as a message of tpack."""
    context, param = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None:
        return _sentence(error.format_message())
    options = [
        each for each in context.command.get_params(context) if isinstance(each, click.Option)
    ]
    if isinstance(error, click.NoSuchOption):
        near = nearest(error.option_name, [name for each in options for name in each.opts])
        told = f"option {error.option_name} is unknown.{near}"
    elif isinstance(error, click.BadOptionUsage):
        (option,) = (each for each in options if error.option_name in each.opts)
        needs = "takes no value" if option.is_flag else f"has no value{_expected(option, context)}"
        told = f"{error.option_name} {needs}."
    elif isinstance(error, click.MissingParameter) and param is not None:
        told = f"{name_of(param)} is missing{_expected(param, context)}."
        if example := _EXAMPLE.search(context.command.help or ""):
            told += f" For example: {example[1]}."
    elif isinstance(error, click.BadParameter) and param is not None:
        told = f"{name_of(param)}: {_sentence(error.message)}"
    else:
        told = _sentence(error.format_message())
    return f"{told} See '{context.command_path} --help'."


def name_of(param: click.Parameter) -> str:
    """Return the name that a user knows a parameter by: ``--output``, ``SOURCE``."""
    return (
        max(param.opts, key=len) if isinstance(param, click.Option) else param.human_readable_name
    )


def _expected(param: click.Parameter, context: click.Context) -> str:
    """Return what an option takes, as the end of a sentence; nothing for an argument."""
    if isinstance(param.type, click.Choice):
        return f", expected {either(param.type.choices)}"
    return f", expected {param.make_metavar(context)}" if isinstance(param, click.Option) else ""


def _sentence(text: str) -> str:
    """Return a text of click as one sentence on one line."""
    text = " ".join(text.split())
    return f"{text[:1].lower()}{text[1:].rstrip('.')}."
