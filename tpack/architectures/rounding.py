"""The layers of ``quant_method`` ``bitnet``, which round their inputs, and perhaps weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from tpack.errors import LayerDefError
from tpack.hfconfig import quant_method


class RoundedLinear(nn.Linear):
    """A linear layer that rounds its input to int8 per token, and its weight to trits if online.

    It computes what ``AutoBitLinear`` of transformers does, whose module loads the compiler of
    torch. A stored weight already has its scale.
    """

    online = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # named so in torch
        """Map (..., in_features) to (..., out_features)."""
        weight = self.weight
        if self.online:
            scale = 1.0 / weight.float().abs().mean().clamp(min=1e-5)
            weight = ((weight.float() * scale).round().clamp(-1, 1) / scale).to(weight.dtype)
        x = input.float()
        factor = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
        x = ((x * factor).round().clamp(-128, 127) / factor).to(input.dtype)
        return F.linear(x, weight, self.bias)


def with_rounding(model: PreTrainedModel, data: Mapping[str, Any]) -> PreTrainedModel:
    """Put in the layers that round, if the config says so; the model is changed.

    Args:
        data: the content of config.json.

    Raises:
        LayerDefError: the config names another quantization.
    """
    method = quant_method(data)
    if not method:
        if any(data.get(key) for key in ("quantization_config", "quantization")):
            raise LayerDefError("the config names a quantization whose layers tpack does not know.")
        return model
    if method != "bitnet":
        raise LayerDefError(f"the layers of quant_method {method!r:.40} are not captured.")
    settings = data["quantization_config"]
    if settings.get("use_rms_norm"):
        raise LayerDefError("layers of bitnet with use_rms_norm are not captured.")
    online = settings.get("linear_class") == "autobitlinear"
    online = online and settings.get("quantization_mode") == "online"
    for path in rounded_layers(model, settings.get("modules_to_not_convert")):
        layer = model.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        with torch.device("meta"):
            new = RoundedLinear(layer.in_features, layer.out_features, layer.bias is not None)
        new.online = online
        new.weight, new.bias = layer.weight, layer.bias
        model.set_submodule(path, new.eval())
    return model


def rounded_layers(model: PreTrainedModel, kept: Any) -> list[str]:
    """Return the paths of linear layers that round their inputs, by transformers' own rules.

    Args:
        kept: ``modules_to_not_convert`` of the config.
    """
    left = HfQuantizer.get_modules_to_not_convert(model, kept, model._keep_in_fp32_modules)  # noqa: SLF001
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and should_convert_module(path, left)
    ]
