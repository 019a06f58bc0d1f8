"""What the configs beside a model say about writing text: where it ends, and how long it may be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpack.errors import InputError, UnsupportedError, locate
from tpack.hfconfig import read_config

#: How the names of architectures end that continue a text.
_WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
#: The part of a name from its task on.
_TASK = re.compile(r"For[A-Z]")


@dataclass(frozen=True)
class Settings:
    """What a folder says.

    Attributes:
        ends: tokens that end a text.
        positions: the most tokens that prompt and text have together; None if nothing says it.
    """

    ends: frozenset[int] = frozenset()
    positions: int | None = None


def read_settings(folder: Path) -> Settings:
    """Read the configs of a folder: generation_config.json, and for what it leaves out config.json.

    Raises:
        InputError: a config is malformed.
        UnsupportedError: the model does not continue texts.
    """
    config = read_config(folder) or {}
    text = config.get("text_config", config)
    text = text if isinstance(text, Mapping) else config
    with locate(file=folder):
        _check_architecture(config)
        positions = text.get("max_position_embeddings", text.get("n_positions"))
        if positions is not None and (type(positions) is not int or positions < 1):
            raise InputError(
                f"has max_position_embeddings {positions!r:.40}, expected a whole number from 1 on."
            )
        ends = _ends(config.get("eos_token_id", text.get("eos_token_id")))
    with locate(file=folder / "generation_config.json"):
        own = (read_config(folder, "generation_config.json") or {}).get("eos_token_id")
        return Settings(ends if own is None else _ends(own), positions)


def _check_architecture(config: Mapping[str, Any]) -> None:
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        check_task(names[0])
        if names[0].endswith("Model") and not names[0].endswith(_WRITERS):
            raise UnsupportedError(
                f"is a {names[0]:.80}, which gives hidden states, expected a model with its output "
                "head, such as LlamaForCausalLM."
            )
    if config.get("is_encoder_decoder") is True:
        raise UnsupportedError("is a model of encoder and decoder, expected a decoder alone.")


def check_task(architecture: str) -> None:
    """Refuse a model whose name says that its outputs are no next tokens.

    Args:
        architecture: such as ``LlamaForCausalLM``; a name without a task is let through.

    Raises:
        UnsupportedError: it has another task.
    """
    if _TASK.search(architecture) and not architecture.endswith(_WRITERS):
        raise UnsupportedError(
            f"is a {architecture:.80}, expected a model that continues a text, such as "
            "LlamaForCausalLM."
        )


def _ends(found: Any) -> frozenset[int]:
    """Return the tokens of an ``eos_token_id``: none, one or several."""
    several = found if isinstance(found, list) else [] if found is None else [found]
    for number in several:
        if type(number) is not int:
            raise InputError(
                f"has eos_token_id {found!r:.60}, expected a whole number or a list of them."
            )
    return frozenset(several)
