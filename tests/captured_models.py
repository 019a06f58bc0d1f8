"""Small models of many families with random ternary weights, and inputs for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn
from torch.export import Dim
from transformers.models.whisper.modeling_whisper import WhisperEncoder

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
DECODER = SIZES | {
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


@dataclass
class Example:
    """A model and how to call it.

    Attributes:
        inputs: makes arguments by name for a batch and a length.
        constants: arguments that are no tensors.
        shapes: free sizes; None for those that tpack frees by itself.
    """

    model: nn.Module
    inputs: Callable[[int, int], dict[str, Tensor]]
    constants: dict[str, Any]
    shapes: Any = None

    def arguments(self, batch: int = 2, length: int = 5) -> dict[str, Any]:
        """Arguments for ``capture`` and ``convert``."""
        return {
            "example_args": (),
            "example_kwargs": self.inputs(batch, length) | self.constants,
            "dynamic_shapes": self.shapes,
        }


def ternarize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every matrix random ternary values, and every vector values of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            table = tensor.dim() == 2 and any(word in name for word in ("embed", "wte", "wpe"))
            if tensor.dim() > 1 and not table:
                trits = torch.randint(-1, 2, tensor.shape, generator=generator)
                tensor.copy_(trits / math.sqrt(tensor[0].numel()))
            else:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def tokens(batch: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch * length)
    return {"input_ids": torch.randint(0, VOCABULARY, (batch, length), generator=generator)}


def floats(name: str, *shape: int) -> Callable[[int, int], dict[str, Tensor]]:
    def make(batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch * length)
        return {name: torch.randn((batch, *shape), generator=generator)}

    return make


def decoder(kind: Any, config: Any, attention: str = "sdpa", **options: Any) -> Example:
    config._attn_implementation = attention
    for name, value in options.items():
        setattr(config, name, value)
    return Example(ternarize(kind(config)), tokens, {"use_cache": False})


def llama(attention: str = "sdpa") -> Example:
    return decoder(hf.LlamaForCausalLM, hf.LlamaConfig(**DECODER), attention)


def mistral() -> Example:
    return decoder(hf.MistralForCausalLM, hf.MistralConfig(**DECODER, sliding_window=4))


def qwen3() -> Example:
    return decoder(hf.Qwen3ForCausalLM, hf.Qwen3Config(**DECODER, head_dim=16))


def bitnet() -> Example:
    return decoder(hf.BitNetForCausalLM, hf.BitNetConfig(**DECODER, hidden_act="relu2"))


def qwen3_moe() -> Example:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = hf.Qwen3MoeConfig(**DECODER, **sizes, head_dim=16)
    return decoder(hf.Qwen3MoeForCausalLM, config)


def mixtral() -> Example:
    config = hf.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)
    return decoder(hf.MixtralForCausalLM, config, _experts_implementation="eager")


def gpt2(attention: str = "sdpa") -> Example:
    config = hf.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    return decoder(hf.GPT2LMHeadModel, config, attention)


def bert(attention: str = "sdpa") -> Example:
    config = hf.BertConfig(**SIZES)
    config._attn_implementation = attention
    return Example(ternarize(hf.BertModel(config)), tokens, {})


def padded_bert() -> Example:
    def make(batch: int, length: int) -> dict[str, Tensor]:
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[0, -1] = 0
        return tokens(batch, length) | {"attention_mask": mask}

    return Example(bert().model, make, {})


def padded_llama() -> Example:
    def make(batch: int, length: int) -> dict[str, Tensor]:
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[0, 0] = 0
        return tokens(batch, length) | {"attention_mask": mask}

    return Example(llama().model, make, {"use_cache": False})


def t5_encoder() -> Example:
    config = hf.T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4
    )
    return Example(ternarize(hf.T5EncoderModel(config)), tokens, {})


def vit() -> Example:
    sizes = {k: v for k, v in SIZES.items() if not k.startswith(("vocab", "max"))}
    config = hf.ViTConfig(**sizes, image_size=32, patch_size=8)
    return Example(ternarize(hf.ViTModel(config)), floats("pixel_values", 3, 32, 32), {})


def whisper_encoder() -> Example:
    config = hf.WhisperConfig(
        d_model=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        num_mel_bins=20,
        max_source_positions=50,
    )
    return Example(ternarize(WhisperEncoder(config)), floats("input_features", 20, 100), {})


def resnet() -> Example:
    config = hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic"
    )

    def make(batch: int, length: int) -> dict[str, Tensor]:
        return floats("pixel_values", 3, 8 * length, 40)(batch, length)

    shapes = {"pixel_values": {0: Dim.AUTO, 2: Dim.AUTO}}
    return Example(ternarize(hf.ResNetModel(config)), make, {}, shapes)


# ---- models of our own


class Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.grow = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.grow(F.relu(self.reduce(self.pool(x))))
        return x * F.hardsigmoid(gate)


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = 2 * inputs
        self.expand = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.Hardswish()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.Hardswish(inplace=True),
        )
        self.squeeze = Squeeze(inner)
        self.project = nn.Sequential(
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.depthwise(self.expand(x))
        hidden = self.project(self.squeeze(hidden))
        return x + hidden if self.residual else hidden


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6(True))
        self.blocks = nn.Sequential(
            Inverted(16, 16, 1), Inverted(16, 16, 1), Inverted(16, 24, 2), Inverted(24, 24, 1)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.classifier(x.mean([2, 3]))


def mobilenet() -> Example:
    return Example(ternarize(MobileNet()), floats("x", 3, 32, 32), {})


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(24, 48)
        self.fc2 = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.fc1(x))
        return self.fc2(hidden)


def mlp() -> Example:
    return Example(ternarize(Mlp()), floats("x", 24), {})


class Recurrent(nn.Module):
    """An LSTM cell, unrolled over four steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(x.size(0), 16)
        state = hidden
        for step in range(4):
            hidden, state = self.cell(x[:, step], (hidden, state))
        return self.head(hidden)


