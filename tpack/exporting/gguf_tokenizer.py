"""The tokenizer of a Hugging Face folder as GGUF metadata, where it is one that llama.cpp knows.

llama.cpp splits text by rules that it has under names; a file that names the wrong ones runs,
and tokenizes badly. So a tokenizer goes in only if its rules are recognised letter by letter:
those of Llama 3, which BitNet b1.58 2B4T shares. Any other is left out, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpack.container import parse_json
from tpack.container.opening import input_errors, open_input
from tpack.dialects.gguf_values import Value, value
from tpack.errors import InputError, locate

MAX_TOKENIZER = 100_000_000

#: How text is split before merges → what llama.cpp calls it.
_RULES = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
}
#: Kinds of tokens.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}


def tokenizer_metadata(
    folder: Path, config: Mapping[str, Any]
) -> tuple[dict[str, Value], list[str]]:
    """Return the metadata of a folder's tokenizer, and notes on what is left out.

    Raises:
        InputError: a ``tokenizer.json`` that is malformed.
    """
    path = folder / "tokenizer.json"
    data = _read(path) if path.is_file() else None
    rules = _rules(data) if data is not None else None
    if data is None or rules is None:
        found = "is not one that tpack knows" if data is not None else "has no tokenizer.json"
        note = (
            f"the tokenizer is left out ({found}): a model of the file takes and gives numbers of "
            "tokens only"
        )
        return {"tokenizer.ggml.model": value("string", "none")}, [note]
    with locate(file=path):
        metadata = _tokens(data, int(config["vocab_size"]))
    metadata["tokenizer.ggml.pre"] = value("string", rules)
    return metadata | _special(folder, config), []


def _read(path: Path) -> Any:
    with locate(file=path):
        with open_input(path) as file, input_errors():
            text = file.read(MAX_TOKENIZER)
        return parse_json(text, "R18", "tokenizer")


def _rules(data: Any) -> str | None:
    """Return llama.cpp's name for the rules of a byte-level BPE tokenizer; None if unknown."""
    try:
        split, bytes_ = data["pre_tokenizer"]["pretokenizers"]
        good = (
            data["model"]["type"] == "BPE"
            and data["normalizer"] is None
            and (split["type"], bytes_["type"]) == ("Split", "ByteLevel")
            and not bytes_["add_prefix_space"]
        )
        return _RULES.get(split["pattern"]["Regex"]) if good else None
    except (TypeError, KeyError, ValueError):
        return None


def _tokens(data: Any, count: int) -> dict[str, Value]:
    """Return tokens, their kinds, and merges; numbers without a token are marked as unused."""
    tokens: list[Any] = [f"[PAD{number}]" for number in range(count)]
    kinds = [_UNUSED] * count
    try:
        for text, number in data["model"]["vocab"].items():
            tokens[_number(number, count)], kinds[number] = text, _NORMAL
        for added in data["added_tokens"]:
            number = _number(added["id"], count)
            tokens[number] = added["content"]
            kinds[number] = _CONTROL if added["special"] else _USER_DEFINED
        merges = [
            pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"]
        ]
        return {
            "tokenizer.ggml.model": value("string", "gpt2"),
            "tokenizer.ggml.tokens": value("string", tokens),
            "tokenizer.ggml.token_type": value("int32", kinds),
            "tokenizer.ggml.merges": value("string", merges),
        }
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            "is not a file of the tokenizers library. Download it again with the model."
        ) from error


def _number(found: Any, count: int) -> int:
    if type(found) is not int or not 0 <= found < count:
        raise InputError(
            f"has a token of number {found!r:.40}, expected 0 to {count - 1}, as vocab_size in "
            "config.json says. Correct one of the two files by those of the original model."
        )
    return found


def _special(folder: Path, config: Mapping[str, Any]) -> dict[str, Value]:
    """Return the numbers of special tokens, and the chat template."""
    found = {}
    for name, key in _SPECIAL.items():
        number = config.get(f"{name}_token_id")
        if isinstance(number, list) and number:
            number = number[0]
        if type(number) is int and 0 <= number < config["vocab_size"]:
            found[f"tokenizer.ggml.{key}_token_id"] = value("uint32", number)
    settings = _read(path) if (path := folder / "tokenizer_config.json").is_file() else {}
    settings = settings if isinstance(settings, dict) else {}
    for key in ("add_bos_token", "add_eos_token"):
        if isinstance(settings.get(key), bool):
            found[f"tokenizer.ggml.{key}"] = value("bool", settings[key])
    template = settings.get("chat_template")
    if (path := folder / "chat_template.jinja").is_file():
        with open_input(path) as file, input_errors(), locate(file=path):
            template = file.read(MAX_TOKENIZER).decode("utf-8", "replace")
    if isinstance(template, str):
        found["tokenizer.chat_template"] = value("string", template)
    return found
