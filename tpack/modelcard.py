"""The model card of a folder: its front matter, and what tpack adds to that of its source."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Tags of a packed model.
TAGS = ("tpack", "ternary", "2-bit")
#: The line in the card of a packed folder after which the text of its source's card follows.
FOLLOWS = "The card of the source follows.\n\n---\n"
_FRONT = re.compile(r"---[ \t]*\n(.*?\n)---[ \t]*(?:\n|$)", re.DOTALL)
_KEY = re.compile(r"([A-Za-z_][\w-]*):(?=\s|$)")


def split_card(card: str) -> tuple[dict[str, list[str]], str]:
    """Split a card into its front matter, as lines by key, and the text after it."""
    match = _FRONT.match(card)
    if match is None:
        return {}, card
    blocks: dict[str, list[str]] = {}
    key = ""
    for line in match[1].splitlines():
        if found := _KEY.match(line):
            key = found[1]
        blocks.setdefault(key, []).append(line)
    return blocks, card[match.end() :]


def tags_of(lines: Sequence[str]) -> list[str]:
    """Return the tags of a card, which may stand on lines of their own or in brackets."""
    flow = re.fullmatch(r"tags:\s*\[(.*)\]\s*", " ".join(lines), re.DOTALL)
    if flow:
        return [tag.strip() for tag in flow[1].split(",") if tag.strip()]
    items = [re.fullmatch(r"\s*-\s+(\S.*?)\s*", line) for line in lines[1:]]
    return [item[1] for item in items if item]


def source_card(card: str) -> str:
    """Return the card of the source from that of its packed folder; "" if there was none.

    Its front matter comes back without what ``conversion.card`` added: tags, the library, and the
    base model where the first lines name it. The library of the source is not in a packed card.
    """
    front, text = split_card(card)
    text = text.partition(FOLLOWS)[2].lstrip("\n")
    ours = {"library_name", "tags"}
    if list(front)[:2] == ["base_model", "base_model_relation"]:
        ours |= set(list(front)[:2])
    lines = [line for key, block in front.items() if key not in ours for line in block]
    if tags := [tag for tag in tags_of(front.get("tags", ())) if tag not in TAGS]:
        lines += ["tags:", *(f"- {tag}" for tag in tags)]
    if not lines:
        return text
    return "\n".join(["---", *lines, "---", *(["", text] if text else [""])])
