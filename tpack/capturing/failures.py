"""Errors of torch.export, explained in sentences about the module and not the tracer."""

from __future__ import annotations

import re
from pathlib import PurePath

_FIXED = re.compile(r"You marked (.+?) as dynamic but your code specialized it .*?\((-?\d+)\)")
_INPUT = re.compile(r"L\['(\w+)'\](.*?)\.size\(\)\[(\d+)\]")
_PLACE = re.compile(r'The following call raised this error:\n\s*File "(.+)", line (\d+).*\n\s*(.+)')


def explained(error: Exception) -> str:
    """Explain an exception of torch.export in one or two sentences.

    Example:
        >>> explained(ValueError("L['x'].size()[1] = 5 is not equal to L['y'].size()[0] = 2"))
        'x.size(1) = 5 is not equal to y.size(0) = 2.'
    """
    text = _INPUT.sub(r"\1\2.size(\3)", str(error).strip())
    if "data-dependent" in text.partition("\n")[0]:
        return f"{_data_dependent(text)}. Compute both sides and choose with torch.where."
    if fixed := _FIXED.findall(text):
        sizes = "; ".join(f"{name} can only be {size}" for name, size in fixed)
        return f"{sizes}, though dynamic_shapes makes it free. Leave it out of dynamic_shapes."
    if "cache_utils" in text.partition("\n")[0]:
        return (
            "it gives a cache of keys and values, which LayerDef cannot express. "
            "Set model.config.use_cache = False."
        )
    first = (text.splitlines() or [type(error).__name__])[0]
    return first if first.endswith((".", "!", "?")) else f"{first}."


def _data_dependent(text: str) -> str:
    found = _PLACE.search(text)
    where = f", in {PurePath(found[1]).name}:{found[2]}: {found[3]:.100}" if found else ""
    return f"the order of its steps depends on the values of tensors{where}"
