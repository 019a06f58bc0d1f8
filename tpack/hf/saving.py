"""``save_pretrained`` of a packed model writes a folder like those of ``tpack convert``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tpack.container import INDEX, SINGLE
from tpack.container.atomic import write_json
from tpack.container.folders import changed_folder
from tpack.describing import Description, Shards
from tpack.errors import UsageError
from tpack.hf.describing import describe_model
from tpack.hfconfig import packed_config

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def save_pretrained(
    model: PreTrainedModel,
    save_directory: str | Path,
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str = "50GB",
    variant: str | None = None,
    **options: Any,
) -> None:
    """Write a packed folder; other files that lie in it stay.

    transformers writes the configs and the code of custom models; the weights are written here.
    The new folder takes the place of the old one in one step, as ``changed_folder`` describes.

    Args:
        model: a model that ``from_pretrained`` loaded from a packed folder.
        save_directory: the folder to write.
        is_main_process: whether this process writes.
        state_dict: values to write in place of those of the model.
        push_to_hub: not supported; use ``model.push_to_hub``.
        max_shard_size: greatest size of a file: a number of bytes, or text such as ``"5GB"``.
        variant: not supported.
        options: other options of ``PreTrainedModel.save_pretrained``.

    Raises:
        UsageError: an option that is not supported; see ``describe_model`` for others.
        InputError: a scale is not finite.
        UnsupportedError: a packed layer was replaced by a float layer.
        NotTernaryError: a packed byte holds no valid codes.
        StorageError: writing failed.
    """
    if push_to_hub:
        raise UsageError("save_pretrained does not upload packed models: use model.push_to_hub.")
    if variant is not None:
        raise UsageError(f"variant {variant!r:.40} is given, but packed folders have none.")
    limit = _bytes_of(max_shard_size)
    if not is_main_process:
        return
    quantizer = model.hf_quantizer
    state = state_dict or model.state_dict()
    description = describe_model(model, state, quantizer.document, quantizer.origin)
    with changed_folder(save_directory, _is_of_weights) as folder:
        quantizer.saving = True
        try:
            type(model).save_pretrained(model, folder, **options)
        finally:
            quantizer.saving = False
        _write(folder, description, limit)
        # not the file: it was not read again after it was written
        config = packed_config(json.loads(model.config.to_json_string()))
        write_json(folder / "config.json", config, force=True)


def _is_of_weights(name: str) -> bool:
    """Return whether a file of this name belongs to the old weights, which are replaced."""
    return name in (SINGLE, INDEX) or _SHARD.fullmatch(name) is not None


def _write(folder: Path, description: Description, limit: int) -> None:
    """Write the weights, in files of at most ``limit`` bytes or of one larger tensor."""
    groups = description.split(limit)
    count = len(groups)
    files = [
        SINGLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        for number in range(1, count + 1)
    ]
    write = Shards(folder, files, force=True)
    for output in description.files(groups):
        write(output)
    if count > 1:
        write.write_index()


def _bytes_of(size: int | str) -> int:
    """Read a number of bytes in the spelling of transformers.

    Example:
        >>> _bytes_of("5GB"), _bytes_of(100)
        (5000000000, 100)
    """
    text = str(size).strip().upper()
    number, unit = (text[:-2].strip(), _UNITS[text[-2:]]) if text[-2:] in _UNITS else (text, 1)
    if not number.isdecimal() or int(number) == 0:
        raise UsageError(f"max_shard_size is {size!r:.40}, expected a size such as '5GB'.")
    return int(number) * unit
