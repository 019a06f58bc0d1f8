"""Let a language model write, from its folder alone, and compare it with its source.

``run`` prints nothing: it hands over the text as it comes. ``compare`` lets two models write, and
measures how far their logits are apart.

``models`` loads a model, ``tokenizer`` reads the tokenizer beside it and turns tokens into whole
characters, ``settings`` reads where a text ends, ``prompts`` puts these together, ``comparison``
compares, ``report`` has the results.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from tpack.errors import UsageError
from tpack.generation import tokens as generated
from tpack.running.comparison import compare as compare
from tpack.running.models import check_model, open_model
from tpack.running.prompts import Prompt, read_prompt
from tpack.running.report import RunComparison as RunComparison, RunReport as RunReport
from tpack.running.tokenizer import TextStream
from tpack.text import plural

__all__ = ["RunComparison", "RunReport", "compare", "run"]


def run(
    path: str | Path,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    say: Callable[[str], object] = str,
) -> RunReport:
    """Let a model continue a text.

    Args:
        path: a packed file or folder, or a folder of transformers. The tokenizer and the configs
            lie in the folder, or beside the file.
        prompt: the text, or numbers of tokens, which need no tokenizer.
        max_new_tokens: how many tokens it writes at most.
        temperature: divides the logits before a token is drawn; 0 takes the likeliest.
        top_k: draw from that many of the likeliest tokens.
        top_p: draw from the fewest tokens that have this probability together.
        seed: of the random numbers; if not given, another each time.
        say: is given the text that each new token adds, which may be empty; for a prompt of
            numbers, each new number.

    Raises:
        UsageError: an option contradicts another, or the prompt is empty or too long.
        InputError: the model or its tokenizer is missing, malformed, or cannot take the prompt.
        LayerDefError: the model has no forward.
        UnsupportedError: a package is missing, or the model does not continue texts.
    """
    if not temperature and not (top_k is top_p is seed is None):
        raise UsageError(
            "top_k, top_p and seed say how tokens are drawn, and temperature 0 draws none. Give a "
            "temperature above 0, such as 1, or leave them out."
        )
    check_model(path)
    given = read_prompt(path, prompt)
    model = open_model(path)
    if temperature and seed is None:
        seed = secrets.randbits(32)
    stream = None if given.tokenizer is None else TextStream(given.tokenizer, given.ids)
    most = given.room(max_new_tokens)
    found: list[int] = []
    times = [time.perf_counter()]
    try:
        for token in generated(
            model.forward,
            torch.tensor([given.ids]),
            max_new_tokens=most,
            eos_token_id=sorted(given.settings.ends),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        ):
            times.append(time.perf_counter())
            found.append(int(token))
            say(str(int(token)) if stream is None else stream.push(int(token)))
        if stream is not None:
            say(stream.finish())
    except KeyboardInterrupt as error:
        error.add_note(f"{plural(len(found), 'token')} came before that.")
        raise
    ended = bool(found) and found[-1] in given.settings.ends
    first = times[min(1, len(found))]
    return RunReport(
        str(path),
        model.runs,
        given.text,
        None if stream is None else stream.text,
        tuple(given.ids),
        tuple(found),
        "end" if ended else "positions" if most < max_new_tokens else "length",
        seed if temperature else None,
        first - times[0],
        times[-1] - first,
        tuple(_notes(given, most, stream)),
    )


def _notes(given: Prompt, most: int, stream: TextStream | None) -> Iterator[str]:
    """Yield what is unusual about a prompt and the text after it."""
    if given.ids[-1] in given.settings.ends:
        yield (
            f"the tokenizer ends the prompt with token {given.ids[-1]}, which ends a text: what "
            "comes after it is another text"
        )
    if given.template:
        yield (
            "the folder has a chat template, which is not applied: the model continues the prompt "
            "as it is. Write the marks of its turns into the prompt"
        )
    positions = given.settings.positions
    if positions is not None and len(given.ids) + most == positions:
        yield f"the model takes {positions} tokens by its config.json, prompt and text together"
    if stream is not None and not stream.exact:
        yield (
            "the tokenizer reads all tokens together otherwise than those that were printed one "
            "after the other"
        )
