"""Arguments for models of transformers, by what their class and config say of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tpack.errors import LayerDefError

#: Batch and length of token ids; the sizes that a program is free in differ from each other.
BATCH, LENGTH = 2, 8


def example_inputs(model: PreTrainedModel) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make arguments of the forward of a model.

    Raises:
        LayerDefError: it takes something else than token ids, or pictures of a known size.
    """
    name = model.main_input_name
    if name == "input_ids":
        given = {"input_ids": _ids(model, LENGTH)}
        if model.config.is_encoder_decoder:
            given["decoder_input_ids"] = _ids(model, LENGTH - 3)
            return (), given
        return (given["input_ids"],), {}
    if name == "pixel_values" and (shape := _picture(model.config)) is not None:
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(BATCH, *shape, generator=generator).to(model.dtype),), {}
    raise LayerDefError(f"{type(model).__name__} takes {name!r}, for which tpack has no example.")


def _ids(model: PreTrainedModel, length: int) -> Tensor:
    """Make token ids, all different from those that mean padding, or the beginning of a text."""
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise LayerDefError(f"the config of {type(model).__name__} has no vocab_size.")
    generator = torch.Generator().manual_seed(0)
    first = min(5, vocabulary - 1)
    return torch.randint(first, vocabulary, (BATCH, length), generator=generator)


def _picture(config: Any) -> tuple[int, int, int] | None:
    size = getattr(config, "image_size", None)
    channels = getattr(config, "num_channels", 3)
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, tuple | list) or len(sides) != 2 or not isinstance(channels, int):
        return None
    return channels, *sides
