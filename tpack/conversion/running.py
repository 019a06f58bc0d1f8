"""Notes about a converted model that will not run as it is, with the way out."""

from __future__ import annotations

from collections.abc import Iterable

from tpack.layerdef import Program, Unspecified
from tpack.selection import is_of_experts
from tpack.sources import Source
from tpack.wording import spell

#: Models of transformers 5 that do not compute experts by the interface which most share.
_NEED_FLOATS = {"dbrx", "ernie4_5_vl_moe", "ernie4_5_vl_moe_text", "jetmoe", "llama4"} | {
    "llama4_text",
    "longcat_flash",
    "qwen3_vl_moe",
    "qwen3_vl_moe_text",
    "step3p7",
}


def about_forward(source: Source, program: Program) -> list[str]:
    """Return a note if neither the LayerDefs nor transformers have a forward for the model."""
    root = program.by_name[program.root]
    if not isinstance(root.body[0], Unspecified) or _of_transformers(source):
        return []
    gguf = ", or run it with llama.cpp after an export to gguf" if "gguf" in source.metadata else ""
    return [
        "the model has no forward, because tensors do not record the order of calls: calling it "
        "raises NotImplementedError. To get one, convert the module in Python with example_args, "
        f"or a .pt2 file of it, or describe it with {spell(layerdef=...)}{gguf}"
    ]


def about_experts(source: Source, packed: Iterable[str]) -> list[str]:
    """Return a warning if transformers has no use for the packed experts of a model."""
    names = [name for name in packed if is_of_experts(name)]
    kind = (source.config or {}).get("model_type")
    if not names or kind not in _NEED_FLOATS:
        return []
    return [
        f"{len(names)} packed weights belong to experts (*.experts.*), which models of the type "
        f"{kind} compute in a way of their own that needs floats: tpack.hf refuses to load the "
        f"folder. To run it there, convert with {spell(exclude=['*.experts.*'])}; tpack.load has "
        "all layers"
    ]


def runs_in_transformers(source: Source, packed: Iterable[str]) -> bool:
    """Return whether transformers can load the packed folder: it has the class, and its layers."""
    own_code = "auto_map" in (source.config or {})
    return _of_transformers(source) and not own_code and not about_experts(source, packed)


def _of_transformers(source: Source) -> bool:
    return "model_type" in (source.config or {})
