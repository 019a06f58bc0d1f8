"""Which tensors are packed, by name, shape and dtype."""

import re
from pathlib import Path

import pytest
import torch

from tpack.errors import UnsupportedError
from tpack.selection import RULES, Shapes, keep_reason, split_by_name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fc.weight", None),
        ("weight", None),
        ("model.layers.0.self_attn.q_proj.weight", None),
        ("model.layers.0.mlp.down_proj.weight", None),
        ("blocks.3.output.dense.weight", None),
        ("layers.0.attention.output.weight", None),
        ("conv1.weight", None),
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("transformer.wpe.weight", "embedding"),
        ("tok_embeddings.weight", "embedding"),
        ("pos_embedding", "embedding"),
        ("layers.0.norm.weight", "norm"),
        ("input_layernorm.weight", "norm"),
        ("lm_head.weight", "output head"),
        ("model.lm_head.weight", "output head"),
        ("classifier.weight", "output head"),
        ("attn.relative_position_bias_table", "no matrix by its name"),
        ("attn.mask", "no matrix by its name"),
    ],
)
def test_by_name(name, reason):
    assert keep_reason(name, "float32", (64, 64)) == reason


#: Names and shapes as models of transformers, timm and llama.cpp have them.
FAMILIES = [
    ("shared.weight", (128, 64), "embedding"),  # T5
    ("model.shared.weight", (128, 64), "embedding"),  # BART
    ("transformer.w.weight", (128, 64), "embedding"),  # CTRL
    ("mask_decoder.iou_token.weight", (1, 256), "embedding"),  # SAM
    ("prompt_encoder.point_embed.0.weight", (1, 256), "embedding"),
    ("quantizer.codevectors", (1, 640, 128), "embedding"),  # Wav2Vec2
    ("model.decoder.embed_positions.weight", (66, 64), "embedding"),  # OPT
    ("bert.embeddings.position_embeddings.weight", (64, 64), "embedding"),
    ("vit.embeddings.patch_embeddings.projection.weight", (64, 3, 8, 8), "embedding"),
    ("patch_embed.proj.weight", (64, 3, 8, 8), "embedding"),  # timm
    ("token_embd.weight", (128, 64), "embedding"),  # GGUF
    ("lm_head.decoder.weight", (128, 64), "output head"),  # RoBERTa
    ("lm_head.dense.weight", (64, 64), None),
    ("cls.predictions.decoder.weight", (128, 64), "output head"),
    ("cls.predictions.transform.dense.weight", (64, 64), None),
    ("classifier.out_proj.weight", (2, 64), "output head"),
    ("classifier.dense.weight", (64, 64), None),
    ("classifier.3.weight", (64, 64), None),  # VGG's hidden layers
    ("pooler.dense.weight", (64, 64), None),
    ("score.weight", (2, 64), "output head"),  # Llama for classification
    ("embed_out.weight", (128, 64), "output head"),  # GPT-NeoX
    ("qa_outputs.weight", (2, 64), "output head"),
    ("lm_loss.weight", (128, 64), "output head"),  # XLNet
    ("proj_out.weight", (128, 64), "output head"),  # Whisper
    ("attn.proj_out.weight", (64, 64), None),
    ("lm_heads.0.weight", (128, 64), "output head"),  # MusicGen
    ("text_projection.weight", (64, 64), "output head"),  # CLIP
    ("output.weight", (128, 64), "output head"),  # GGUF
    ("model.layers.0.mlp.gate.weight", (4, 64), "router"),  # Qwen-MoE
    ("model.layers.0.block_sparse_moe.gate.weight", (8, 64), "router"),  # Mixtral
    ("model.layers.0.feed_forward.gate.weight", (256, 64), None),
    ("model.layers.0.mlp.gate_proj.weight", (64, 256), None),
    ("model.layers.0.mlp.shared_expert_gate.weight", (1, 64), "router"),
    ("model.layers.0.mlp.gate.wg.weight", (4, 64), "router"),  # Hunyuan
    ("model.layers.0.mlp.router.weight", (4, 64), "router"),  # GPT-OSS
    ("encoder.block.1.layer.1.mlp.router.classifier.weight", (4, 64), "router"),  # Switch
    ("blk.0.ffn_gate_inp.weight", (4, 64), "router"),  # GGUF
    ("blk.0.ffn_gate.weight", (64, 256), None),
    ("model.layers.0.mlp.experts.gate_up_proj", (4, 128, 64), None),
    ("block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 4), "position bias"),
    ("vision_encoder.layers.0.attn.rel_pos_h", (27, 64), "position bias"),  # SAM
    ("transformer.layer.0.rel_attn.r_w_bias", (16, 64), "no matrix by its name"),  # XLNet
    ("transformer.layer.0.rel_attn.r", (64, 16, 4), None),
    ("model.layers.0.mlp.experts.down_proj_bias", (4, 64), "no matrix by its name"),
    ("backbone.layers.0.mixer.A_log", (64, 16), "state space"),  # Mamba
    ("backbone.layers.0.mixer.D", (64,), "1-D"),
    ("backbone.layers.0.mixer.conv1d.weight", (64, 1, 4), "state space"),
    ("backbone.layers.0.mixer.x_proj.weight", (36, 64), None),
    ("backbone.layers.0.mixer.dt_proj.weight", (64, 4), None),
    ("blk.0.ssm_a", (64, 16), "state space"),  # GGUF
    ("blk.0.ssm_conv1d.weight", (64, 4), "state space"),
    ("encoder.conv1d.weight", (64, 32, 3), None),
    ("conv1.weight", (8, 1, 3, 3), None),  # of grey pictures
    ("rwkv.blocks.0.attention.time_mix_key", (1, 1, 64), "state space"),
    ("stages.0.layers.0.dwconv.weight", (96, 1, 7, 7), "depthwise"),  # ConvNeXt
    ("conv.parametrizations.weight.original0", (128, 1, 1), "a vector"),
    ("conv.parametrizations.weight.original1", (128, 64, 3), None),
    ("flow.log_scale", (2, 1), "no matrix by its name"),  # VITS
    ("own.up.weight", (64, 32), None),  # with learned scales beside it
    ("own.up.alpha", (64, 1), "a scale by its shape"),
    ("own.up.beta", (1, 32), "a scale by its shape"),
    ("own.up.gamma", (1, 1), "a scale by its shape"),
    ("own.gain", (64, 1), None),
    ("perceiver.embeddings.latents", (8, 64), "embedding"),
    ("base.layers.0.q_proj.lora_A.default.weight", (8, 64), "adapter"),  # PEFT
    ("resampler.latents", (8, 64), "no matrix by its name"),  # Idefics
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "reason"), FAMILIES)
def test_names_of_families(name, shape, reason):
    others = {name: shape for name, shape, _ in FAMILIES if "." in name}
    others["classifier.6.weight"] = (2, 64)
    assert keep_reason(name, "float32", shape, others=Shapes(others)) == reason
    if len(shape) > 1:
        assert keep_reason(name, "float32", shape, include=["*"]) is None


