"""Small random models of the transformers library, plain and in its bitnet packing."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

os.environ["HF_HUB_OFFLINE"] = "1"

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def transformers():
    """The library; its import warns of deprecations in torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers.integrations.bitnet
    return transformers


def make(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **config) -> nn.Module:
    """A random model whose linear layers, but for the head, are ternary, one scale each."""
    library = transformers()
    torch.manual_seed(seed)
    config = getattr(library, f"{family}Config")(**SMALL | config)
    model = getattr(library, f"{family}ForCausalLM")(config).to(dtype).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name != "lm_head":
                scale = torch.rand(1, dtype=dtype) / 4 + 0.125
                module.weight.copy_(torch.randint(-1, 2, module.weight.shape) * scale)
                if module.bias is not None:
                    module.bias.copy_(torch.randint(-8, 9, module.bias.shape) / 16)
            elif name.endswith("norm"):
                module.weight.copy_(torch.rand(module.weight.shape) + 0.5)
    model.config.dtype = dtype
    return model


def save_packed(model: nn.Module, folder: Path, linear_class: str = "bitlinear") -> None:
    """Write a model of ``make`` as the library reads it packed, by its own ``pack_weights``."""
    pack = transformers().integrations.bitnet.pack_weights
    plain = model.state_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        layer, _, last = name.rpartition(".")
        scale = plain[f"{layer}.weight"].abs().max().reshape(1)
        if layer == "lm_head" and model.config.tie_word_embeddings:
            continue
        if last == "weight" and layer.endswith("proj"):
            state[name] = pack(tensor.sign())
            state[f"{name}_scale"] = 1 / scale if linear_class == "bitlinear" else scale
        elif last == "bias" and linear_class == "autobitlinear":
            state[name] = tensor / scale
        else:
            state[name] = tensor
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {
        "architectures": [type(model).__name__],
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": linear_class,
            "quantization_mode": "offline",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, default=str))


def load(folder: Path) -> nn.Module:
    """A folder as the library loads it."""
    library = transformers()
    library.utils.logging.disable_progress_bar()
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return library.AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model: nn.Module) -> Tensor:
    """Of some tokens, without compiling anything."""
    tokens = torch.tensor([[5, 17, 99, 3, 42, 8, 1], [7, 7, 0, 63, 21, 90, 2]])
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(tokens).logits
