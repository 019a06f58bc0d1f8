"""Small mixtures of experts of transformers, whose matrices are ternary."""

import re

import torch
import transformers
from hf_folders import SIZES

MOE = SIZES | {"num_experts_per_tok": 2, "num_hidden_layers": 1}
ONE = {"num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 24}
LATENT = ONE | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "n_shared_experts": 1}
NARROW = {"moe_intermediate_size": 32}
#: By family: the options of its config, and how many tensors of experts are packed.
FAMILIES = {
    "mixtral": ({"num_local_experts": 4}, 12),
    "qwen3_moe": ({"num_experts": 4, "head_dim": 16} | NARROW, 12),
    "qwen2_moe": ({"num_experts": 4, "shared_expert_intermediate_size": 48} | NARROW, 15),
    "olmoe": ({"num_experts": 4}, 12),
    "deepseek_v2": ({"n_routed_experts": 4} | NARROW | LATENT | GROUPS, 15),
    "deepseek_v3": ({"n_routed_experts": 4} | NARROW | LATENT | GROUPS, 15),
    "phimoe": ({"num_local_experts": 4}, 12),
    "gpt_oss": ({"num_local_experts": 4, "head_dim": 16}, 2),
    "granitemoe": ({"num_local_experts": 4}, 2),
}
ROUTERS = re.compile(r"emb|lm_head|router|gate\.weight|norm|_gate\.")


def mixture(family="mixtral", dtype=torch.float32, **options):
    """Every matrix ternary, with a scale of its own for each expert."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **MOE | FAMILIES[family][0] | options)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 3:
                scales = torch.rand(len(weight), 1, 1) / 4 + 0.125
                weight.copy_(torch.randint(-1, 2, weight.shape) * scales)
            elif weight.dim() == 2 and not ROUTERS.search(name):
                weight.copy_(torch.randint(-1, 2, weight.shape) * 0.03125)
            elif "bias" in name:
                weight.copy_(torch.rand(weight.shape) / 8)
    return model