def test_every_embedding_and_router_of_real_models():
    """By the classes that transformers makes, not by our own names."""
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 96, "d_model": 32, "hidden_size": 32, "intermediate_size": 48}
    small |= {"num_layers": 1, "num_hidden_layers": 1, "num_attention_heads": 4, "num_heads": 4}
    small |= {"encoder_layers": 1, "decoder_layers": 1, "num_local_experts": 4}
    for family in (
        "T5ForConditionalGeneration",
        "BartForConditionalGeneration",
        "MixtralForCausalLM",
        "MPNetForMaskedLM",
    ):
        kind = getattr(transformers, family)
        with torch.device("meta"):
            model = kind(kind.config_class(**small))
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name, tensor in model.state_dict().items():
            owner = model.get_submodule(name.rpartition(".")[0])
            reason = keep_reason(name, "float32", tuple(tensor.shape), others=Shapes(shapes))
            if isinstance(owner, torch.nn.Embedding | torch.nn.LayerNorm):
                assert reason is not None, (family, name)
            elif type(owner).__name__.endswith("Router"):
                assert reason == "router", (family, name)
            elif isinstance(owner, torch.nn.Linear) and reason is not None and tensor.dim() == 2:
                assert tensor.shape[0] in (96, 2) or tensor is model.get_output_embeddings().weight


