"""Every architecture of transformers, as a small random model made from its own config.

The defaults of each config are shrunk by rules on the names of settings, so that a new release of
transformers needs no edits here; ``EXTRA`` has what the rules cannot know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

#: Names of settings → what they become, where the default is larger; the first that matches counts.
RULES = (
    (r"vocab_size_per_layer_input|vocab_size", 96),
    (r".*(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_seq_length|seq_length)", 64),
    (r"sliding_window|attention_window|local_attention|window_size|sliding_window_size", 6),
    (r"(chunk_size|mamba_chunk_size|attention_chunk_size|block_size|chunk_length)", 8),
    (r".*(num_experts_per_tok|moe_topk|moe_k|top_k_experts|num_experts_per_token|top_k)", 2),
    (r".*(num_shared_experts|n_shared_experts)", 1),
    (r".*(num_experts|n_routed_experts|num_local_experts|moe_num_experts|zero_expert_num)", 4),
    (r"(n_group|topk_group)", 1),
    (r".*(num_key_value_heads|num_kv_heads|n_head_kv|multi_query_group_num|kv_n_heads)", 2),
    (r".*(num_attention_heads|num_heads|n_heads?|attention_heads|n_local_heads)", 4),
    (r".*(num_hidden_layers|num_layers|n_layers?|decoder_layers|encoder_layers|n_blocks)", 2),
    (r".*(q_lora_rank|kv_lora_rank|lora_rank|lora_dim)", 16),
    (r"qk_head_dim", 32),
    (r".*(qk_rope_head_dim|qk_nope_head_dim|v_head_dim|head_dim|d_kv|kv_channels|rotary_dim)", 16),
    (r".*(intermediate_size|ffn_dim|d_ff|n_inner|ffn_hidden_size|d_inner|feed_forward_size)", 96),
    (
        r".*(hidden_size|d_model|n_embd|embedding_size|embedding_dim|emb_dim|embed_dim|dim_model)",
        64,
    ),
    (r"(hidden_dim|attention_hidden_size|lru_width|time_mix_.*_dim|dim|width|inner_dim)", 64),
    (r"(image_size|img_size)", 32),
    (r"(patch_size)", 8),
    (r"(state_size|mamba_d_state|ssm_state_size)", 16),
)
#: Settings that the rules cannot know.
EXTRA: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "esm": {"vocab_size": 96, "pad_token_id": 0, "mask_token_id": 4},
    "esmc": {"num_key_value_heads": 4, "vocab_size": 96},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "intermediate_size": [96, 96],
        "activation_sparsity_pattern": [0.95, 0.0],
        "laurel_rank": 8,
        "hidden_size_per_layer_input": 16,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"], "num_dense_layers": 1},
    "luke": {"entity_vocab_size": 96, "entity_emb_size": 32},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "mobilebert": {"hidden_size": 128, "intra_bottleneck_size": 64},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 2,
    },
    "perceiver": {"num_latents": 8, "d_latents": 64, "num_self_attends_per_block": 2},
    "reformer": {
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 48],
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 16,
        "num_hidden_layers": 2,
        "hash_seed": 0,
    },
    "t5gemma": {"is_encoder_decoder": False},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "mamba_dt_rank": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "mamba_headdim": 16,
    },
}


def _codes(batch: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the ids of four codebooks, one after another in the batch."""
    return {"input_ids": torch.randint(3, 96, (4 * batch, length), generator=generator)}


#: Arguments of forward that are not those of their group.
EXTRA_INPUTS = {"musicgen": _codes, "musicgen_melody": _codes}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _shrunk(name: str, value: Any) -> Any:
    """Return a smaller value of a setting; None if it stays."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    small = next((small for rule, small in RULES if re.fullmatch(rule, name)), None)
    return small if small is not None and value > small else None


def settings(config: Any) -> dict[str, Any]:
    """Return the settings that make a config small, those of the configs in it too."""
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, transformers.PreTrainedConfig):
            found[name] = settings(value) | {"model_type": value.model_type}
        elif (small := _shrunk(name, value)) is not None:
            found[name] = small
    if vars(config).get("head_dim", 0) is None and "hidden_size" in found:
        found["head_dim"] = 16
    if "kv_lora_rank" in found:  # keys of all heads come from one latent vector
        found["num_key_value_heads"] = 4
    kinds = getattr(config, "layer_types", None)
    name = config.attribute_map.get("layer_types", "layer_types")
    computed = isinstance(getattr(type(config), name, None), property)
    if isinstance(kinds, list) and kinds and not computed:
        each = list(dict.fromkeys(kinds))
        each = each if len(each) > 1 else each * 2
        layers = next((n for n in ("num_hidden_layers", "num_layers", "n_layer") if n in found), "")
        if layers:
            found |= {"layer_types": each, layers: len(each)}
    for name, value in TOKENS.items():
        default = getattr(config, name, None)
        if isinstance(default, int) and default >= 96:
            found[name] = value
    return found


def small_config(kind: str) -> Any:
    """Make the small config of an architecture."""
    default = transformers.AutoConfig.for_model(kind)
    return transformers.AutoConfig.for_model(kind, **settings(default) | EXTRA.get(kind, {}))


def families() -> Iterator[tuple[str, str, str]]:
    """Yield group, architecture and the name of its class in transformers."""
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    texts = modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    decoders = {name: causal[name] for name in sorted({*causal} - {*masked})}
    for name, cls in decoders.items():
        if decoders.get(f"{name}_text") != cls:  # the same model, with a picture's encoder
            yield "decoder", name, cls
    for name in sorted({*masked, *texts} - ({*causal} - {*masked})):
        yield "encoder", name, masked.get(name) or texts[name]
    images = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    for name, cls in sorted(images.items()):
        yield "image", name, cls if isinstance(cls, str) else cls[0]
    sounds = modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES
    sounds = modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES | sounds
    for name, cls in sorted(sounds.items()):
        yield "audio", name, cls


def small_model(kind: str, cls: str) -> nn.Module:
    """Make a model whose every parameter matters: large weights, biases other than zero."""
    torch.manual_seed(0)
    config, made = small_config(kind), getattr(transformers, cls)
    if made.config_class is not type(config) and made.config_class is not None:
        config = config.get_text_config(decoder=True)
    model = made(config).eval()
    config = model.config
    for one in (config, *(v for v in vars(config).values() if hasattr(v, "use_cache"))):
        if hasattr(one, "use_cache"):
            one.use_cache = False
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.dtype.is_floating_point:
                continue
            if parameter.dim() > 1:
                fan = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape) * 1.2 / fan**0.5)
            else:
                parameter.add_(torch.rand(parameter.shape) / 8)
    return model
