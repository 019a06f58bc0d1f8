"""What a model is given to continue, and what its folder says about that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpack.errors import UsageError
from tpack.running.settings import Settings, read_settings
from tpack.running.tokenizer import TextStream, TextTokenizer, has_template, open_tokenizer
from tpack.text import plural


@dataclass(frozen=True)
class Prompt:
    """A prompt that was read.

    Attributes:
        text: that was given; None if numbers of tokens were.
        ids: the numbers of its tokens.
        tokenizer: of the folder; None if numbers of tokens were given.
        settings: of the folder.
        template: whether the folder has one for conversations, which is not applied.
    """

    text: str | None
    ids: list[int]
    tokenizer: TextTokenizer | None
    settings: Settings
    template: bool = False

    def after(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens that come after the prompt; empty without a tokenizer."""
        if self.tokenizer is None:
            return ""
        stream = TextStream(self.tokenizer, self.ids)
        return "".join([*map(stream.push, tokens), stream.finish()])

    def room(self, wanted: int) -> int:
        """Return how many tokens may come after it, at most ``wanted``.

        Raises:
            UsageError: none.
        """
        positions = self.settings.positions
        if positions is None:
            return wanted
        if len(self.ids) >= positions:
            raise UsageError(
                f"the prompt has {plural(len(self.ids), 'token')}, expected fewer than "
                f"{positions}, all that the model takes by its config.json. Shorten it."
            )
        return min(wanted, positions - len(self.ids))


def read_prompt(path: str | Path, prompt: str | Sequence[int]) -> Prompt:
    """Turn a prompt into tokens, with the tokenizer of a folder or beside a file.

    Raises:
        UsageError: the prompt is empty, or has a number below 0.
        InputError: the tokenizer or a config is missing or malformed.
        UnsupportedError: the tokenizers package is missing, or the model continues no texts.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    settings = read_settings(folder)
    if isinstance(prompt, str):
        tokenizer = open_tokenizer(folder)
        text, ids = prompt, tokenizer.encode(prompt)
    else:
        tokenizer, text, ids = None, None, [int(number) for number in prompt]
    if not ids:
        raise UsageError("the prompt has no tokens, expected one at least. Give some text.")
    if min(ids) < 0:
        raise UsageError(f"the prompt has token {min(ids)}, expected numbers from 0 on.")
    return Prompt(text, ids, tokenizer, settings, tokenizer is not None and has_template(folder))