def test_the_manual_has_every_rule():
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text().lower()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for rule in RULES:
        listed = {w for row in rows if rule.reason in row for w in re.findall(r"`([^`]+)`", row)}
        missing = {word.strip(".").removesuffix(".weight") for word in rule.words} - listed
        assert not missing, rule.reason


@pytest.mark.parametrize(
    ("dtype", "shape", "reason"),
    [
        ("float32", (), "0-D"),
        ("float32", (5,), "1-D"),
        ("float32", (0, 4), "empty"),
        ("float32", (4, 0), "empty"),
        ("int64", (4, 4), "integer"),
        ("int32", (4, 4), "integer"),
        ("uint8", (4, 4), "integer"),
        ("bool", (4, 4), "integer"),
        ("complex64", (4,), "1-D"),
        ("float8_e4m3fn", (4,), "1-D"),
        ("int8", (4, 4), None),
        ("float64", (4, 4), None),
        ("float16", (4, 4, 3, 3), None),
        ("bfloat16", (2, 4, 4), None),
    ],
)
def test_by_dtype_and_shape(dtype, shape, reason):
    assert keep_reason("fc.weight", dtype, shape) == reason


@pytest.mark.parametrize("dtype", ["complex64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_weights_in_dtypes_that_cannot_be_packed(dtype):
    with pytest.raises(UnsupportedError, match=rf"{dtype}.*exclude=\['fc.weight'\]") as caught:
        keep_reason("fc.weight", dtype, (4, 4))
    assert caught.value.tensor == "fc.weight"
    assert keep_reason("fc.weight", dtype, (4, 4), exclude=["fc.*"]) == "excluded"
    assert keep_reason("embed.weight", dtype, (4, 4)) == "embedding"


def test_include_and_exclude():
    one = ("lm_head.weight", "float32", (4, 4))
    assert keep_reason(*one, include=["lm_head.*"]) is None
    assert keep_reason(*one, include=["other"]) == "not included"
    assert keep_reason(*one, include=["*"], exclude=["lm_*"]) == "excluded"
    assert keep_reason("FC.weight", "float32", (4, 4), exclude=["fc.*"]) is None
    assert keep_reason("fc.bias", "float32", (4,), include=["*"]) == "1-D"


@pytest.mark.parametrize(
    ("name", "shape", "split"),
    [
        ("mlp.experts.down_proj", (4, 16, 100), 2),
        ("mlp.experts.down_proj", (4, 16, 8), 2),
        ("block_sparse_moe.w1", (8, 64, 32), 2),
        ("conv1.weight", (384, 80, 3), 1),
        ("encoder.pos_conv_embed.conv.weight", (768, 48, 128), 1),
        ("body.0.weight", (64, 32, 7), 1),
        ("filters.weight", (64, 1, 251), 1),
        ("fc.weight", (64, 32), 1),
        ("patch.weight", (64, 3, 16, 16), 1),
        ("bias", (64,), 0),
    ],
)
def test_rows_of_stacks_and_of_convolutions(name, shape, split):
    assert split_by_name(name, shape) == split


class Counted(Shapes):
    """Counts how often all names are looked at."""

    looks = 0

    def __iter__(self):
        self.looks += 1
        return super().__iter__()

    def items(self):
        self.looks += 1
        return super().items()


def test_other_names_are_not_looked_at_for_each_name():
    """Sources have thousands of tensors: to look at all for each takes minutes."""
    names = [f"{word}.{i}.weight" for i in range(9) for word in ("head", "layers")]
    shapes = Counted(dict.fromkeys(names, (8, 4)) | {f"layers.{i}.gain": (8, 1) for i in range(9)})
    for name, shape in shapes.copy().items():
        keep_reason(name, "float32", shape, others=shapes)
    assert 0 < shapes.looks <= 3
    assert keep_reason("head.8.weight", "float32", (8, 4), others=shapes) == "output head"


def test_two_matrices_of_a_head_without_numbers_are_not_its_last():
    shapes = Shapes({"head.fc.weight": (8, 4), "head.proj.weight": (8, 4)})
    for name in shapes:
        assert keep_reason(name, "float32", (8, 4), others=shapes) is None
