"""The model card of a converted folder."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from keyword import iskeyword
from typing import Any

from tpack.conversion.running import runs_in_transformers
from tpack.grouping import Place
from tpack.modelcard import FOLLOWS, TAGS, split_card, tags_of
from tpack.report import TensorReport
from tpack.sources import Source

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def model_card(source: Source, reports: Sequence[TensorReport], size: int) -> str:
    """Return README.md as model hubs read it: front matter, what was done, the source's card.

    Args:
        size: bytes of the output.
    """
    front, text = split_card(source.card)
    lines = ["---", *_front_matter(source, front), "---", "", "# Ternary weights, packed", ""]
    counts = {a: sum(r.action == a for r in reports) for a in ("packed", "quantized", "kept")}
    lines += [
        "Packed by tpack: ternary weights in two bits, in safetensors that describe themselves.",
        "",
        f"{counts['packed']} tensors packed losslessly, {counts['quantized']} quantized, "
        f"{counts['kept']} kept as they were: {source.nbytes / 1e6:.1f} MB → {size / 1e6:.1f} MB.",
        "",
        "| tensors | count | shape | what was done | error | bits per weight |",
        "|---|---|---|---|---|---|",
        *_rows(reports),
        "",
        *_use(source, reports),
        "",
    ]
    if text.strip():
        lines += [FOLLOWS, text.strip("\n"), ""]
    return "\n".join(lines)


def _use(source: Source, reports: Sequence[TensorReport]) -> list[str]:
    """Return how to install tpack, load the folder and verify it."""
    packed = [report.name for report in reports if report.action != "kept"]
    extra, load = "", ["import tpack", "", 'model = tpack.load(".")']
    if runs_in_transformers(source, packed):
        name = _auto_class(source.config or {})
        extra, load = "[hf]", ["import tpack.hf", f"from transformers import {name}", ""]
        load.append(f'model = {name}.from_pretrained(".")')
    return [
        "Install tpack; as long as it is not released, with `pip install "
        f"{repr(f'.{extra}') if extra else '.'}` in a clone of it:",
        "",
        "```sh",
        f"pip install {repr(f'tpack-ternary{extra}') if extra else 'tpack-ternary'}",
        "```",
        "",
        "Load the model, in this folder:",
        "",
        "```python",
        *load,
        "```",
        "",
        "Check every byte, list the tensors, and write the plain model:",
        "",
        "```sh",
        "tpack verify .",
        "tpack inspect .",
        "tpack unpack . -o ../plain-model",
        "```",
    ]


def _auto_class(config: Mapping[str, Any]) -> str:
    """Return the class of transformers for a model, by its config, which may say anything."""
    classes = config.get("architectures")
    names = [each for each in classes if isinstance(each, str)] if isinstance(classes, list) else []
    name = names[0] if names else ""
    if name.endswith("ForCausalLM"):
        return "AutoModelForCausalLM"
    proper = re.fullmatch(r"[A-Z]\w{1,80}", name, re.ASCII) and not iskeyword(name)
    return name if proper else "AutoModel"


def _front_matter(source: Source, front: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the front matter of the source, with our keys about the packed model."""
    base = source.repository or str((source.config or {}).get("_name_or_path", ""))
    ours = {"library_name", "tags"}
    if _REPO.fullmatch(base):
        ours |= {"base_model", "base_model_relation"}
        yield f"base_model: {base}"
        yield "base_model_relation: quantized"
    for key, lines in front.items():
        if key not in ours:
            yield from lines
    yield "library_name: tpack"
    yield "tags:"
    yield from (f"- {tag}" for tag in dict.fromkeys((*tags_of(front.get("tags", ())), *TAGS)))


def _rows(reports: Sequence[TensorReport]) -> Iterator[str]:
    """Yield the rows of the table: one for the same tensor of all blocks."""
    groups: dict[tuple[str, ...], list[TensorReport]] = {}
    for report in reports:
        how = f"{report.method}, {report.scale}" if report.scale else report.reason
        shape = "×".join(map(str, report.shape)) or "()"
        key = (Place.of(report.name).role, shape, report.action, how)
        groups.setdefault(key, []).append(report)
    for (name, shape, action, how), members in groups.items():
        error = max(member.relative_error for member in members)
        weights = sum(math.prod(member.shape) for member in members)
        bits = sum(member.bpw * math.prod(member.shape) for member in members) / max(weights, 1)
        escaped = name.replace("|", "\\|")
        lost = f"{error:.4f}" if action == "quantized" else ""
        yield (
            f"| `{escaped}` | {len(members)} | {shape} | {action}: {how} | {lost} | {bits:.2f} |"
        )
