"""Refuse to load packed files as if they were plain, whatever config they are loaded with.

transformers finds a quantizer by the config alone. With another one, given as ``config=`` or
found in a folder that somebody edited, it would warn, leave the packed weights out, and run the
model on random weights. It has no hook between finding the files and reading them, so its own
function is wrapped.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from tpack.errors import UsageError
from tpack.hf.quantizer import TpackQuantizer, is_packed


def refuse_unnoticed() -> None:
    """Make transformers refuse packed files if the config does not say that they are packed."""
    load = PreTrainedModel._load_pretrained_model  # noqa: SLF001
    signature = inspect.signature(load)

    @functools.wraps(load)
    def guarded(*args: Any, **options: Any) -> Any:
        given = signature.bind(*args, **options).arguments
        quantizer = getattr(given.get("load_config"), "hf_quantizer", None)
        if not isinstance(quantizer, TpackQuantizer):
            _check_plain(given.get("checkpoint_files") or ())
        return load(*args, **options)

    PreTrainedModel._load_pretrained_model = staticmethod(guarded)  # noqa: SLF001


def _check_plain(paths: Iterable[str]) -> None:
    """Refuse files that hold packed weights.

    Raises:
        UsageError: a file holds packed weights; with its path.
    """
    for path in paths:
        if is_packed(path):
            raise UsageError(
                "holds weights that tpack packed, but the config that it is loaded with does not "
                "say so. Leave out config=, or take that of the folder: "
                "AutoConfig.from_pretrained(FOLDER). If its config.json was changed, convert the "
                "model again.",
                file=path,
            )
