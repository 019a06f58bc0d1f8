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
from tpack.report import TensorReport, counted
from tpack.sources import Source
from tpack.text import plural, printable

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def model_card(source: Source, reports: Sequence[TensorReport], size: int) -> str:
    """Return README.md as model hubs read it: front matter, what was done, the source's card.

    Args:
        size: bytes of the output.
    """
    front, text = split_card(source.card)
    lines = ["---", *_front_matter(source, front), "---", "", "# Ternary weights, packed", ""]
    lines += [
        "Packed by tpack: ternary weights in two bits, in safetensors that describe themselves.",
        "",
        f"Tensors: {counted(reports)} as they were: "
        f"{source.nbytes / 1e6:.1f} MB → {size / 1e6:.1f} MB.",
        "",
        *_rounding(reports),
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


def _done(report: TensorReport) -> str:
    """Return what was done to a tensor: its action, or that its model rounds it as it runs."""
    return report.reason if report.is_master else report.action


def _rounding(reports: Sequence[TensorReport]) -> Iterator[str]:
    """Yield what rounding means for the model, where weights were rounded."""
    if any(report.is_master for report in reports):
        yield (
            "The source has masters, which its model rounds whenever it runs: the packed model "
            "computes with the same weights.\n"
        )
    if errors := [r.relative_error for r in reports if _done(r) == "quantized"]:
        yield (
            f"The weights of {plural(len(errors), 'quantized tensor')} were rounded, with a "
            f"relative error of at most {max(errors):.3f}: this changes the model, unless its own "
            "code rounds them in the same way whenever it runs. Compare its answers with those of "
            "the source before you use it.\n"
        )


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
        key = (Place.of(report.name).role, shape, _done(report), how)
        groups.setdefault(key, []).append(report)
    for (name, shape, done, how), members in groups.items():
        error = max(member.relative_error for member in members)
        weights = sum(math.prod(member.shape) for member in members)
        bits = sum(member.bpw * math.prod(member.shape) for member in members) / max(weights, 1)
        lost = f"{error:.4f}" if done == "quantized" else ""
        what = _prose(f"{done}: {how}")
        yield f"| {_code(name)} | {len(members)} | {shape} | {what} | {lost} | {bits:.2f} |"


def _code(name: str) -> str:
    """Return a name as code in a table of Markdown, whatever is in it."""
    text = printable(name).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _prose(text: str) -> str:
    """Return a text that may hold names for a table of Markdown, without markup."""
    return re.sub(r"([\\`*\[\]<>|!&])", r"\\\1", printable(text))
