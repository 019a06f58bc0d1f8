"""The tokenizer of a folder: text to numbers of tokens, and back.

It is the ``tokenizer.json`` of the folder, as the ``tokenizers`` package reads it: data, no code.
Its own post-processor decides which tokens begin a text. ``add_bos_token`` in tokenizer_config.json
is not read: transformers 5 does not read it either where there is a tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpack.container.opening import read_whole
from tpack.errors import InputError, UnsupportedError, UsageError, locate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
#: Of a tokenizer.json; the largest of today have 35 MB.
MAX_TOKENIZER = 200_000_000

#: What a decoder writes for bytes that are no character, or not yet.
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class TextTokenizer:
    """Text to numbers of tokens, and back; special tokens are not shown.

    Args:
        inner: as the tokenizers package has it.
        special: texts of tokens that are special, also if ``inner`` does not say so.
    """

    def __init__(self, inner: Tokenizer, special: Sequence[str] = ()) -> None:
        from tokenizers import AddedToken

        inner.no_truncation()
        inner.no_padding()
        known = [text for text in special if inner.token_to_id(text) is not None]
        inner.add_special_tokens([AddedToken(text, special=True) for text in known])
        self._inner = inner
        added = inner.get_added_tokens_decoder()
        skipped = {number for number, token in added.items() if token.special}
        #: Tokens that may be read with those after them: single bytes, and what is not shown.
        self._pending: set[int] = set()
        if "ByteFallback" in _description(inner.decoder):
            numbers = (inner.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
            self._pending = {number for number in numbers if number is not None} | skipped

    def encode(self, text: str) -> list[int]:
        """Return the numbers of the tokens of a text, with those that the tokenizer adds.

        Raises:
            UsageError: the text has parts that are not characters.
            InputError: the tokenizer has no token for a part of it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the prompt is not valid UTF-8 at character {error.start}, expected text."
            ) from None
        with _failures("cannot take the prompt"):
            return list(self._inner.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; numbers that no token has are left out."""
        with _failures("cannot write what the model gave"):
            return self._inner.decode(list(ids), skip_special_tokens=True)

    def settled(self, ids: Sequence[int]) -> str:
        """Return the beginning of a text that stays as it is, whatever tokens come next.

        A character may be in several tokens. Until its last byte it is shown as U+FFFD; where bytes
        have tokens of their own (byte fallback), one that is invalid makes all beside it U+FFFD.
        """
        end = len(ids)
        while self._pending and end and self._is_pending(ids[end - 1]):
            end -= 1
        return self.decode(ids[:end]).removesuffix(_UNKNOWN)

    def _is_pending(self, token: int) -> bool:
        return token in self._pending or self._inner.id_to_token(token) is None

    def show(self, before: Sequence[int], token: int) -> str:
        """Return the text of a token after others; its spelling if it has no whole character.

        Returns:
            An empty text if the tokenizer has no such token.
        """
        start, whole = self.decode(before), self.decode([*before, token])
        text = whole.removeprefix(start) if whole.startswith(start) else ""
        if text and _UNKNOWN not in text:
            return text
        return self._inner.id_to_token(token) or ""


class TextStream:
    """The text of new tokens as they come, in pieces that are whole characters.

    The pieces together are what the tokenizer gives for all tokens, less the text of the prompt.

    Args:
        prompt: the tokens before: a space between them and the first new one is kept.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt)
        self._new = len(self._ids)
        #: The text of the prompt.
        self._base = tokenizer.decode(prompt)
        #: All that was returned so far.
        self.text = ""

    def push(self, token: int) -> str:
        """Return what a token adds: its text, or nothing until a character is complete."""
        self._ids.append(token)
        return self._advance(self._tokenizer.settled)

    def finish(self) -> str:
        """Return what is left when no more tokens come."""
        return self._advance(self._tokenizer.decode)

    @property
    def exact(self) -> bool:
        """Whether ``text`` is what the tokenizer gives for all tokens, once they are complete."""
        return self._tokenizer.decode(self._ids) == self._base + self.text

    def _advance(self, read: Callable[[Sequence[int]], str]) -> str:
        whole = read(self._ids)
        if self._base.startswith(whole):
            return ""
        if not whole.startswith(self._base) and not self.text:
            # the first new tokens change how the last ones of the prompt are read
            self._ids, self._base, self._new = self._ids[self._new :], "", 0
            whole = read(self._ids)
        if not whole.startswith(self._base + self.text):
            return ""
        piece = whole[len(self._base) + len(self.text) :]
        self.text += piece
        return piece


def open_tokenizer(folder: Path) -> TextTokenizer:
    """Read the tokenizer of a folder.

    Raises:
        InputError: there is none, or it is malformed.
        UnsupportedError: the tokenizers package is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UnsupportedError(
            "the tokenizer of a folder needs the package tokenizers, which is not installed. "
            'Install it: pip install "tpack-ternary[run]".'
        ) from error
    path = folder / TOKENIZER
    if not path.is_file():
        raise InputError(
            f"has no {TOKENIZER}, which turns text into tokens. Copy it from the source, let "
            "transformers write it (AutoTokenizer.from_pretrained(SOURCE).save_pretrained(FOLDER)),"
            " or give the prompt as numbers of tokens.",
            file=folder,
        )
    special = list(_special(folder))
    with locate(file=path):
        text = read_whole(path, MAX_TOKENIZER, "R18")
        with _failures("is not a file of the tokenizers library"):
            inner = Tokenizer.from_buffer(text)
            return TextTokenizer(inner, special)


def has_template(folder: Path) -> bool:
    """Return whether a folder says how a conversation is written for its model."""
    if any((folder / f"chat_template.{kind}").is_file() for kind in ("jinja", "json")):
        return True
    return bool(_read(folder / "tokenizer_config.json").get("chat_template"))


def _special(folder: Path) -> Iterator[str]:
    """Yield the texts of tokens that the folder's other files call special."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config = _read(folder / name)
        for key, value in config.items():
            if key.endswith("_token"):
                yield from _texts([value])
            elif key in ("extra_special_tokens", "additional_special_tokens"):
                yield from _texts(list(value.values()) if isinstance(value, Mapping) else value)
            elif key == "added_tokens_decoder" and isinstance(value, Mapping):
                yield from _texts([token for token in value.values() if _is_special(token)])


def _read(path: Path) -> dict[str, Any]:
    """Read a config of a tokenizer: transformers writes integers beyond 64 bits into it."""
    if not path.is_file():
        return {}
    with locate(file=path):
        try:
            data = json.loads(read_whole(path, MAX_TOKENIZER, "R18"))
        except (ValueError, RecursionError) as error:
            raise InputError("is not JSON. Copy it from the source of the model again.") from error
        if not isinstance(data, dict):
            raise InputError(f"is {data!r:.40}, expected a JSON object.")
        return data


def _is_special(token: Any) -> bool:
    return isinstance(token, Mapping) and token.get("special") is True


def _texts(tokens: Any) -> Iterator[str]:
    """Yield the texts of tokens, each a text or an object with one."""
    for token in tokens if isinstance(tokens, list) else ():
        text = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(text, str) and text:
            yield text


def _description(decoder: Any) -> str:
    """Return a decoder as tokenizer.json spells it; empty if there is none."""
    state: bytes = b"" if decoder is None else decoder.__getstate__()
    return state.decode()


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turn the failures of the tokenizers package into an InputError; some are no Exception."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(
            f"{what}: the tokenizers package says {str(error)!r:.200}. Copy {TOKENIZER} from the "
            "source of the model again."
        ) from error
