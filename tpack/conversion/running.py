"""Notes about a converted model that will not run as it is, with the way out."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tpack.layerdef import Program, Unspecified
from tpack.sources import Source

_EXPERTS = re.compile(r"(^|\.)experts\.")


def about_forward(source: Source, program: Program) -> list[str]:
    """Return a note if neither the LayerDefs nor transformers have a forward for the model."""
    root = program.by_name[program.root]
    if not isinstance(root.body[0], Unspecified) or _of_transformers(source):
        return []
    gguf = ", or export it to gguf again" if "gguf" in source.metadata else ""
    return [
        "the model has no forward, since tensors do not record it: calling it raises "
        "NotImplementedError. To get one, convert the module with example arguments or a .pt2, or "
        f"give LayerDefs{gguf}"
    ]


def about_experts(source: Source, packed: Iterable[str]) -> list[str]:
    """Return a warning if transformers would merge packed weights of experts."""
    names = [name for name in packed if _EXPERTS.search(name)]
    if not names or not _of_transformers(source):
        return []
    return [
        f"{len(names)} packed weights belong to experts, such as {names[0]}. transformers 5 merges "
        "the experts of a layer into one tensor (Mixtral, Qwen-MoE, DeepSeek and others), and "
        "tpack.hf then refuses to load the folder. To run it there, exclude '*.experts.*'; "
        "tpack.load has all layers, but no forward"
    ]


def _of_transformers(source: Source) -> bool:
    return "model_type" in (source.config or {})