def lstm() -> Example:
    return Example(ternarize(Recurrent()), floats("x", 4, 8), {})


class QuantizedLinear(nn.Linear):
    """BitNet b1.58 as papers spell it for training: both operands rounded on the way."""

    def forward(self, x: Tensor) -> Tensor:
        gain = 127.0 / x.abs().max(dim=-1, keepdim=True).values.clamp_(min=1e-5)
        rounded = (x * gain).round().clamp_(-128, 127) / gain
        scale = 1.0 / self.weight.abs().mean().clamp_(min=1e-5)
        trits = (self.weight * scale).round().clamp_(-1, 1) / scale
        x = x + (rounded - x).detach()
        weight = self.weight + (trits - self.weight).detach()
        return F.linear(x, weight, self.bias)


class Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(24)
        self.up = QuantizedLinear(24, 48, bias=False)
        self.down = QuantizedLinear(48, 24)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.up(self.norm(x))) ** 2
        return x + self.down(hidden)


def quantized() -> Example:
    return Example(Trained().eval(), floats("x", 5, 24), {})


FAMILIES: dict[str, Callable[[], Example]] = {
    "mlp": mlp,
    "resnet": resnet,
    "mobilenet": mobilenet,
    "vit": vit,
    "bert": bert,
    "bert, padded": padded_bert,
    "gpt2": gpt2,
    "gpt2, eager": lambda: gpt2("eager"),
    "llama": llama,
    "llama, eager": lambda: llama("eager"),
    "llama, padded": padded_llama,
    "mistral": mistral,
    "qwen3": qwen3,
    "qwen3 moe": qwen3_moe,
    "mixtral": mixtral,
    "bitnet": bitnet,
    "t5 encoder": t5_encoder,
    "whisper encoder": whisper_encoder,
    "lstm": lstm,
}
